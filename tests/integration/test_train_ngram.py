"""`tools/train_ngram.py`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from speechssl.inference.decoding.ngram import load_arpa
from tests.cases import each_case

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "train_ngram.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_texts_become_an_arpa_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat sat.\n\nA well-known cat\n", encoding="utf-8")
    (tmp_path / "1-2.trans.txt").write_text("1-2-0000 THE CAT RAN\n", encoding="utf-8")
    out = tmp_path / "lm.arpa"
    texts = [str(tmp_path / "a.txt"), str(tmp_path / "1-2.trans.txt")]
    done = run(*texts, f"out={out}", "order=3", f"test={tmp_path / '1-2.trans.txt'}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    model = load_arpa(out)
    assert sorted(model.words) == ["A", "CAT", "KNOWN", "RAN", "SAT", "THE", "WELL"]
    assert (result["order"], result["ngrams"], result["num_words"]) == (3, model.counts, 3)
    assert result["perplexity"] == pytest.approx(model.compute_perplexity(["THE CAT RAN"]).perplexity, rel=1e-4)


def test_letters_outside_the_vocabulary_are_listed_or_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Die grüne Tür, Nr. 7! It\u2019s well-known\n", encoding="utf-8")
    words: dict[str, set[str]] = {}
    told: dict[str, str] = {}
    for keys in ("", "vocabulary=data", "case=lower", "case=keep", "case=lower keep=7-"):
        out = tmp_path / "new" / "lm.arpa.gz"
        done = run(str(tmp_path / "a.txt"), f"out={out}", "order=2", *keys.split())
        assert done.returncode == 0, done.stderr
        assert out.read_bytes()[:2] == b"\x1f\x8b"
        words[keys], told[keys] = set(load_arpa(out).words), done.stderr
    assert words[""] == {"DIE", "GRNE", "TR", "NR", "IT'S", "WELL", "KNOWN"}
    assert words["vocabulary=data"] == {"DIE", "GRÜNE", "TÜR", "NR", "IT'S", "WELL", "KNOWN"}
    assert words["case=lower"] == {word.lower() for word in words["vocabulary=data"]}
    assert words["case=keep"] == {"Die", "grüne", "Tür", "Nr", "It's", "well", "known"}
    assert words["case=lower keep=7-"] == {"die", "grüne", "tür", "nr", "7", "it's", "well-known"}
    assert "as outside the vocabulary (vocabulary=data, keep=…): 'Ü' 2 ×, '7' 1 ×\n" in told[""]
    assert "as outside the vocabulary (keep=…): '7' 1 ×\n" in told["case=lower"]
    assert told["case=lower keep=7-"] == ""


def test_what_cannot_be_read_or_written_is_told_before_the_counting(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A B\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("grün\n".encode("latin-1"))
    (tmp_path / "digits.txt").write_text("7 8\n", encoding="utf-8")
    a, out = str(tmp_path / "a.txt"), f"out={tmp_path / 'lm.arpa'}"
    for words, sentence in (
        ([str(tmp_path / "latin.txt"), out], "a text must be in UTF-8, but "),
        ([a, f"out={a}/lm.arpa"], "`out` must be a place that can be written, but "),
        ([a, f"out={tmp_path}"], "`out` must be a file, but "),
        ([a, out, "test=gone.txt"], "a text must be a file, but gone.txt does not exist"),
        ([str(tmp_path / "digits.txt"), out, "vocabulary=data"], "a text must have letters with vocabulary=data"),
    ):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"train_ngram: {sentence}")
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "lm.arpa").exists()


@each_case(
    "words, told",
    [
        (["out=lm.arpa"], "train_ngram must be given texts and out="),
        (["gone.txt", "out=lm.arpa"], "a text must be a file, but gone.txt does not exist"),
        (["gone.txt", "out=lm.arpa", "order=0"], "`order` must be a whole number of at least 1, but is '0'"),
        (["a.txt", "out=lm.arpa", "case=Upper"], "`case` must be one of upper, lower, keep, but is 'Upper'"),
        (["a.txt", "out=lm.arpa", "vocabulary=all"], "`vocabulary` must be one of fairseq, data, but is 'all'"),
        (["a.txt", "out=lm.arpa", "vocabulary=fairseq", "case=lower"], "`case` must be upper with vocabulary=fairseq"),
        (["a.txt", "out=lm.arpa", "keep=| "], "`keep` must be characters other than spaces and '|', but is '| '"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], told: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
