"""Trials of speaker verification: read as VoxCeleb or Kaldi spell them, or drawn, and checked against the manifest."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechssl.durable import write_in_one_step
from speechssl.errors import DataError
from speechssl.parsing import parsing, read_bytes, show
from speechssl.seeds import make_rng

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MAX_UTTERANCES = 2000
"""Trials are drawn among so many utterances at most: their two million pairs still fit easily in memory."""

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Trials:
    """Pairs of utterances.

    Attributes:
        first, second: (n,) rows of the manifest.
        same: (n,) whether both are one speaker's.
    """

    first: IntArray
    second: IntArray
    same: BoolArray


def read_trials(
    path: str, ids: Sequence[str], paths: Sequence[str] = (), unusable: Collection[int] = (), key: str = "data.trials"
) -> Trials:
    """Read trials: `1 name name` or `0 name name` a line (VoxCeleb), or `name name target` or `… nontarget` (Kaldi).

    The first line tells which; 1 and target are one speaker's.

    Args:
        path: of the file.
        ids: of the utterances. A name is an id, or the end of a path with or without the suffix of the file.
        paths: of the utterances, absolute.
        unusable: rows that are left out; a trial that names one is left out too.
        key: the key that errors name.

    Raises:
        DataError: the file is missing, empty or no text, a line is of another form, or a name is no utterance's, or
            that of several.
    """
    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "does not exist"
        raise DataError(f"`{key}` must be a file of trials, but {path} {problem}")
    with parsing(f"`{key}`", "text in UTF-8", where=path):
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    names = Names(ids, paths)
    is_kaldi = bool(lines) and lines[0].split()[2:] in (["target"], ["nontarget"])
    kinds, form = (
        (("target", "nontarget"), "`id id target` or `id id nontarget`")
        if is_kaldi
        else (("1", "0"), "`label id id` with label 0 or 1")
    )
    found = []
    for number, line in enumerate(lines, 1):
        words = line.split() or [""]
        *pair, label = words if is_kaldi else [*words[1:], words[0]]
        if len(pair) != 2 or label not in kinds:
            raise DataError(f"`{key}` must have {form} a line, but {path}:{number} has {show(line)}")
        first, second = (_find_row(names, name, f"`{key}`", f"{path}:{number}") for name in pair)
        found.append((first, second, label == kinds[0]))
    usable = [row for row in found if row[0] not in unusable and row[1] not in unusable]
    if len(usable) < len(found):
        _logger.warning("%d of %d trials name an utterance that is left out", len(found) - len(usable), len(found))
    return _check_kinds(usable, key, path)


def _find_row(names: Names, name: str, key: str, place: str) -> int:
    rows = names.find(name)
    if not rows:
        raise DataError(f"{key} must name utterances of data.test, but {place} has {name}")
    if len(rows) > 1:
        raise DataError(
            f"{key} must name one utterance of data.test each time, but {place} has {name}, "
            f"which may be {names.ids[rows[0]]} or {names.ids[rows[1]]}"
        )
    return rows[0]


class Names:
    """Finds utterances by their ids, or by the end of their paths: lists of trials name the files of their corpus.

    Args:
        ids: of the utterances.
        paths: of the utterances; empty where only ids count.
    """

    def __init__(self, ids: Sequence[str], paths: Sequence[str]) -> None:
        self.ids, self.paths = ids, paths
        self._rows = {name: row for row, name in enumerate(ids)}
        self._by_end: dict[int, dict[str, list[int]]] = {}

    def find(self, name: str) -> list[int]:
        """List the rows that a name may stand for: that of the id, else of the paths that end so."""
        if name in self._rows:
            return [self._rows[name]]
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if len(parts) not in self._by_end:
            # Ends without suffix get a slash, which no file's name has.
            ends = self._by_end[len(parts)] = defaultdict(list)
            for row, path in enumerate(self.paths):
                end = "/".join(path.split("/")[-len(parts) :])
                ends[end].append(row)
                ends[os.path.splitext(end)[0] + "/"].append(row)
        found, whole = self._by_end[len(parts)], "/".join(parts)
        # The corpus may be there in another format than its list has: m4a in VoxCeleb 2, converted to FLAC.
        return found.get(whole) or found.get(os.path.splitext(whole)[0] + "/") or []


def describe_dispute(trials: Trials, ids: Sequence[str], speakers: Sequence[str], paths: Sequence[str]) -> str:
    """Say where trials contradict the speakers of a manifest, and which folder of the paths agrees; empty: nowhere."""
    owners = np.unique(np.array(speakers, dtype=str), return_inverse=True)[1]
    wrong = np.flatnonzero((owners[trials.first] == owners[trials.second]) != trials.same)
    if not len(wrong):
        return ""
    first, second = int(trials.first[wrong[0]]), int(trials.second[wrong[0]])
    claim = "one speaker's" if trials.same[wrong[0]] else "two speakers'"
    said = (
        f"{len(wrong)} of {len(trials.same)} trials contradict the speakers of data.test: "
        f"{ids[first]} and {ids[second]} are {claim} in the trials, "
        f"and of {speakers[first]} and {speakers[second]} there"
    )
    folders = [path.split("/")[:-1] for path in paths]
    for level in range(1, min((len(folder) for folder in folders), default=0) + 1):
        labels = np.unique(np.array([folder[-level] for folder in folders]), return_inverse=True)[1]
        if ((labels[trials.first] == labels[trials.second]) == trials.same).all():
            return f"{said}; {advise_pattern(folders[first][-level], level)}"
    return said


def describe_nesting(speakers: Sequence[str], paths: Sequence[str]) -> str:
    """Say where all speakers are the names of the files' folders, several of them in each of some outer folders."""
    folders = [path.split("/")[:-1] for path in paths]
    if any(len(folder) < 2 or folder[-1] != speaker for folder, speaker in zip(folders, speakers, strict=True)):
        return ""
    inner, outer = ({tuple(folder[:end]) for folder in folders} for end in (None, -1))
    if not 1 < len(outer) < len(inner):
        return ""
    return (
        f"the speakers of data.test are the folders that hold its files, {len(inner)} in {len(outer)} outer folders: "
        f"where an outer one is a speaker, and an inner one a video or a chapter, {advise_pattern(folders[0][-2], 2)}"
    )


def advise_pattern(example: str, level: int) -> str:
    """Say how `prepare` takes the speaker from the folder that stands so many levels above a file."""
    pattern = "([^/]+)" + "/[^/]+" * level + "$"
    return f"prepare with \"speaker_pattern='{pattern}'\" makes the folder such as {example} the speaker"


def make_trials(
    speakers: Sequence[str], sexes: Sequence[str | None] | None, num_trials: int, seed: int, key: str = "data.test"
) -> Trials:
    """Make trials: half of one speaker, half of two, of one sex where sexes are known, drawn without replacement.

    Args:
        speakers: of each utterance.
        sexes: of each utterance; None where unknown.
        num_trials: most trials; fewer where there are no more pairs.
        seed: of the draw.
        key: what errors name.

    Raises:
        DataError: no two utterances have one speaker, or all have the same, or all of the same sex have.
    """
    rng = make_rng(seed, "trials")
    rows = np.arange(len(speakers))
    if len(rows) > MAX_UTTERANCES:
        rows = np.sort(rng.choice(rows, MAX_UTTERANCES, replace=False))
    first, second = (rows[part] for part in np.triu_indices(len(rows), k=1))
    names = np.unique([str(name) for name in speakers], return_inverse=True)[1]
    same = names[first] == names[second]
    usable = np.ones(len(first), dtype=bool)
    if sexes is not None:
        labels = np.unique([sex or "" for sex in sexes], return_inverse=True)[1]
        usable = labels[first] == labels[second]
        if not same.all() and not (~same & usable).any():
            raise DataError(
                f"`{key}` must have two speakers of one sex, since trials are drawn within a sex (its column sex), "
                "but has no more than one of each"
            )
    chosen = []
    for kind in (same, ~same & usable):
        pairs = np.flatnonzero(kind)
        chosen.append(rng.permutation(pairs)[: num_trials // 2])
    drawn = np.sort(np.concatenate(chosen))
    found = [(int(a), int(b), bool(s)) for a, b, s in zip(first[drawn], second[drawn], same[drawn], strict=True)]
    return _check_kinds(found, key, "it")


def write_trials(path: Path, trials: Trials, ids: Sequence[str], scores: npt.NDArray[np.float64] | None = None) -> None:
    """Write trials, `1 id id` or `0 id id` a line, as `read_trials` reads them; or their scores, `id id score`."""
    pairs = [f"{ids[a]} {ids[b]}" for a, b in zip(trials.first, trials.second, strict=True)]
    # Fields of a trial are told apart by white space.
    if odd := sum(id.split() != [id] for id in ids):
        _logger.warning("%d ids have spaces, so that data.trials cannot read %s again", odd, path)
    if scores is None:
        lines = [f"{int(same)} {pair}\n" for same, pair in zip(trials.same, pairs, strict=True)]
    else:
        lines = [f"{pair} {score:.6g}\n" for pair, score in zip(pairs, scores, strict=True)]
    write_in_one_step(path, "".join(lines))


def _check_kinds(found: list[tuple[int, int, bool]], key: str, name: str) -> Trials:
    same = np.array([row[2] for row in found], dtype=bool)
    if same.all() or not same.any():
        raise DataError(f"`{key}` must give trials of one speaker and of two, but {name} gives only one kind")
    return Trials(np.array([row[0] for row in found]), np.array([row[1] for row in found]), same)
