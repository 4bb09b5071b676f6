"""Long audio's logits cut where people pause: what is decoded or aligned at once stays a minute, whatever the audio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.text.pieces import WORD_START
from speechssl.text.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary

IntArray = npt.NDArray[np.int64]

NOWHERE = -1
"""The boundary of a vocabulary that has none."""

STRETCH_S = 60.0
"""Longest stretch, and audio up to so long is one."""

LEAST_S = 20.0
"""Shortest stretch but the last: between the two the longest pause is looked for."""


class Stretch(NamedTuple):
    """Consecutive frames.

    Attributes:
        first: number of the first of them.
        logits: (t, V).
        ends_word: no word goes on in the next stretch.
    """

    first: int
    logits: Tensor
    ends_word: bool


def cut_stretches(pieces: Iterable[Tensor], vocabulary: Vocabulary, frame_s: float) -> Iterator[Stretch]:
    """Cut frames so that the greedy texts of the stretches, put together, are the greedy text of the whole.

    A cut is in the longest pause in which a word ends, behind its boundary; where nobody writes boundaries, as in
    Chinese, in the longest pause. A pause is what stands between two letters: blanks and boundaries.

    Args:
        pieces: (t, V) logits, consecutive.
        vocabulary: V symbols; those that are no label count as blanks.
        frame_s: from one frame to the next, in seconds.
    """
    least, most = round(LEAST_S / frame_s), round(STRETCH_S / frame_s)
    is_pause = np.array([k not in vocabulary.labels for k in range(len(vocabulary))])
    is_letters = vocabulary.pieces is None and vocabulary.has_words
    boundary = vocabulary.symbols.index(WORD_BOUNDARY) if is_letters else NOWHERE
    begins = np.array([vocabulary.pieces is not None and symbol[:1] == WORD_START for symbol in vocabulary.symbols])
    first, ends_word = 0, True
    held: list[Tensor] = []

    def cut() -> Iterator[Stretch]:
        nonlocal first, ends_word, held
        logits = torch.cat(held)
        while len(logits) > most:
            path = logits[:most].argmax(-1).numpy()
            at, ends_word = find_cut(np.where(is_pause[path], BLANK, path), boundary, least, ends_word, begins)
            yield Stretch(first, logits[:at], ends_word)
            first, logits = first + at, logits[at:]
        held = [logits]

    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        if num_held > most:
            yield from cut()
            num_held = len(held[0])
    if held:
        yield Stretch(first, torch.cat(held), True)


def find_cut(
    path: IntArray,
    boundary: int,
    least: int,
    starts_word: bool = True,
    begins: npt.NDArray[np.bool_] | None = None,
) -> tuple[int, bool]:
    """Find the frame, at least `least`, before which to cut, and whether a word ends there.

    Args:
        path: (T,) symbol of each frame.
        boundary: the symbol between words, or `NOWHERE`.
        least: fewest frames before the cut.
        starts_word: the first label begins a word.
        begins: (V,) which symbols begin a word, among pieces.
    """
    is_gap = (path == BLANK) | (path == boundary)
    gaps = np.flatnonzero(np.diff(is_gap.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    found: list[tuple[bool, int, int]] = []
    for first, last in gaps[gaps[:, 1] > least].tolist():
        written = np.flatnonzero(path[first:last] == boundary)
        ends_word = len(written) > 0 or (first == 0 and starts_word)
        ends_word |= begins is not None and last < len(path) and bool(begins[path[last]])
        # A stretch that begins with a boundary would be one that no text has.
        behind = first + int(written[-1]) + 1 if len(written) else first
        at = (max(behind, least) + last) // 2
        if at < len(path):
            found.append((ends_word, last - max(first, least), at))
    if found:
        ends_word, _, at = max(found, key=lambda gap: gap[:2])
        return at, ends_word
    # Nobody speaks a minute without a pause; a label that has begun is not written twice.
    changes = np.flatnonzero(np.diff(path)) + 1
    late = changes[changes >= least]
    return int(late[-1]) if len(late) else len(path), False
