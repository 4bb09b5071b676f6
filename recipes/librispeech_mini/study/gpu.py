"""The same cells on a GPU, several at once, in parts: one call makes what fits into its time, the next one goes on.

    recipes/librispeech_mini/study/gpu data=<LibriSpeech> [fsdd=..] [text=..] [out=runs/gpu] [results=<folder>]
        [scales=small,12x512] [seeds=1] [minutes=9] [processes=1] [workers=1] [cell=<name> [part=<name>]]
    recipes/librispeech_mini/study/gpu data=<LibriSpeech> rehearse=true out=<folder>       tiny, on the CPU

A network of this size leaves most of a GPU idle, so `processes` share it, each with a part of a cell: its pretraining,
what is done with one set of labels, or its probes. Each part writes its log to `out`; under NVIDIA's MPS they run at
the same time instead of in turns. Exit code 75 says that time was up and everything is saved: the same command again
goes on, with the same updates that one long call would have made: to the bit on a CPU, to rounding on a GPU. 0: all is
done.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.librispeech_mini.study.cells import GPU, REHEARSAL, Budget, Cell, list_gpu_cells
from recipes.librispeech_mini.study.main import find_places
from recipes.librispeech_mini.study.plan import Step, build_steps
from recipes.librispeech_mini.study.runner import OUT_OF_TIME, Settings, prepare, run_cell
from speechssl.errors import ConfigError, SpeechSSLError, StoppedOnRequest

KEYS = (
    *("data", "fsdd", "text", "out", "results", "scales", "seeds", "minutes", "processes", "workers", "device"),
    *("rehearse", "cell", "part"),
)

SCRIPT = Path(__file__).parent / "gpu"

FIRST_PART_S, REHEARSED_UPDATES = 1.0, 60
"""In a rehearsal the first training is stopped after a second and goes on, as after a part of the time."""

PRETRAINING, PROBES = "pretraining", "probes"
"""Names of parts; the others are called what their labels are."""

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Part:
    """What one process makes of a cell.

    Attributes:
        cell: whose it is.
        name: of the part.
        steps: names of its steps.
        needs: names of the cell's parts that must be done before it.
    """

    cell: Cell
    name: str
    steps: tuple[str, ...]
    needs: frozenset[str]


def main(argv: Sequence[str]) -> int:
    """Run the chain of every network, arm and seed; exit codes are those of `speechssl`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        given = read_words(argv)
        if int(given.get("processes", "1")) > 1 and "part" not in given:
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
    if "part" in given and "cell" not in given:
        raise ConfigError("`cell` must be the name of the cell that `part` is of, but is not given")
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


def list_parts(cell: Cell, steps: Sequence[Step]) -> list[Part]:
    """Part the steps of a cell into what can be made side by side, in order."""
    owners = {step.name: _name_part(step) for step in steps}
    grouped = {name: [step for step in steps if owners[step.name] == name] for name in owners.values()}
    return [
        Part(
            cell,
            name,
            tuple(step.name for step in own),
            frozenset(owners[need] for step in own for need in step.needs) - {name},
        )
        for name, own in grouped.items()
    ]


def _name_part(step: Step) -> str:
    if step.name.startswith("pretrain"):
        return PRETRAINING
    return str(step.facts["labels"]) if "labels" in step.facts else PROBES


def run_side_by_side(given: Mapping[str, str]) -> int:
    """Run every part in a process of its own, `processes` of them at a time, the most wanted first."""
    hours = float(given.get("minutes", "0")) / 60
    deadline = time.monotonic() + 3600 * hours if hours else None
    places, cells = find_places({"out": "runs/gpu", **given}), list_asked(given)
    # Before the processes start: they would all make the same files.
    prepare(places, choose_budget(given, cells[0]))
    words = [f"{key}={value}" for key, value in given.items() if key not in ("minutes", "processes")]

    def run(part: Part) -> int:
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if left is not None and left <= 0:
            return OUT_OF_TIME
        # 0 would be no limit.
        limit = f"minutes={0 if left is None else max(left, 0.01):.2f}"
        with (places.out / f"{part.cell.name}-{part.name}.log").open("a", encoding="utf-8") as log:
            command = [sys.executable, str(SCRIPT), *words, f"cell={part.cell.name}", f"part={part.name}", limit]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        _logger.info("%s, %s: exit code %d", part.cell.name, part.name, code)
        return code

    parts = [part for cell in cells for part in list_parts(cell, build_steps(cell, choose_budget(given, cell), places))]
    codes = run_parts(parts, run, int(given["processes"]))
    failed = [code for code in codes if code not in (0, OUT_OF_TIME)]
    # What a signal killed has a code below 0.
    return max(failed[0], 1) if failed else max(codes)


def run_parts(parts: Sequence[Part], run: Callable[[Part], int], num_processes: int) -> list[int]:
    """Run parts side by side, each after those that it needs; of those that can begin, the first one begins.

    Args:
        parts: in the order in which they are wanted.
        run: makes one, and says with which exit code.
        num_processes: how many at a time.

    Returns:
        exit codes of what was run; a part that needs what did not end well is not.
    """
    codes: dict[tuple[str, str], int] = {}
    waiting, running = list(parts), dict[Future[int], Part]()
    with ThreadPoolExecutor(num_processes) as pool:
        while True:
            ready = [part for part in waiting if all(codes.get((part.cell.name, need)) == 0 for need in part.needs)]
            for part in ready[: num_processes - len(running)]:
                waiting.remove(part)
                running[pool.submit(run, part)] = part
            if not running:
                return list(codes.values())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(future)
                codes[part.cell.name, part.name] = future.result()


def find_steps(given: Mapping[str, str], parts: Sequence[Part]) -> tuple[str, ...] | None:
    """Find the steps of the part that is asked for; None where no part is.

    Raises:
        ConfigError: the cell has no such part.
    """
    if "part" not in given:
        return None
    named = {part.name: part.steps for part in parts}
    if given["part"] not in named:
        raise ConfigError(f"`part` must be one of {', '.join(named)}, but is {given['part']!r}")
    return named[given["part"]]


def run_all(given: Mapping[str, str], hours: float, max_hours: float = 0.0) -> None:
    """Run every cell that is not done.

    Args:
        given: keys.
        hours: for so long at most; 0 for no limit.
        max_hours: each training for so many hours at most; 0 for no limit.

    Raises:
        StoppedOnRequest: time was up.
    """
    deadline = time.monotonic() + 3600 * hours if hours else None
    places = find_places({"out": "runs/gpu", **given})
    for cell in list_asked(given):
        settings = Settings(given.get("device", "auto"), "auto", int(given.get("workers", "1")), max_hours, deadline)
        budget = choose_budget(given, cell)
        run_cell(cell, places, budget, settings, find_steps(given, list_parts(cell, build_steps(cell, budget, places))))


def rehearse_stop(given: Mapping[str, str]) -> None:
    """Let time be up in the first training, and note that it was; a rehearsal that has begun before goes on."""
    try:
        run_all(given, 0.0, FIRST_PART_S / 3600)
    except StoppedOnRequest as stop:
        _logger.info("rehearsal: %s, going on", stop)
