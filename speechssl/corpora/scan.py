"""Audio files that a corpus lists → rows of a manifest; long recordings become rows cut at quiet points."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from speechssl.audio.reading import AudioFile, AudioInfo, mix_down, read_info
from speechssl.data.manifest import Manifest, Utterance, build_manifest
from speechssl.errors import DataError
from speechssl.progress import track

LONG_S = 30.0
"""Files longer than this that have no transcript are cut."""

CUT_FROM_S, CUT_TO_S = 15.0, 25.0
"""A row that is cut ends between these, so that what is left of a long file is never shorter than 5 s."""

QUIET_S = 0.2
"""Stretch whose energy says how quiet a point is: about the length of a short pause."""

STEP_S = 0.01
"""Distance between the points that are compared."""

NUM_THREADS, AT_ONCE = 4, 32
"""Threads, and how many files each takes at a time. Most of the work on a small file holds Python's lock: on two
cores 20,000 files took 8.2 s with eight threads that took one at a time, 6.3 s like this, and 4.5 s with two threads,
which would wait more for a disk that is far away."""


@dataclass(frozen=True)
class Recording:
    """A file that a corpus lists, before anything has been read of it.

    Attributes:
        id: unique name in its split.
        path: absolute path.
        speaker: label, where known.
        text: transcript, where known.
        extra: further columns of the manifest.
    """

    id: str
    path: Path
    speaker: str | None = None
    text: str | None = None
    extra: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be used, and the sentence that says why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Scan:
    """What came of the files of one split."""

    manifest: Manifest
    unreadable: tuple[Unreadable, ...]


def scan_recordings(recordings: Sequence[Recording], root: Path, split: str, channel: int = 0) -> Scan:
    """Count the samples of all files, and cut the long ones that have no transcript.

    Args:
        recordings: in the order of the rows to make.
        root: absolute folder that the manifest's paths start from.
        split: what messages call the files.
        channel: of each file, from 1; 0: the mean of all.

    Raises:
        DataError: two recordings have one id, or no file can be used.
    """
    ids = Counter(recording.id for recording in recordings)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise DataError(f"the ids of {split} must be unique, but {twice[0]!r} stands for {ids[twice[0]]} files")
    rows: list[Utterance] = []
    owners: list[Recording] = []
    unreadable = []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        parts = [recordings[first : first + AT_ONCE] for first in range(0, len(recordings), AT_ONCE)]
        outcomes = chain.from_iterable(pool.map(partial(_read_part, channel=channel), parts))
        progress = track(outcomes, f"reading {split}", len(recordings), "files")
        for recording, outcome in zip(recordings, progress, strict=True):
            if isinstance(outcome, Unreadable):
                unreadable.append(outcome)
            else:
                rows += outcome
                owners += [recording] * len(outcome)
    if not rows:
        reason = f"none of {len(unreadable)} can be read: {unreadable[0].reason}" if unreadable else "there is none"
        raise DataError(f"{split} must hold audio files, but {reason}")
    return Scan(_add_columns(build_manifest(rows, root, split), owners), tuple(unreadable))


def find_cuts(path: Path, info: AudioInfo, channel: int = 0) -> list[int]:
    """Find where a long file is cut, reading no more than the stretches in which a cut may lie.

    Returns:
        Samples at the file's own rate, from 0 to the file's end; neighbours bound a row.

    Raises:
        DataError: the file is damaged.
    """
    rate = info.sample_rate
    cuts = [0]
    with AudioFile(path) as file:
        while info.num_samples - cuts[-1] > LONG_S * rate:
            first = cuts[-1] + round(CUT_FROM_S * rate)
            stretch = mix_down(file.read(first, round((CUT_TO_S - CUT_FROM_S) * rate)), channel)
            cuts.append(first + find_quietest(stretch, rate))
    return [*cuts, info.num_samples]


def find_quietest(samples: npt.NDArray[np.float32], sample_rate: int) -> int:
    """Find the middle of the `QUIET_S` with the least energy.

    Args:
        samples: (N,) mono, longer than `QUIET_S`.
        sample_rate: Hz.

    Returns:
        Index of the sample; the first of several that are alike.
    """
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    width, step = round(QUIET_S * sample_rate), max(1, round(STEP_S * sample_rate))
    starts = np.arange(0, len(samples) - width + 1, step)
    return int(starts[np.argmin(energy[starts + width] - energy[starts])]) + width // 2


def _read_part(recordings: Sequence[Recording], channel: int) -> list[list[Utterance] | Unreadable]:
    return [_read_rows(recording, channel) for recording in recordings]


def _read_rows(recording: Recording, channel: int) -> list[Utterance] | Unreadable:
    """Make the rows of one file, or say why there are none."""
    try:
        # Manifests are UTF-8; a name in another encoding would not survive them.
        os.fspath(recording.path).encode("utf-8")
        info = read_info(recording.path, channel)
        is_long = info.num_samples > LONG_S * info.sample_rate and not recording.text
        cuts = find_cuts(recording.path, info, channel) if is_long else [0, info.num_samples]
    except UnicodeEncodeError:
        return Unreadable(recording.path, f"{recording.path!r} must have a name in UTF-8, but has not")
    except DataError as error:
        return Unreadable(recording.path, str(error))
    names = [f"{recording.id}-part{number:04d}" if is_long else recording.id for number in range(len(cuts) - 1)]
    speaker, text = recording.speaker, recording.text
    return [
        Utterance(name, recording.path, info.sample_rate, end - start, start, speaker, text, channel)
        for name, (start, end) in zip(names, pairwise(cuts), strict=True)
    ]


def _add_columns(manifest: Manifest, owners: Sequence[Recording]) -> Manifest:
    """Append the further columns; one that no row fills is left out."""
    table = manifest.table
    for name in dict.fromkeys(name for owner in owners for name in owner.extra):
        values = [owner.extra.get(name) for owner in owners]
        if any(value is not None for value in values):
            table = table.append_column(name, pa.array(values, pa.string()))
    return Manifest(table, manifest.root, manifest.source)
