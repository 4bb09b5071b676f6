"""Texts in time as files that others read: tables, subtitles, NIST's formats, Praat's.

A format that knows but one recording (subtitles, TextGrid) holds several utterances as if one were played after the
other. Ids and texts are made printable, as everywhere (`speechssl.printable`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from speechssl.config.inference import FORMATS
from speechssl.config.knobs import check
from speechssl.inference.cues import Cue, cut_words, make_cues
from speechssl.inference.timed import Span, TimedText
from speechssl.printable import escape_field, make_json_printable, make_printable

SUFFIXES = {name: f".{name}" for name in FORMATS} | {"textgrid": ".TextGrid"}
"""What the files of each format are called."""

STM_S = 30.0
"""Longest segment of an STM file: a scorer aligns the words of each, in time that grows with its square."""

_UNSAFE_NAME = re.compile(r'[\x00-\x20\x7f-\x9f%\\<>:"|?*]')
"""What some file system, or a field of a CTM, does not take."""


def choose_format(format: str, out: str) -> str:
    """Choose the format: the one that is asked for, else what the suffix of `out` says, else `tsv`.

    Raises:
        ConfigError: the two contradict one another.
    """
    suffix = Path(out).suffix.lower()
    by_suffix = next((name for name, known in SUFFIXES.items() if known.lower() == suffix), "")
    if format and by_suffix:
        check(format == by_suffix, "format", f"{by_suffix}, as the suffix of out={out} says, or left out", format)
    return format or by_suffix or "tsv"


def name_file(id: str, format: str) -> PurePosixPath:
    """Name the file of one utterance below `out`, in the folders that its id names; no two ids have one name.

    Bytes that a file system may refuse, and a dot in front, are written as in a URL (`%20`).
    """
    parts = [_encode(part) for part in id.split("/")]
    # An empty part, or one of dots, would lead elsewhere.
    safe = [f"%2E{part[1:]}" if part.startswith(".") else part or "%" for part in parts]
    return PurePosixPath(*safe[:-1], f"{safe[-1]}{SUFFIXES[format]}")


def _encode(text: str) -> str:
    escaped = _UNSAFE_NAME.sub(lambda match: f"%{ord(match[0]):02X}", text)
    return make_printable(escaped).replace("\\", "%")


def render(texts: Iterable[TimedText], format: str) -> Iterator[str]:
    """Write a document piece by piece: every format but `textgrid` holds one utterance at a time.

    Args:
        texts: in the order that they are to have.
        format: one of `SUFFIXES`; all but `tsv` want words in time, and `json` and `textgrid` characters.
    """
    writers: dict[str, Callable[[Iterable[TimedText]], Iterator[str]]] = {
        "tsv": _render_tsv,
        "json": _render_json,
        "srt": _render_srt,
        "vtt": _render_vtt,
        "ctm": _render_ctm,
        "textgrid": _render_textgrid,
        "stm": _render_stm,
    }
    return writers[format](texts)


def _render_tsv(texts: Iterable[TimedText]) -> Iterator[str]:
    for text in texts:
        yield f"{make_printable(escape_field(text.id))}\t{make_printable(text.text)}\n"


def to_json(text: TimedText) -> dict[str, Any]:
    """Give an utterance as JSON has it: times to a tenth of a millisecond, confidences to four places."""
    fields = {name: getattr(text, name) for name in ("id", "path", "speaker", "channel")}
    return fields | {
        "duration_s": round(text.duration_s, 4),
        "text": text.text,
        "confidence": round(text.confidence, 4),
        "words": [_to_json_span(span) for span in text.words],
        "characters": [_to_json_span(span) for span in text.characters],
    }


def _to_json_span(span: Span) -> dict[str, Any]:
    times = {"start_s": round(span.start_s, 4), "end_s": round(span.end_s, 4)}
    return {"text": span.text, **times, "confidence": round(span.confidence, 4)}


def _render_json(texts: Iterable[TimedText]) -> Iterator[str]:
    separator = "[\n"
    for text in texts:
        # A lone surrogate, of a file name in another encoding, has an escape in JSON and no bytes in UTF-8.
        yield separator + make_json_printable(json.dumps(to_json(text), ensure_ascii=False, allow_nan=False))
        separator = ",\n"
    yield "\n]\n" if separator == ",\n" else "[]\n"


def _iterate_cues(texts: Iterable[TimedText]) -> Iterator[Cue]:
    begin = 0.0
    for text in texts:
        for cue in make_cues(text.words):
            lines = tuple(make_printable(line) for line in cue.lines)
            yield Cue(lines, begin + cue.start_s, begin + cue.end_s)
        begin += text.duration_s


def _render_srt(texts: Iterable[TimedText]) -> Iterator[str]:
    for number, cue in zip(count(1), _iterate_cues(texts)):
        lines = "\n".join(cue.lines)
        yield f"{number}\n{_format_time(cue.start_s, ',')} --> {_format_time(cue.end_s, ',')}\n{lines}\n\n"


def _render_vtt(texts: Iterable[TimedText]) -> Iterator[str]:
    yield "WEBVTT\n"
    for cue in _iterate_cues(texts):
        lines = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"\n{_format_time(cue.start_s, '.')} --> {_format_time(cue.end_s, '.')}\n{lines}\n"


def _format_time(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _render_ctm(texts: Iterable[TimedText]) -> Iterator[str]:
    for text in texts:
        name = _name_recording(text)
        if not text.words:
            yield f";; {name}: no words\n"
        for word in text.words:
            length = word.end_s - word.start_s
            yield f"{name} {word.start_s:.3f} {length:.3f} {make_printable(word.text)} {word.confidence:.4f}\n"


def _render_stm(texts: Iterable[TimedText]) -> Iterator[str]:
    for text in texts:
        head = f"{_name_recording(text)} {_encode(text.speaker) or 'unknown'}"
        stretches = cut_words(text.words, lambda words: words[-1].end_s - words[0].start_s <= STM_S)
        middles = [(left[-1].end_s + right[0].start_s) / 2 for left, right in pairwise(stretches)]
        # A text that nobody has put in time is one segment.
        lines = [" ".join(word.text for word in stretch) for stretch in stretches] if stretches[1:] else [text.text]
        for first, last, line in zip([0.0, *middles], [*middles, text.duration_s], lines, strict=True):
            yield f"{head} {first:.3f} {last:.3f} {make_printable(line)}".rstrip() + "\n"


def _name_recording(text: TimedText) -> str:
    """Give recording and channel as NIST's formats have them: no white space, and no `;;`, which is a remark."""
    return f"{_encode(text.id).replace(';', '%3B')} {text.channel or 1}"


def _render_textgrid(texts: Iterable[TimedText]) -> Iterator[str]:
    tiers: dict[str, list[tuple[float, float, str]]] = {"id": [], "text": [], "words": [], "characters": []}
    begin = 0.0
    for text in texts:
        tiers["id"].append((begin, begin + text.duration_s, text.id))
        tiers["text"].append((begin, begin + text.duration_s, text.text))
        for name, spans in (("words", text.words), ("characters", text.characters)):
            tiers[name] += [(begin + span.start_s, begin + span.end_s, span.text) for span in spans]
        begin += text.duration_s
    yield f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = {_format_number(begin)}\n'
    yield f"tiers? <exists>\nsize = {len(tiers)}\nitem []:\n"
    for number, (name, labelled) in enumerate(tiers.items(), 1):
        yield from _render_tier(number, name, fill_gaps(labelled, begin), begin)


def _render_tier(number: int, name: str, spans: Sequence[tuple[float, float, str]], end: float) -> Iterator[str]:
    yield f'    item [{number}]:\n        class = "IntervalTier"\n        name = "{name}"\n'
    yield f"        xmin = 0\n        xmax = {_format_number(end)}\n        intervals: size = {len(spans)}\n"
    for k, (first, last, label) in enumerate(spans, 1):
        times = f"            xmin = {_format_number(first)}\n            xmax = {_format_number(last)}\n"
        quoted = make_printable(label).replace('"', '""')
        yield f'        intervals [{k}]:\n{times}            text = "{quoted}"\n'


def fill_gaps(spans: Iterable[tuple[float, float, str]], end: float) -> list[tuple[float, float, str]]:
    """Make intervals that leave no gap from 0 to `end`, as Praat wants them: empty ones between those with a label.

    What begins before the one in front has ended begins there; what nothing is left of has no interval.
    """
    found: list[tuple[float, float, str]] = []
    at = 0.0
    for first, last, label in spans:
        first, last = max(at, first), min(last, end)
        if last - first < 1e-6:
            continue
        if first - at >= 1e-6:
            found.append((at, first, ""))
        found.append((first if first - at >= 1e-6 else at, last, label))
        at = last
    return [*found, (at, end, "")] if end - at >= 1e-6 else found


def _format_number(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
