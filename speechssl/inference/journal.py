"""Texts as they are done, in a file beside `out` from which the same command goes on; it goes when the result is there.

Each line is a checksum and JSON: the first says what was asked, every other one is an utterance. What a death or a disk
has damaged is done again.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from speechssl.durable import Appender, remove
from speechssl.errors import ConfigError
from speechssl.inference.decoding.hypotheses import Hypothesis
from speechssl.inference.timed import Span, TimedText
from speechssl.parsing import open_regular, parse_json, parsing, show

VERSION = 1

_logger = logging.getLogger("speechssl")


class Entry(NamedTuple):
    """One utterance: its text, what the decoder counted meanwhile (`Fit.counts`), and its n-best texts if wanted."""

    text: TimedText
    counts: tuple[int, int, int] = (0, 0, 0)
    hypotheses: tuple[Hypothesis, ...] = ()


class Journal:
    """What one command has done so far.

    Args:
        path: of the file; made with the first utterance.
        request: what decides about the texts, by key: an earlier file is gone on from if it was begun with the same.
        overwrite: begin again where it was not.

    Raises:
        ConfigError: an earlier file was begun with another request, and `overwrite` is false; or as `Appender`.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = path
        self.request = json.loads(json.dumps({"version": VERSION, **request}))
        self._places: dict[str, int] = {}
        self._file: Appender | None = None
        self._resume(overwrite)

    def __len__(self) -> int:
        """Count the utterances."""
        return len(self._places)

    def __contains__(self, id: str) -> bool:
        """Say whether an utterance is done."""
        return id in self._places

    def __enter__(self) -> Self:
        """Give the journal itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file where all is done, or nothing; else say what it is for."""
        if self._file:
            self._file.close()
        if kind is None or not self._places:
            remove(self.path)
        else:
            message = "broken off: %d texts are kept in %s, and the same command goes on from there"
            _logger.warning(message, len(self), self.path)

    def add(self, entry: Entry) -> None:
        """Note an utterance that is done.

        Raises:
            ConfigError: as `Appender`.
        """
        if self._file is None:
            remove(self.path)
            self._file = Appender(self.path, is_new=True)
            self._file.write(_write_line(self.request))
        place = self._file.size
        hypotheses = [list(found) for found in entry.hypotheses]
        self._file.write(
            _write_line({"text": asdict(entry.text), "counts": list(entry.counts), "hypotheses": hypotheses})
        )
        self._places[entry.text.id] = place

    def keep(self, ids: Iterable[str]) -> None:
        """Keep what is done of these utterances, and forget the others."""
        self._places = {id: self._places[id] for id in list(ids)}

    def iterate(self, ids: Iterable[str]) -> Iterator[Entry]:
        """Read what is done of these utterances, in their order.

        Raises:
            ConfigError: the file was changed meanwhile.
        """
        if not self._places:
            return
        with open_regular(self.path) as file:
            for id in ids:
                if id in self._places:
                    yield self._read(file, self._places[id])

    def _read(self, file: BinaryIO, place: int) -> Entry:
        with parsing(str(self.path), "what this command has written", ConfigError):
            file.seek(place)
            value = _read_line(file.readline())
            if value is None:
                raise ValueError("it was changed meanwhile")
            return _make_entry(value)

    def _resume(self, overwrite: bool) -> None:
        """Take over what an earlier run has done, up to the first line that is not whole."""
        if self.path.is_symlink() or not self.path.is_file():
            return
        with parsing(str(self.path), "what an earlier run wrote", ConfigError), open_regular(self.path) as file:
            begun = _read_line(file.readline())
            if begun is not None and begun != self.request:
                self._refuse(begun, overwrite)
                return
            place = file.tell()
            while begun is not None and (value := _read_line(file.readline())) is not None:
                self._places[_make_entry(value).text.id] = place
                place = file.tell()
            lost = file.seek(0, os.SEEK_END) - place
        if lost or begun is None:
            _logger.warning("%s is damaged behind the first %d texts: the rest is done again", self.path, len(self))
        if self._places:
            os.truncate(self.path, place)
            self._file = Appender(self.path)
            _logger.info("going on from %s, where %d texts are done", self.path, len(self))

    def _refuse(self, begun: Mapping[str, Any], overwrite: bool) -> None:
        """Say which key another command has begun with, unless it may be replaced."""
        if overwrite:
            return
        key = next(key for key in (*self.request, *begun) if begun.get(key) != self.request.get(key))
        raise ConfigError(
            f"`{key}` must be as the command had it that {self.path} is of, {show(begun.get(key))}, but is "
            f"{show(self.request.get(key))} (overwrite=true begins again)"
        )


def _write_line(value: Mapping[str, Any]) -> bytes:
    """Write a line: its checksum, and JSON, in which lone surrogates of a file's name have their escapes."""
    text = json.dumps(value, allow_nan=False).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read_line(line: bytes) -> dict[str, Any] | None:
    """Read a line; None where it is not whole, as the last one of a file is not."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    is_whole = line.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(text)
    return parse_json(text) if is_whole else None


def _make_entry(value: Mapping[str, Any]) -> Entry:
    fields = value["text"]
    first, second, third = value["counts"]
    spans = {name: tuple(Span(**span) for span in fields[name]) for name in ("words", "characters")}
    hypotheses = tuple(Hypothesis(*found) for found in value["hypotheses"])
    return Entry(TimedText(**{**fields, **spans}), (first, second, third), hypotheses)
