"""Probes checkpoints on digits, keywords, child or adult, sex and speakers, and prints one table.

Every probe is a folder in `out`; the same command goes on with those that are missing.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import speechssl
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.evaluation.statistics import Interval
from speechssl.parsing import read_json

USAGE = "usage: recipes/probes/run corpora=<folder> out=<folder> [key=value …] <checkpoint> …"

COLUMNS = {"FSDD": ["digit"], "ArabicSpeechCommands": ["keyword"], "speechocean762": ["sex", "stage"]}
"""Columns of each corpus's utterances.tsv that are told, beside its speakers and its splits."""

ADULT = 16
"""Years: nobody in speechocean762 is between 16 and 18."""

TASKS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"data.train": "FSDD/t*", "label": "digit"},
    "Arabic keywords": {"data.train": "ArabicSpeechCommands/t*", "label": "keyword"},
    "child or adult": {"data.train": "speechocean762/train", "data.test": "speechocean762/test", "label": "stage"},
    "sex": {"data.train": "speechocean762/train", "data.test": "speechocean762/test", "label": "sex"},
    "speakers, speechocean762": {"data.train": "speechocean762/train", "data.test": "speechocean762/test"},
    "speakers, LibriSpeech": {"data.train": "LibriSpeech/train", "data.test": "LibriSpeech/test*"},
}
"""What is probed: without `data.test` speakers are left out in turn; without `label` speakers are verified."""


def main(argv: Sequence[str]) -> int:
    """Make what is missing, and print the table."""
    keys = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in argv if "=" in word)}
    checkpoints = [word for word in argv if "=" not in word]
    try:
        if not checkpoints or not {"corpora", "out"} <= keys.keys():
            raise ConfigError(USAGE)
        corpora, out = Path(keys.pop("corpora")), Path(keys.pop("out"))
        for name in {task["data.train"].split("/")[0] for task in TASKS.values()}:
            prepare(corpora / name, out / "manifests" / name)
        rows = [row for name, task in TASKS.items() for row in measure(name, task, checkpoints, out, keys)]
    except SpeechSSLError as error:
        print(error, file=sys.stderr)
        return 2
    print("| task | measure | log-mel | untrained |", " | ".join(checkpoints), "|")
    print("| --- " * (4 + len(checkpoints)) + "|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return 0


def prepare(corpus: Path, out: Path) -> None:
    """Make the manifests of one corpus, with the columns that are told."""
    if out.exists() or not corpus.exists():
        return
    if corpus.name == "LibriSpeech":
        speechssl.prepare(root=str(corpus), out=str(out))
        return
    with (corpus / "utterances.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        if "age" in row:
            row["stage"] = "adult" if int(row["age"]) >= ADULT else "child"
    table = out.with_suffix(".tsv")
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    columns = {name: name for name in ("path", "speaker", "split", *COLUMNS[corpus.name])}
    speechssl.prepare(root=str(corpus), corpus="table", table=str(table), columns=columns, out=str(out))


def measure(
    name: str, task: Mapping[str, Any], checkpoints: Sequence[str], out: Path, keys: dict[str, Any]
) -> list[list[str]]:
    """Probe every checkpoint, and give the row of the table; none where the corpus is not there."""
    found = {key: [str(path) for path in sorted((out / "manifests").glob(f"{task[key]}.tsv"))]
             for key in ("data.train", "data.test") if key in task}  # fmt: skip
    if not all(found.values()):
        return []
    how: dict[str, Any] = {"label": task["label"]} if "label" in task else {"task": "verification", "backend": "plda"}
    results = []
    for checkpoint in checkpoints:
        folder = out / f"{name} {checkpoint}".replace(" ", "-").replace("/", "-").replace(",", "")
        if not (folder / "result.json").exists():
            how |= {"checkpoint": checkpoint, "out": str(folder), **found}
            speechssl.probe(**({"num_untrained": 5} | how | keys))
        results.append(read_json(folder / "result.json"))
    unit = "accuracy" if "label" in task else "eer"
    cells = [*(results[0]["baselines"][key] for key in ("log_mel", "untrained")), *results]
    return [[name, f"{unit}, %", *(f"{cell[unit]:.1f} ({Interval(**cell[f'{unit}_interval'])})" for cell in cells)]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
