"""`transcribe decoding.nbest=…`: the table of the likeliest texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import speechssl
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import ConfigError
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_config: ModelConfig) -> None:
    """A recogniser that knows nothing, and three clips of noise."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(6)
    speechssl.save(SpeechModel(tiny_model_config, build_vocabulary(TextConfig(), [])), "asr")
    rng = np.random.default_rng(0)
    for k in range(3):
        soundfile.write(f"{k}.wav", 0.1 * rng.standard_normal(9_000 + 1000 * k), 16_000)


def transcribe(**keys: Any) -> dict[str, Any]:
    return speechssl.transcribe(**{"checkpoint": "asr", "device": "cpu", "audio": ["*.wav"], **keys})


def test_the_likeliest_texts_are_listed_beside_the_texts() -> None:
    keys: dict[str, Any] = {"decoding": "beam", "decoding.nbest": 3, "overwrite": True}
    for out, name in (("texts", "texts/nbest.tsv"), ("a.tsv", "a.nbest.tsv")):
        result = transcribe(out=out, **keys)
        assert result["nbest"] == name
        header, *rows = [line.split("\t") for line in Path(name).read_text(encoding="utf-8").splitlines()]
        assert header == ["id", "rank", "total", "acoustic", "lm", "num_unknown", "text"]
        texts = dict(line.split("\t") for line in Path(result["texts"]).read_text(encoding="utf-8").splitlines())
        assert {row[0]: row[6] for row in rows if row[1] == "1"} == texts
        assert len({(row[0], row[6]) for row in rows}) == len(rows) > len(texts)
        assert all(row[2] == row[3] and row[4:6] == ["0.0000", "0"] for row in rows), "no language model"
    assert "nbest" not in transcribe(out="a.tsv", **keys | {"decoding.nbest": 1})
    for wrong, told in (
        ({}, "`decoding.nbest` must be 1 without `out`, and with min_confidence"),
        ({"out": "m.tsv", "min_confidence": 0.1}, "`decoding.nbest` must be 1 without `out`, and with min_confidence"),
        ({"out": "a.tsv", "decoding": "greedy"}, "`decoding.nbest` must be 1 with decoding=greedy"),
        ({"out": "a.tsv", "decoding.nbest": 51}, "`decoding.nbest` must be between 1 and decoding.beam_width, 50"),
        ({"out": "a.tsv", "decoding.num_workers": -2}, "`decoding.num_workers` must be between 0 and 256, or -1"),
    ):
        with pytest.raises(ConfigError, match=told):
            transcribe(**keys | wrong)
