"""Are two recognisers different? NIST's alignment of words, and the segments of its matched-pairs test (MAPSSWE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUBSTITUTION, GAP = 4, 3
"""What sclite's alignment pays for a substitution, and for an insertion or a deletion."""

MIN_CORRECT = 2
"""Words in a row that both recognisers must have right for a segment to end, as in sc_stats."""


@dataclass(frozen=True)
class Alignment:
    """A hypothesis beside its reference of n words.

    Attributes:
        marks: n letters: `C` for a correct word, `S` for a substitution, `D` for a deletion.
        insertions: n + 1 numbers of words inserted before each word of the reference, and after the last.
    """

    marks: str
    insertions: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Substitutions, deletions and insertions."""
        return self.marks.count("S"), self.marks.count("D"), sum(self.insertions)


def align_words(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Align two texts as NIST's sclite does.

    It pays 4 for a substitution and 3 for an insertion or a deletion, so a few texts have an error more than by the
    fewest edits (Levenshtein, jiwer). Where ways are equally cheap, a pair of words goes before a gap, and an insertion
    before a deletion, seen from the end.

    Args:
        reference: n words.
        hypothesis: m words; case counts, as with `sclite -s`.

    Source: NIST SCTK 2.4, sclite.
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*reference, *hypothesis]))}
    said, heard = (np.array([numbers[word] for word in words], dtype=np.int64) for words in (reference, hypothesis))
    # costs[i, j]: the cheapest alignment of the first i words said and the first j heard.
    costs = np.empty((len(said) + 1, len(heard) + 1), dtype=np.int32)
    gaps = GAP * np.arange(len(heard) + 1, dtype=np.int32)
    costs[0] = gaps
    for i, word in enumerate(said, 1):
        row = costs[i - 1] + GAP
        row[1:] = np.minimum(row[1:], costs[i - 1, :-1] + SUBSTITUTION * (heard != word))
        # Any number of insertions behind each of these.
        costs[i] = np.minimum.accumulate(row - gaps) + gaps
    marks, insertions = [""] * len(said), [0] * (len(said) + 1)
    i, j = len(said), len(heard)
    while i or j:
        pair = costs[i - 1, j - 1] + SUBSTITUTION * int(said[i - 1] != heard[j - 1]) if i and j else None
        if pair is not None and pair == costs[i, j]:
            marks[i - 1] = "C" if said[i - 1] == heard[j - 1] else "S"
            i, j = i - 1, j - 1
        elif not i or (j and costs[i, j - 1] + GAP == costs[i, j]):
            insertions[i] += 1
            j -= 1
        else:
            marks[i - 1] = "D"
            i -= 1
    return Alignment("".join(marks), tuple(insertions))


def count_segment_errors(a: Alignment, b: Alignment) -> list[tuple[int, int]]:
    """Cut an utterance where both recognisers have two words in a row right, and count their errors between the cuts.

    Args:
        a, b: what two recognisers made of the same reference.

    Returns:
        Errors of `a` and of `b` in each segment in which either has any.

    Source: Gillick and Cox 1989; NIST SCTK 2.4, `sc_stats -t mapsswe`.
    """
    segments, errors, num_correct = [], [0, 0], 0
    for k in range(len(a.insertions)):
        inserted = (a.insertions[k], b.insertions[k])
        marks = (a.marks[k], b.marks[k]) if k < len(a.marks) else ("C", "C")
        errors = [errors[side] + inserted[side] for side in (0, 1)]
        num_correct = 0 if any(inserted) else num_correct
        errors = [errors[side] + (marks[side] != "C") for side in (0, 1)]
        num_correct = num_correct + 1 if marks == ("C", "C") else 0
        if any(errors) and (num_correct == MIN_CORRECT or k == len(a.marks)):
            segments.append((errors[0], errors[1]))
            errors = [0, 0]
    return segments
