"""What an update costs beside its forwards and backwards: guard, average, collapse watch, system figures, writers.

    python tests/benchmarks/update_overhead.py data.train=m/train.tsv [model=small] [training.max_updates=30 …]

Runs `pretrain` with the words given and a clock around each part, and prints a Markdown table: milliseconds an update
(median of all updates after the first five) and the share of the whole update.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

from speechssl.cli.compose import compose
from speechssl.objectives.collapse import CollapseWatch
from speechssl.training import trainer
from speechssl.training.average import WeightAverage
from speechssl.training.guard import NumericalGuard
from speechssl.training.metrics import JsonLinesWriter
from speechssl.training.trackers import TensorBoardWriter

WARM_UP = 5

times: dict[str, list[float]] = defaultdict(list)


def clock(owner: Any, attribute: str, name: str) -> None:
    """Put a clock around a function or method."""
    function: Callable[..., Any] = getattr(owner, attribute)

    def timed(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            times[name].append(time.perf_counter() - start)

    setattr(owner, attribute, timed)


def main(words: list[str]) -> None:
    """Run, and print the table."""
    clock(NumericalGuard, "judge", "guard")
    clock(WeightAverage, "update", "moving average")
    clock(CollapseWatch, "observe", "collapse watch")
    clock(trainer, "measure_system", "system figures")
    clock(JsonLinesWriter, "write", "metrics.jsonl")
    clock(TensorBoardWriter, "write", "TensorBoard")
    clock(trainer.Trainer, "_make_update", "update")
    given = {"model=small", "training.max_updates=30", "training.ema_decay=0.999", "training.log_every=1"}
    keys = {word.partition("=")[0] for word in words}
    with tempfile.TemporaryDirectory() as out:
        defaults = [word for word in sorted(given) if word.partition("=")[0] not in keys]
        pretrain(compose("pretrain", [*defaults, *words, f"out={out}/run"]))
    whole = median(times["update"][WARM_UP:])
    print(f"\n| part | ms an update | share of {1000 * whole:.0f} ms |\n| --- | --- | --- |")
    total = 0.0
    for name in times:
        if name != "update":
            part = median(times[name][WARM_UP:])
            total += part
            print(f"| {name} | {1000 * part:.2f} | {100 * part / whole:.3f} % |")
    print(f"| together | {1000 * total:.2f} | {100 * total / whole:.3f} % |")


if __name__ == "__main__":
    main(sys.argv[1:])
