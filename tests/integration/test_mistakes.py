"""What a user gets for a mistake: exit code 2 and one sentence that names the key or file, from the command itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.cli.main import main
from speechssl.config import ModelConfig
from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.interop.checkpoint import save_model
from speechssl.model.speech_model import SpeechModel

Run = Callable[..., str]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_config: ModelConfig) -> Path:
    """Manifests of every wrong kind, and a model that was only pretrained."""
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("a", 3.0), ("b", 3.0), ("short", 0.3)):
        wave = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)
        soundfile.write(tmp_path / f"{name}.flac", wave, 16_000)
    rows = {name: Utterance(name, tmp_path / f"{name}.flac", 16_000, 48_000, 0, name, "ONE TWO") for name in "ab"}
    plain = [Utterance(r.id, r.path, r.sample_rate, r.num_samples) for r in rows.values()]
    manifests = {
        "good": list(rows.values()),
        "plain": plain,
        "short": [Utterance("short", tmp_path / "short.flac", 16_000, 4_800)],
        "digits": [Utterance("a", rows["a"].path, 16_000, 48_000, 0, "a", "ROOM 101 CAFÉ")],
        "lost": [Utterance("lost", tmp_path / "lost.flac", 16_000, 48_000)],
    }
    for name, utterances in manifests.items():
        save_manifest(build_manifest(utterances, tmp_path), tmp_path / f"{name}.tsv")
    (tmp_path / "empty.tsv").write_text("id\tpath\tsample_rate\tnum_samples\n")
    (tmp_path / "noheader.tsv").write_text("hello\n")
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "film.m4a").write_bytes(b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00")
    save_model(SpeechModel(tiny_model_config, pretraining=True), tmp_path / "pretrained")
    return tmp_path


@pytest.fixture
def fails(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must end with 2, and return the last line of stderr."""

    def run(*words: str) -> str:
        assert main(list(words)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = captured.err.strip().splitlines()
        assert lines[-1].startswith("speechssl: ")
        assert "Traceback" not in captured.err
        return lines[-1]

    return run


TINY = ("pretrain", "model=tiny", "data.num_workers=0", "device=cpu")
TUNE = ("finetune", "model=tiny", "data.num_workers=0", "device=cpu")

CASES = {
    "a wrong key": ((*TINY, "training.max_update=1", "out=x"), ("training.max_update", "training.max_updates")),
    "an unparsable value": ((*TINY, "data.train=[a", "out=x"), ("data.train",)),
    "a value of another type": ((*TINY, "training.max_updates=many", "out=x"), ("training.max_updates", "many")),
    "a value out of range": ((*TINY, "model.dropout=1.5", "out=x"), ("model.dropout", "1.5")),
    "an unknown model": (("pretrain", "model=bass", "out=x"), ("model", "base", "bass")),
    "no out": ((*TINY, "data.train=good.tsv"), ("out",)),
    "no manifest": ((*TINY, "out=x"), ("data.train",)),
    "a missing manifest": ((*TINY, "data.train=nowhere.tsv", "out=x"), ("data.train", "nowhere.tsv")),
    "an empty manifest": ((*TINY, "data.train=empty.tsv", "out=x"), ("data.train", "empty.tsv")),
    "a manifest without header": ((*TINY, "data.train=noheader.tsv", "out=x"), ("data.train", "noheader.tsv")),
    "a missing audio file": ((*TINY, "data.train=lost.tsv", "out=x"), ("lost.flac",)),
    "clips that are all too short": ((*TINY, "data.train=short.tsv", "out=x"), ("data.train", "short")),
    "a manifest without text": ((*TUNE, "data.train=plain.tsv", "out=x"), ("data.train", "text", "plain.tsv")),
    "letters outside the vocabulary": ((*TUNE, "data.train=digits.tsv", "out=x"), ("'1' 2", "'É' 1", "text.keep")),
    "a manifest without speaker": (("probe", "pretrained", "data.train=plain.tsv"), ("data.train", "speaker")),
    "evaluate on a pretrained model": (("evaluate", "pretrained", "data.test=good.tsv"), ("checkpoint", "finetune")),
    "transcribe with a pretrained model": (("transcribe", "pretrained", "a.flac"), ("checkpoint", "finetune")),
    "no checkpoint": (("embed", "nowhere", "a.flac"), ("checkpoint", "nowhere")),
    "a glob that matches nothing": (("embed", "pretrained", "nothing/*.flac"), ("audio", "nothing/*.flac")),
    "a file that is not audio": (("embed", "pretrained", "text.wav"), ("text.wav",)),
    "a format that ffmpeg knows": (("embed", "pretrained", "film.m4a"), ("film.m4a", "ffmpeg -i")),
    "a layer out of range": (("embed", "pretrained", "a.flac", "layer=9"), ("layer", "9", "2")),
    "more blocks reset than there are": (
        ("finetune", "init=pretrained", "data.train=good.tsv", "reset_layers=3", "device=cpu", "out=x"),
        ("reset_layers", "2", "3"),
    ),
    "a later verb": (("check", "good.tsv"), ("check",)),
    "no such verb": (("pretrian",), ("pretrain",)),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_exit_2(fails: Run, case: str) -> None:
    words, parts = CASES[case]
    sentence = fails(*words)
    for part in parts:
        assert part in sentence, sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere; the next test covers it")
def test_a_folder_without_permission(fails: Run, workplace: Path) -> None:
    (workplace / "locked").mkdir(mode=0o500)
    assert "locked" in fails(*TINY, "data.train=good.tsv", "out=locked/x")


def test_an_out_that_cannot_be_written(fails: Run, workplace: Path) -> None:
    assert "`out`" in fails(*TINY, "data.train=good.tsv", "out=a.flac/x")
    assert "`out`" in fails(*TINY, "data.train=good.tsv", "out=a.flac")
    assert "`out`" in fails("embed", "pretrained", "a.flac", "out=a.flac/x.parquet")


def test_a_finished_result_is_not_overwritten(fails: Run, workplace: Path) -> None:
    (workplace / "x.parquet").write_bytes(b"precious")
    assert "overwrite=true" in fails("embed", "pretrained", "a.flac", "out=x.parquet")
    assert (workplace / "x.parquet").read_bytes() == b"precious"
