"""`evaluate`: figures, files, tables, and what it refuses."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from torch import nn

from speechssl import config as schemas
from speechssl.data.manifest import Manifest, Utterance, build_manifest, load_manifest, save_manifest
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.inference.decoding.ngram import save_arpa
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.inference.recognise import Reading, require_recogniser
from speechssl.report.run_folder import load_table
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary
from speechssl.verbs import evaluate

module = import_module("speechssl.verbs.evaluate")

SAID = ["The cat sat.", "A caf\u00e9", "well-known words", "so"]
HEARD = ["THE CAT SAD", "A CAF", "WELL KNOWN WORDS", ""]
SPEAKERS = ["s1", "s1", "s2", "s3"]


class Recogniser(nn.Module):
    def __init__(self, has_head: bool = True) -> None:
        super().__init__()
        self.head = nn.Identity() if has_head else None
        self.vocabulary = Vocabulary(FAIRSEQ_SYMBOLS) if has_head else None


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path, SAID, SPEAKERS)


def write_manifest(folder: Path, texts: list[str] | list[None], speakers: list[str] | list[None]) -> Path:
    soundfile.write(folder / "a.wav", np.zeros(4000), 16_000)
    rows = [
        Utterance(f"u{k}", folder / "a.wav", 16_000, 4000, 0, speaker, text)
        for k, (text, speaker) in enumerate(zip(texts, speakers, strict=True))
    ]
    save_manifest(build_manifest(rows, folder), folder / "test.tsv")
    return folder / "test.tsv"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a recogniser in place that hears what `HEARD` says of each id."""

    def recognise(model: object, manifest: object, *_: object) -> list[str]:
        return [HEARD[int(name[1:])] for name in manifest.column("id")]  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser())
    monkeypatch.setattr(module, "recognise", recognise)


def make_config(manifest: Path, out: Path, **keys: object) -> schemas.EvaluateConfig:
    data = schemas.TestDataConfig(test=[str(manifest)], where=str(keys.pop("where", "")))
    return schemas.EvaluateConfig(checkpoint="runs/x", out=str(out), data=data, device="cpu", **keys)  # type: ignore[arg-type]


@pytest.mark.usefixtures("heard")
def test_figures_are_corpus_sums_and_stored(manifest: Path, tmp_path: Path) -> None:
    result = evaluate(make_config(manifest, tmp_path / "out"))
    assert result["wer"] == pytest.approx(100 * 3 / 9)
    assert (result["substitutions"], result["deletions"], result["insertions"]) == (2, 1, 0)
    assert (result["num_utterances"], result["num_words"], result["num_empty"]) == (4, 9, 1)
    assert result["cer"] == pytest.approx(100 * (1 + 1 + 2) / (11 + 6 + 16 + 2))
    assert result["wer_interval"]["unit"] == "speaker"
    assert result["wer_interval"]["count"] == 3
    assert result["wer_interval"]["reliable"] is False
    assert result["wer_interval"]["low"] <= result["wer"] <= result["wer_interval"]["high"]
    assert [row["speaker"] for row in result["speakers"]] == ["s1", "s2", "s3"]
    assert result["unknown_letters"] == {".": 1, "\u00c9": 1, "-": 1}
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == result
    assert {"utterances.tsv", "confusions.tsv"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.usefixtures("heard")
def test_tables_go_to_the_log(manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "speechssl"):
        evaluate(make_config(manifest, tmp_path / "out"))
    for words in ("U+00C9", "s3", "SAT → SAD ×1", "said   SO", "33.33 % (95 %: ", "over 3 speakers, unreliable"):
        assert words in caplog.text


@pytest.mark.usefixtures("heard")
def test_a_filter_takes_its_rows(manifest: Path, tmp_path: Path) -> None:
    result = evaluate(make_config(manifest, tmp_path / "out", where="speaker=s2"))
    assert (result["num_utterances"], result["wer"]) == (1, 0.0)
    assert result["wer_interval"]["low"] is None


@pytest.mark.usefixtures("heard")
def test_rows_without_a_transcript_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write_manifest(tmp_path, ["The cat sat", None, "", "so"], [None] * 4)  # type: ignore[list-item]
    with caplog.at_level(logging.WARNING, "speechssl"):
        result = evaluate(make_config(manifest, tmp_path / "out"))
    assert (result["num_utterances"], result["num_untranscribed"]) == (2, 2)
    assert "2 of 4 utterances have no transcript and are left out" in caplog.text
    assert result["wer_interval"]["unit"] == "utterance"
    assert (result["num_speakers"], result["speakers"]) == (None, [])


@pytest.mark.usefixtures("heard")
def test_twenty_speakers_make_an_interval_reliable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_manifest(tmp_path, ["so"] * 20, [f"s{k}" for k in range(20)])
    monkeypatch.setattr(module, "recognise", lambda *_: ["SO", ""] * 10)
    result = evaluate(make_config(manifest, tmp_path / "out"))
    assert result["wer_interval"]["reliable"] is True
    assert (result["num_speakers"], result["speakers"]) == (20, [])


@pytest.mark.usefixtures("heard")
def test_a_finished_result_stays(manifest: Path, tmp_path: Path) -> None:
    evaluate(make_config(manifest, tmp_path / "out"))
    with pytest.raises(ConfigError, match="overwrite=true"):
        evaluate(make_config(manifest, tmp_path / "out"))
    assert evaluate(make_config(manifest, tmp_path / "out", overwrite=True))["num_words"] == 9


def test_a_pretrained_model_is_refused(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser(has_head=False))
    with pytest.raises(CheckpointError, match="`checkpoint` must be a recogniser.*finetune it first"):
        evaluate(make_config(manifest, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError):
        require_recogniser(Recogniser(has_head=False))  # type: ignore[arg-type]


@pytest.mark.usefixtures("heard")
def test_a_manifest_without_text_is_refused(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, [None, None], [None, None])
    with pytest.raises(DataError, match=r"`data\.test` must have"):
        evaluate(make_config(manifest, tmp_path / "out"))


@pytest.mark.usefixtures("heard")
def test_a_manifest_whose_texts_are_blank_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_for_inference", None)
    manifest = write_manifest(tmp_path, [" ", "\t"], [None, None])
    with pytest.raises(DataError, match=r"`data\.test` must have transcripts, but none of its 2 utterances has one"):
        evaluate(make_config(manifest, tmp_path / "out"))


def test_hypotheses_are_spelt_as_references_are(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symbols of an imported vocabulary may be spelt in another way: decomposed, or with another apostrophe."""
    recogniser = Recogniser()
    recogniser.vocabulary = Vocabulary(("<pad>", "|", "a", "e", "\u2019", "\u0301", "\u0958"), case="lower")
    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: recogniser)
    monkeypatch.setattr(module, "recognise", lambda *_: ["e\u0301a", "a\u2019e", "\u0958"])
    manifest = write_manifest(tmp_path, ["\u00c9a", "a\u2019e", "\u0958"], [None, None, None])
    assert evaluate(make_config(manifest, tmp_path / "out"))["cer"] == 0.0


@pytest.mark.usefixtures("heard")
def test_no_manifest_no_rows_and_no_resamples_are_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data\.test`"):
        evaluate(schemas.EvaluateConfig(checkpoint="runs/x", out=str(tmp_path / "out")))
    with pytest.raises(DataError, match=r"`data\.where` must keep some rows"):
        evaluate(make_config(manifest, tmp_path / "out", where="speaker=nobody"))
    with pytest.raises(ConfigError, match="`num_resamples` must be at least 1"):
        evaluate(make_config(manifest, tmp_path / "out", num_resamples=0))


@pytest.mark.usefixtures("heard")
def test_the_result_says_how_it_was_decoded(manifest: Path, tmp_path: Path) -> None:
    assert evaluate(make_config(manifest, tmp_path / "greedy"))["decoding"] == "greedy"
    save_arpa(train_ngram(["THE CAT SAT"], 2), tmp_path / "lm.arpa")
    beam = schemas.DecodingConfig(name="beam", lm=str(tmp_path / "lm.arpa"), lm_weight=1.5)
    result = evaluate(make_config(manifest, tmp_path / "beam", decoding=beam))
    assert result["decoding"] == "beam"
    assert (result["beam"]["lm_weight"], result["beam"]["lm_ngrams"]) == (1.5, [6, 4])
    assert result["beam"]["lm"] == str(tmp_path / "lm.arpa")


@pytest.mark.usefixtures("heard")
def test_words_that_a_language_model_leaves_out_are_said(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_arpa(train_ngram(["THE CAT SAT"], 2), tmp_path / "lm.arpa")
    beam = schemas.DecodingConfig(name="beam", lm=str(tmp_path / "lm.arpa"))
    sentence = "% of the words that were said are left out: `speechssl tune` finds better weights"
    evaluate(make_config(manifest, tmp_path / "few", decoding=beam))
    monkeypatch.setattr(module, "recognise", lambda *_: ["THE CAT SAT", "", "", ""])
    evaluate(make_config(manifest, tmp_path / "greedy"))
    assert sentence not in caplog.text
    evaluate(make_config(manifest, tmp_path / "many", decoding=beam))
    assert f"with decoding.lm 67 {sentence}" in caplog.text


@pytest.mark.usefixtures("heard")
def test_a_language_model_that_is_not_there_is_told_before_anything_is_heard(manifest: Path, tmp_path: Path) -> None:
    beam = schemas.DecodingConfig(name="beam", lm=str(tmp_path / "lm.arpa"))
    with pytest.raises(DataError, match=r"`decoding.lm` must be an ARPA file, but .*lm.arpa does not exist"):
        evaluate(make_config(manifest, tmp_path / "out", decoding=beam))
    assert not (tmp_path / "out").exists()


def test_audio_that_cannot_be_used_is_left_out_of_the_figures_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_manifest(tmp_path, SAID, SPEAKERS)

    def recognise(model: object, manifest: Manifest, *arguments: Any) -> list[str]:
        arguments[4].add("u1", tmp_path / "a.wav", "a.wav must be whole, but is damaged")
        return [HEARD[int(name[1:])] for name in manifest.column("id") if name != "u1"]

    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser())
    monkeypatch.setattr(module, "recognise", recognise)
    result = evaluate(make_config(manifest, tmp_path / "out"))
    assert (result["num_utterances"], result["num_left_out"], result["num_words"]) == (3, 1, 7)
    assert result["wer"] == pytest.approx(100 * 2 / 7)
    assert "u1\t" in (tmp_path / "out" / "left_out.tsv").read_text(encoding="utf-8")
    assert "left out: 1 that cannot be used" in caplog.text

    def recognise_nothing(model: object, manifest: Manifest, *arguments: Any) -> list[str]:
        for name in manifest.column("id"):
            arguments[4].add(name, tmp_path / "a.wav", "it is bad")
        return []

    monkeypatch.setattr(module, "recognise", recognise_nothing)
    with pytest.raises(DataError, match=r"`data\.test` must have some .* but none of 4 can be: it is bad"):
        evaluate(make_config(manifest, tmp_path / "none"))


@pytest.mark.usefixtures("heard")
def test_silence_counts_where_it_is_asked_for(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ["The cat sat", None, "", "so"], [None] * 4)  # type: ignore[list-item]
    result = evaluate(make_config(manifest, tmp_path / "out", empty=True))
    assert (result["num_utterances"], result["num_silent"], result["num_untranscribed"]) == (4, 2, 0)
    assert (result["insertions"], result["num_words"]) == (2 + 3, 4)
    assert result["wer"] == pytest.approx(100 * (1 + 5 + 1) / 4)


@pytest.mark.usefixtures("heard")
def test_both_sides_go_through_one_normaliser(manifest: Path, tmp_path: Path) -> None:
    basic = evaluate(make_config(manifest, tmp_path / "basic", normaliser="basic", trn=True))
    assert (basic["wer"], basic["normaliser"]) == (pytest.approx(100 * 3 / 9), "basic")
    assert "the cat sat (u0)" in (tmp_path / "basic" / "reference.trn").read_text(encoding="utf-8")
    assert "the cat sad (u0)" in (tmp_path / "basic" / "hypothesis.trn").read_text(encoding="utf-8")
    none = evaluate(make_config(manifest, tmp_path / "none", normaliser="none"))
    assert none["wer"] == pytest.approx(100 * (3 + 1 + 3 + 1) / 8), "nothing but the A is spelt alike"
    with pytest.raises(ConfigError, match="`normaliser` must be one of none, basic, english, but is 'x'"):
        make_config(manifest, tmp_path / "x", normaliser="x")


@pytest.mark.usefixtures("heard")
def test_columns_have_rates_of_their_own_and_utterances_their_lengths_and_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load_manifest(write_manifest(tmp_path, SAID, SPEAKERS)).table
    table = table.append_column("sex", pa.array(["F", "F", None, "M"]))
    save_manifest(Manifest(table, tmp_path, "m"), tmp_path / "m.tsv")

    def recognise(_: object, manifest: Manifest, *arguments: Any) -> list[str]:
        arguments[-1].see(1, np.full(4000, 0.1, np.float32))
        arguments[-1].see(2, np.zeros(4000, np.float32))
        for index, confidence in enumerate((0.9, 0.5, 0.95, 0.0)):
            arguments[-1].note(index, Reading(HEARD[index], confidence))
        return HEARD

    monkeypatch.setattr(module, "recognise", recognise)
    result = evaluate(make_config(tmp_path / "m.tsv", tmp_path / "out", by=["sex"]))
    assert [(row["value"], row["num_words"], row["wer"]) for row in result["groups"]] == [
        ("", 3, 0.0), ("F", 5, 40.0), ("M", 1, 100.0),
    ]  # fmt: skip
    rows = load_table(tmp_path / "out" / "utterances.tsv")
    assert {row["id"]: (row["seconds"], row["level_db"], row["sex"]) for row in rows} == {
        "u0": ("0.25", "", "F"), "u1": ("0.25", "-20.0", "F"), "u2": ("0.25", "-inf", ""), "u3": ("0.25", "", "M"),
    }  # fmt: skip
    assert [row["confidence"] for row in rows if row["id"] == "u1"] == ["0.5000"]
    # u0 has 10 of 11 letters right, u1 all of 5, u2 all of 16; nothing was written of u3.
    bins = [[50, 100, 5], [100 * (0.9 * 11 + 0.95 * 16) / 27, 100 * 26 / 27, 27]]
    assert np.array(result["calibration"]["bins"]) == pytest.approx(np.array(bins))
    error = sum(abs(sure - right) * size for sure, right, size in bins) / 32
    assert result["calibration"]["error"] == pytest.approx(error)
    groups = load_table(tmp_path / "out" / "groups.tsv")
    assert [(row["column"], row["value"], row["wer"], row["unit"]) for row in groups][1] == (
        "sex", "F", "40.0000", "speaker",
    )  # fmt: skip
    with pytest.raises(DataError, match="`by` must have a column accent"):
        evaluate(make_config(tmp_path / "m.tsv", tmp_path / "other", by=["accent"]))
