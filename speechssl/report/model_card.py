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
from speechssl.report.run_folder import KINDS, RunFolder, load_run

FIGURES = {"wer": ("WER", " %"), "cer": ("CER", " %"), "loss": ("loss", "")}
"""Metrics of a validation or a test that a card shows: what they are called, and their unit."""

_logger = logging.getLogger("speechssl")


def describe_run(checkpoint: str) -> str:
    """Describe the training run that a checkpoint is of.

    Args:
        checkpoint: value of the key.

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
    rows = {"run": KINDS[run.kind], **_list_data(run, hours), **_list_figures(run, test)}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {label} | {value} |" for label, value in rows.items()), ""])


def _list_data(run: RunFolder, hours: dict[str, float]) -> dict[str, str]:
    names = {key: run.get_config(f"data.{key}", []) for key in ("train", "valid")}
    rows = {}
    for key, paths in names.items():
        if paths:
            much = f" ({hours[f'data.{key}']:.2f} h)" if f"data.{key}" in hours else ""
            rows[f"data.{key}"] = ", ".join(_shorten(item) for item in paths) + much
    if init := run.get_config("init", ""):
        rows["started from"] = _shorten(init)
    if heard := run.result.get("hours_seen") or run.last("train", "hours_seen"):
        rows["speech heard, repeats counted"] = (
            f"{heard:.1f} h in {run.result.get('updates') or run.num_updates} updates"
        )
    return rows


def _list_figures(run: RunFolder, test: dict[str, Any]) -> dict[str, str]:
    best = run.result.get("best_update")
    valid = next((row for row in run.select("valid") if row["update"] == best), {}) or run.result.get("valid") or {}
    rows = {}
    for where, found in (("held out", valid), ("test", test)):
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
