"""What the data behind a run were when it began: where they have changed, the run says which utterances.

Ids, lengths and order decide what the plan of a run is, transcripts what a recogniser learns, and the size of a file
tells another recording at a glance. Times of files are only told: a copy has others, and so has another machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechssl.checkpoints.layout import DATA
from speechssl.data.manifest import Manifest
from speechssl.durable import flush, remove
from speechssl.errors import DataError
from speechssl.parsing import parsing, read_bytes
from speechssl.printable import make_printable

NAMED = 5
"""How many utterances a message names of each kind of change."""

NUM_THREADS = 16
"""Files are asked for their size side by side: over a network each answer takes a while."""

LIMIT = 2**30
"""Largest record that is read, in bytes; a million utterances take 30 MB."""

CHANGES = {
    "num_samples": "have another length",
    "offset": "begin elsewhere in their files",
    "channel": "are another channel of their files",
    "text": "have another transcript",
    "size": "have files of another size",
}
"""Column of the record → what is said of utterances where it differs."""

_logger = logging.getLogger("speechssl")

IntArray = npt.NDArray[np.int64]


def describe_data(sets: Mapping[str, Manifest], with_texts: bool) -> pa.Table:
    """Describe the utterances behind each key: id, stretch, transcript where it matters, size and time of the file.

    Args:
        sets: manifest of each key, such as `data.train`.
        with_texts: whether updates are a function of the transcripts.
    """
    tables = []
    for key, manifest in sets.items():
        none = np.zeros(len(manifest), dtype=np.int64)
        # A manifest may leave these columns out, and rows of them.
        held = {name: manifest.table.column(name) for name in ("offset", "channel") if manifest.has(name)}
        sizes, times = _measure_files(manifest)
        columns = {
            "key": pa.array([key] * len(manifest)).dictionary_encode(),
            "id": manifest.table.column("id"),
            "num_samples": manifest.num_samples_16k,
            **{name: pc.fill_null(held[name], 0) if name in held else none for name in ("offset", "channel")},
            "text": hash_texts(manifest) if with_texts else none,
            "size": sizes,
            "time": times,
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables).unify_dictionaries()


def hash_texts(manifest: Manifest) -> IntArray:
    """Hash each transcript: (rows,) int64, 0 where there is none."""
    if not manifest.has("text"):
        return np.zeros(len(manifest), dtype=np.int64)
    texts = (None if text is None else text.encode("utf-8", "surrogateescape") for text in manifest.column("text"))
    hashes = (bytes(8) if text is None else hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    values: IntArray = np.frombuffer(b"".join(hashes), dtype="<i8").astype(np.int64)
    return values


def digest_texts(manifest: Manifest) -> str:
    """Digest all transcripts, in their order."""
    return hashlib.sha256(hash_texts(manifest).astype("<i8").tobytes()).hexdigest()


def write_record(folder: Path, table: pa.Table) -> None:
    """Write the record of a run in one step, unless it has one: it says what the run began with."""
    path = folder / DATA
    if path.exists():
        return
    scratch = path.with_name(f".{DATA}.part")
    # It may be a link, which would be followed.
    remove(scratch)
    pq.write_table(table, scratch, compression="zstd", write_page_checksum=True)
    flush(scratch)
    scratch.replace(path)


def check_record(folder: Path, table: pa.Table, left_out: Mapping[str, object]) -> None:
    """Compare the data of a run that goes on with what it began with.

    Args:
        folder: of the run; without a record nothing is compared.
        table: what the data are now.
        left_out: ids that the run could not read: their files may come back, or be others.

    Raises:
        DataError: other utterances, lengths or transcripts, or files of another size; some are named.
    """
    if not (folder / DATA).exists():
        return
    try:
        with parsing(str(folder / DATA), "a whole record of the data"):
            content = pa.BufferReader(read_bytes(folder / DATA, LIMIT))
            stored = pq.read_table(content, page_checksum_verification=True).select(table.column_names)
            stored = stored.cast(table.schema)
            stored.validate(full=True)
    except DataError as error:
        # The checkpoint has the digests of ids, lengths and texts, and refuses by them.
        _logger.warning("%s: whether files are those that the run began with is not known", error)
        return
    for key in table.column("key").unique().to_pylist():
        then, now = (each.filter(pc.equal(each.column("key").cast(pa.string()), key)) for each in (stored, table))
        told = _compare(key, then, now, left_out)
        if told:
            raise DataError(
                f"`{key}` must be the data that the run in {folder} began with, but {'; '.join(told)} (put back as "
                "they were the same command goes on, a file that is gone altogether is left out, another out= starts a "
                "new run)"
            )


def _compare(key: str, then: pa.Table, now: pa.Table, left_out: Mapping[str, object]) -> list[str]:
    """List what has changed, as clauses; what may be a copy is only told."""
    before, after = (table.column("id").to_pylist() for table in (then, now))
    if before != after:
        here, there = set(after), set(before)
        gone, new = [name for name in before if name not in here], [name for name in after if name not in there]
        told = [f"{_list(gone)} are no longer in it"] if gone else []
        told += [f"{_list(new)} are new in it"] if new else []
        return told or ["its utterances are in another order"]
    numbers = {name: [table.column(name).to_numpy() for table in (then, now)] for name in then.column_names[2:]}
    differ = {name: old != new for name, (old, new) in numbers.items()}
    # A file that is gone is left out of updates like one that is damaged, and so may come back.
    known = np.all([size >= 0 for size in numbers["size"]], axis=0)
    known &= ~np.isin(np.array(after, dtype=object), list(left_out))
    differ |= {name: differ[name] & known for name in ("size", "time")}
    named = {name: _list([after[row] for row in np.flatnonzero(rows)]) for name, rows in differ.items() if rows.any()}
    told = [f"{named[name]} {what}" for name, what in CHANGES.items() if name in named]
    if not told and "time" in named:
        _logger.warning(
            "%s: files have another time of change than when the run began, as copies have: %s; they are as large as "
            "before, and taken for the same",
            key,
            named["time"],
        )
    return told


def _list(ids: list[str]) -> str:
    """Count utterances and name the first of them."""
    more = ", …" if len(ids) > NAMED else ""
    return f"{len(ids)} utterances ({', '.join(map(make_printable, ids[:NAMED]))}{more})"


def _measure_files(manifest: Manifest) -> tuple[IntArray, IntArray]:
    """Ask each file of a manifest once for its size and time of change; -1 where there is none."""

    def measure(part: list[str]) -> list[tuple[int, int]]:
        found = []
        for name in part:
            try:
                seen = os.stat(name)
                found.append((seen.st_size, seen.st_mtime_ns))
            except (OSError, ValueError):
                found.append((-1, -1))
        return found

    paths = manifest.table.column("path").combine_chunks().dictionary_encode()
    # Of a million paths nearly all are the root and a name.
    names = [f"{manifest.root}/{name}" if name[:1] != "/" else name for name in paths.dictionary.to_pylist()]
    size = -(-len(names) // NUM_THREADS)
    parts = [names[first : first + size] for first in range(0, len(names), max(size, 1))]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        figures = np.array(list(chain.from_iterable(threads.map(measure, parts))), dtype=np.int64).reshape(-1, 2)
    rows: Any = figures[paths.indices.to_numpy()]
    return rows[:, 0], rows[:, 1]
