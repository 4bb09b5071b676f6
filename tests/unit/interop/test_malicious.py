"""Checkpoints made to harm: none runs anything, each is refused in one sentence, quickly and in little memory.

Target S1 of the reliability notes: at least 12 payloads, 0 side effects, each rejected in less than 5 s with a peak of
less than twice the file and 200 MB. What each would do is leave a file behind, or take all memory.
"""

from __future__ import annotations

import collections
import importlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechssl.checkpoints.model_folder import save_model
from speechssl.config.model import MAX_LAYERS, MAX_WIDTH, ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.huggingface.folder import write_huggingface
from speechssl.interop.load import load_model
from speechssl.interop.torch_file import MAGIC
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import Vocabulary
from tests.cases import each_case
from tests.unit.interop.fairseq_files import export

SECONDS, MEGABYTES = 5.0, 200

IS_LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured in /proc")


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


class State(Call):
    """Calls something with what it would be given as its state."""

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), None, None, iter([("x", Call(self.function, *self.args))])


def save(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_archive(path: Path, description: bytes, numbers: bytes = b"", deflate: bool = False) -> None:
    """Write an archive as torch does, with a description of one's own."""
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", numbers)
        archive.writestr("archive/version", "3\n")


def describe_tensor(count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """Describe a fairseq file with one weight, of whatever storage, shape and strides."""
    parts = [
        "}(Vmodel\n}(Vencoder.layers.0.self_attn.q_proj.weight\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\n",
        f"ctorch\nFloatStorage\nV0\nVcpu\nI{count}\ntQI{offset}\n",
        "(" + "".join(f"I{n}\n" for n in shape) + "t(" + "".join(f"I{n}\n" for n in strides) + "t",
        "I00\nccollections\nOrderedDict\n(tRtRuVcfg\n}u.",
    ]
    return b"\x80\x02" + "".join(parts).encode()


def payloads(marker: Path) -> dict[str, Any]:
    """Objects that would leave a file behind, by what they call."""
    path = str(marker)
    return {
        "open": Call(open, path, "w"),
        "os.system": Call(os.system, f"touch {path}"),
        "exec": Call(exec, f"open({path!r}, 'w')"),
        "eval": Call(eval, f"open({path!r}, 'w')"),
        "subprocess": Call(subprocess.call, ["touch", path]),
        "os.mkdir": Call(os.mkdir, path),
        "import": Call(importlib.import_module, "antigravity"),
        "pickle in a pickle": Call(pickle.loads, pickle.dumps(Call(open, path, "w"))),
        "copy": Call(shutil.copy, sys.executable, path),
        "in a mapping's items": State(open, path, "w"),
        "rename": Call(os.symlink, path + "x", path),
        "getattr": Call(getattr, Call(open, path, "w"), "name"),
    }


NAMES = list(payloads(Path("x")))


@pytest.fixture
def stored(tiny_model_config: ModelConfig, tmp_path: Path) -> dict[str, Any]:
    """What a good file holds."""
    torch.manual_seed(0)
    return export(SpeechModel(tiny_model_config, pretraining=True), tmp_path / "good")


def check(path: Path, marker: Path, reason: str = "`checkpoint` must ", good: bool = False) -> None:
    """Open a file in this process and see that nothing happened."""
    before = set(path.parent.iterdir())
    modules = "antigravity" in sys.modules
    if good:
        load_model(str(path))
    else:
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_model(str(path))
        assert str(caught.value).startswith("`checkpoint` must ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000
    assert not marker.exists()
    assert not marker.is_symlink()
    assert set(path.parent.iterdir()) == before
    assert ("antigravity" in sys.modules) == modules


@each_case("writer", [save, save_old])
@each_case("name", NAMES)
def test_a_payload_among_the_weights_is_refused(
    name: str, writer: Callable[[Any, Path], None], stored: dict[str, Any], tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    payload = payloads(marker)[name]
    for place in ("whole", "model", "args"):
        content = {
            "whole": payload,
            "model": {**stored, "model": payload},
            "args": {**stored, "args": payload, "cfg": None},
        }[place]
        writer(content, tmp_path / f"{place}.pt")
        check(tmp_path / f"{place}.pt", marker)


@each_case("name", NAMES)
def test_a_payload_beside_the_weights_is_never_run(name: str, stored: dict[str, Any], tmp_path: Path) -> None:
    """A good model with something else in its optimizer state loads, and that is never looked at."""
    marker = tmp_path / "executed"
    payload = payloads(marker)[name]
    save({**stored, "last_optimizer_state": payload, "extra_state": [payload]}, tmp_path / "a.pt")
    check(tmp_path / "a.pt", marker, good=True)


@each_case("name", NAMES)
def test_the_other_doors(name: str, tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    """A bare pickle, pytorch_model.bin of a Hugging Face folder, whole and in parts, torchaudio, WavLM's authors."""
    marker = tmp_path / "executed"
    payload = payloads(marker)[name]
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(payload))
    check(tmp_path / "bare.pt", marker)
    save({"encoder.transformer.layer_norm.weight": torch.zeros(1), "x": payload}, tmp_path / "torchaudio.pt")
    check(tmp_path / "torchaudio.pt", marker)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
    save({"wav2vec2.masked_spec_embed": payload}, tmp_path / "hf" / "pytorch_model.bin")
    check(tmp_path / "hf", marker)
    shutil.copytree(tmp_path / "hf", tmp_path / "parts")
    index = {"weight_map": {"wav2vec2.masked_spec_embed": "part.bin"}}
    (tmp_path / "parts" / "pytorch_model.bin").rename(tmp_path / "parts" / "part.bin")
    (tmp_path / "parts" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check(tmp_path / "parts", marker)
    save({"cfg": {"relative_position_embedding": True}, "model": {"mask_emb": payload}}, tmp_path / "wavlm.pt")
    check(tmp_path / "wavlm.pt", marker)
    labels = Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "|", "A"))
    mms = SpeechModel(replace(tiny_model_config, norm_first=True, adapter_dim=2), labels)
    write_huggingface(mms, tmp_path / "mms")
    save({"lm_head.bias": payload}, tmp_path / "mms" / "adapter.swh.bin")
    with pytest.raises(CheckpointError, match="^`checkpoint` must .*adapter.swh.bin"):
        load_model(str(tmp_path / "mms"), language="swh")
    assert not marker.exists() and not marker.is_symlink()


TUPLES = "N" + "q\x00h\x00\x86" * 64
"""A pair of a pair of a pair …, which is small for who has its address and endless for who walks it."""

INSTRUCTIONS = {
    "a class is instantiated by INST": "(V/dev/null\ni__builtin__\nopen\n.",
    "a class is instantiated by OBJ": "(c__builtin__\nopen\nV/dev/null\no.",
    "an extension is looked up": "\x82\x01.",
    "a function gets a state": "ctorch._utils\n_rebuild_tensor_v2\n}V__defaults__\n(I1\ntsb.",
    "a class gets attributes": "cargparse\nNamespace\nN}V__setstate__\nI1\ns\x86b.",
    "a result is called": "cargparse\nNamespace\n(tR(tR.",
    "a number is called": "I1\n(tR.",
    "a list gets items": "]I1\nI2\ns.",
    "text gets elements": "Vx\nI1\na.",
    "a mapping of what cannot be a key": "}]I1\ns.",
    "memory of a huge index": "I1\nr\x7f\x7f\x7f\x7f0h\x01.",
    "bytes longer than the file": "B\x7f\x7f\x7f\x7fabc.",
    "text longer than the file": "X\x7f\x7f\x7f\x7fabc.",
    "a byte array of a terabyte": "\x96\x00\x00\x00\x00\x00\x01\x00\x00.",
    "a number of thousands of digits": f"I{'9' * 4500}\n.",
    "an empty stack": "0.",
    "no end": "(",
    "a key whose hash never ends": f"}}{TUPLES}I1\ns.",
    "a set of what never ends": f"\x8f({TUPLES}\x90.",
    "a message that never ends": f"(Vstorage\n{TUPLES}V0\nVcpu\nI4\ntQ.",
    "a value below the mark is taken": "I1\n(0.",
}


@each_case("name", INSTRUCTIONS)
def test_instructions_that_no_such_file_has(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    description = b"\x80\x02" + INSTRUCTIONS[name].encode("latin-1")
    save_archive(tmp_path / "a.pt", description)
    check(tmp_path / "a.pt", marker)
    (tmp_path / "old.pt").write_bytes(
        b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True})) + description
    )
    check(tmp_path / "old.pt", marker)


def test_a_tensor_by_hand_is_read(tmp_path: Path) -> None:
    """The description below is a good one: what makes the others fail is what they change."""
    save_archive(tmp_path / "a.pt", describe_tensor(4, (2, 2), (2, 1)), bytes(16))
    check(tmp_path / "a.pt", tmp_path / "x", "must hold fairseq's configuration")


TENSORS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "stride 0": (4, (1_000_000, 1_000_000), (0, 0), 0),
    "outside its storage": (4, (2, 2), (2, 1), 3),
    "far outside": (4, (2, 2), (2, 1), 10**15),
    "before its storage": (4, (2, 2), (2, 1), -4),
    "negative strides": (4, (2, 2), (-2, 1), 3),
    "negative shape": (4, (-2, -2), (2, 1), 0),
    "storage longer than the file": (10**12, (10**6, 10**6), (10**6, 1), 0),
    "numbers beyond 64 bits": (4, (10**30, 2), (2, 1), 0),
    "strides for other dimensions": (4, (2, 2), (1,), 0),
    "overlapping": (4, (3, 2), (1, 1), 0),
}


@each_case("name", TENSORS)
def test_tensors_that_lie_about_their_storage(name: str, tmp_path: Path) -> None:
    save_archive(tmp_path / "a.pt", describe_tensor(*TENSORS[name]), bytes(16))
    check(tmp_path / "a.pt", tmp_path / "x", "must be a whole checkpoint, but")


def nest(depth: int, width: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] * width
    return value


def hold_itself() -> Any:
    value: dict[str, Any] = {}
    value["model"] = value
    return value


@each_case(
    "cfg",
    [
        {"model": {"x": nest(30, 2)}},
        {"model": {"x": nest(60, 1)}},
        {"model": {"x": nest(8, 9)}},
        hold_itself(),
        {"model": {"w2v_args": hold_itself()}},
        {"model": {"conv_feature_layers": "[(512,10,5)]*10**9"}},
        {"model": {"conv_feature_layers": "().__class__.__base__.__subclasses__()"}},
        {"model": {"final_dim": "${oc.env:HOME}"}},
        {"model": {"_target_": "os.system", "quantize_targets": "yes"}},
    ],
)
def test_configurations_that_grow_or_compute(cfg: Any, stored: dict[str, Any], tmp_path: Path) -> None:
    save({**stored, "cfg": cfg}, tmp_path / "a.pt")
    check(tmp_path / "a.pt", tmp_path / "executed")


HUGE = {
    "num_layers": ("num_hidden_layers", "encoder_layers", 10**9),
    "model_dim": ("hidden_size", "encoder_embed_dim", 2**33),
    "ffn_dim": ("intermediate_size", "encoder_ffn_embed_dim", 2**40),
    "position_kernel": ("num_conv_pos_embeddings", "conv_pos", 2**40),
    "target_dim": ("proj_codevector_dim", "final_dim", 2**40),
    "num_heads": ("num_attention_heads", "encoder_attention_heads", 0),
    "position_groups": ("num_conv_pos_embedding_groups", "conv_pos_groups", 0),
    "quantizer.num_codes": ("num_codevectors_per_group", "latent_vars", 2**40),
    "conv_channels": ("conv_dim", None, [2**40] * 7),
    "conv_strides": ("conv_stride", None, [0] * 7),
}
"""Sizes of a network that a few bytes ask for: our key, Hugging Face's, fairseq's, and the value."""

SIZES = r"`model\.{}` must be a whole number between 1 and \d+, but is "


@each_case("ours", HUGE)
def test_networks_without_end_are_refused_by_name_before_they_are_built(
    ours: str, stored: dict[str, Any], tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    huggingface, fairseq, value = HUGE[ours]
    reason = SIZES.format(ours).replace("between 1", "between [12]")
    cfg = {"model": {**stored["cfg"]["model"], str(fairseq): value}}
    if fairseq:
        save({**stored, "cfg": cfg}, tmp_path / "a.pt")
        check(tmp_path / "a.pt", tmp_path / "executed", reason)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", huggingface: value}))
    save({"wav2vec2.masked_spec_embed": torch.zeros(1)}, folder / "pytorch_model.bin")
    check(folder, tmp_path / "executed", reason)
    check(write_ours(tmp_path / "ours", tiny_model_config, ours, value), tmp_path / "executed", reason)


def write_ours(folder: Path, config: ModelConfig, key: str, value: Any) -> Path:
    """Write a checkpoint of ours with another value in its configuration."""
    save_model(SpeechModel(config), folder)
    content = json.loads((folder / "config.json").read_text())
    section, _, name = key.rpartition(".")
    (content["model"][section] if section else content["model"])[name] = value
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@each_case("value", [None, 3, [], "x", {"num_layers": "2"}, {"num_layers": 2.5}, {"mask": 3}])
def test_a_configuration_of_ours_that_is_none(value: Any, tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    folder = write_ours(tmp_path / "ours", tiny_model_config, "name", "x")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model": value}))
    check(folder, tmp_path / "executed")


PEAK = """
def read_peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
"""
"""Most memory that a process has had, in KiB; `ru_maxrss` starts with that of the process that started it."""

MEASURE = f"""
import sys, time
{PEAK}
import torch
from speechssl.errors import CheckpointError
from speechssl.interop.load import load_model

# Torch imports hundreds of modules for its first tensor without storage, whatever file is read.
torch.zeros(1, device="meta").normal_()
before = read_peak()
for path in sys.argv[1:]:
    start = time.perf_counter()
    try:
        load_model(path)
        print("LOADED", path)
    except CheckpointError as error:
        print(f"{{time.perf_counter() - start:.3f}}", error)
print(read_peak() - before)
"""


def write_bombs(folder: Path) -> list[Path]:
    """Write small files that would take gigabytes."""
    paths = [
        folder / f"{name}.pt"
        for name in ("deflated", "stride", "memo", "overlap", "names", "old", "ops", "sets", "dir")
    ]
    deflated, stride, memo, overlap, names, old, instructions, sets, directory = paths
    save_archive(deflated, describe_tensor(80 << 20, (80 << 20,), (1,)), bytes(1 << 20) * 320, deflate=True)
    save_archive(stride, describe_tensor(4, (10**6, 10**6), (0, 0)), bytes(16))
    save_archive(memo, b"\x80\x02I1\nr\xff\xff\xff\x0f.")
    alias = torch.zeros(1 << 18)
    torch.save({"model": {f"encoder.layers.{n}.self_attn.x": alias for n in range(2000)}}, overlap)
    torch.save({f"encoder.transformer.{n}": alias.half().expand(1000, -1) for n in range(10)}, names)
    start = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True}))
    description = describe_tensor(2**40, (2**40,), (1,))
    # The old container has its storages by persistent ids with text instead of ours, and lengths before the numbers.
    old.write_bytes(start + description + pickle.dumps(["0"], 2) + struct.pack("<q", 2**40))
    save_archive(instructions, b"\x80\x02" + b"N0" * (1 << 25) + b"N.")
    save_archive(sets, b"\x80\x04" + b"\x8f" * (4 << 20) + b".")
    with zipfile.ZipFile(directory, "w") as archive:
        for number in range(50_000):
            archive.writestr(f"archive/data/{number}", b"")
    return paths


def write_wide(folder: Path, config: ModelConfig) -> list[Path]:
    """Write small checkpoints whose configuration asks for as large a network as it may."""
    size = {"num_layers": MAX_LAYERS, "model_dim": MAX_WIDTH, "ffn_dim": MAX_WIDTH}
    ours = write_ours(folder / "ours", config, "name", "x")
    content = json.loads((ours / "config.json").read_text())
    (ours / "config.json").write_text(json.dumps({**content, "model": {**content["model"], **size}}))
    theirs = folder / "hf"
    write_huggingface(SpeechModel(config), theirs)
    fields = {"num_hidden_layers": MAX_LAYERS, "hidden_size": MAX_WIDTH, "conv_dim": [MAX_WIDTH] * 7}
    content = {**json.loads((theirs / "config.json").read_text()), **fields}
    del content["speechssl"]
    (theirs / "config.json").write_text(json.dumps(content))
    projection = "feature_projection.projection."
    narrow = {f"{projection}weight": torch.ones(MAX_WIDTH, 1), f"{projection}bias": torch.zeros(MAX_WIDTH)}
    save_file({**load_file(theirs / "model.safetensors"), **narrow}, theirs / "model.safetensors")
    # A head of 65,000 labels for a network that is otherwise in the file.
    labels = write_ours(folder / "labels", config, "name", "x")
    content = json.loads((labels / "config.json").read_text())
    symbols = ["-", "|", *map(chr, range(0x20000, 0x20000 + 65_000))]
    vocabulary = {"symbols": symbols, "case": "keep", "keep": ""}
    (labels / "config.json").write_text(json.dumps({**content, "kind": "ctc", "vocabulary": vocabulary}))
    return [ours, theirs, labels, *write_texts(folder, config)]


def write_texts(folder: Path, config: ModelConfig) -> list[Path]:
    """Write checkpoints whose texts are large, deep or of many parts: JSON and the header of safetensors."""
    deep, wide, many = (write_ours(folder / name, config, "name", "x") for name in ("deep", "wide", "many"))
    (deep / "config.json").write_text("[" * 1_000_000)
    (wide / "config.json").write_text("[" + "{}," * 1_390_000 + "{}]")
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{number}": tensor for number in range(100_000)}).encode()
    (many / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return [deep, wide, many]


@pytest.mark.slow
@IS_LINUX
def test_bombs_are_refused_quickly_and_in_little_memory(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    paths = [*write_bombs(tmp_path), *write_wide(tmp_path, tiny_model_config)]
    largest = max(file.stat().st_size for path in paths for file in [path, *path.rglob("*")] if file.is_file())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True, timeout=120
    )
    *lines, peak = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line in lines:
        seconds, _, sentence = line.partition(" ")
        assert sentence.startswith("`checkpoint` must "), line
        assert float(seconds) < SECONDS, line
    assert int(peak) * 1024 < 2 * largest + MEGABYTES * 2**20


def test_a_folder_of_ours_cannot_name_classes(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    import speechssl

    speechssl.save(SpeechModel(tiny_model_config), tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    stored = json.loads(path.read_text())
    stored["model"]["_target_"] = "os.abort"
    path.write_text(json.dumps(stored))
    check(tmp_path / "ours", tmp_path / "executed", "has \\['_target_'\\]")


@each_case("header", [b"{" * 100_000, struct.pack("<Q", 2**40) + b"{", struct.pack("<Q", 2) + b"{}" * 9])
def test_safetensors_that_lie(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(header)
    check(tmp_path / "a.safetensors", tmp_path / "executed")


def test_a_truncated_file_is_refused_wherever_it_ends(stored: dict[str, Any], tmp_path: Path) -> None:
    for writer, reason in ((save, r"a\.pt is not \(it is cut off\)"), (save_old, "`checkpoint` must ")):
        buffer = io.BytesIO()
        writer(stored, buffer)  # type: ignore[arg-type]
        whole = buffer.getvalue()
        for end in range(2, len(whole), len(whole) // 23):
            (tmp_path / "a.pt").write_bytes(whole[:end])
            check(tmp_path / "a.pt", tmp_path / "executed", reason)


@IS_LINUX
def test_the_measure_of_memory_can_fail() -> None:
    code = f"{PEAK}\nbefore = read_peak()\nx = b'1' * (300 << 20)\nprint(read_peak() - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 > MEGABYTES * 2**20
