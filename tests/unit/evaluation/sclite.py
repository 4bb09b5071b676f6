"""Pairs of texts, and what NIST's sclite and sc_stats made of them: `python -m tests.unit.evaluation.sclite` runs them.

The goldens are of SCTK 2.4.10 (Debian's package `sctk`).
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from speechssl.data.texts import format_trn

GOLDENS = Path(__file__).parent / "goldens" / "sclite.json"
TOOLS = "/usr/lib/sctk/bin"

WORDS = ["a", "the", "cat", "sat", "Sat", "é", "naïve", "straße", "你好", "мир", "o'clock", "हिन्दी", "x-ray", "no."]


def make_pairs(number: int = 500) -> tuple[list[str], list[str], list[str]]:
    """Make references and what two recognisers heard: unicode, empty ones, and words in another order."""
    rng = random.Random(1)
    rows = []
    for _ in range(number):
        said = rng.choices(WORDS, k=rng.choice([0, 1, 2, 3, 5, 8, 13, 30]))
        rows.append((said, *(_mishear(said, rate, rng) for rate in (0.25, 0.15))))
    columns = [[" ".join(words) for words in column] for column in zip(*rows, strict=True)]
    return columns[0], columns[1], columns[2]


def _mishear(said: list[str], rate: float, rng: random.Random) -> list[str]:
    heard = []
    for word in said:
        if rng.random() > rate:
            heard.append(word)
        else:
            heard += rng.choices(WORDS, k=rng.choice([0, 0, 1, 1, 1, 2, 3]))
    if not said:
        heard = rng.choices(WORDS, k=rng.choice([0, 0, 1, 2]))
    return heard


def run_sclite() -> dict[str, Any]:
    """Let sclite count the errors of each pair, and sc_stats test the two recognisers."""
    references, *heard = make_pairs()
    ids = [f"s{k % 7}-u{k}" for k in range(len(references))]
    paths, counts = [], []
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{TOOLS}"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "r.trn").write_text(format_trn(ids, references), encoding="utf-8")
        for name, texts in zip("ab", heard, strict=True):
            (Path(folder) / f"{name}.trn").write_text(format_trn(ids, texts), encoding="utf-8")
            given = ["-r", "r.trn", "trn", "-h", f"{name}.trn", "trn", name, "-i", "spu_id", "-s", "-e", "utf-8", "-p"]
            done = subprocess.run(["sclite", *given], cwd=folder, env=environment, capture_output=True, check=True)
            text = done.stdout.decode()
            marks = dict(re.findall(r'<PATH id="\((.*?)\)".*?>\n(.*?)</PATH>', text, re.DOTALL))
            words = {key: re.findall(r"^([CSDI])$", marks[key], re.MULTILINE) for key in ids}
            counts.append([[words[key].count(kind) for kind in "SDI"] for key in ids])
            # sc_stats reads what sclite means to write, all of a path in one line.
            paths.append(re.sub(r"(<PATH [^\n]*>\n)(.*?)(?=</PATH>)", _join_marks, text, flags=re.DOTALL))
        tested = subprocess.run(
            ["sc_stats", "-p", "-t", "mapsswe", "-v", "-n", "-"],
            input="".join(paths).encode(), cwd=folder, env=environment, capture_output=True, check=False,
        )  # fmt: skip
    found = re.search(r"# segs: (\d+)\).*?mean: *(\S+)\).*?Z Stat: *(\S+)\)", tested.stdout.decode(errors="replace"))
    assert found is not None, tested
    segments, mean, z = found.groups()
    return {"counts": counts, "segments": int(segments), "mean": float(mean), "z": float(z)}


def _join_marks(path: re.Match[str]) -> str:
    lines = path[2].split("\n")[:-1]
    return path[1] + ":".join(",".join(lines[k : k + 3]) for k in range(0, len(lines), 3)) + "\n"


if __name__ == "__main__":
    GOLDENS.parent.mkdir(exist_ok=True)
    GOLDENS.write_text(json.dumps(run_sclite()) + "\n")
