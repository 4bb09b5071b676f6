"""A text in time, from a recogniser's frames: forced alignment by CTC, of hours too, and where the two differ.

A *star* stands for what the vocabulary cannot write ("1984", a letter of another script): it takes any symbol, at the
probability of the best one (torchaudio's tutorial "CTC forced alignment API for multilingual data"; MMS, arXiv
2305.13516). In a tolerant alignment, words may be passed over that nobody said, and between two words anything may be
said that nobody wrote, each at a price (`UNSAID_NATS`, `UNWRITTEN_NATS`; cf. arXiv 2309.15796).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from speechssl.errors import DataError
from speechssl.inference.anchors import find_cuts
from speechssl.inference.timed import Span
from speechssl.inference.trellis import IMPOSSIBLE, Floats, Ints, States, find_path
from speechssl.text.spelling import fold
from speechssl.text.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary

UNSAID_NATS = 4.0
"""What it costs to pass over a letter of the text. On the speech of `dev` with 31 % CER, 1 to 1.5 % of true words are
passed over, and some 95 % of five that are put in between; of five in place of what is said, a fifth (2026-11-30)."""

UNWRITTEN_NATS = 2.0
"""What it costs to hear a letter that the text does not have."""

_STAR_BLANK_NATS = 0.5
"""What it costs a star to take a frame of silence: silence around it is rather not its own."""

PAUSE_S = 0.15
"""Longer than that between two letters nobody speaks. CTC names a letter in a frame or two of those that it lasts: what
lies between two that are closer is theirs, half each."""

_REACH_S = 0.02
"""How far letters reach into a pause."""

_WINDOW_S = 0.025
"""What a frame sees of the waveform; it stands for the time around the middle of that."""

_NO_WORD = -1


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        written: as people write it.
        spelt: in labels, and in spoken characters that are none, each run of which is a star; of several words where
            a silent character stands inside ("well-known").
    """

    written: str
    spelt: str


@dataclass(frozen=True)
class _Letter:
    """A label of a text: the characters that it stands for, its column of the log-probabilities, its word's number."""

    text: str
    column: int
    word: int


def split_words(text: str, vocabulary: Vocabulary, spell: Callable[[str], str] | None = None) -> list[Word]:
    """Split a text into the words that can be put in time; one of silent characters alone ("–") is none.

    What is in labels alone, as a decoder's text is, is taken letter by letter. Where nobody writes spaces between
    words, each label is one.

    Args:
        text: as people write it or as a decoder gives it.
        vocabulary: the labels.
        spell: spells a word otherwise before its labels are taken, such as in Latin letters.
    """
    if not vocabulary.has_words and vocabulary.pieces is None:
        spelt = vocabulary.normalise_reference(spell(text) if spell else text)
        return [Word(part, part) for part, _ in vocabulary.cut("".join(spelt.split()))]
    if spell is None and all(c in vocabulary or c.isspace() for c in text):
        return [Word(word, word) for word in text.split()]
    # Quotes are told from apostrophes by the words around them, so before the words are split.
    written = fold(text, "keep").split()
    words = [Word(word, vocabulary.normalise_reference(spell(word) if spell else word)) for word in written]
    return [word for word in words if word.spelt]


def align_text(
    logits: Tensor, text: str, vocabulary: Vocabulary, frame_s: float, *, tolerant: bool = False
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Find when the words and characters of a text were said: the most probable path of its labels (Viterbi).

    Args:
        logits: (T, V) of all frames of the utterance; a softmax makes probabilities of them.
        text: what was said, as people write it or as a decoder gives it.
        vocabulary: V symbols.
        frame_s: from the start of one frame to the next, in seconds: 0.02, or 0.04 at 25 frames a second.
        tolerant: as in `align_words`.

    Returns:
        Words and characters, as `align_words` gives them.

    Raises:
        DataError: the text has more labels than fit into the frames, and the alignment is not tolerant.
    """
    return align_words(logits, split_words(text, vocabulary), vocabulary, frame_s, tolerant=tolerant)


def align_words(
    logits: Tensor, words: Sequence[Word], vocabulary: Vocabulary, frame_s: float, *, tolerant: bool = False
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Put words in time.

    A character's confidence is its label's highest posterior in the frames that the path gives it, 0 for a star; a
    word's is the mean of its characters'. Memory grows with T + L; time too, where the recogniser knows the text well
    enough for it to be cut (`find_cuts`), and with T · L in between.

    Args:
        logits, vocabulary, frame_s: as in `align_text`.
        words: what was said.
        tolerant: words may be missing in the audio, and speech in the words.

    Returns:
        Words and characters, each in their order and without overlap; without the words that were passed over.

    Raises:
        DataError: the words do not fit into the frames, and the alignment is not tolerant.
    """
    letters = _list_letters(words, vocabulary)
    if not letters or (tolerant and not len(logits)):
        return (), ()
    log_probs = logits.detach().float().log_softmax(-1).cpu().numpy()
    columns = np.array([letter.column for letter in letters])
    numbers = np.array([letter.word for letter in letters])
    starts, has_boundary = _list_starts(numbers), bool(numbers[-1] == _NO_WORD)
    cuts = find_cuts(log_probs, columns, starts)
    edges = zip([(0, 0), *cuts], [*cuts, (len(log_probs), len(letters))], strict=True)
    runs = np.full((len(letters), 2), -1, dtype=np.int64)
    for (frame, first), (last_frame, last) in edges:
        gaps = [k - first for k in [*starts, len(letters)] if first <= k <= last]
        path = _find_part(log_probs[frame:last_frame], columns[first:last], gaps, tolerant, has_boundary)
        if not len(path):
            text = " ".join(word.written for word in words)
            must = f"`text` must fit into the {len(log_probs)} frames of its audio"
            raise DataError(f"{must}, but has {len(letters) - has_boundary} labels: {text[:60]!r}")
        where = np.flatnonzero(path % 2)
        # Written from the back, the first frame of each label is what stays.
        runs[first + path[where[::-1]] // 2, 0] = frame + where[::-1]
        runs[first + path[where] // 2, 1] = frame + where + 1
    return _make_spans(runs, log_probs, letters, words, frame_s)


def _list_letters(words: Sequence[Word], vocabulary: Vocabulary) -> list[_Letter]:
    """List the labels of words, a boundary behind each where there is one, inside of "well-known" too."""
    boundaries: list[_Letter] = []
    if vocabulary.pieces is None and vocabulary.has_words:
        boundaries = [_Letter(WORD_BOUNDARY, vocabulary.symbols.index(WORD_BOUNDARY), _NO_WORD)]
    letters: list[_Letter] = []
    for number, word in enumerate(words):
        for part in word.spelt.split():
            stars = len(vocabulary)
            cut = vocabulary.cut(part)
            letters += [_Letter(text, stars if label is None else label, number) for text, label in cut]
            letters += boundaries
    return letters


def _list_starts(numbers: Ints) -> list[int]:
    """List the labels with which words begin, 0 among them."""
    spoken = np.flatnonzero(numbers != _NO_WORD)
    begins = np.diff(numbers[spoken], prepend=_NO_WORD) != 0
    return [int(k) for k in spoken[begins]]


def _find_part(log_probs: Floats, columns: Ints, gaps: Sequence[int], tolerant: bool, has_boundary: bool) -> Ints:
    """Find the path (T,) of labels, or nothing where they do not fit.

    Args:
        log_probs: (T, V) of all frames.
        columns: (L,) labels of whole words, V for a star.
        gaps: labels before which a word begins, 0 and L included.
        tolerant: words and speech may be passed over there.
        has_boundary: the last label is the boundary behind the last word, which need not be there.
    """
    if not len(log_probs):
        return np.zeros(0, dtype=np.int64)
    best = log_probs.copy()
    best[:, BLANK] -= _STAR_BLANK_NATS
    star = best.max(-1)
    gap = np.maximum(log_probs[:, BLANK], star - UNWRITTEN_NATS)
    states = np.full(2 * len(columns) + 1, BLANK, dtype=np.int64)
    states[1::2] = columns
    may_pass = np.zeros(len(states), dtype=np.bool_)
    may_pass[3::2] = states[3::2] != states[1:-2:2]
    starts, ends = np.full((2, len(states)), IMPOSSIBLE, dtype=np.float32)
    starts[:2] = 0
    ends[-4 if has_boundary else -2 :] = 0
    places, costs = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    if tolerant:
        places = 2 * np.array(gaps, dtype=np.int64)
        states[places] = log_probs.shape[1] + 1
        costs = (UNSAID_NATS * places / 2).astype(np.float32)
        starts[places] = -costs
        starts[places[:-1] + 1] = -costs[:-1]
        ends[places] = np.maximum(ends[places], costs - costs[-1])
    extended = np.concatenate([log_probs, star[:, None], gap[:, None]], axis=1)
    return find_path(extended, States(states, may_pass, places, costs), starts, ends)


def _make_spans(
    runs: Ints, log_probs: Floats, letters: Sequence[_Letter], words: Sequence[Word], frame_s: float
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Make words and characters of the frames that each label has, from the first to behind the last."""
    heard = [k for k, letter in enumerate(letters) if letter.word != _NO_WORD and runs[k, 0] >= 0]
    times = _place_edges(runs[heard].astype(np.float64) * frame_s + (_WINDOW_S - frame_s) / 2)
    characters: list[Span] = []
    members: list[list[Span]] = [[] for _ in words]
    for k, (start_s, end_s) in zip(heard, times.tolist(), strict=True):
        letter, (first, last) = letters[k], runs[k]
        is_star = letter.column == log_probs.shape[1]
        confidence = 0.0 if is_star else float(np.exp(log_probs[first:last, letter.column].max()))
        span = Span(letter.text, start_s, end_s, confidence)
        members[letter.word].append(span)
        # A piece may be the mark of a word's beginning alone.
        characters += [span] if letter.text else []
    spans = [
        Span(word.written, own[0].start_s, own[-1].end_s, float(np.mean([span.confidence for span in own])))
        for word, own in zip(words, members, strict=True)
        if own
    ]
    return tuple(spans), tuple(characters)


def _place_edges(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Move starts and ends (n, 2) outwards: neighbours share the time between them, unless it is a pause."""
    gaps = times[1:, 0] - times[:-1, 1]
    reach = np.where(gaps <= PAUSE_S, gaps / 2, _REACH_S)
    placed = times.copy()
    placed[:-1, 1] += reach
    placed[1:, 0] -= reach
    return np.maximum(placed, 0.0)
