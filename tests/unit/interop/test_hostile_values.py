"""Configurations with a wrong value anywhere, files with damage anywhere: they load, or one sentence says why not."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechssl.config.data import TextConfig
from speechssl.config.model import MaskConfig, ModelConfig, QuantizerConfig
from speechssl.errors import SpeechSSLError
from speechssl.interop.load import load_model, read_stored_card, write_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.cases import each_case
from tests.unit.interop.fairseq_files import export

MAX_SENTENCE = 600

VALUES: tuple[Any, ...] = (
    None, [], {}, "x", "", -1, 0, 1, 2.5, 10**30, 10**400, -(10**30), 1e308, float("nan"), float("inf"), True, False,
    [None], [[1]], {"a": {}}, ["x" * 5000], "x" * 5000, "\ud800", "\x1b[2J", "a\nb", [10**30] * 7, [[]] * 100,
)  # fmt: skip

IS_NIGHTLY = "SPEECHSSL_NIGHTLY" in os.environ
"""All values in all places, which takes minutes; otherwise those that a fixed seed draws."""

MANY = 1000
FEW = (MANY, len(VALUES)) if IS_NIGHTLY else (24, 1)
"""Places, and values for each, of what takes a while to read."""

HUGGINGFACE = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    """A recogniser of 4,000 weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        conv_channels=[4] * 7,
        num_layers=1,
        model_dim=8,
        ffn_dim=8,
        num_heads=2,
        position_kernel=4,
        position_groups=2,
        target_dim=4,
        quantizer=QuantizerConfig(num_codes=2, codevector_dim=4),
        mask=MaskConfig(length=4),
    )
    return SpeechModel(config, build_vocabulary(TextConfig(), []))


def list_places(stored: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List where a JSON value has parts, the whole first."""
    yield place
    parts = stored.items() if isinstance(stored, dict) else enumerate(stored) if isinstance(stored, list) else ()
    # One item of a list, such as a vocabulary's, stands for the others.
    for name, part in list(parts)[: 2 if isinstance(stored, list) else None]:
        yield from list_places(part, (*place, name))


def replace_part(stored: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    name, *rest = place
    inner = replace_part(stored[name], tuple(rest), value)
    return {**stored, name: inner} if isinstance(stored, dict) else [*stored[:name], inner, *stored[name + 1 :]]


def open_either_way(value: Path, read: Callable[[str], object] = load_model) -> bool:
    """Read what a file or folder has; True if it loads, and an error if anything but a short sentence comes of it."""
    try:
        read(str(value))
    except SpeechSSLError as error:
        sentence = str(error)
    else:
        return True
    assert len(sentence) < MAX_SENTENCE, sentence[:1000]
    return False


def mutate(path: Path, value: Path, read: Callable[[str], object], num_places: int, num_values: int) -> None:
    """Put values into places of a JSON file, and take keys out."""
    whole = path.read_bytes()
    stored = json.loads(whole)
    draws = random.Random(0)
    places = list(list_places(stored))
    for place in draws.sample(places, min(num_places, len(places))):
        for wrong in draws.sample(VALUES, num_values):
            path.write_text(json.dumps(replace_part(stored, place, wrong)))
            open_either_way(value, read)
    for name in draws.sample(list(stored), min(num_places, len(stored))):
        path.write_text(json.dumps({key: part for key, part in stored.items() if key != name}))
        open_either_way(value, read)
    path.write_bytes(whole)


def test_every_wrong_value_of_our_configuration_is_a_sentence(model: SpeechModel, tmp_path: Path) -> None:
    write_model(model, tmp_path / "ours", "speechssl")
    config = tmp_path / "ours" / "config.json"
    mutate(config, tmp_path / "ours", read_stored_card, MANY, len(VALUES))
    mutate(config, tmp_path / "ours", load_model, *FEW)
    assert open_either_way(tmp_path / "ours")


@each_case("name, is_theirs", [(HUGGINGFACE[0], False), *((name, True) for name in HUGGINGFACE)])
def test_every_wrong_value_of_a_hugging_face_folder_is_a_sentence(
    name: str, is_theirs: bool, model: SpeechModel, tmp_path: Path
) -> None:
    write_model(model, tmp_path / "hf", "huggingface")
    if is_theirs:
        stored = json.loads((tmp_path / "hf" / "config.json").read_text())
        del stored["speechssl"]
        (tmp_path / "hf" / "config.json").write_text(json.dumps(stored))
    mutate(tmp_path / "hf" / name, tmp_path / "hf", load_model, *FEW)
    assert open_either_way(tmp_path / "hf")


def damage(content: bytes, draws: random.Random) -> bytes:
    """Flip a bit, mostly where descriptions stand; or cut the end off, or repeat a part."""
    changed = bytearray(content)
    place = draws.choice((draws.randrange(len(content)), draws.randrange(400), len(content) - 1 - draws.randrange(400)))
    kind = draws.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[max(0, place - 40) :]
    changed[place] ^= 1 << draws.randrange(8)
    return bytes(changed)


def write_fairseq_zip(model: SpeechModel, folder: Path) -> Path:
    torch.save(export(model, folder), folder / "a.pt")
    return folder / "a.pt"


def write_fairseq_old(model: SpeechModel, folder: Path) -> Path:
    torch.save(export(model, folder), folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def write_torchaudio(model: SpeechModel, folder: Path) -> Path:
    folder.mkdir()
    write_model(model, folder / "a.pt", "torchaudio")
    return folder / "a.pt"


def write_safetensors(model: SpeechModel, folder: Path) -> Path:
    write_model(model, folder, "huggingface")
    return folder / "model.safetensors"


def write_ours(model: SpeechModel, folder: Path) -> Path:
    write_model(model, folder, "speechssl")
    return folder / "model.safetensors"


WRITERS = (write_fairseq_zip, write_fairseq_old, write_torchaudio, write_safetensors, write_ours)


@each_case("write", WRITERS)
def test_every_damage_of_a_weight_file_loads_or_is_a_sentence(
    write: Callable[[SpeechModel, Path], Path], model: SpeechModel, tmp_path: Path
) -> None:
    path = write(model, tmp_path / "made")
    value = path if path.suffix == ".pt" else path.parent
    whole = path.read_bytes()
    assert open_either_way(value)
    draws = random.Random(0)
    for _ in range(1000 if IS_NIGHTLY else 30):
        path.write_bytes(damage(whole, draws))
        open_either_way(value)


@each_case("is_theirs", [False, True])
def test_every_wrong_fact_beside_a_state_dict_is_a_sentence(
    is_theirs: bool, model: SpeechModel, tmp_path: Path
) -> None:
    path = write_torchaudio(model, tmp_path / "made")
    facts = path.with_suffix(".json")
    if is_theirs:
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "speechssl": None}))
    mutate(facts, path, load_model, *FEW)
    assert open_either_way(path)


def test_every_wrong_value_of_a_list_of_shards_is_a_sentence(model: SpeechModel, tmp_path: Path) -> None:
    weights = load_file(write_safetensors(model, tmp_path / "hf"))
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "a.safetensors")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {name: "a.safetensors" for name in list(weights)[:3]}}))
    mutate(index, tmp_path / "hf", load_model, *FEW)
    assert open_either_way(tmp_path / "hf")
