"""Whatever became of a run folder's files, `report` gives a page or one sentence, and soon."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from speechssl.errors import SpeechSSLError
from speechssl.report.page import build_report

VALUES: tuple[Any, ...] = (
    "abc", "", None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), [], ["a"], [[1]], {}, {"low": "x"},
)  # fmt: skip
"""What no file of ours holds where something else is expected."""

Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def fill(path: Path, rng: random.Random) -> None:
    """Leave zeros, as a power cut does."""
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def fold(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def nest(path: Path, rng: random.Random) -> None:
    path.write_text('{"update": ' + "[" * 100_000 + "\n")


def alias(path: Path, rng: random.Random) -> None:
    """Write a kilobyte of YAML that stands for gigabytes."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    path.write_text("\n".join(lines) + "\n")


def change(path: Path, rng: random.Random) -> None:
    """Put a value of another kind at some place."""
    lines = path.read_text().splitlines()
    if path.suffix == ".jsonl":
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(replace_somewhere(json.loads(lines[number]), rng))
    elif path.suffix == ".tsv":
        number = rng.randrange(len(lines))
        fields = lines[number].split("\t")
        fields[rng.randrange(len(fields))] = rng.choice(["", "x", "-1", "9" * 5000, "1.5", "a\tb", "\u2028", "# "])
        lines[number] = "\t".join(fields)
    else:
        read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
        lines = [write(replace_somewhere(read(path.read_text()), rng))]
    path.write_text("\n".join(lines) + "\n")


def replace_somewhere(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: replace_somewhere(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        number = rng.randrange(len(value))
        return [*value[:number], replace_somewhere(value[number], rng), *value[number + 1 :]]
    return rng.choice(VALUES)


DAMAGES: tuple[Damage, ...] = (empty, fill, fold, pipe, loop, nest, alias, *[flip] * 4, *[cut] * 2, *[change] * 8)


def list_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".html")


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "evaluate", "tune", "probe", "analyse"])
def test_a_damaged_folder_gives_a_page_or_a_sentence(make: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    given = {"num_updates": 12} if kind == "pretrain" else {}
    whole = getattr(make, kind)(tmp_path / "whole", **given)
    if kind == "finetune":
        make.evaluate(whole / "evaluation")
        make.probe(whole / "probe")
    rng = random.Random(f"{kind} {os.environ.get('SPEECHSSL_FUZZ_SEED', '')}")
    for _ in range(int(os.environ.get("SPEECHSSL_FUZZ_CASES", "12"))):
        folder = tmp_path / "run"
        shutil.copytree(whole, folder)
        path, damage = rng.choice(list(list_files(folder))), rng.choice(DAMAGES)
        damage(path, rng)
        with suppress(SpeechSSLError):
            assert "</html>" in build_report([folder], tmp_path / "page.html").read_text()
        shutil.rmtree(folder)
