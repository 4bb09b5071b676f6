"""What is done of a table of embeddings, kept beside it until all is: a folder of Parquet files, each whole."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechssl.data.left_out import LeftOut
from speechssl.durable import flush, remove, write_in_one_step, writing
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.inference.embed import Rows
from speechssl.parsing import parsing, read_json, show

SHARD_BYTES = 2**24
"""Rows that are held before they are written."""

SHARD_S = 30.0
"""Seconds after which they are written though they are fewer: what a kill can cost."""

_REQUEST, _LEFT_OUT = "request.json", "left_out.json"

_logger = logging.getLogger("speechssl")


class Shards:
    """The rows that are done, in their order; use it in a `with` statement, which keeps them if it is broken off.

    Args:
        out: the table that they become; they lie in the folder `.<name>.part` beside it.
        request: what decides about the rows; an earlier run goes on only where it is the same.
        left_out: what cannot be used; gets what the earlier run found.
        overwrite: begin again where another command has begun.

    Raises:
        ConfigError: another command has begun and `overwrite` is false, or it cannot be written.
    """

    def __init__(self, out: Path, request: Mapping[str, Any], left_out: LeftOut, overwrite: bool = False) -> None:
        self.folder = out.with_name(f".{out.name}.part")
        self.request, self.left_out = json.loads(json.dumps(request)), left_out
        self.num_rows = self._num_left_out = 0
        self._files: list[Path] = []
        self._waiting: list[pa.Table] = []
        self._num_bytes = 0
        self._since = time.monotonic()
        with writing(self.folder):
            if not self._resume(overwrite):
                remove(self.folder)
                self.folder.mkdir()
                write_in_one_step(self.folder / _REQUEST, json.dumps(self.request))

    def __enter__(self) -> Self:
        """Give the rows themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folder where the table is whole, or nothing is done; else write what waits, and say where."""
        if kind is not None:
            try:
                self.flush()
            except SpeechSSLError as problem:
                _logger.warning("%s", problem)
        if kind is None or not self.num_rows:
            remove(self.folder)
        else:
            message = "broken off: %d rows are kept in %s, and the same command with this `out` goes on from there"
            _logger.warning(message, self.num_rows, self.folder)

    def add(self, table: pa.Table) -> None:
        """Take in rows.

        Raises:
            ConfigError: they cannot be written.
        """
        self._waiting.append(table)
        self._num_bytes += table.nbytes
        if self._num_bytes >= SHARD_BYTES or time.monotonic() - self._since >= SHARD_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits; first what is left out, since what comes before the last row is not looked at again."""
        waiting, self._waiting = self._waiting, []
        self._num_bytes, self._since = 0, time.monotonic()
        if len(self.left_out) > self._num_left_out:
            items = [astuple(item) for item in self.left_out.items]
            write_in_one_step(self.folder / _LEFT_OUT, json.dumps({"items": items}))
            self._num_left_out = len(items)
        if not waiting:
            return
        table = pa.concat_tables(waiting).combine_chunks()
        path = self._name(len(self._files))
        scratch = path.with_suffix(".scratch")
        with writing(path, also=(pa.ArrowException,)):
            pq.write_table(table, scratch, write_page_checksum=True, use_dictionary=name_texts(table.schema))
            flush(scratch)
            scratch.replace(path)
            flush(self.folder)
        self._files.append(path)
        self.num_rows += table.num_rows

    def find_place(self, rows: Rows) -> tuple[frozenset[int], dict[int, int]]:
        """Find out how far the rows go.

        Returns:
            the utterances of which all rows are there, and the one, if any, of which some are, with how many.

        Raises:
            ConfigError: what was written is damaged.
        """
        if not self._files:
            return frozenset(), {}
        name, count = "", 0
        with parsing(str(self.folder), "what this command has written", ConfigError):
            for file in reversed(self._files):
                with self._open(file) as parquet:
                    ids = parquet.read(["id"]).column("id")
                name = name or ids[-1].as_py()
                num_same = int(pc.sum(pc.equal(ids, name)).as_py())
                count += num_same
                if num_same < len(ids):
                    break
            last = list(rows.source.ids).index(name)
        is_whole = count >= rows.count(last)
        _logger.info("going on from %s, where %d rows are done, up to %s", self.folder, self.num_rows, name)
        return frozenset(range(last + is_whole)), {} if is_whole else {last: count}

    def iterate(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """Read the rows, without those of files in which damage was come to later.

        Raises:
            ConfigError: what was written is damaged.
        """
        names = pa.array([item.id for item in self.left_out.items], pa.string())
        for file in self._files:
            with parsing(str(file), "what this command has written", ConfigError), self._open(file) as parquet:
                table = parquet.read().cast(schema)
            yield table.filter(pc.invert(pc.is_in(table.column("id"), value_set=names))) if len(names) else table

    def _name(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"

    def _open(self, file: Path) -> pq.ParquetFile:
        return pq.ParquetFile(file, page_checksum_verification=True)

    def _resume(self, overwrite: bool) -> bool:
        """Take over what an earlier run has done, up to the first file that is damaged; say whether there is any."""
        if self.folder.is_symlink() or not (self.folder / _REQUEST).is_file():
            return False
        begun = read_json(self.folder / _REQUEST, ConfigError)
        if begun != self.request:
            if overwrite:
                return False
            key = next(key for key in (*self.request, *begun) if begun.get(key) != self.request.get(key))
            raise ConfigError(
                f"`{key}` must be as the command had it that {self.folder} is of, {show(begun.get(key))}, but is "
                f"{show(self.request.get(key))} (overwrite=true begins again)"
            )
        while (file := self._name(len(self._files))).is_file():
            try:
                with parsing(str(file), "what an earlier run wrote", ConfigError), self._open(file) as parquet:
                    self.num_rows += parquet.metadata.num_rows
            except ConfigError as error:
                _logger.warning("the rest is done again: %s", error)
                break
            self._files.append(file)
        if (self.folder / _LEFT_OUT).is_file():
            with parsing(str(self.folder / _LEFT_OUT), "what an earlier run wrote", ConfigError):
                for name, path, reason in read_json(self.folder / _LEFT_OUT, ConfigError)["items"]:
                    self.left_out.add(name, path, reason)
        self._num_left_out = 0
        return True


def name_texts(schema: pa.Schema) -> list[str]:
    """Name the columns that say the same again and again, unlike numbers."""
    return [column.name for column in schema if pa.types.is_string(column.type)]
