"""The command of the study: `cells`, `cell=<name>`, `table` and `digits`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.librispeech_mini.study import digits, table
from recipes.librispeech_mini.study.cells import REHEARSAL, TWO_CORES, Budget, find_cell, list_cells
from recipes.librispeech_mini.study.plan import Places, build_steps, estimate_hours
from recipes.librispeech_mini.study.records import find_path, read_record
from recipes.librispeech_mini.study.runner import Settings, run_cell
from speechssl.errors import ConfigError, SpeechSSLError, StoppedOnRequest
from speechssl.verbs.output import format_line, print_line

HERE = Path(__file__).parent

USAGE = """usage:
  run cells                                   every cell with its budget, and what is done of it
  run cell=<name> data=<LibriSpeech> [fsdd=<FSDD>] [text=<LibriSpeech-text>] [out=runs/study] [results=<folder>]
      [rehearse=true] [device=auto] [precision=auto] [workers=1] [max_hours=0]
                                              one cell; the same command again goes on where it stopped
  run table [results=<folder>]                tables.md in the folder of the results, made from them
  run digits checkpoint=<run> manifest=<fsdd.tsv> out=<folder>
"""

KEYS = {
    "cells": ("results", "rehearse"),
    "cell": (
        *("cell", "data", "fsdd", "text", "out", "results", "rehearse", "device", "precision", "workers", "max_hours"),
    ),
    "table": ("results",),
    "digits": ("checkpoint", "manifest", "out"),
}


def main(argv: Sequence[str]) -> int:
    """Run the command line; exit codes are those of `speechssl`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print_line(USAGE)
        return 0
    try:
        verb, given = read_words(argv)
        match verb:
            case "cells":
                print_line(format_cells(given))
            case "table":
                print_line(str(table.write_tables(Path(given.get("results", HERE / "results")))))
            case "digits":
                print_line(format_line(digits.run(**given)))
            case _:
                print_line(format_line(_run_cell(given)))
    except SpeechSSLError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except StoppedOnRequest as stop:
        print(f"study: {stop}", file=sys.stderr)
        return stop.exit_code
    return 0


def read_words(argv: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Part the words into what to do and the keys.

    Raises:
        ConfigError: a key is unknown, or a word is none.
    """
    verb = argv[0] if argv[0] in KEYS else "cell"
    given = {}
    for word in argv[1:] if argv[0] == verb else argv:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS[verb]:
            raise ConfigError(f"words must be {', '.join(KEYS[verb])} with = and a value, but one is {word!r}")
        given[key] = value
    return verb, given


def choose_budget(given: dict[str, str]) -> Budget:
    """Take the study's budget, or the rehearsal's."""
    return REHEARSAL if given.get("rehearse") == "true" else TWO_CORES


def find_places(given: dict[str, str]) -> Places:
    """Find the folders; a rehearsal keeps its results out of the repository.

    Raises:
        ConfigError: `data` is not given.
    """
    if "data" not in given:
        raise ConfigError("`data` must be the LibriSpeech folder, but is not given")
    out = Path(given.get("out", "runs/study")).absolute()
    results = out / "results" if given.get("rehearse") == "true" else HERE / "results"
    return Places(
        data=Path(given["data"]).absolute(),
        fsdd=Path(given["fsdd"]).absolute() if "fsdd" in given else None,
        text=Path(given["text"]).absolute() if "text" in given else None,
        out=out,
        results=Path(given.get("results", results)).absolute(),
    )


def _run_cell(given: dict[str, str]) -> dict[str, Any]:
    if "cell" not in given:
        raise ConfigError("`cell` must be the name of a cell (`run cells` lists them), but is not given")
    budget = choose_budget(given)
    settings = Settings(
        given.get("device", "auto"),
        given.get("precision", "auto"),
        int(given.get("workers", "1")),
        float(given.get("max_hours", "0")),
    )
    return run_cell(find_cell(given["cell"], budget), find_places(given), budget, settings)


def format_cells(given: dict[str, str]) -> str:
    """List every cell with the updates of its trainings, their estimated hours and what is done."""
    budget, places = choose_budget(given), find_places({"data": "", **given})
    lines, total = [f"{'cell':<32} {'hours':>6}  done   updates"], 0.0
    for cell in list_cells(budget).values():
        steps = build_steps(cell, budget, places)
        records = [read_record(find_path(places, step.cell, step.name)) for step in steps]
        done = sum(record is not None and record["status"] == "done" for record in records)
        hours = estimate_hours(cell, budget, places)
        total += hours
        updates = ", ".join(
            f"{step.name} {step.commands[0].keys['training.max_updates']:,}"
            for step in steps
            if step.flop_per_s and step.cell == cell.name
        )
        lines.append(f"{cell.name:<32} {hours:6.2f}  {done:>2}/{len(steps):<2}  {updates}")
    slow, fast = budget.speeds
    lines.append(f"{'all trainings':<32} {total:6.2f}  at {slow:g} × real time in pretraining, {fast:g} in fine-tuning")
    return "\n".join(lines)
