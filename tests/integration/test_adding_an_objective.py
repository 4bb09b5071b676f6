"""The objective of docs/adding_an_objective.md, built from the page's own blocks and trained."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_training import manifests  # noqa: F401

ROOT = Path(__file__).parents[2]
PLACES = {
    "conf/objective/log_energy.yaml",
    "speechssl/config/objective.py",
    "speechssl/objectives/build.py",
    "speechssl/objectives/log_energy.py",
}
TRAIN = """
import json, sys
import speechssl

keys, out = json.loads(sys.argv[1]), sys.argv[2]
speechssl.pretrain(**keys | {"training.max_updates": 10}, out=out)
speechssl.pretrain(**keys, out=out)
print(speechssl.load(out).num_layers)
"""


def read_blocks() -> dict[str, tuple[str, list[str]]]:
    """Give for each file that the page names the kind and the lines of its block."""
    page = (ROOT / "docs" / "adding_an_objective.md").read_text(encoding="utf-8")
    found = re.findall(r"^`([\w./]+)`:\n\n```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return {path: (kind, text.splitlines()) for path, kind, text in found}


def apply_diff(text: str, lines: list[str]) -> str:
    """Change what a diff without line numbers says; every hunk must stand in the file exactly once."""
    for hunk in "\n".join(lines).split("\n@@\n"):
        old, new = (
            "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] in signs) for signs in (" -", " +")
        )
        assert text.count(old) == 1, f"the page changes what is not there:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package with the page's blocks in it."""
    for room in ("speechssl", "conf"):
        shutil.copytree(ROOT / room, tmp_path / "tree" / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path, (kind, lines) in read_blocks().items():
        place = tmp_path / "tree" / path
        assert place.exists() == (kind == "diff"), path
        new = apply_diff(place.read_text(encoding="utf-8"), lines) if kind == "diff" else "\n".join(lines) + "\n"
        place.write_text(new, encoding="utf-8")
    return tmp_path / "tree"


def test_an_objective_takes_four_places_and_little_code() -> None:
    blocks = read_blocks()
    assert blocks.keys() == PLACES
    written = [line for kind, lines in blocks.values() for line in lines if kind != "diff" or line.startswith("+")]
    assert 80 < len(written) < 120


def test_the_pages_objective_learns_and_resumes(tree: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    keys = {
        "model": "tiny",
        "objective": "log_energy",
        "data.train": [str(manifests / "train.tsv")],
        "data.num_workers": 0,
        "training.max_updates": 20,
        "training.schedule_updates": 20,
        "training.sub_batch_s": 8,
        "training.update_s": 8,
        "training.forward_s": 8,
        "training.lr": 5e-3,
        "logging.tensorboard": False,
        "device": "cpu",
        "precision": "float32",
    }
    command = [sys.executable, "-c", TRAIN, json.dumps(keys), str(tmp_path / "run")]
    env = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2"
    # A second run from scratch would have saved its last update only.
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("update-*")][1:], "the second call went on"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == list(range(1, 21))
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
