"""`transcribe`: lines in a file and on stdout, a result, and what it refuses."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from torch import nn

from speechssl.config.inference import TranscribeConfig
from speechssl.data.files import expand_audio
from speechssl.data.manifest import load_manifest, load_manifests, save_manifest
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.inference.recognise import Reading
from speechssl.inference.source import Source
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary
from speechssl.verbs import transcribe

module = import_module("speechssl.verbs.transcribe")


class Recogniser(nn.Module):
    def __init__(self, has_head: bool = True) -> None:
        super().__init__()
        self.head = nn.Identity() if has_head else None
        self.vocabulary = Vocabulary(FAIRSEQ_SYMBOLS) if has_head else None


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two clips, of which the recogniser hears the name of the first and nothing of the second."""

    def iterate_texts(model: object, source: Source, *_: object) -> Iterator[tuple[int, str]]:
        for index, name in enumerate(source.ids):
            if source.try_read(index) is not None:
                yield index, name.upper() if "one" in name else ""

    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("one", "two"):
        soundfile.write(folder / f"{name}.wav", np.zeros(8000), 16_000)
    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser())

    def iterate_readings(*given: Any) -> Iterator[tuple[int, Reading]]:
        for index, text in iterate_texts(*given):
            yield index, Reading(text, 0.75 if text else 0.0)

    monkeypatch.setattr(module, "iterate_texts", iterate_texts)
    monkeypatch.setattr(module, "iterate_readings", iterate_readings)
    return folder


def make_config(clips: Path, out: Path | str, **keys: object) -> TranscribeConfig:
    return TranscribeConfig(checkpoint="runs/x", audio=[str(clips)], out=str(out), device="cpu", **keys)  # type: ignore[arg-type]


def test_a_folder_gets_lines_and_result(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "speechssl"):
        result = transcribe(make_config(clips, tmp_path / "out"))
    lines = (tmp_path / "out" / "texts.tsv").read_text(encoding="utf-8")
    assert lines == "one\tONE\ntwo\t\n"
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == result
    assert (result["num_utterances"], result["num_empty"], result["audio_s"]) == (2, 1, 1.0)
    assert "nothing was recognised in 1 of 2 utterances" in caplog.text


def test_a_file_gets_the_lines(clips: Path, tmp_path: Path) -> None:
    result = transcribe(make_config(clips, tmp_path / "new" / "texts.txt"))
    assert (tmp_path / "new" / "texts.txt").read_text(encoding="utf-8").startswith("one\tONE\n")
    assert result["texts"] == result["out"] == str(tmp_path / "new" / "texts.txt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["texts.txt"]


def test_without_out_the_lines_go_to_stdout_and_nothing_is_written(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (clips / "three.wav").write_bytes(b"no audio")
    result = transcribe(make_config(clips, ""))
    assert capsys.readouterr().out == "one\tONE\ntwo\t\n"
    assert (result["texts"], result["out"], result["num_left_out"]) == ("stdout", "stdout", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_an_interrupted_run_keeps_what_is_done_under_another_name(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_off(*_: object) -> Iterator[tuple[int, str]]:
        yield 0, "ONE"
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "iterate_texts", break_off)
    with pytest.raises(KeyboardInterrupt):
        transcribe(make_config(clips, tmp_path / "out"))
    assert not (tmp_path / "out" / "texts.tsv").exists()
    assert (tmp_path / "out" / ".texts.tsv.part").read_text(encoding="utf-8") == "one\tONE\n"
    assert f"broken off: the first 1 texts are in {tmp_path / 'out' / '.texts.tsv.part'}" in caplog.text
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_finished_file_stays(clips: Path, tmp_path: Path) -> None:
    transcribe(make_config(clips, tmp_path / "texts.tsv"))
    with pytest.raises(ConfigError, match="overwrite=true"):
        transcribe(make_config(clips, tmp_path / "texts.tsv"))
    transcribe(make_config(clips, tmp_path / "texts.tsv", overwrite=True))


PIPED = """
from speechssl.verbs.transcribe import _write_lines
from speechssl.data.left_out import LeftOut

ids = [f"u{k}" for k in range(5000)]
_write_lines(ids, ((k, "TEXT") for k in range(5000)), None, LeftOut())
"""


def test_a_reader_that_goes_stops_nothing() -> None:
    """As `speechssl transcribe … | head -1` does."""
    command = [sys.executable, "-c", PIPED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"u0\tTEXT\n"
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait() == 0, told
    assert b"BrokenPipe" not in told


def test_what_cannot_be_transcribed_is_refused(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="`audio`"):
        transcribe(make_config(tmp_path / "nothing*.wav", tmp_path / "out"))
    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser(has_head=False))
    with pytest.raises(CheckpointError, match="finetune it first"):
        transcribe(make_config(clips, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_left_out_and_listed(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One file that is no audio, found when headers are read, and one of a manifest that has gone since."""
    save_manifest(expand_audio([str(clips)]), tmp_path / "m.tsv")
    (clips / "two.wav").unlink()
    (clips / "three.wav").write_bytes(b"no audio")
    config = make_config(tmp_path / "m.tsv", tmp_path / "texts.txt")
    config.audio.append(str(clips / "three.wav"))
    result = transcribe(config)
    assert (tmp_path / "texts.txt").read_text(encoding="utf-8") == "one\tONE\n"
    assert (result["num_utterances"], result["num_left_out"], result["audio_s"]) == (1, 2, 0.5)
    table = (tmp_path / "texts.left_out.tsv").read_text(encoding="utf-8")
    assert [line.split("\t")[0] for line in table.splitlines()] == ["id", "three", "two"]
    assert "left out: 2 that cannot be used, listed in" in caplog.text
    transcribe(make_config(clips / "one.wav", tmp_path / "texts.txt", overwrite=True))
    assert not (tmp_path / "texts.left_out.tsv").exists()


def test_nothing_that_can_be_used_is_a_mistake(clips: Path, tmp_path: Path) -> None:
    save_manifest(expand_audio([str(clips)]), tmp_path / "m.tsv")
    for name in ("one", "two"):
        (clips / f"{name}.wav").write_bytes(b"no audio")
    for audio in (clips, tmp_path / "m.tsv"):
        with pytest.raises(DataError, match=r"`audio` must have some .* none of 2 can be: .*one\.wav must be"):
            transcribe(make_config(audio, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_lines_are_safe_for_a_terminal(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "one.wav").rename(clips / "one\x1b[2J\nthree\tX.wav")
    monkeypatch.setattr(module, "iterate_texts", lambda *_: iter([(0, "A\x1b]0;B\x07"), (1, "C\nfour\tD\u202e")]))
    transcribe(make_config(clips, ""))
    transcribe(make_config(clips, tmp_path / "out"))
    lines = (tmp_path / "out" / "texts.tsv").read_text(encoding="utf-8")
    assert lines == "one\\x1b[2J\\nthree\\tX\tA\\x1b]0;B\\x07\ntwo\tC\\nfour\\tD\\u202e\n"
    assert capsys.readouterr().out == lines


def test_min_confidence_makes_a_manifest_to_learn_from(clips: Path, tmp_path: Path) -> None:
    """Of a manifest with its columns, or of files; a student takes it beside what people have transcribed."""
    (clips / "broken.wav").write_bytes(b"no audio")
    save_manifest(expand_audio([str(clips / "one.wav"), str(clips / "two.wav")]), tmp_path / "m.tsv")
    lines = (tmp_path / "m.tsv").read_text().splitlines()
    rows = [f"{line}\tmia\told {k}" for k, line in enumerate(lines[2:])]
    (tmp_path / "m.tsv").write_text("\n".join([lines[0], f"{lines[1]}\tspeaker\ttext", *rows, ""]))
    result = transcribe(make_config(tmp_path / "m.tsv", tmp_path / "out" / "pseudo.tsv", min_confidence=0.7))
    written = (tmp_path / "out" / "pseudo.tsv").read_text().splitlines()
    assert written == [lines[0], f"{lines[1]}\tspeaker\ttext\tconfidence", f"{lines[2]}\tmia\tONE\t0.75"]
    figures = [result[name] for name in ("num_utterances", "num_kept", "kept_s", "num_empty", "confidence_quartiles")]
    assert figures == [2, 1, 0.5, 1, [0.1875, 0.375, 0.5625]]
    transcribe(make_config(clips, tmp_path / "files.parquet", min_confidence=0))
    assert load_manifest(tmp_path / "files.parquet").column("text") == ["ONE"]
    assert "broken" in (tmp_path / "files.left_out.tsv").read_text()
    save_manifest(expand_audio([str(clips / "two.wav")]), tmp_path / "other.tsv")
    joined = load_manifests([str(tmp_path / "other.tsv"), str(tmp_path / "out" / "pseudo.tsv")], "data.train")
    assert joined.column("text") == [None, "ONE"]
    for least, out, sentence in (
        (0.8, "none.tsv", "`min_confidence` must leave some utterances, but none of 2 .* the highest is 0.7500"),
        (1.2, "none.tsv", "`min_confidence` must be a number between 0 and 1"),
        ("high", "none.tsv", "`min_confidence` must be a number between 0 and 1"),
        (0.5, "none.txt", "`out` must be a manifest"),
        (0.5, "", "`out` must be a manifest"),
    ):
        with pytest.raises((ConfigError, DataError), match=sentence):
            transcribe(make_config(clips, out and tmp_path / out, min_confidence=least))
        assert not (tmp_path / "none.tsv").exists()
    with pytest.raises(DataError, match="`checkpoint` must recognise something, but all 1 texts are empty"):
        transcribe(make_config(clips / "two.wav", tmp_path / "none.tsv", min_confidence=0))
