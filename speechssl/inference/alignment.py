"""A text in time, from a recogniser's frames: forced alignment by CTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from speechssl.errors import DataError
from speechssl.inference.timed import Span
from speechssl.inference.trellis import Floats, Ints, States, find_path
from speechssl.text.spelling import fold
from speechssl.text.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary


@dataclass(frozen=True)
class _Letter:
    """One label of a text: the character that it stands for, its column of the posteriors, and whose word it is of."""

    text: str
    column: int
    word: int


def align_text(
    logits: Tensor, text: str, vocabulary: Vocabulary, frame_s: float
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Find when the words and characters of a text were said: the most probable path of its labels (Viterbi).

    A character's confidence is its label's highest posterior in the frames that the path gives it; a word's is the mean
    of its characters'. Punctuation and what the vocabulary lacks is no character, and a word without any is none.

    Args:
        logits: (T, V) of all frames of the utterance; scores of any scale are made probabilities by a softmax.
        text: what was said, as people write it or as a decoder gives it.
        vocabulary: V symbols.
        frame_s: from the start of one frame to the next, in seconds: 0.02, or 0.04 at 25 frames a second.

    Returns:
        Words and characters, each in their order and without overlap.

    Raises:
        DataError: the text has more labels than fit into the frames.
    """
    words = _split_words(text, vocabulary)
    letters = _list_letters(words, vocabulary)
    if not letters:
        return (), ()
    log_probs = logits.detach().float().log_softmax(-1).cpu().numpy()
    states = _make_states([letter.column for letter in letters])
    num_states = len(states.columns)
    starts = np.full(num_states, -1e30, dtype=np.float32)
    starts[:2] = 0
    ends = np.full(num_states, -1e30, dtype=np.float32)
    # The boundary after the last word need not be there.
    ends[-4:] = 0
    path = find_path(log_probs, states, starts, ends) if len(log_probs) else np.zeros(0, dtype=np.int64)
    if not len(path):
        must = f"`text` must fit into the {len(log_probs)} frames of its audio"
        raise DataError(f"{must}, but has {len(letters) - 1} labels: {text[:60]!r}")
    return _place(path, log_probs, letters, words, frame_s)


def _split_words(text: str, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Split a text into words as they are written, each with its labels as a text; those without labels are left out.

    What is in labels alone, as a decoder's text is, is taken letter by letter.
    """
    if all(c in vocabulary or c.isspace() for c in text):
        return [(word, word) for word in text.split()]
    # Quotes are told from apostrophes by the words around them, so before the words are split.
    spelt = [(word, vocabulary.normalise(word)) for word in fold(text, "keep").split()]
    return [(word, labels) for word, labels in spelt if labels]


def _list_letters(words: Sequence[tuple[str, str]], vocabulary: Vocabulary) -> list[_Letter]:
    """List the labels of words, each word followed by a boundary that belongs to no word (-1)."""
    boundary = vocabulary.symbols.index(WORD_BOUNDARY)
    letters = []
    for number, (_, spelt) in enumerate(words):
        for c in spelt:
            letters.append(_Letter(c, boundary, -1) if c == " " else _Letter(c, vocabulary.find_index(c), number))
        letters.append(_Letter(WORD_BOUNDARY, boundary, -1))
    return letters


def _make_states(columns: Sequence[int]) -> States:
    """Put a blank before, between and after labels."""
    states = np.full(2 * len(columns) + 1, BLANK, dtype=np.int64)
    states[1::2] = columns
    may_pass = np.zeros(len(states), dtype=np.bool_)
    may_pass[3::2] = states[3::2] != states[1:-2:2]
    return States(states, may_pass, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


def _place(
    path: Ints, log_probs: Floats, letters: Sequence[_Letter], words: Sequence[tuple[str, str]], frame_s: float
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Turn a path into spans of words and characters."""
    frames = np.arange(len(path))
    labelled = path % 2 == 1
    numbers = path[labelled] // 2
    peaks = np.exp(log_probs[frames[labelled], [letters[k].column for k in numbers]])
    first = {int(k): int(t) for k, t in zip(numbers[::-1], frames[labelled][::-1], strict=True)}
    last = {int(k): int(t) for k, t in zip(numbers, frames[labelled], strict=True)}
    highest = np.zeros(len(letters))
    np.maximum.at(highest, numbers, peaks)
    characters: list[Span] = []
    members: list[list[Span]] = [[] for _ in words]
    for k, letter in enumerate(letters):
        if letter.word >= 0:
            span = Span(letter.text, first[k] * frame_s, (last[k] + 1) * frame_s, float(highest[k]))
            characters.append(span)
            members[letter.word].append(span)
    spans = [
        Span(written, own[0].start_s, own[-1].end_s, float(np.mean([span.confidence for span in own])))
        for (written, _), own in zip(words, members, strict=True)
    ]
    return tuple(spans), tuple(characters)
