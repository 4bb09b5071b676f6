"""What a model card says of the run behind a model: data, hours and figures, without the places of this machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.layout import CONFIG, DATA, ENVIRONMENT, RESULT
from speechssl.errors import DataError
from speechssl.parsing import parsing, read_json
from speechssl.printable import make_printable
from speechssl.report.run_folder import KINDS, RunFolder, load_run

FIGURES = {"wer": ("WER", " %"), "cer": ("CER", " %"), "loss": ("loss", "")}
"""Metrics of a validation or a test that a card shows: what they are called, and their unit."""

_logger = logging.getLogger("speechssl")


def describe_run(checkpoint: str, update: int = 0) -> str:
    """Describe the training run that a checkpoint is of.

    Args:
        checkpoint: value of the key.
        update: after which it was saved: the validation of that update, or the last before it, is shown.

    Returns:
        Markdown; empty where the checkpoint is of no run that is here, or the run's files do not read, which is logged.
    """
    path = Path(checkpoint)
    places = (path, *path.resolve().parents[:2])
    folder = next((place for place in places if all((place / name).exists() for name in (CONFIG, ENVIRONMENT))), None)
    if folder is None:
        return ""
    try:
        run = load_run(folder)
        hours, test = _count_hours(folder), _read(folder / "evaluation" / RESULT)
    except DataError as error:
        _logger.warning("the model card says nothing of the run: %s", error)
        return ""
    rows = {"run": KINDS[run.kind], **_list_data(run, hours), **_list_figures(run, test, update)}
    return "\n".join(
        ["| | |", "| --- | --- |", *(f"| {label} | {escape(value)} |" for label, value in rows.items()), ""]
    )


def escape(value: str) -> str:
    """Spell a value as a cell of a Markdown table takes it."""
    return make_printable(value).replace("|", "\\|")


def _list_data(run: RunFolder, hours: dict[str, float]) -> dict[str, str]:
    names = {key: run.get_config(f"data.{key}", []) for key in ("train", "valid")}
    rows = {}
    for key, paths in names.items():
        if paths and isinstance(paths, list):
            much = f" ({hours[f'data.{key}']:.2f} h)" if f"data.{key}" in hours else ""
            rows[f"data.{key}"] = ", ".join(_shorten(item) for item in paths) + much
    if init := run.get_config("init", ""):
        rows["started from"] = _shorten(init)
    if heard := run.last("train", "hours_seen"):
        rows["speech heard"] = f"{heard:.1f} h in {run.num_updates} updates, repeats counted"
    return rows


def _list_figures(run: RunFolder, test: dict[str, Any], update: int) -> dict[str, str]:
    valid = [row for row in run.select("valid") if row["update"] <= update]
    rows = {}
    for where, found in (("held out", valid[-1] if valid else {}), ("test", test)):
        figures = [
            f"{label} {found[name]:.4g}{unit}" for name, (label, unit) in FIGURES.items() if found.get(name) is not None
        ]
        if figures:
            rows[where] = ", ".join(figures)
    if "test" in rows:
        rows["test"] += f" on {', '.join(map(_shorten, run.test_sets))}"
    return rows


def _count_hours(folder: Path) -> dict[str, float]:
    """Count the hours of speech behind each key; nothing where the run kept no record."""
    if not (folder / DATA).exists():
        return {}
    with parsing(str(folder / DATA), "a record of the data"):
        table = pq.read_table(folder / DATA, columns=["key", "num_samples"])
        return {
            key: pc.sum(table.filter(pc.equal(table["key"], key))["num_samples"]).as_py() / SAMPLE_RATE / 3600
            for key in table["key"].unique().to_pylist()
        }


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _shorten(place: object) -> str:
    """Give the last name of a path; what is no path here stays, such as a model of the Hub."""
    return Path(str(place)).name if Path(str(place)).exists() or str(place)[:1] in "/.~" else str(place)
