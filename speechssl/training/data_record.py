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
        sizes, times = _measure_files(manifest)
        columns = {
            "key": pa.array([key] * len(manifest)).dictionary_encode(),
            "id": manifest.table.column("id"),
            "num_samples": manifest.num_samples_16k,
            "offset": _count(manifest, "offset"),
            "channel": _count(manifest, "channel"),
            "text": hash_texts(manifest) if with_texts else np.zeros(len(manifest), dtype=np.int64),
            "size": sizes,
            "time": times,
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables).unify_dictionaries()


def _count(manifest: Manifest, name: str) -> IntArray:
    """Read a column of counts, which a manifest may leave out: (rows,) int64, 0 where nothing stands."""
    if not manifest.has(name):
        return np.zeros(len(manifest), dtype=np.int64)
    values: IntArray = pc.fill_null(manifest.table.column(name), 0).to_numpy()
    return values


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
        folder: of the run; without a record, as earlier versions left it, nothing is compared.
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
    except DataError as error:
        # The checkpoint has the digests of ids, lengths and texts, and refuses by them.
        _logger.warning("%s: whether files are those that the run began with is not known", error)
        return
    for key in table.column("key").unique().to_pylist():
        _compare(key, _select(stored, key), _select(table, key), folder, left_out)


def _select(table: pa.Table, key: str) -> pa.Table:
    return table.filter(pc.equal(table.column("key").cast(pa.string()), key))


def _compare(key: str, then: pa.Table, now: pa.Table, folder: Path, left_out: Mapping[str, object]) -> None:
    before, after = (table.column("id").to_pylist() for table in (then, now))
    if before != after:
        _refuse(key, folder, _describe_ids(before, after))
    changes = {
        "have another length": _numbers(then, "num_samples") != _numbers(now, "num_samples"),
        "begin elsewhere in their files": _numbers(then, "offset") != _numbers(now, "offset"),
        "are another channel of their files": _numbers(then, "channel") != _numbers(now, "channel"),
        "have another transcript": _numbers(then, "text") != _numbers(now, "text"),
    }
    old, new = _numbers(then, "size"), _numbers(now, "size")
    # A file that is gone is left out of updates like one that is damaged, and so may come back.
    known = (old >= 0) & (new >= 0) & ~np.isin(np.array(after, dtype=object), list(left_out))
    changes["have files of another size"] = known & (old != new)
    told = [f"{_name(after, differ)} {what}" for what, differ in changes.items() if differ.any()]
    if told:
        _refuse(key, folder, told)
    moved = known & (_numbers(then, "time") != _numbers(now, "time"))
    if moved.any():
        _logger.warning(
            "%s: files have another time of change than when the run began, as copies have: %s; they are as large as "
            "before, and taken for the same",
            key,
            _name(after, moved),
        )


def _refuse(key: str, folder: Path, told: list[str]) -> None:
    raise DataError(
        f"`{key}` must be the data that the run in {folder} began with, but {'; '.join(told)} (put back as they were "
        "the same command goes on, a file that is gone altogether is left out, another out= starts a new run)"
    )


def _describe_ids(before: list[str], after: list[str]) -> list[str]:
    here, there = set(after), set(before)
    gone, new = [name for name in before if name not in here], [name for name in after if name not in there]
    told = [f"{_list(gone)} are no longer in it"] if gone else []
    told += [f"{_list(new)} are new in it"] if new else []
    return told or ["its utterances are in another order"]


def _numbers(table: pa.Table, name: str) -> IntArray:
    values: IntArray = table.column(name).to_numpy()
    return values


def _name(ids: list[str], chosen: npt.NDArray[np.bool_]) -> str:
    return _list([ids[row] for row in np.flatnonzero(chosen)])


def _list(ids: list[str]) -> str:
    """Count utterances and name the first of them."""
    more = ", …" if len(ids) > NAMED else ""
    return f"{len(ids)} utterances ({', '.join(map(make_printable, ids[:NAMED]))}{more})"


def _measure_files(manifest: Manifest) -> tuple[IntArray, IntArray]:
    """Ask each file of a manifest once for its size and time of change; -1 where there is none."""
    paths = manifest.table.column("path").combine_chunks().dictionary_encode()
    # Of a million paths nearly all are the root and a name.
    names = [f"{manifest.root}/{name}" if name[:1] != "/" else name for name in paths.dictionary.to_pylist()]
    parts = [names[first::NUM_THREADS] for first in range(NUM_THREADS)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        found = list(threads.map(lambda part: [_measure(name) for name in part], parts))
    figures = np.full((len(names), 2), -1, dtype=np.int64)
    for first, part in enumerate(found):
        if part:
            figures[first::NUM_THREADS] = np.array(list(chain.from_iterable(part))).reshape(-1, 2)
    rows: Any = figures[paths.indices.to_numpy()]
    return rows[:, 0], rows[:, 1]


def _measure(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns
