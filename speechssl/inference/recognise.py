"""From a manifest to texts: batches of similar length, long audio in windows, results in the manifest's order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE, convert_waveform, load_audio
from speechssl.config.decoding import DecodingConfig
from speechssl.data.inputs import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import round_up
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.inference.decoding.beam import Decode, build_decoder
from speechssl.inference.windows import plan_windows
from speechssl.model.speech_model import SpeechModel, as_evaluating
from speechssl.text.vocabulary import Vocabulary

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_BATCHES_A_CHUNK = 32
"""Utterances are sorted by length within so many batches' worth of audio: little padding, and texts keep coming."""

_READ_AHEAD = 2
"""Batches that threads read while the model works (libsndfile and soxr let go of the interpreter's lock)."""

_logger = logging.getLogger("speechssl")

Audio = str | os.PathLike[str] | np.ndarray | Tensor | Sequence[str | os.PathLike[str] | np.ndarray | Tensor]


def refuse(index: int, reason: str) -> None:
    """End it all at the first utterance that cannot be used: what a source does that nothing else was said about.

    Raises:
        DataError: always.
    """
    raise DataError(reason)


@dataclass(frozen=True)
class Source:
    """Audio that can be read one by one.

    Attributes:
        ids: name of each utterance, for messages.
        lengths: (n,) samples of each at 16 kHz.
        read: gives utterance k as (N,) float32 mono at 16 kHz; called from threads.
        key: the key that errors name.
        leave_out: takes note of utterance k, which cannot be used, and why; called from threads.
    """

    ids: Sequence[str]
    lengths: IntArray
    read: Callable[[int], FloatArray]
    key: str = "audio"
    leave_out: Callable[[int, str], None] = refuse

    @classmethod
    def from_manifest(cls, manifest: Manifest, left_out: LeftOut | None = None) -> Source:
        """Read from the files of a manifest; `left_out` gets those that cannot be used, None: the first one ends it."""

        def read(index: int) -> FloatArray:
            row = manifest[index]
            return load_audio(row.path, row.offset, row.num_samples, row.sample_rate, row.channel)

        return cls(manifest.column("id"), manifest.num_samples_16k, read, leave_out=note_rows(manifest, left_out))

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray], sample_rate: int) -> Source:
        """Read from waveforms in memory, (N,) or with channels, in [-1, 1]."""
        waveforms = [convert_waveform(array, sample_rate) for array in arrays]
        lengths = np.array([len(waveform) for waveform in waveforms], dtype=np.int64)
        return cls([f"array {k}" for k in range(len(waveforms))], lengths, waveforms.__getitem__)

    def try_read(self, index: int) -> FloatArray | None:
        """Read utterance k; None where it cannot be, which is noted."""
        try:
            return self.read(index)
        except DataError as error:
            self.leave_out(index, str(error))
            return None

    def list_long_enough(self, shortest: int) -> IntArray:
        """List the utterances of at least so many samples at 16 kHz, one frame; the others are noted."""
        for index in np.flatnonzero(self.lengths < shortest).tolist():
            self.leave_out(
                index,
                f"`{self.key}` must be at least {shortest} samples at 16 kHz ({1000 * shortest / SAMPLE_RATE:g} ms), "
                f"but {self.ids[index]} has {self.lengths[index]}",
            )
        return np.flatnonzero(self.lengths >= shortest)


def note_rows(manifest: Manifest, left_out: LeftOut | None) -> Callable[[int, str], None]:
    """Make what takes note of the rows of a manifest that cannot be used."""
    if left_out is None:
        return refuse
    return lambda row, reason: left_out.add(manifest[row].id, manifest[row].path, reason)


def require_recogniser(model: SpeechModel, name: str = "this model") -> Vocabulary:
    """Return the vocabulary of a model's CTC head.

    Args:
        model: any model.
        name: what the message calls it, such as its checkpoint.

    Raises:
        CheckpointError: the model has no CTC head.
    """
    if model.head is None or model.vocabulary is None:
        raise CheckpointError(f"`checkpoint` must be a recogniser, but {name} has no CTC head: finetune it first")
    return model.vocabulary


def transcribe(
    model: SpeechModel,
    audio: Audio,
    *,
    sample_rate: int | None = None,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | None = None,
) -> list[str]:
    """Recognise audio: `speechssl.transcribe`.

    Args:
        model: a recogniser, on whatever device.
        audio: what the key `audio` takes (files, folders, quoted globs, a manifest), or waveforms in [-1, 1]; one or
            several.
        sample_rate: of waveforms, in Hz; not for files, which know theirs.
        batch_s: seconds of audio that a forward may hold.
        window_s: audio up to this many seconds is one pass; longer audio goes in overlapping windows.
        precision: `float32` or `bf16`.
        decode: from logits to texts, such as `evaluation.beam.build_decoder(…).decode`; None: greedily.

    Returns:
        One text an utterance, in the order of `audio`.

    Raises:
        CheckpointError: the model has no CTC head.
        ConfigError: `decode` is no function.
        DataError: nothing matches, a file is not audio, or waveforms come without their sample rate.
    """
    require_recogniser(model)
    if decode is not None and not callable(decode):
        raise ConfigError(f"`decode` must be a function, such as build_decoder(…).decode, but is {decode!r}")
    source = find_source(audio, sample_rate)[0]
    return [text for _, text in iterate_texts(model, source, batch_s, window_s, precision, decode)]


def find_source(audio: Audio, sample_rate: int | None) -> tuple[Source, Manifest | None]:
    """Find what `audio` names: the utterances, and their manifest where they are files.

    A file that is named twice is there twice, so that results stand beside what was given.

    Raises:
        DataError: nothing matches, a file is not audio, or waveforms come without their sample rate.
    """
    items: list[Any] = [_to_numpy(item) if isinstance(item, Tensor) else item for item in _list_items(audio)]
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if not arrays:
        manifest = expand_audio([os.fspath(item) for item in items], keep_repeats=True)
        return Source.from_manifest(manifest), manifest
    if sample_rate is None or len(arrays) < len(items):
        problem = "also has files" if len(arrays) < len(items) else "has none"
        raise DataError(f"`audio` must be waveforms with a sample_rate, or files, but {problem}")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or int(sample_rate) != sample_rate:
        raise DataError(f"`sample_rate` must be a whole number of Hz, but is {sample_rate!r}")
    return Source.from_arrays(arrays, int(sample_rate)), None


def _list_items(audio: Any) -> list[Any]:
    """List the paths or waveforms that are given, one or several.

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


def recognise(
    model: SpeechModel,
    manifest: Manifest,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | None = None,
    left_out: LeftOut | None = None,
) -> list[str]:
    """Recognise the utterances of a manifest: `iterate_texts`, all at once, without those that are left out."""
    source = Source.from_manifest(manifest, left_out)
    return [text for _, text in iterate_texts(model, source, batch_s, window_s, precision, decode)]


def iterate_texts(
    model: SpeechModel,
    source: Source,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | None = None,
) -> Iterator[tuple[int, str]]:
    """Recognise audio and yield its texts in its order, as they come.

    Args:
        model: a recogniser, on whatever device; it works in evaluation mode, and is left as it is.
        source: utterances.
        batch_s: seconds of audio, padding included, that a forward may hold; a longer utterance is a forward of its
            own. In float32 the frames do not depend on it (1e-5).
        window_s: utterances up to this many seconds are one pass; beyond it the plan of overlapping windows in
            `inference/windows.py` defines the logits, of which each frame comes from one window.
        precision: `float32` or `bf16`.
        decode: from logits to texts; None: greedily.

    Yields:
        Number and text of each utterance that the source does not leave out; empty where nothing was recognised, or
        where the utterance is shorter than one frame's 25 ms, which is logged.

    Raises:
        CheckpointError: the model has no CTC head.
        DataError: a file is missing, damaged or not as long as the manifest says, and the source leaves none out.
    """
    vocabulary, lengths, model = require_recogniser(model), source.lengths, as_evaluating(model)
    decode = decode or build_decoder(DecodingConfig(), vocabulary).decode
    batch_samples, window = int(batch_s * SAMPLE_RATE), round(window_s * SAMPLE_RATE)
    shortest = model.config.receptive_field
    _name_too_short(source, np.flatnonzero(lengths < shortest))
    for chunk in cut_chunks(lengths, _BATCHES_A_CHUNK * batch_samples):
        texts = dict.fromkeys(chunk[lengths[chunk] < shortest].tolist(), "")
        fitting = chunk[(lengths[chunk] >= shortest) & (lengths[chunk] <= window)]
        batches = plan_batches(fitting, lengths, batch_samples, needs_equal_lengths(model))
        for batch, waveforms in read_ahead(source, batches):
            logits, num_frames = _compute_logits(model, waveforms, precision)
            texts |= zip(batch, decode(logits, num_frames), strict=True)
        for index in chunk[lengths[chunk] > window].tolist():
            if (waveform := source.try_read(index)) is not None:
                logits = compute_long_logits(model, waveform, window, batch_samples, precision)
                texts[index] = decode(logits[None], torch.tensor([len(logits)]))[0]
        yield from sorted(texts.items())


def compute_long_logits(
    model: SpeechModel, waveform: FloatArray, window_samples: int, batch_samples: int, precision: str
) -> Tensor:
    """Compute the logits of audio longer than a window: each frame from the window that the plan takes it from.

    Args:
        model: a recogniser in evaluation mode.
        waveform: (N,) mono at 16 kHz.
        window_samples: most samples that one pass sees.
        batch_samples: most samples in a forward; memory only.
        precision: `float32` or `bf16`.

    Returns:
        (T, V) float32, T as many frames as a single pass would give.
    """
    field = model.config.receptive_field
    windows = plan_windows(len(waveform), window_samples, field)
    rows = max(1, batch_samples // window_samples)
    parts: list[Tensor] = []
    for first in range(0, len(windows), rows):
        group = windows[first : first + rows]
        logits, _ = _compute_logits(model, [waveform[w.start : w.start + w.num_samples] for w in group], precision)
        parts += [row[w.first : w.last] for row, w in zip(logits, group, strict=True)]
    return torch.cat(parts)


def plan_batches(indices: IntArray, lengths: IntArray, batch_samples: int, equal: bool) -> list[list[int]]:
    """Group utterances of similar length, longest first, so that rows × longest stays within `batch_samples`.

    Args:
        indices: utterances to group.
        lengths: (n,) samples at 16 kHz of every utterance.
        batch_samples: most samples in a batch, padding included; a batch has one row at least.
        equal: only utterances of one length may share a batch.
    """
    batches: list[list[int]] = []
    for index in indices[np.argsort(-lengths[indices], kind="stable")].tolist():
        longest = lengths[batches[-1][0]] if batches else 0
        width = longest if equal else round_up(longest)
        fits = longest > 0 and width * (len(batches[-1]) + 1) <= batch_samples
        if fits and (not equal or lengths[index] == longest):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def needs_equal_lengths(model: SpeechModel) -> bool:
    """Say whether padding would change a row: group norm over all frames, as the published models have it."""
    return model.config.has_group_norm and model.config.group_norm_frames == "all"


def stack_waveforms(model: SpeechModel, waveforms: Sequence[FloatArray]) -> tuple[Tensor, Tensor | None]:
    """Pad waveforms to one length and stack them, on the model's device.

    Returns:
        (B, N) float32, N a multiple of a second so that few shapes occur, and (B,) int64 valid samples. The peers'
        group norm must see an unpadded batch as unpadded: it gets N as it is, and None.
    """
    exact = needs_equal_lengths(model)
    longest = max(len(waveform) for waveform in waveforms)
    padded = torch.zeros(len(waveforms), longest if exact else round_up(longest))
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    lengths = None if exact else torch.tensor([len(waveform) for waveform in waveforms], device=model.device)
    return padded.to(model.device), lengths


def cut_chunks(lengths: IntArray, chunk_samples: int) -> list[IntArray]:
    """Cut 0 … n - 1 into consecutive runs of about `chunk_samples` samples."""
    numbers = (np.cumsum(lengths) - lengths) // chunk_samples
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(numbers)) + 1)


def _name_too_short(source: Source, indices: IntArray) -> None:
    """Log which utterances get an empty text because they are shorter than one frame."""
    if len(indices):
        names = ", ".join(source.ids[int(index)] for index in indices[:5])
        more = " …" if len(indices) > 5 else ""
        _logger.warning("%d utterances are shorter than one frame and stay empty: %s%s", len(indices), names, more)


def read_ahead(source: Source, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], list[FloatArray]]]:
    """Yield batches with their waveforms, while threads read the next ones; without what cannot be read."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        pending: list[list[tuple[int, Future[FloatArray | None]]]] = []
        for batch in [*batches, *[[]] * _READ_AHEAD]:
            pending.append([(index, pool.submit(source.try_read, index)) for index in batch])
            ready = pending.pop(0) if len(pending) > _READ_AHEAD else []
            read = [(index, future.result()) for index, future in ready]
            whole = {index: waveform for index, waveform in read if waveform is not None}
            if whole:
                yield list(whole), list(whole.values())


def _compute_logits(model: SpeechModel, waveforms: Sequence[FloatArray], precision: str) -> tuple[Tensor, Tensor]:
    """Run one forward: logits (B, T, V) float32 and valid frames (B,), both on the CPU."""
    padded, num_samples = stack_waveforms(model, waveforms)
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits, num_frames = model.logits(padded, num_samples)
    return logits.float().cpu(), num_frames.cpu()
