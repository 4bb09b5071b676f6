"""What `audio` names, as utterances that can be read one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE, convert_waveform, load_audio, stream_audio
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, Utterance
from speechssl.errors import DataError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Audio = str | os.PathLike[str] | np.ndarray | Tensor | Sequence[str | os.PathLike[str] | np.ndarray | Tensor]


@dataclass(frozen=True)
class Source:
    """Utterances to run a model over.

    Attributes:
        ids: name of each utterance.
        lengths: (n,) samples of each at 16 kHz.
        read: gives utterance k as (N,) float32 mono at 16 kHz; called from threads.
        stream: gives the same in consecutive pieces; None: it comes in one.
        manifest: where they are files, one row each.
        left_out: collects the rows that cannot be used; with None the first of them is an error.
        key: the key that errors name.
    """

    ids: Sequence[str]
    lengths: IntArray
    read: Callable[[int], FloatArray]
    manifest: Manifest | None = None
    left_out: LeftOut | None = None
    key: str = "audio"
    stream: Callable[[int], Iterator[FloatArray]] | None = None

    @classmethod
    def from_manifest(
        cls, manifest: Manifest, left_out: LeftOut | None = None, see: Callable[[int, FloatArray], None] | None = None
    ) -> Source:
        """Read the files of a manifest; `see` is called with the number and the samples of each, from threads."""

        def name(index: int) -> tuple[Path, int, int, int, int]:
            row = manifest[index]
            return row.path, row.offset, row.num_samples, row.sample_rate, row.channel

        def read(index: int) -> FloatArray:
            waveform = load_audio(*name(index))
            if see:
                see(index, waveform)
            return waveform

        # Who wants to see the samples sees them all at once.
        stream = None if see else lambda index: stream_audio(*name(index))
        return cls(manifest.column("id"), manifest.num_samples_16k, read, manifest, left_out, stream=stream)

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray], sample_rate: int) -> Source:
        """Read waveforms in memory, (N,) or with channels, in [-1, 1]."""
        waveforms = [convert_waveform(array, sample_rate) for array in arrays]
        lengths = np.array([len(waveform) for waveform in waveforms], dtype=np.int64)
        return cls([f"array {k}" for k in range(len(waveforms))], lengths, waveforms.__getitem__)

    def __getitem__(self, index: int) -> Utterance:
        """Describe utterance k; a waveform in memory has no path."""
        if self.manifest is not None:
            return self.manifest[index]
        return Utterance(self.ids[index], Path(), SAMPLE_RATE, int(self.lengths[index]))

    def leave_out(self, index: int, reason: str) -> None:
        """Note that utterance k cannot be used.

        Raises:
            DataError: nobody collects what is left out.
        """
        if self.left_out is None:
            raise DataError(reason)
        self.left_out.add(self.ids[index], self[index].path, reason)

    def try_read(self, index: int) -> FloatArray | None:
        """Read utterance k; None, and a note, where it cannot be read."""
        try:
            return self.read(index)
        except DataError as error:
            self.leave_out(index, str(error))
            return None

    def read_stretches(self, index: int, stretches: Iterable[tuple[int, int]]) -> Iterator[FloatArray]:
        """Read stretches of utterance k, holding no more of it than one of them and a piece.

        Args:
            index: k.
            stretches: first sample, at 16 kHz, and number of samples of each; none begins before the last one did.

        Raises:
            DataError: it cannot be read.
        """
        pieces = self.stream(index) if self.stream else iter([self.read(index)])
        held, at = np.zeros(0, dtype=np.float32), 0
        for first, count in stretches:
            while at + len(held) < first + count:
                skipped = min(first - at, len(held))
                at, held = at + skipped, np.concatenate([held[skipped:], next(pieces)])
            at, held = first, held[first - at :]
            yield held[:count]

    def leave_out_short(self, shortest: int) -> None:
        """Leave out what has fewer samples at 16 kHz than one frame of a model sees."""
        for index in np.flatnonzero(self.lengths < shortest).tolist():
            self.leave_out(
                index,
                f"`{self.key}` must be at least {shortest} samples at 16 kHz ({1000 * shortest / SAMPLE_RATE:g} ms), "
                f"but {self.ids[index]} has {self.lengths[index]}",
            )


def find_source(audio: Audio, sample_rate: int | None) -> Source:
    """Find the utterances that `audio` names.

    A file that is named twice is there twice, so that results stand beside what was given.

    Args:
        audio: what the key `audio` takes (files, folders, globs, manifests), or waveforms; one or several.
        sample_rate: of waveforms, in Hz; files know theirs.

    Raises:
        DataError: nothing matches, a file is not audio, or waveforms come without their sample rate.
    """
    items: list[Any] = [_to_numpy(item) if isinstance(item, Tensor) else item for item in _list_items(audio)]
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if not arrays:
        return Source.from_manifest(expand_audio([os.fspath(item) for item in items], keep_repeats=True))
    if sample_rate is None or len(arrays) < len(items):
        problem = "also has files" if len(arrays) < len(items) else "has none"
        raise DataError(f"`audio` must be waveforms with a sample_rate, or files, but {problem}")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or int(sample_rate) != sample_rate:
        raise DataError(f"`sample_rate` must be a whole number of Hz, but is {sample_rate!r}")
    return Source.from_arrays(arrays, int(sample_rate))


def _list_items(audio: Any) -> list[Any]:
    """List the paths or waveforms, one or several.

    Raises:
        DataError: something is neither.
    """
    kinds = (str, os.PathLike, np.ndarray, Tensor)
    several = isinstance(audio, Iterable) and not isinstance(audio, (*kinds, bytes, Mapping))
    items = list(audio) if several else [] if audio is None else [audio]
    others = [type(item).__name__ for item in items if not isinstance(item, kinds)]
    if others:
        raise DataError(f"`audio` must be paths, or waveforms as arrays or tensors, but has one of type {others[0]}")
    return items


def _to_numpy(waveform: Tensor) -> np.ndarray:
    """Bring a waveform to NumPy, which has no bfloat16."""
    waveform = waveform.detach().cpu()
    array: np.ndarray = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    return array
