"""`tune`: the search from end to end, what it keeps, and who uses it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import speechssl
from speechssl.config.data import TextConfig
from speechssl.config.decoding import WEIGHTS
from speechssl.config.model import ModelConfig
from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.errors import CheckpointError, ConfigError, SpeechSSLError
from speechssl.inference.decoding import tuning
from speechssl.inference.decoding.ngram import save_arpa
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.cases import each_case

TEXTS = ("a cat sat", "so it is", "a cat")
ASR = {"checkpoint": "asr", "device": "cpu"}
BEAM = {"decoding": "beam", "decoding.lm": "lm.arpa"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_config: ModelConfig) -> Path:
    """A folder with a recogniser that knows nothing, three seconds of noise, a language model, and a short search."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "GRID", {"lm_weight": (0.25, 1.0), "blank_penalty": (0.0, 2.0)})
    monkeypatch.setattr(tuning, "STEPS", dict.fromkeys(WEIGHTS, 0.0))
    torch.manual_seed(6)
    speechssl.save(SpeechModel(tiny_model_config, build_vocabulary(TextConfig(), [])), "asr")
    rng = np.random.default_rng(0)
    rows = []
    for k, text in enumerate(TEXTS):
        soundfile.write(f"{k}.wav", 0.1 * rng.standard_normal(12_000), 16_000)
        rows.append(Utterance(f"u{k}", tmp_path / f"{k}.wav", 16_000, 12_000, 0, None, text))
    save_manifest(build_manifest(rows, tmp_path), tmp_path / "dev.tsv")
    save_arpa(train_ngram([text.upper() for text in TEXTS], 2), tmp_path / "lm.arpa")
    return tmp_path


def tune(**keys: Any) -> dict[str, Any]:
    return speechssl.tune(**{**ASR, "data.test": "dev.tsv", "decoding.lm": "lm.arpa", "out": "tuned", **keys})


def evaluate(**keys: Any) -> dict[str, Any]:
    return speechssl.evaluate(**{**ASR, "data.test": "dev.tsv", "out": "scores", "overwrite": True, **BEAM, **keys})


def test_the_best_weights_are_kept_beside_the_recogniser_and_used_with_their_language_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "STEPS", dict.fromkeys(WEIGHTS, 0.5))
    caplog.set_level(logging.INFO, "speechssl")
    result = tune()
    assert json.loads((place / "tuned" / "result.json").read_text()) == result
    kept = json.loads((place / "asr" / "decoding.json").read_text())
    assert (result["kept"], kept["lm"], kept["update"]) == ("asr/decoding.json", "lm.arpa", 0)
    assert {name: kept[name] for name in ("weights", "wer", "greedy", "lm_sha256", "num_words", "data")} == {
        name: result[name] for name in ("weights", "wer", "greedy", "lm_sha256", "num_words", "data")
    }
    assert kept["command"]
    lm_words = len({word for text in TEXTS for word in text.split()})
    assert (result["fit"]["lm_words"], result["fit"]["lm_words_writable_share"]) == (lm_words, 1.0)
    assert result["fit"]["output_words_known"] <= result["fit"]["output_words"]
    lines = (place / "tuned" / "points.tsv").read_text().splitlines()
    assert len(lines) == result["num_points"] + 1
    notes = [row["note"] for row in result["points"]]
    assert notes.count("kept") == 1
    assert len(notes) <= tuning.NUM_FINALISTS + 1
    assert {row["beam_width"] for row in result["points"]} == {50}
    best = next(row for row in result["points"] if row["note"] == "kept")
    assert result["weights"].items() <= best.items()
    assert result["wer"] == best["wer"] == min(row["wer"] for row in result["points"])
    assert "kept: asr/decoding.json" in caplog.text

    found = evaluate()
    assert found["beam"].items() >= (result["weights"] | {"weights_from": "asr/decoding.json"}).items()
    assert (found["wer"], found["cer"]) == pytest.approx((result["wer"], result["cer"]))
    assert "weights of decoding.lm from asr/decoding.json: decoding.lm_weight=" in caplog.text
    texts = speechssl.transcribe(**ASR, audio=["0.wav"], out="texts", **BEAM)
    assert texts["beam"]["weights_from"] == "asr/decoding.json"


def test_a_users_own_weight_wins_and_another_language_model_takes_the_defaults(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert evaluate()["beam"]["weights_from"] == "defaults"
    tune()
    caplog.set_level(logging.INFO, "speechssl")
    own = evaluate(**{"decoding.lm_weight": 0.5})["beam"]
    assert own.items() >= (WEIGHTS | {"weights_from": "keys"}).items()
    assert "asr/decoding.json is not used, since decoding.lm_weight is given" in caplog.text
    save_arpa(train_ngram(["SO A CAT IS"], 1), place / "other.arpa")
    caplog.clear()
    other = evaluate(**{"decoding.lm": "other.arpa"})["beam"]
    assert other.items() >= (WEIGHTS | {"weights_from": "defaults"}).items()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([line for line in told if "is not the lm.arpa that asr/decoding.json was tuned with" in line]) == 1
    assert evaluate(decoding="beam", **{"decoding.lm": ""})["beam"]["blank_penalty"] == 0


def test_weights_are_not_replaced_unasked_and_go_along_with_the_recogniser(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tune()
    with pytest.raises(ConfigError, match=r"`checkpoint` must have no weights of a language model yet, but asr/decod"):
        tune(out="again")
    assert not (place / "again").exists()
    assert tune(overwrite=True)["weights"] == first["weights"]
    speechssl.convert(checkpoint="asr", to="speechssl", out="copy")
    copied = json.loads((place / "copy" / "decoding.json").read_text())
    assert copied == json.loads((place / "asr" / "decoding.json").read_text())
    (place / "asr" / "decoding.json").unlink()
    speechssl.convert(checkpoint="asr", to="speechssl", out="copy", overwrite=True)
    assert not (place / "copy" / "decoding.json").exists(), "they were of other weights"
    config = json.loads((place / "asr" / "config.json").read_text())
    tune(overwrite=True)
    (place / "asr" / "config.json").write_text(json.dumps(config | {"update": 7}))
    evaluate()
    assert "asr/decoding.json was tuned with update 0 of the recogniser, not 7" in caplog.text


def test_beside_a_recogniser_of_another_toolkit_nothing_is_written(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    speechssl.convert(checkpoint="asr", to="huggingface", out="hf")
    caplog.set_level(logging.INFO, "speechssl")
    result = tune(checkpoint="hf")
    assert result["kept"] == "tuned/decoding.json"
    assert not (place / "hf" / "decoding.json").exists()
    assert "give its weights by hand, as decoding.lm_weight=" in caplog.text
    (place / "tuned" / "decoding.json").rename(place / "hf" / "decoding.json")
    assert evaluate(checkpoint="hf")["beam"]["weights_from"] == "hf/decoding.json", "a user may put it there"


MISTAKES: tuple[tuple[dict[str, Any], type[SpeechSSLError], str], ...] = (
    ({"decoding.lm": ""}, ConfigError, "`decoding.lm` must be given"),
    ({"checkpoint": "nowhere"}, CheckpointError, "`checkpoint` must be a run folder or a checkpoint, but nowhere"),
    ({"decoding.lm": "no.arpa"}, SpeechSSLError, "`decoding.lm` must be an ARPA file, but no.arpa does not exist"),
)
DAMAGE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"version": 2}, "it is of another version"),
    ({"weights": {**WEIGHTS, "lm_weight": "1"}}, "its weights are no numbers"),
    ({"weights": {**WEIGHTS, "lm_weight": float("nan")}}, "its weights are no numbers"),
    ({"weights": {**WEIGHTS, "blank_penalty": -1}}, "its blank_penalty is negative"),
    ({"weights": 3}, "not"),
    ({"lm_sha256": None}, "which language model"),
    ({"update": "1"}, "which update"),
)


def test_mistakes_are_a_sentence_and_leave_nothing(place: Path) -> None:
    for keys, kind, sentence in MISTAKES:
        with pytest.raises(kind, match=sentence):
            tune(**keys)
        assert not (place / "tuned").exists()
        assert not (place / "asr" / "decoding.json").exists()


@each_case("change, reason", DAMAGE)
def test_damaged_weights_are_refused(place: Path, change: dict[str, Any], reason: str) -> None:
    from speechssl.verbs.kept import find_kept, write_kept

    whole = {"weights": WEIGHTS, "lm": "lm.arpa", "lm_sha256": "0", "update": 3}
    write_kept(place / "asr", whole)
    assert find_kept("asr") == {"version": 1, **whole}
    (place / "asr" / "decoding.json").write_text(json.dumps({"version": 1, **whole, **change}))
    with pytest.raises(CheckpointError, match=f"decoding.json must be what `speechssl tune` wrote, but .*{reason}"):
        find_kept("asr")
