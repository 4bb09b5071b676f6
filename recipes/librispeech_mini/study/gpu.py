"""The same chain on a GPU, in parts: one call makes as much as fits into its time, the next one goes on from there.

    recipes/librispeech_mini/study/gpu data=<LibriSpeech> [fsdd=..] [text=..] [out=runs/gpu] [results=<folder>]
        [scales=small,12x512] [seeds=1] [minutes=9] [workers=8]
    recipes/librispeech_mini/study/gpu data=<LibriSpeech> rehearse=true out=<folder>       tiny, on the CPU

Exit code 75 says that time was up and everything is saved: the same command again goes on, with the same updates to
the bit that one long call would have made. 0: all is done.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from recipes.librispeech_mini.study.cells import GPU, GPU_SEEDS, REHEARSAL, Budget, list_gpu_cells
from recipes.librispeech_mini.study.main import find_places
from recipes.librispeech_mini.study.runner import Settings, run_cell
from speechssl.errors import ConfigError, SpeechSSLError, StoppedOnRequest

KEYS = ("data", "fsdd", "text", "out", "results", "scales", "seeds", "minutes", "workers", "device", "rehearse")

FIRST_PART_S, REHEARSED_UPDATES = 1.0, 60
"""In a rehearsal the first pretraining is stopped after a second and goes on, as after a part of the time."""


def main(argv: Sequence[str]) -> int:
    """Run the chain of every network and seed; exit codes are those of `speechssl`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        given = read_words(argv)
        is_rehearsal = given.get("rehearse") == "true"
        if is_rehearsal:
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


def choose_budget(given: Mapping[str, str], scale: str) -> Budget:
    """Take the budget of a network; in a rehearsal the wide network is as small as the other, and one block deeper."""
    if given.get("rehearse") != "true":
        return GPU[scale]
    network = {"model.num_layers": 3} if GPU[scale].network else {}
    return replace(REHEARSAL, network=network, pretrain_updates=REHEARSED_UPDATES)


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
    seeds = GPU_SEEDS[: int(given.get("seeds", "1"))]
    for scale in list_scales(given):
        for cell in list_gpu_cells(scale, seeds):
            settings = Settings(given.get("device", "auto"), "auto", int(given.get("workers", "8")), part, deadline)
            run_cell(cell, places, choose_budget(given, scale), settings)


def rehearse_stop(given: Mapping[str, str]) -> None:
    """Let time be up in the first training, and note that it was; a rehearsal that has begun before goes on."""
    try:
        run_all(given, 0.0, FIRST_PART_S / 3600)
    except StoppedOnRequest as stop:
        logging.getLogger("speechssl").info("rehearsal: %s, going on", stop)
