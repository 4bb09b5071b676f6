"""eSpeak NG through ctypes: text → speech, the same samples for the same seed.

The library keeps state between calls (pitch flutter, echo), so repeated calls in one process differ. A child forked
from a fresh state for every utterance, with the library's random numbers seeded, does not. Forking is safe only in a
process without threads, so the work is done by `python -m speechssl.demo.espeak`, which imports no torch: it
reads one job a line as JSON on stdin, and writes the path of each finished file on stdout.

eSpeak NG is GPL-3; it comes with the package espeakng-loader (extra `demo`) and is used for nothing else.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from speechssl.demo.sound import SAMPLE_RATE, finish_utterance
from speechssl.errors import ConfigError, DataError

_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
"""Report a missing data folder instead of ending the process."""
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4


@dataclass(frozen=True)
class Voice:
    """How a speaker sounds.

    Args:
        name: eSpeak's language and variant, such as `en-us+f2`.
        rate_wpm: words a minute.
        pitch: 0 to 100, around the variant's own at 50.
        pitch_range: 0 (monotone) to 100.
        tract_scale: factor on all frequencies.
    """

    name: str
    rate_wpm: int
    pitch: int
    pitch_range: int
    tract_scale: float


@dataclass(frozen=True)
class Job:
    """One utterance to make: what is said, by whom, in which session, and the FLAC file that it becomes."""

    path: str
    text: str
    voice: Voice
    session_seed: int
    seed: int


def require_espeak() -> None:
    """Make sure that eSpeak NG can be used here.

    Raises:
        ConfigError: the extra is not installed, or the system cannot fork.
    """
    if find_spec("espeakng_loader") is None:
        raise ConfigError(
            "the demo's speech must be made by eSpeak NG, but espeakng-loader is not installed "
            "(pip install 'speechssl[demo]')"
        )
    if not hasattr(os, "fork"):
        raise ConfigError(f"the demo must run on Linux or macOS, which can fork processes, but this is {sys.platform}")


def synthesise(jobs: Sequence[Job]) -> Iterator[str]:
    """Make utterances in a helper process and yield the path of each as it is done, in no fixed order.

    Raises:
        ConfigError: eSpeak NG is not installed.
        DataError: the helper failed; its last words are in the message.
    """
    require_espeak()
    package_root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "speechssl.demo.espeak"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        errors: list[str] = []
        # Both pipes are served beside the loop below: a full one would stop the helper.
        feeder = Thread(target=_feed, args=(process, jobs), daemon=True)
        listener = Thread(target=errors.extend, args=(process.stderr,), daemon=True)
        feeder.start()
        listener.start()
        is_whole = False
        try:
            yield from (line.rstrip("\n") for line in process.stdout)
            is_whole = True
        finally:
            if not is_whole:
                process.terminate()
            feeder.join()
            listener.join()
    if process.returncode != 0:
        last = "; ".join(line.strip() for line in errors[-2:]) or f"exit code {process.returncode}"
        raise DataError(f"the demo's speech must be made by eSpeak NG, but it failed: {last}")


def _feed(process: subprocess.Popen[str], jobs: Sequence[Job]) -> None:
    assert process.stdin
    # Where the helper has ended early, its exit code and last words are reported by the reader.
    with suppress(BrokenPipeError):
        process.stdin.writelines(json.dumps(asdict(job)) + "\n" for job in jobs)
    with suppress(BrokenPipeError):
        process.stdin.close()


class Engine:
    """The loaded library, never used in the process that loads it but in children forked from it."""

    def __init__(self) -> None:
        loader = importlib.import_module("espeakng_loader")
        self._library = ctypes.CDLL(loader.get_library_path())
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._chunks: list[np.ndarray] = []
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        # Held as an attribute: ctypes does not keep the callback alive.
        self._callback = callback_type(self._collect)
        data_path = os.fsencode(loader.get_data_path())
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _DONT_EXIT)
        if self.sample_rate <= 0:
            raise DataError(f"eSpeak NG must find its data in {loader.get_data_path()}, but does not")
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice, seed: int) -> np.ndarray:
        """Speak one sentence.

        Returns:
            int16 (N,) at `sample_rate`.

        Raises:
            DataError: there is no such voice, or no sound came.
        """
        self._chunks.clear()
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise DataError(f"the voice must be one that eSpeak NG has, but is {voice.name!r}")
        for parameter, value in ((_RATE, voice.rate_wpm), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(seed % 2**31)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise DataError(f"eSpeak NG must return sound, but returned none for {text!r}")
        return np.concatenate(self._chunks)

    def _collect(self, samples: Any, num_samples: int, _events: object) -> int:
        if samples and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0


def write_utterance(engine: Engine, job: Job) -> None:
    """Speak one job and write its FLAC file."""
    import soundfile

    speech = engine.speak(job.text, job.voice, job.seed)
    sound = finish_utterance(speech, engine.sample_rate, job.voice.tract_scale, job.session_seed, job.seed)
    soundfile.write(job.path, sound, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def run_worker(lines: Iterator[str], num_children: int) -> None:
    """Work through jobs given as JSON lines, each in a child of its own, and print the path of each when it is done.

    Raises:
        DataError: a child failed.
    """
    import soundfile  # noqa: F401  loaded once here rather than in every child

    engine = Engine()
    running: dict[int, str] = {}
    for line in lines:
        fields = json.loads(line)
        job = Job(**{**fields, "voice": Voice(**fields["voice"])})
        if len(running) >= num_children:
            _wait(running)
        running[_fork(lambda job=job: write_utterance(engine, job))] = job.path  # type: ignore[misc]
    while running:
        _wait(running)


def _fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked child and return the child's process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        # Without the interpreter's own ending: what the parent has open or buffered is not the child's to close.
        os._exit(code)


def _wait(running: dict[int, str]) -> None:
    child, status = os.wait()
    path = running.pop(child)
    if status != 0:
        raise DataError(f"{path} could not be made")
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def main() -> int:
    """Run as the helper process."""
    try:
        run_worker(iter(sys.stdin), num_children=os.cpu_count() or 1)
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
