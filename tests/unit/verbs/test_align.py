"""`align`: words in time in a file, in a folder and on stdout, where texts come from, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from speechssl.cli.main import main
from speechssl.config.inference import AlignConfig
from speechssl.config.model import ModelConfig
from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.errors import CheckpointError, ConfigError, DataError, SpeechSSLError
from speechssl.inference.source import Source
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary
from speechssl.verbs import align
from tests.cases import each_case
from tests.unit.inference.test_alignment import say

module = import_module("speechssl.verbs.align")
SAID = {"one": "HELLO THERE", "two": "SO IT IS"}


class Recogniser(nn.Module):
    def __init__(self, has_head: bool = True) -> None:
        super().__init__()
        self.config = ModelConfig()
        self.device = torch.device("cpu")
        self.vocabulary = Vocabulary(FAIRSEQ_SYMBOLS) if has_head else None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clips, of which the recogniser is sure what is said, and a manifest that knows it as well."""

    def iterate_logits(model: object, source: Source, *_: object) -> Iterator[tuple[int, Tensor]]:
        for index, name in enumerate(source.ids):
            if source.try_read(index) is not None:
                yield index, say(SAID[name.rpartition("/")[2]])[0]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser())
    monkeypatch.setattr(module, "iterate_logits", iterate_logits)
    rows = []
    for folder in ("clips", "texts"):
        Path(folder).mkdir()
    for name, text in SAID.items():
        soundfile.write(f"clips/{name}.wav", np.zeros(8000), 16_000)
        Path(f"texts/{name}.txt").write_text(f"{text.capitalize()}.\n")
        rows.append(Utterance(name, tmp_path / f"clips/{name}.wav", 16_000, 8000, 0, f"s{name}", text))
    save_manifest(build_manifest(rows, tmp_path), tmp_path / "m.tsv")
    return tmp_path


def run(**keys: Any) -> dict[str, Any]:
    return align(AlignConfig(**{"checkpoint": "asr", "device": "cpu", "audio": ["clips"], **keys}))


def test_words_go_to_stdout_alone_and_nothing_is_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert main(["align", "asr", "m.tsv", "device=cpu"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert [(line[0], line[1], line[4]) for line in lines] == [
        (name, "1", word) for name, text in SAID.items() for word in text.split()
    ]
    assert all(0 <= float(line[2]) < 0.5 and line[5] == "0.9000" for line in lines)
    result = json.loads(err.splitlines()[-1])
    assert {name: result[name] for name in ("num_utterances", "num_words", "num_unheard", "format", "texts")} == {
        "num_utterances": 2, "num_words": 5, "num_unheard": 0, "format": "ctm", "texts": "stdout",
    }  # fmt: skip
    assert sorted(place.rglob("*")) == before


@each_case(
    "keys, files",
    [
        ({"out": "a.json"}, ["a.json"]),
        ({"out": "a.TextGrid"}, ["a.TextGrid"]),
        ({"out": "b", "format": "srt"}, ["b/one.srt", "b/result.json", "b/two.srt"]),
        ({"out": "c"}, ["c/one.ctm", "c/result.json", "c/two.ctm"]),
        ({"out": "d.words", "format": "json"}, ["d.words"]),
    ],
)
def test_the_suffix_of_out_or_the_key_says_the_format(place: Path, keys: dict[str, Any], files: list[str]) -> None:
    before = set(place.rglob("*"))
    result = run(text="texts", **keys)
    assert sorted(str(f.relative_to(place)) for f in set(place.rglob("*")) - before if f.is_file()) == files
    assert result["out"] == result["texts"] == keys["out"]


def test_where_texts_come_from(place: Path) -> None:
    """A folder, the manifest, a file, the text itself: the words are the same, and written as they are there."""
    expected = {"folder": "Hello there.", "manifest": "HELLO THERE", "file": "Hello there.", "literal": "hello, there"}
    one = {"audio": ["clips/one.wav"]}
    given: dict[str, dict[str, Any]] = {
        "folder": {"text": "texts"},
        "manifest": {"audio": ["m.tsv"]},
        "file": one | {"text": "texts/one.txt"},
        "literal": one | {"text": "hello,  there"},
    }
    starts = set()
    for name, keys in given.items():
        run(out=f"{name}.json", **keys)
        first = json.loads((place / f"{name}.json").read_text())[0]
        assert first["text"] == expected[name]
        assert [word["text"] for word in first["words"]] == expected[name].split()
        starts.add(tuple(word["start_s"] for word in first["words"]))
        assert (first["confidence"], first["duration_s"]) == (0.9, 0.5)
    assert len(starts) == 1


def test_what_was_not_said_is_counted_and_lowers_the_confidence(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(audio=["clips/one.wav"], text="hello wonderful there", out="a.json")
    found = json.loads((place / "a.json").read_text())[0]
    assert [word["text"] for word in found["words"]] == ["hello", "there"]
    assert (found["text"], found["confidence"]) == ("hello wonderful there", 0.6)
    assert (result["num_words"], result["num_unheard"]) == (3, 1)
    assert "1 of 3 words of the texts were not heard" in caplog.text


def test_what_has_no_text_or_cannot_be_read_is_left_out(place: Path) -> None:
    (place / "texts" / "two.txt").unlink()
    assert run(text="texts", out="a")["num_left_out"] == 1
    assert "texts/two.txt must be there, but is not" in (place / "a" / "left_out.tsv").read_text()
    (place / "clips" / "one.wav").write_bytes(b"x")
    with pytest.raises(DataError, match="none of 2 can be"):
        run(text="texts", out="b.json")
    assert not list(place.glob("*b.json*"))


def test_texts_are_romanised_by_choice(place: Path) -> None:
    run(audio=["clips/two.wav"], text="Со ит ис", romanise=True, out="a.json")
    assert [word["text"] for word in json.loads((place / "a.json").read_text())[0]["words"]] == ["Со", "ит", "ис"]
    run(audio=["clips/two.wav"], text="Со ит ис", out="b.json")
    confidences = [json.loads((place / name).read_text())[0]["confidence"] for name in ("a.json", "b.json")]
    assert confidences == [0.9, 0.0]


@each_case(
    "keys, error, sentence",
    [
        ({}, DataError, "`text` must be given .* where `audio` has no column `text`, but is not"),
        ({"text": "hello"}, DataError, "`text` must be a folder with a .txt for each of 2 utterances"),
        ({"text": "no.txt", "audio": ["clips/one.wav"]}, DataError, "`text` must be .* but no.txt does not exist"),
        ({"text": "texts", "format": "tsv"}, ConfigError, "`format` must be"),
        ({"text": "texts", "out": "a.tsv"}, ConfigError, "`out` must be a folder, or a file of json"),
        ({"text": "texts", "out": "a.srt", "format": "vtt"}, ConfigError, "`format` must be srt"),
    ],
)
def test_a_mistake_is_a_sentence(place: Path, keys: dict[str, Any], error: type[SpeechSSLError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        run(**keys)


def test_a_model_without_a_head_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_for_inference", lambda *_, **__: Recogniser(has_head=False))
    with pytest.raises(CheckpointError, match="must be a recogniser"):
        run(text="texts")
