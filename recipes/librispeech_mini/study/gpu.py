"""The same cells on a GPU, several at once, in parts: one call makes what fits into its time, the next one goes on.

    recipes/librispeech_mini/study/gpu data=<LibriSpeech> [fsdd=..] [text=..] [out=runs/gpu] [results=<folder>]
        [scales=small,12x512] [seeds=1] [minutes=9] [processes=1] [workers=1] [cell=<name>]
    recipes/librispeech_mini/study/gpu data=<LibriSpeech> rehearse=true out=<folder>       tiny, on the CPU

A network of this size leaves most of a GPU idle, so `processes` cells share it; each writes its log to `out`. Exit code
75 says that time was up and everything is saved: the same command again goes on, with the same updates to the bit that
one long call would have made. 0: all is done.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from recipes.librispeech_mini.study.cells import GPU, REHEARSAL, Budget, Cell, list_gpu_cells
from recipes.librispeech_mini.study.main import find_places
from recipes.librispeech_mini.study.runner import OUT_OF_TIME, Settings, prepare, run_cell
from speechssl.errors import ConfigError, SpeechSSLError, StoppedOnRequest

KEYS = (
    *("data", "fsdd", "text", "out", "results", "scales", "seeds", "minutes", "processes", "workers", "device"),
    *("rehearse", "cell"),
)

SCRIPT = Path(__file__).parent / "gpu"

FIRST_PART_S, REHEARSED_UPDATES = 1.0, 60
"""In a rehearsal the first training is stopped after a second and goes on, as after a part of the time."""

_logger = logging.getLogger("speechssl")


def main(argv: Sequence[str]) -> int:
    """Run the chain of every network, arm and seed; exit codes are those of `speechssl`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        given = read_words(argv)
        if int(given.get("processes", "1")) > 1 and "cell" not in given:
            return run_side_by_side(given)
        if given.get("rehearse") == "true":
            rehearse_stop(given)
        run_all(given, float(given.get("minutes", "0")) / 60)
    except SpeechSSLError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except StoppedOnRequest as stop:
        print(f"study: {stop}; the same command again goes on", file=sys.stderr)
        return stop.exit_code
    return 0


def read_words(argv: Sequence[str]) -> dict[str, str]:
    """Read the keys.

    Raises:
        ConfigError: a key or network is unknown.
    """
    given = dict(word.partition("=")[::2] for word in argv)
    unknown = [key for key in given if key not in KEYS]
    if unknown:
        raise ConfigError(f"words must be {', '.join(KEYS)} with = and a value, but one is {unknown[0]!r}")
    for scale in list_scales(given):
        if scale not in GPU:
            raise ConfigError(f"`scales` must be some of {', '.join(GPU)}, but has {scale!r}")
    return given


def list_scales(given: Mapping[str, str]) -> list[str]:
    """List the networks that are asked for."""
    return given.get("scales", ",".join(GPU)).split(",")


def list_asked(given: Mapping[str, str]) -> list[Cell]:
    """List the cells that are asked for.

    Raises:
        ConfigError: there is none of the name that `cell` gives.
    """
    cells = list_gpu_cells(list_scales(given), int(given.get("seeds", "1")))
    if "cell" not in given:
        return cells
    named = [cell for cell in cells if cell.name == given["cell"]]
    if not named:
        raise ConfigError(f"`cell` must be one of {', '.join(cell.name for cell in cells)}, but is {given['cell']!r}")
    return named


def choose_budget(given: Mapping[str, str], cell: Cell) -> Budget:
    """Take the budget of a network; in a rehearsal the wide network is as small as the other, and one block deeper."""
    budget = GPU[cell.kind.removeprefix("gpu ")]
    if given.get("rehearse") != "true":
        return budget
    return replace(
        REHEARSAL, network={"model.num_layers": 3} if budget.network else {}, pretrain_updates=REHEARSED_UPDATES
    )


def run_side_by_side(given: Mapping[str, str]) -> int:
    """Run every cell in a process of its own, `processes` of them at a time, the most wanted first."""
    hours = float(given.get("minutes", "0")) / 60
    deadline = time.monotonic() + 3600 * hours if hours else None
    places, cells = find_places({"out": "runs/gpu", **given}), list_asked(given)
    # Before the processes start: they would all make the same files.
    prepare(places, choose_budget(given, cells[0]))
    words = [f"{key}={value}" for key, value in given.items() if key not in ("minutes", "processes")]

    def run(cell: Cell) -> int:
        left = f"minutes={(deadline - time.monotonic()) / 60:.2f}" if deadline is not None else "minutes=0"
        if deadline is not None and time.monotonic() >= deadline:
            return OUT_OF_TIME
        with (places.out / f"{cell.name}.log").open("a", encoding="utf-8") as log:
            command = [sys.executable, str(SCRIPT), *words, f"cell={cell.name}", left]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        _logger.info("%s: exit code %d", cell.name, code)
        return code

    with ThreadPoolExecutor(int(given["processes"])) as pool:
        codes = list(pool.map(run, cells))
    failed = [code for code in codes if code not in (0, OUT_OF_TIME)]
    return failed[0] if failed else max(codes)


def run_all(given: Mapping[str, str], hours: float, part: float = 0.0) -> None:
    """Run every cell that is not done.

    Args:
        given: keys.
        hours: for so long at most; 0 for no limit.
        part: each training for so many hours at most; 0 for no limit.

    Raises:
        StoppedOnRequest: time was up.
    """
    deadline = time.monotonic() + 3600 * hours if hours else None
    places = find_places({"out": "runs/gpu", **given})
    for cell in list_asked(given):
        settings = Settings(given.get("device", "auto"), "auto", int(given.get("workers", "1")), part, deadline)
        run_cell(cell, places, choose_budget(given, cell), settings)


def rehearse_stop(given: Mapping[str, str]) -> None:
    """Let time be up in the first training, and note that it was; a rehearsal that has begun before goes on."""
    try:
        run_all(given, 0.0, FIRST_PART_S / 3600)
    except StoppedOnRequest as stop:
        _logger.info("rehearsal: %s, going on", stop)
