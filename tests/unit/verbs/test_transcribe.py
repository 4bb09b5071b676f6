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
import torch
from torch import nn

from speechssl.config.inference import TranscribeConfig
from speechssl.config.model import ModelConfig
from speechssl.data.files import expand_audio
from speechssl.data.manifest import load_manifest, load_manifests, save_manifest
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.inference.readings import Reading
from speechssl.inference.source import Source
from speechssl.inference.timed import Span
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary
from speechssl.verbs import transcribe

module = import_module("speechssl.verbs.transcribe")


class Recogniser(nn.Module):
    def __init__(self, has_head: bool = True) -> None:
        super().__init__()
        self.head = nn.Identity() if has_head else None
        self.vocabulary = Vocabulary(FAIRSEQ_SYMBOLS) if has_head else None
        self.config, self.device = ModelConfig(), torch.device("cpu")


def hear(model: object, source: Source, *given: Any) -> Iterator[tuple[int, Reading]]:
    """Hear the names of the clips that have "one" in theirs, a word in time each, and nothing of the others."""
    done = given[-2]
    for index, name in enumerate(source.ids):
        if index not in done and source.try_read(index) is not None:
            text = name.upper() if "one" in name else ""
            spans = (Span(text, 0.1, 0.4, 0.75),) if text else ()
            yield index, Reading(text, 0.75 if text else 0.0, spans, spans)


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two clips, of which the recogniser hears the name of the first and nothing of the second."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("one", "two"):
        soundfile.write(folder / f"{name}.wav", np.zeros(8000), 16_000)
    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser())
    monkeypatch.setattr(module, "find_update", lambda *_: 7)
    monkeypatch.setattr(module, "iterate_readings", hear)
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


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Five times, with a last line that death has torn each time; no utterance is read twice."""
    for k in range(12):
        soundfile.write(clips / f"one{k:02d}.wav", np.zeros(8000 + k), 16_000)
    transcribe(make_config(clips, tmp_path / "whole.json"))
    read: list[str] = []

    def break_off(model: object, source: Source, *given: Any) -> Iterator[tuple[int, Reading]]:
        for count, (index, reading) in enumerate(hear(model, source, *given)):
            if count == 2:
                raise KeyboardInterrupt
            read.append(source.ids[index])
            yield index, reading

    out, part = tmp_path / "parts.json", tmp_path / ".parts.json.part"
    monkeypatch.setattr(module, "iterate_readings", break_off)
    for k in range(1, 6):
        with pytest.raises(KeyboardInterrupt):
            transcribe(make_config(clips, out))
        assert f"broken off: {2 * k} texts are kept in {part}" in caplog.text
        with part.open("ab") as file:
            file.write(b"0badc0de {torn")
        assert not out.exists()

    def finish(model: object, source: Source, *given: Any) -> Iterator[tuple[int, Reading]]:
        for index, reading in hear(model, source, *given):
            read.append(source.ids[index])
            yield index, reading

    monkeypatch.setattr(module, "iterate_readings", finish)
    result = transcribe(make_config(clips, out))
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(read) == sorted(set(read)) and len(read) == result["num_utterances"] == 14
    assert not part.exists()


def test_only_the_same_command_goes_on(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*given: Any) -> Iterator[tuple[int, Reading]]:
        yield from list(hear(*given))[:1]
        raise KeyboardInterrupt

    def begin(**keys: object) -> None:
        monkeypatch.setattr(module, "iterate_readings", break_off)
        with pytest.raises(KeyboardInterrupt):
            transcribe(make_config(clips, tmp_path / "texts.txt", **keys))
        monkeypatch.setattr(module, "iterate_readings", hear)

    begin()
    part = tmp_path / ".texts.txt.part"
    for key, sentence in (
        ({"window_s": 20.0}, "`window_s` must be as the command had it that .*texts.txt.part is of, 30.0, but is 20.0"),
        (
            {"format": "json"},
            "`format` must be as the command had it that .* 'tsv', but is 'json' .overwrite=true begins",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            transcribe(make_config(clips, tmp_path / "texts.txt", **key))
    assert part.exists()
    # Another file has taken the place of the one that is done: it is read.
    soundfile.write(clips / "one.wav", np.zeros(9000), 16_000)
    assert transcribe(make_config(clips, tmp_path / "texts.txt", batch_s=10.0))["audio_s"] == pytest.approx(1.0625)
    begin(overwrite=True)
    result = transcribe(make_config(clips, tmp_path / "texts.txt", window_s=20.0, overwrite=True))
    assert result["num_utterances"] == 2 and not part.exists()
    begin(overwrite=True)
    part.write_bytes(b"no line of ours\n")
    assert transcribe(make_config(clips, tmp_path / "texts.txt", overwrite=True))["num_utterances"] == 2


def test_formats_have_a_file_an_utterance_or_one_for_all(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "deep").mkdir()
    (clips / "one.wav").rename(clips / "deep" / "one more.wav")
    result = transcribe(make_config(clips, tmp_path / "out", format="srt"))
    assert (tmp_path / "out/deep/one%20more.srt").read_text() == "1\n00:00:00,100 --> 00:00:01,100\nDEEP/ONE MORE\n\n"
    assert (tmp_path / "out" / "two.srt").read_text() == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"deep", "two.srt", "result.json"}
    assert (result["texts"], result["format"], result["num_empty"]) == (str(tmp_path / "out"), "srt", 1)
    transcribe(make_config(clips, tmp_path / "all.ctm"))
    lines = "deep/one%20more 1 0.100 0.300 DEEP/ONE MORE 0.7500\n;; two 1: no words\n"
    assert (tmp_path / "all.ctm").read_text() == lines
    assert capsys.readouterr().out == ""
    transcribe(make_config(clips, "", format="ctm"))
    assert capsys.readouterr().out == lines
    transcribe(make_config(clips, tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_text())
    assert [(row["id"], row["duration_s"]) for row in found] == [("deep/one more", 0.5), ("two", 0.5)]
    for key, sentence in (
        ({"format": "json"}, "as the suffix of out="),
        ({"format": "txt"}, "`format` must be one of tsv"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            transcribe(make_config(clips, tmp_path / "all.srt", **key))


def test_a_finished_file_stays(clips: Path, tmp_path: Path) -> None:
    transcribe(make_config(clips, tmp_path / "texts.tsv"))
    with pytest.raises(ConfigError, match="overwrite=true"):
        transcribe(make_config(clips, tmp_path / "texts.tsv"))
    transcribe(make_config(clips, tmp_path / "texts.tsv", overwrite=True))


PIPED = """
from speechssl.verbs.output import print_text

for k in range(5000):
    print_text(f"u{k}\\tTEXT\\n")
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
    readings = [(0, Reading("A\x1b]0;B\x07")), (1, Reading("C\nfour\tD\u202e"))]
    monkeypatch.setattr(module, "iterate_readings", lambda *_: iter(readings))
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
        (tmp_path / ".none.tsv.part").unlink(missing_ok=True)
        assert not (tmp_path / "none.tsv").exists()
    with pytest.raises(DataError, match="`checkpoint` must recognise something, but all 1 texts are empty"):
        transcribe(make_config(clips / "two.wav", tmp_path / "none.tsv", min_confidence=0))
