"""Parts of a corpus: nested subsets of given lengths, and a share that is held out for validation."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.data.manifest import Manifest
from speechssl.errors import ConfigError, DataError
from speechssl.seeds import make_rng

ALL = "all"
"""Split of a corpus that has none."""

TRAIN = "train"
"""What `all` is called when a part of it is held out."""

VALID = "valid"
"""Name of the manifest that is held out."""

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}

HELD_OUT_PREFIXES = ("dev", "valid", "test", "eval")
"""Splits whose names begin so are held out already."""

_logger = logging.getLogger("speechssl")


def parse_length(name: str) -> float:
    """Turn a subset's name, such as 10m, 1h or 90s, into seconds.

    Raises:
        ConfigError: it is no such name.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", name)
    if not match or float(match[1]) == 0:
        raise ConfigError(f"`subset` must be lengths such as 10m, 1h or 90s, but one is {name!r}")
    return float(match[1]) * SECONDS[match[2]]


def take_subsets(manifests: Mapping[str, Manifest], names: list[str], seed: int) -> dict[str, Manifest]:
    """Take nested subsets of every split that is longer than them.

    A subset holds utterances with transcripts alone where the split has any.

    Returns:
        `<split>-<name>` → rows in the order of the split; those of a shorter subset are among those of a longer one.

    Raises:
        ConfigError: a length is no length, or longer than every split; or a split has the name of a subset.
    """
    lengths = {name: parse_length(name) for name in names}
    sources = {split: keep_transcribed(manifest) for split, manifest in manifests.items()}
    for name, seconds in lengths.items():
        if all(manifest.total_s <= seconds for manifest in sources.values()):
            there = ", ".join(f"{split} {manifest.total_s / 60:.1f} min" for split, manifest in sources.items())
            raise ConfigError(f"`subset` must be shorter than a split, but {name} is not ({there})")
    subsets = {
        f"{split}-{name}": manifest.limit_to(seconds, seed)
        for split, manifest in sources.items()
        for name, seconds in lengths.items()
        if manifest.total_s > seconds
    }
    taken = [name for name in subsets if name in manifests]
    if taken:
        raise ConfigError(f"`subset` must make names that no split has, but {taken[0]} is a split already")
    return subsets


def keep_transcribed(manifest: Manifest) -> Manifest:
    """Keep the rows with a transcript; all where none has one."""
    if not manifest.has("text"):
        return manifest
    return manifest.select(np.flatnonzero(manifest.table.column("text").is_valid().to_numpy()))


@dataclass(frozen=True)
class HeldOut:
    """What `hold_out` did: the manifests, and whether whole speakers or single files were held out."""

    manifests: dict[str, Manifest]
    unit: str


def hold_out(manifests: Mapping[str, Manifest], share: float, seed: int) -> HeldOut:
    """Hold out about a share of the audio as `valid`: whole speakers, or files where speakers are unknown.

    Args:
        manifests: by split; `all` becomes `train`, and splits called dev… or test… stay as they are.
        share: of the audio of the other splits, between 0 and 1.
        seed: of the draw.

    Returns:
        ids are kept, but all those of `valid` begin with `<split>/` where two splits gave it rows of one id.

    Raises:
        DataError: there is nothing to hold out from, or only one file; or a split is called `valid` already, or both
            `all` and `train` are there.
    """
    sources = {split: m for split, m in manifests.items() if not split.startswith(HELD_OUT_PREFIXES)}
    there = f"but the splits are {', '.join(manifests)}"
    if not sources or VALID in manifests:
        raise DataError(f"`valid_share` must be 0 where nothing can be held out, {there}")
    if ALL in sources and TRAIN in sources:
        both = f"one split is {ALL}, which becomes {TRAIN}, and another {TRAIN} already"
        raise DataError(f"`valid_share` must be 0 where {both}, {there}")
    groups, unit = _group(sources)
    lengths = np.concatenate([manifest.num_samples_16k for manifest in sources.values()])
    is_valid = _draw(groups, lengths, share, seed)
    result = {split: manifest for split, manifest in manifests.items() if split not in sources}
    taken: dict[str, Manifest] = {}
    start = 0
    for split, manifest in sources.items():
        mask = is_valid[start : start + len(manifest)]
        start += len(manifest)
        result[TRAIN if split == ALL else split] = manifest.select(np.flatnonzero(~mask))
        taken[split] = manifest.select(np.flatnonzero(mask))
    result[VALID] = _join_parts(taken)
    count = len(np.unique(groups[is_valid]))
    real = lengths[is_valid].sum() / lengths.sum()
    _logger.info("held out %d %ss (%.1f %% of the audio) as %s", count, unit, 100 * real, VALID)
    empty = [split for split in result if (split not in manifests or split in sources) and not len(result[split])]
    if empty:
        raise DataError(f"`valid_share` must leave something in every split, but {empty[0]} would be empty")
    return HeldOut(result, unit)


def _join_parts(parts: Mapping[str, Manifest]) -> Manifest:
    """Put what each split gave into one manifest whose ids are unique."""
    tables = [part.table for part in parts.values()]
    table = pa.concat_tables(tables, promote_options="permissive")
    ids = table.column("id")
    if len(ids.unique()) < len(ids):
        splits = [split for split, part in parts.items() for _ in range(len(part))]
        named = pc.binary_join_element_wise(pa.array(splits), ids.combine_chunks(), "/")
        table = table.set_column(table.column_names.index("id"), "id", named)
        _logger.info("ids of %s begin with the name of their split, since several splits have the same", VALID)
    return Manifest(table, next(iter(parts.values())).root, VALID)


def _group(sources: Mapping[str, Manifest]) -> tuple[npt.NDArray[np.int64], str]:
    """Number the rows by speaker, or by file where a row has no speaker or all have the same."""
    for unit, column in (("speaker", "speaker"), ("file", "path")):
        known = all(m.has(column) and m.table.column(column).null_count == 0 for m in sources.values())
        if not known:
            continue
        labels = np.concatenate(
            [np.asarray(m.table.column(column).to_pylist(), dtype=object) for m in sources.values()]
        )
        _, groups = np.unique(labels, return_inverse=True)
        if groups.max() > 0:
            return groups.astype(np.int64), unit
    raise DataError("`valid_share` must leave something to learn from, but there is only one file")


def _draw(
    groups: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Take groups in a random order as long as they fit into the share; the shortest one where none fits."""
    totals = np.bincount(groups, weights=lengths)
    left = share * totals.sum()
    chosen = np.zeros(len(totals), dtype=bool)
    for group in make_rng(seed, "held out").permutation(len(totals)):
        if totals[group] <= left:
            chosen[group] = True
            left -= totals[group]
    if not chosen.any():
        chosen[np.argmin(totals)] = True
    return chosen[groups]


def describe(manifest: Manifest) -> dict[str, object]:
    """Count what a manifest holds, for the result of `prepare`."""
    speakers = len(manifest.table.column("speaker").unique().drop_null()) if manifest.has("speaker") else 0
    texts = len(manifest) - manifest.table.column("text").null_count if manifest.has("text") else 0
    return {
        "num_utterances": len(manifest),
        "hours": round(int(manifest.num_samples_16k.sum()) / SAMPLE_RATE / 3600, 4),
        "num_speakers": speakers,
        "num_transcribed": texts,
    }
