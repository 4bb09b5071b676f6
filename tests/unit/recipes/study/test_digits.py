"""Digits by unseen speakers: a speaker is judged by a classifier that has not heard it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssl
from recipes.librispeech_mini.study import digits
from recipes.librispeech_mini.study.digits import classify
from speechssl.checkpoints.model_folder import save_model
from speechssl.config.model import ModelConfig
from speechssl.model.speech_model import SpeechModel


def test_a_digit_that_all_speakers_share_is_found_in_the_unseen_one() -> None:
    rng = np.random.default_rng(0)
    words, speakers = ["ONE", "TWO", "THREE"] * 12, [name for name in "abc" for _ in range(12)]
    centres = {word: rng.normal(size=8) for word in set(words)}
    features = np.stack([centres[word] for word in words]) + 0.05 * rng.normal(size=(36, 8))
    assert classify(features.astype(np.float32), words, speakers) == {"a": 100.0, "b": 100.0, "c": 100.0}


def test_what_only_the_speaker_knows_does_not_help() -> None:
    rng = np.random.default_rng(0)
    words, speakers = ["ONE", "TWO", "THREE"] * 12, [name for name in "abc" for _ in range(12)]
    # Each speaker says each word in a way of its own: a split by utterance would find all of them.
    centres = {(word, name): rng.normal(size=8) for word in sorted(set(words)) for name in "abc"}
    features = np.stack([centres[key] for key in zip(words, speakers, strict=True)])
    assert np.mean(list(classify(features.astype(np.float32), words, speakers).values())) < 70


def test_the_encoder_as_drawn_and_log_mel_are_measured_beside_the_model(
    tiny_model_config: ModelConfig, speech: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    lines = ["path\ttext\tspeaker"]
    for number in range(12):
        name, word = "ab"[number % 2], ("ONE", "TWO")[number // 2 % 2]
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, speech(0.4, number, 90.0 + 60 * (word == "TWO")), 16_000)
        lines.append(f"{path}\t{word}\t{name}")
    (tmp_path / "table.tsv").write_text("\n".join(lines) + "\n")
    columns = {"path": "path", "text": "text", "speaker": "speaker"}
    speechssl.prepare(corpus="table", table=str(tmp_path / "table.tsv"), columns=columns, out=str(tmp_path / "m"))
    save_model(SpeechModel(tiny_model_config).eval(), tmp_path / "model")
    found = digits.run(str(tmp_path / "model"), str(tmp_path / "m" / "all.tsv"), str(tmp_path / "out"))
    for result in (found, found["untrained"]):
        assert result["speakers"].keys() == {"a", "b"} and len(result["layers"]) == 3
        assert result["accuracy"] == pytest.approx(np.mean(list(result["speakers"].values())))
    assert found["untrained"]["layers"] != found["layers"]
    assert found["log_mel_speakers"].keys() == {"a", "b"}
    assert found["log_mel"] == pytest.approx(np.mean(list(found["log_mel_speakers"].values())))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]
