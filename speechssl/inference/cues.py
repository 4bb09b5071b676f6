"""Words in time cut where people pause: into subtitles, and into stretches that a scorer can align."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speechssl.inference.timed import Span

LINE_LETTERS = 42
"""Letters in a line of a subtitle (the BBC's and Netflix's guidelines: 37 to 42), of which a cue has two."""

CUE_S = 7.0
"""Longest that a subtitle stands (Netflix's guideline)."""

MIN_CUE_S = 1.0
"""A subtitle stands at least so long, where the next one leaves it the time."""

PAUSE_S = 1.0
"""A pause after which a new subtitle begins in any case."""

SHARE = 1 / 3
"""A cut leaves at least this share of the letters on either side, where it can: no word alone beside a full cue."""


@dataclass(frozen=True)
class Cue:
    """A subtitle: one or two lines, and when they are shown."""

    lines: tuple[str, ...]
    start_s: float
    end_s: float


def cut_words(words: Sequence[Span], fits: Callable[[Sequence[Span]], bool]) -> list[Sequence[Span]]:
    """Cut words at the longest pauses until each stretch fits; a single word always does.

    Args:
        words: in their order.
        fits: whether words can be one stretch.
    """
    found: list[Sequence[Span]] = []
    waiting = [words] if words else []
    while waiting:
        stretch = waiting.pop()
        if len(stretch) == 1 or fits(stretch):
            found.append(stretch)
            continue
        at = _choose_cut(stretch)
        waiting += [stretch[at:], stretch[:at]]
    return found


def _choose_cut(words: Sequence[Span]) -> int:
    """Choose the word before which to cut: behind the longest pause that is not near an end, of equal ones the middle.

    Either side keeps a share, so that hours are cut in time that grows with their words, not with the square.
    """
    ends, total = [], 0
    for word in words:
        total += len(word.text) + 1
        ends.append(total)
    least = SHARE * total
    inner = [k for k in range(1, len(words)) if least <= ends[k - 1] <= total - least]
    # To a hundredth, below which no frame tells pauses apart.
    return max(
        inner or range(1, len(words)),
        key=lambda k: (round(words[k].start_s - words[k - 1].end_s, 2), -abs(ends[k - 1] - total / 2)),
    )


def make_cues(words: Sequence[Span]) -> list[Cue]:
    """Make subtitles: new ones at pauses, of two lines of `LINE_LETTERS` at most, of `CUE_S` seconds at most.

    A word that is longer than a line is a line; one that takes longer stands as long as it takes.
    """
    cues: list[Cue] = []
    for part in _cut_at_pauses(words):
        for stretch in cut_words(part, _is_cue):
            cues.append(Cue(_break_lines(stretch), stretch[0].start_s, stretch[-1].end_s))
    nexts = [*(cue.start_s for cue in cues), float("inf")][1:]
    return [
        Cue(cue.lines, cue.start_s, min(max(cue.end_s, cue.start_s + MIN_CUE_S), following))
        for cue, following in zip(cues, nexts, strict=True)
    ]


def _cut_at_pauses(words: Sequence[Span]) -> list[Sequence[Span]]:
    cuts = [k for k in range(1, len(words)) if words[k].start_s - words[k - 1].end_s >= PAUSE_S]
    edges = zip([0, *cuts], [*cuts, len(words)], strict=True)
    return [words[first:last] for first, last in edges if first < last]


def _is_cue(words: Sequence[Span]) -> bool:
    if words[-1].end_s - words[0].start_s > CUE_S or len(words) > 2 * LINE_LETTERS:
        return False
    return max(map(len, _break_lines(words))) <= LINE_LETTERS


def _break_lines(words: Sequence[Span]) -> tuple[str, ...]:
    """Set words in one line, or in two that are as alike as can be."""
    texts = [word.text for word in words]
    whole = " ".join(texts)
    if len(whole) <= LINE_LETTERS or len(texts) == 1:
        return (whole,)
    pairs = [(" ".join(texts[:k]), " ".join(texts[k:])) for k in range(1, len(texts))]
    return min(pairs, key=lambda pair: max(map(len, pair)))
