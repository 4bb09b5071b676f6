"""Networks that `transformers` has no class for: their folders open there with their own code, and here without it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechssl import transcribe
from speechssl.config.data import TextConfig
from speechssl.errors import CheckpointError
from speechssl.interop.huggingface import own_code
from speechssl.interop.load import load_model, open_checkpoint, write_model
from speechssl.model.adaptation import Adapter
from speechssl.model.conformer import BatchNorm
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.parity.hf_weights import make_config

transformers = pytest.importorskip("transformers", reason="transformers is the other side of this test")

MEL = {"front_end": "log_mel"}
CONFORMER = {"block": "conformer", "norm_first": True, "positions": "rotary"}
NETWORKS = {
    "small": MEL | {"norm_first": True},
    "quarter": MEL | CONFORMER | {"adapter_dim": 3, "frame_rate": 25, "mel_kernels": [5, 5], "mel_channels": [24, 32]},
    "macaron": CONFORMER
    | {"macaron": True, "block_norm": "batch", "conv_norm": "layer", "conv_bias": True, "normalize_waveform": True},
    "group": CONFORMER,
    "padding": CONFORMER | {"group_norm_frames": "all"},
    "told": MEL | {"self_conditioning": 1},
    "post": MEL | {"adapter_dim": 3, "positions": "rotary", "normalize_waveform": True, "waveform_epsilon": 1e-6},
}
LENGTHS = (16_000, 9_000)


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the copies of code that `transformers` makes out of the home."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def make_model(network: str, kind: str) -> SpeechModel:
    torch.manual_seed(5)
    vocabulary = build_vocabulary(TextConfig(), []) if kind == "ctc" else None
    model = SpeechModel(make_config(**NETWORKS[network]), vocabulary, pretraining=kind == "pretraining").eval()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, Adapter):
            torch.nn.init.normal_(module.up.weight)
    if model.conditioning is not None:
        torch.nn.init.normal_(model.conditioning.weight)
    return model


def open_there(folder: Path, kind: str) -> torch.nn.Module:
    auto = transformers.AutoModelForCTC if kind == "ctc" else transformers.AutoModel
    model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def draw_waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(0, 0.1, length).astype(np.float32) for length in LENGTHS]


def test_a_folder_opens_there_with_the_same_numbers(tmp_path: Path) -> None:
    """Every state and the output within 1e-5, single and padded."""
    for network, kind in [*product(NETWORKS, ["ctc"]), ("small", "backbone"), ("macaron", "backbone")]:
        ours = make_model(network, kind)
        folder = tmp_path / f"{network}_{kind}"
        write_model(ours, folder, "huggingface")
        theirs = open_there(folder, kind)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        waves = draw_waveforms()
        # Where padding has a say, there is no mask, and only single rows are the same.
        batches = [[wave] for wave in waves] + ([waves] if network != "padding" else [])
        for batch in batches:
            inputs = extractor(batch, sampling_rate=16_000, return_tensors="pt", padding=True)
            assert ("attention_mask" in inputs) == (network != "padding")
            with torch.inference_mode():
                found = theirs(**inputs, output_hidden_states=True)
                output = found.logits if kind == "ctc" else found.last_hidden_state
                for row, wave in enumerate(batch):
                    frames = ours(torch.from_numpy(wave)[None])
                    count = int(frames.num_frames)
                    assert count == theirs._get_feat_extract_output_lengths(len(wave))
                    expected = (frames.logits if kind == "ctc" else frames.last, *frames.layers)
                    for value, reference in zip((output, *found.hidden_states), expected, strict=True):
                        torch.testing.assert_close(value[row, :count], reference[0], atol=1e-5, rtol=0)


def test_there_and_back_is_bitwise_the_same_and_runs_nothing(tmp_path: Path) -> None:
    """Also through a save of `transformers`; the code in the folder may be anything, or gone."""
    for network, kind in (("small", "pretraining"), ("quarter", "ctc"), ("macaron", "backbone")):
        ours = make_model(network, kind)
        folder = tmp_path / f"{network}_{kind}"
        write_model(ours, folder, "huggingface", update=11)
        folders = [folder]
        if kind != "pretraining":
            open_there(folder, kind).save_pretrained(again := tmp_path / f"{network}_again")
            assert (again / own_code.CODE).exists()
            folders.append(again)
        marker = tmp_path / "executed"
        (folder / own_code.CODE).write_text(f"open({str(marker)!r}, 'w')\n")
        for place in folders:
            foreign = open_checkpoint(str(place))
            assert (foreign.card.update, foreign.card.kind, foreign.dropped) == (11, kind, ())
            back = load_model(str(place))
            assert (back.config, back.vocabulary) == (ours.config, ours.vocabulary)
            assert back.state_dict().keys() == ours.state_dict().keys()
            assert all(torch.equal(back.state_dict()[name], value) for name, value in ours.state_dict().items())
            (place / own_code.CODE).unlink()
            load_model(str(place))
        assert not marker.exists()


def test_the_lines_of_the_model_card_and_a_pipeline_write_what_we_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech: Callable[..., np.ndarray]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model("quarter", "ctc")
    assert model.head is not None
    torch.nn.init.normal_(model.head.linear.weight)
    write_model(model, tmp_path / "asr", "huggingface")
    soundfile.write("a.flac", speech(1.5, 3), 16_000)
    expected = transcribe(model, "a.flac")[0].split()
    (lines,) = re.findall(r"```python\n(.*?)```", (tmp_path / "asr" / "README.md").read_text(), re.DOTALL)
    names: dict[str, str] = {}
    exec(lines, names)
    recognise = transformers.pipeline("automatic-speech-recognition", model="asr", device="cpu", trust_remote_code=True)
    sound = {"raw": soundfile.read("a.flac", dtype="float32")[0], "sampling_rate": 16_000}
    for text in (names["text"], recognise(sound)["text"]):
        assert re.sub(r"<s>|</s>|<unk>", "", text).split() == expected
    assert expected


def test_the_code_needs_torch_and_transformers_alone() -> None:
    tree = ast.parse(Path(own_code.__file__).with_name(own_code.CODE).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in modules} <= {
        "__future__",
        "types",
        "typing",
        "torch",
        "transformers",
    }


def test_a_network_that_the_code_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(own_code.VALUES, "block", ("transformer",))
    with pytest.raises(CheckpointError, match=r"`model.block` must be transformer for huggingface, whose code has no"):
        write_model(make_model("group", "ctc"), tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    write_model(make_model("small", "ctc"), tmp_path / "hf", "huggingface")
    path = tmp_path / "hf" / "config.json"
    whole = json.loads(path.read_text())
    for changes, message in (
        ({"speechssl": None}, "must have a network under 'speechssl' in"),
        ({"speechssl": {"model": 3}}, "must have a network under 'speechssl' in its JSON"),
        ({"speechssl": whole["speechssl"] | {"vocabulary": None}}, "must hold a vocabulary"),
        ({"speechssl": whole["speechssl"] | {"model": {"num_layers": 10**9}}}, "must be a network that can be built"),
        ({"speechssl": whole["speechssl"] | {"model": {}}}, "must have exactly the weights of its network"),
    ):
        path.write_text(json.dumps(whole | changes))
        with pytest.raises(CheckpointError, match=message):
            load_model(str(tmp_path / "hf"))
