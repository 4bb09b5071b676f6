"""Text in time: what was said when, and how sure the recogniser is of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A word or a character in time.

    Attributes:
        text: as it is written.
        start_s, end_s: seconds from the start of the utterance.
        confidence: between 0 and 1: `align_text` says of what.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class TimedText:
    """An utterance's text in time.

    Attributes:
        id: the utterance's name.
        path: its file, as a manifest has it; empty for a waveform in memory.
        speaker: empty where nobody says.
        channel: of the file, from 1; 0: the mean of all.
        duration_s: length of the audio.
        text: the whole of it, as it is written.
        confidence: of the whole, between 0 and 1.
        words: in their order; none overlaps the next.
        characters: of all words, in their order; spaces are none.
    """

    id: str
    path: str
    speaker: str
    channel: int
    duration_s: float
    text: str
    confidence: float
    words: tuple[Span, ...] = ()
    characters: tuple[Span, ...] = ()
