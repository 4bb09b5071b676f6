"""What a user gets for a mistake: exit code 2 and one sentence that names the key or file, from the command itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssl
from speechssl.checkpoints.model_folder import save_model
from speechssl.cli.main import main
from speechssl.config.model import ModelConfig
from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.errors import CheckpointError
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case

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
        "gaps": [rows["a"], dataclasses.replace(rows["b"], text=None)],
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
        capsys.readouterr()  # what earlier commands said
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


@each_case("case", CASES)
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


FEW = ("training.max_updates=2", "training.update_s=4", "training.sub_batch_s=4", "training.forward_s=4")


def list_files(folder: Path) -> list[tuple[Path, bytes]]:
    return sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_a_run_that_may_not_go_on_is_as_it_was(fails: Run, workplace: Path) -> None:
    words = [*TINY, *FEW, "data.train=good.tsv", "out=run"]
    assert main(words) == 0
    before, text = list_files(workplace / "run"), (workplace / "good.tsv").read_text()
    (workplace / "good.tsv").write_text(text.replace("48000", "47000"))
    longer = [word.replace("max_updates=2", "max_updates=3") for word in words]
    assert "`data.train`" in fails(*longer)
    (workplace / "good.tsv").write_text(text)
    assert list_files(workplace / "run") == before
    assert main(words) == 0


def test_what_is_refused_leaves_no_folder_and_claims_none(fails: Run, workplace: Path) -> None:
    fails(*TUNE, *FEW, "data.train=digits.tsv", "out=runs/x")
    fails(*TINY, *FEW, "data.train=lost.tsv", "out=runs/x")
    assert not (workplace / "runs" / "x").exists()
    assert main([*TUNE, *FEW, "data.train=digits.tsv", "text.keep='10É'", "out=runs/x"]) == 0


def test_rows_without_a_transcript_are_left_out(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*TUNE, *FEW, "data.train=gaps.tsv", "text.vocabulary=data", "out=asr"]) == 0
    assert "data.train: left out, 1 of 2 utterances cannot be used: 1 without labels" in caplog.text


def test_overwrite_replaces_nothing_before_all_is_checked(fails: Run, workplace: Path) -> None:
    assert main([*TINY, *FEW, "data.train=good.tsv", "out=run"]) == 0
    before = list_files(workplace / "run")
    fails(*TINY, *FEW, "data.train=nowhere.tsv", "out=run", "overwrite=true")
    sentence = fails("finetune", "init=run", "device=cpu", "data.train=good.tsv", "out=run", "overwrite=true")
    assert "`init` must be no part of run" in sentence
    fails(*TINY, *FEW, "data.train=lost.tsv", "out=run", "overwrite=true")
    fails(*TINY, *FEW, "data.train=good.tsv", "out=run", "overwrite=true", "logging.wandb_project=no_such_package")
    assert list_files(workplace / "run") == before


def test_overwrite_starts_over(fails: Run, workplace: Path) -> None:
    assert main([*TINY, *FEW, "data.train=good.tsv", "out=run"]) == 0
    assert main([*TINY, *FEW, "data.train=good.tsv", "out=run", "seed=2", "overwrite=true"]) == 0
    assert (workplace / "run" / "config.yaml").read_text().splitlines().count("seed: 2") == 1
    assert len((workplace / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_another_verb_keeps_out_of_a_run_and_a_run_out_of_its_result(fails: Run, workplace: Path) -> None:
    assert main([*TUNE, *FEW, "data.train=good.tsv", "out=asr"]) == 0
    assert "folder of a training run" in fails("evaluate", "asr", "good.tsv", "device=cpu", "out=asr", "overwrite=true")
    assert main(["evaluate", "asr", "good.tsv", "device=cpu", "out=scores"]) == 0
    assert "holds a finished result" in fails(*TUNE, *FEW, "data.train=good.tsv", "out=scores")


def test_a_run_needs_its_init_only_until_its_first_checkpoint(
    fails: Run, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["finetune", "init=pretrained", "data.num_workers=0", "device=cpu", *FEW, "data.train=good.tsv", "out=asr"]
    assert main(tune) == 0
    first = capsys.readouterr().out
    (workplace / "pretrained" / "model.safetensors").unlink()
    assert main(tune) == 0
    assert capsys.readouterr().out == first
    longer = [word.replace("max_updates=2", "max_updates=3") for word in tune]
    assert main(longer) == 0
    assert '"updates": 3' in capsys.readouterr().out
    assert "`init`" in fails(*tune[:-1], "out=new")
    assert "`init`" in fails(*tune, "overwrite=true")


def test_an_index_has_one_array(fails: Run, workplace: Path) -> None:
    embed = ("embed", "pretrained", "a.flac", "device=cpu")
    assert main([*embed, "out=x.npy"]) == 0
    assert "x.index.tsv is the index of x.npy" in fails(*embed, "out=x.safetensors", "overwrite=true")
    assert main([*embed, "out=x.npy", "overwrite=true"]) == 0
    assert main([*embed, "out=folder", "format=npy"]) == 0
    assert "index of" in fails(*embed, "out=folder", "format=safetensors", "overwrite=true")
    (workplace / "x.npy").unlink()
    assert "x.index.tsv is there" in fails(*embed, "out=x.safetensors")
    assert main([*embed, "out=x.safetensors", "overwrite=true"]) == 0


def test_a_page_is_no_other_file(fails: Run, workplace: Path) -> None:
    assert main([*TINY, *FEW, "data.train=good.tsv", "out=run"]) == 0
    (workplace / "LICENSE").write_text("precious")
    for name in ("good.tsv", "LICENSE"):
        assert f"`out` must be an .html file, but is {name}" in fails("report", "run", f"out={name}")
    assert (workplace / "good.tsv").read_text().startswith("# root=")


def test_a_model_is_not_written_over_another(fails: Run, workplace: Path) -> None:
    assert main([*TINY, *FEW, "data.train=good.tsv", "out=run"]) == 0
    before = list_files(workplace / "run")
    for out in ("run/checkpoints/best", "run"):
        assert "`out` must be a" in fails("convert", "pretrained", "to=speechssl", f"out={out}", "overwrite=true")
    with pytest.raises(CheckpointError, match="`out` must be a place of its own, but run is a training run"):
        speechssl.save(speechssl.load("pretrained"), "run")
    assert list_files(workplace / "run") == before
    assert "config.json is there" in fails("convert", "pretrained", "to=speechssl", "out=pretrained")
    (workplace / "theirs").mkdir()
    (workplace / "theirs" / "config.json").write_text("{}")
    assert "config.json is there" in fails("convert", "pretrained", "to=huggingface", "out=theirs")
    (workplace / "x.json").write_text("{}")
    assert "x.json is there" in fails("convert", "pretrained", "to=torchaudio", "out=x.pt")
    assert main(["convert", "pretrained", "to=torchaudio", "out=y.pt"]) == 0
    assert "y.json tells of y.pt" in fails(
        "convert", "pretrained", "to=torchaudio", "out=y.safetensors", "overwrite=true"
    )


def test_one_speaker_cannot_be_told_apart(fails: Run, workplace: Path) -> None:
    probe = ("probe", "pretrained", "data.where=speaker=a", "data.train=good.tsv", "device=cpu")
    assert "`data.train` must have two speakers or more, but has a alone" in fails(*probe)


def test_other_values_that_cannot_be(fails: Run, workplace: Path) -> None:
    assert "`layer`" in fails("embed", "pretrained", "a.flac", "layer=[]", "out=x.npy")
    (workplace / "list.txt").write_bytes("caf\xe9.flac\n".encode("latin-1"))
    assert "list.txt" in fails("embed", "pretrained", "list.txt")
    (workplace / "t.csv").write_text("path,id\na.flac,one\nb.flac,\n")
    assert "row 3 of" in fails("prepare", "t.csv", "corpus=table", "columns.id=id", "out=m")
