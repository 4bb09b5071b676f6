"""Speaker verification: trials, scores and the equal error rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechssl.errors import DataError
from speechssl.evaluation.statistics import RELIABLE_UNITS, Interval

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MAX_UTTERANCES = 2000
"""Trials are drawn among so many utterances at most: their two million pairs still fit easily in memory."""


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


def read_trials(path: str, ids: Sequence[str], key: str = "data.trials") -> Trials:
    """Read trials, `label id id` a line, label 1 for one speaker and 0 for two (VoxCeleb's form).

    Raises:
        DataError: the file is missing, empty or no text, a line is of another form, or an id is not in the manifest.
    """
    rows = {name: row for row, name in enumerate(ids)}
    found = []
    for number, line in enumerate(_read_lines(Path(path), key), 1):
        words = line.split()
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise DataError(
                f"`{key}` must have `label id id` with label 0 or 1 a line, but {path}:{number} has {line!r}"
            )
        unknown = [name for name in words[1:] if name not in rows]
        if unknown:
            raise DataError(f"`{key}` must name utterances of data.test, but {path}:{number} has {unknown[0]}")
        found.append((rows[words[1]], rows[words[2]], words[0] == "1"))
    return _check_kinds(found, key, str(path))


def _read_lines(path: Path, key: str) -> list[str]:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"`{key}` must be a file of trials, but {path} {problem}")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"`{key}` must be text in UTF-8, but {path} is not ({error})") from error


def make_trials(speakers: Sequence[str], sexes: Sequence[str | None] | None, num_trials: int, seed: int) -> Trials:
    """Make trials: half of one speaker, half of two, of one sex where sexes are known, drawn without replacement.

    Args:
        speakers: of each utterance.
        sexes: of each utterance; None where unknown.
        num_trials: most trials; fewer where there are no more pairs.
        seed: of the draw.

    Raises:
        DataError: no two utterances have one speaker, or all have the same, or all of the same sex have.
    """
    rng = np.random.default_rng([seed, 0x7217])
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
                "`data.test` must have two speakers of one sex, since trials are drawn within a sex (its column sex), "
                "but has no more than one of each"
            )
    chosen = []
    for kind in (same, ~same & usable):
        pairs = np.flatnonzero(kind)
        chosen.append(rng.permutation(pairs)[: num_trials // 2])
    drawn = np.sort(np.concatenate(chosen))
    found = [(int(a), int(b), bool(s)) for a, b, s in zip(first[drawn], second[drawn], same[drawn], strict=True)]
    return _check_kinds(found, "data.test", "it")


def score_trials(embeddings: npt.NDArray[np.float32], trials: Trials) -> FloatArray:
    """Cosine similarity of the two embeddings of each trial: (n,)."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    scores: FloatArray = np.einsum("nd,nd->n", unit[trials.first], unit[trials.second]).astype(np.float64)
    return scores


def compute_eer(scores: FloatArray, same: BoolArray, weights: FloatArray | None = None) -> float:
    """Compute the equal error rate in percent: where misses and false alarms are equally frequent.

    Args:
        scores: (n,) higher means more likely one speaker.
        same: (n,) truth; both kinds must have weight.
        weights: (n,) how often each trial counts; None counts each once.

    The rate is interpolated linearly between the two thresholds that enclose the crossing. Trials with equal scores
    are accepted or rejected together.
    """
    weight = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    target = np.where(same, weight, 0.0)[order].cumsum()[ends]
    other = np.where(same, 0.0, weight)[order].cumsum()[ends]
    misses = np.append(0.0, target / target[-1])
    alarms = np.append(1.0, 1.0 - other / other[-1])
    crossing = int(np.argmax(misses >= alarms))
    gap_before, gap_after = alarms[crossing - 1] - misses[crossing - 1], alarms[crossing] - misses[crossing]
    share = gap_before / (gap_before - gap_after)
    return float(100 * (misses[crossing - 1] + share * (misses[crossing] - misses[crossing - 1])))


def compute_eer_interval(
    scores: FloatArray, trials: Trials, speakers: Sequence[str], num_resamples: int, seed: int
) -> Interval:
    """Give the 95 % bootstrap interval of the equal error rate over resampled speakers, in percent.

    A trial of one speaker counts as often as the speaker was drawn, one of two as the product of both. Speakers in no
    trial are no part of it; of two speakers every resample with trials of both kinds is the same, which says nothing.
    """
    known = np.array(speakers, dtype=object).astype(str)
    names, owners = np.unique(known[np.concatenate([trials.first, trials.second])], return_inverse=True)
    rng = np.random.default_rng([seed, 0xEE2])
    one, two = np.split(owners, 2)
    rates = []
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)).astype(np.float64)
        weights = np.where(trials.same, drawn[one], drawn[one] * drawn[two])
        if weights[trials.same].sum() > 0 and weights[~trials.same].sum() > 0:
            rates.append(compute_eer(scores, trials.same, weights))
    if len(names) < 3 or len(rates) < 2:
        return Interval(None, None, "speaker", len(names), False)
    low, high = np.quantile(rates, [0.025, 0.975])
    return Interval(float(low), float(high), "speaker", len(names), len(names) >= RELIABLE_UNITS)


def _check_kinds(found: list[tuple[int, int, bool]], key: str, name: str) -> Trials:
    same = np.array([row[2] for row in found], dtype=bool)
    if same.all() or not same.any():
        raise DataError(f"`{key}` must give trials of one speaker and of two, but {name} gives only one kind")
    return Trials(np.array([row[0] for row in found]), np.array([row[1] for row in found]), same)
