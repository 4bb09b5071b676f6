"""`tools/train_ngram.py`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from speechssl.evaluation.ngram import load_arpa

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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["out=lm.arpa"], "train_ngram must be given texts and out="),
        (["gone.txt", "out=lm.arpa"], "a text must be a file, but gone.txt does not exist"),
        (["gone.txt", "out=lm.arpa", "order=0"], "`order` must be a whole number of at least 1, but is '0'"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], told: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
