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

from speechssl.config import MaskConfig, ModelConfig, QuantizerConfig, TextConfig
from speechssl.errors import SpeechSSLError
from speechssl.interop.load import load_model, read_stored_card, write_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text import build_vocabulary

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


@pytest.mark.parametrize(("name", "is_theirs"), [(HUGGINGFACE[0], False), *((name, True) for name in HUGGINGFACE)])
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
