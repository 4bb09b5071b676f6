"""What a probe finds: a label's name or a number from frozen features, by layer and with a learned mix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speechssl.config.inference import ProbeConfig
from speechssl.errors import DataError
from speechssl.evaluation.probe_features import standardise
from speechssl.evaluation.probe_plan import Plan
from speechssl.evaluation.probe_split import Fold, hold_out
from speechssl.evaluation.probe_training import Targets, choose_rates, compute_losses, train_probe
from speechssl.evaluation.statistics import Interval, compute_interval
from speechssl.objectives.probe import Probe
from speechssl.progress import track

FloatArray = npt.NDArray[np.float32]
_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Figures:
    """Figures of one kind of features, in percent; those of several untrained encoders are means.

    Attributes:
        mixed: of the learned mix.
        layers: of each layer alone.
        weights: of the mix.
        interval: of `mixed`.
        by_group: `mixed` of each speaker or other group.
        seeds: `mixed` of each encoder.
        rates: learning rates that were chosen, of each fold's mix.
        more: further figures, by their names in the result.
        scores: of the trials, calibrated where that was asked for.
        det: misses and false alarms of the DET curve.
    """

    mixed: float
    layers: list[float]
    weights: list[float]
    interval: Interval
    by_group: dict[str, float]
    seeds: list[float]
    rates: list[float] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    scores: npt.NDArray[np.float64] | None = None
    det: tuple[list[float], list[float]] = ([], [])


SINGLE_RATE = 0.02
"""Learning rate where nothing can be held out to choose one by: every probe's, before there was a choice."""

Measure = Callable[[Iterable[FloatArray]], Figures]
"""From features (n, S, D) of one encoder or several to figures."""


class Fitter:
    """Trains the probes of one set of rows, with the learning rate that is best on a part of them.

    Args:
        config: of the verb.
        targets: of these rows.
        num_outputs: as `train_probe`.
        division: rows, among these, to learn from and to choose the rate by; None: the rate is one number.
    """

    def __init__(self, config: ProbeConfig, targets: Targets, num_outputs: int, division: Fold | None) -> None:
        self.config, self.targets, self.num_outputs, self.division = config, targets, num_outputs, division
        self.rates = config.list_rates()

    def fit(self, features: FloatArray, is_mixed: bool) -> tuple[list[Probe], list[float]]:
        """Train on all rows, each network at its best rate: the probe that holds it, and that rate, K of each."""
        chosen = self.rates * (1 if is_mixed else features.shape[1])
        if self.division is not None:
            kept, held = self.division.train, self.division.test
            losses = []
            for rate in self.rates:
                probe = self._train(features[kept], self.targets[kept], rate, is_mixed)
                losses.append(compute_losses(probe, features[held], self.targets[held]))
            chosen = choose_rates(losses, self.rates)
        probes = {rate: self._train(features, self.targets, rate, is_mixed) for rate in dict.fromkeys(chosen)}
        return [probes[rate] for rate in chosen], chosen

    def _train(self, features: FloatArray, targets: Targets, rate: float, is_mixed: bool) -> Probe:
        config = self.config
        return train_probe(
            features, targets, self.num_outputs, config.updates, rate, config.seed, config.hidden, is_mixed
        )


def make_fitter(
    config: ProbeConfig, targets: Targets, num_outputs: int, labels: Sequence[str], groups: Sequence[str] | None
) -> Fitter:
    """Make the `Fitter` of some rows.

    Args:
        config: of the verb.
        targets, num_outputs: as `train_probe`.
        labels, groups: as `hold_out`.

    Raises:
        DataError: several rates are given by name, and nothing can be held out to choose by.
    """
    if len(config.list_rates()) == 1:
        return Fitter(config, targets, num_outputs, None)
    division = hold_out(labels, groups, config.seed)
    if division is None and config.lr == "":
        _logger.warning(
            "data.train has too few utterances or groups of a %s to hold some out: lr is %s, not chosen",
            config.label, SINGLE_RATE,
        )  # fmt: skip
        return Fitter(replace(config, lr=SINGLE_RATE), targets, num_outputs, None)
    if division is None:
        raise DataError(
            f"`lr` must be one number where data.train has too few utterances or groups of a {config.label} to hold "
            f"some out and choose by, but is {config.lr}"
        )
    return Fitter(config, targets, num_outputs, division)


def make_measure(config: ProbeConfig, plan: Plan) -> Measure:
    """Make the function that turns features into figures, for `identification` or `regression`."""
    if plan.kind == "regression":
        return lambda features: _measure_numbers(config, plan, features)
    return lambda features: _measure_names(config, plan, features)


def _measure_names(config: ProbeConfig, plan: Plan, features: Iterable[FloatArray]) -> Figures:
    names, targets = np.unique(np.array(plan.values), return_inverse=True)
    told = [_predict(config, plan, targets.astype(np.int64), len(names), each) for each in features]
    tested = np.concatenate([fold.test for fold in plan.folds])
    right = np.mean([(each.outputs.argmax(-1) == targets[tested][:, None]) for each in told], axis=0)
    seeds = [float(100 * (each.outputs[:, 0].argmax(-1) == targets[tested]).mean()) for each in told]
    groups = [plan.groups[row] for row in tested]
    interval = compute_interval(right[:, 0], np.ones(len(right)), groups, config.num_resamples, config.seed, plan.unit)
    mixed, *layers = (100 * right.mean(0)).tolist()
    by_group = {name: 100 * float(right[rows, 0].mean()) for name, rows in _list_rows(groups)}
    largest = float(100 * np.bincount(targets[tested]).max() / len(tested))
    more = {"largest_label": largest}
    return Figures(mixed, layers, told[0].weights, interval, by_group, seeds, told[0].rates, more)


def _measure_numbers(config: ProbeConfig, plan: Plan, features: Iterable[FloatArray]) -> Figures:
    """Tell numbers: R², the share of their variance that is told, and the mean absolute error in their own unit."""
    numbers = np.array([float(value) for value in plan.values])
    told = [_predict(config, plan, numbers, 1, each) for each in features]
    tested = np.concatenate([fold.test for fold in plan.folds])
    groups, wanted = [plan.groups[row] for row in tested], numbers[tested]
    errors = np.stack([each.outputs[..., 0] - wanted[:, None] for each in told])
    squares, spread = np.square(errors).mean(0), np.square(wanted - wanted.mean())
    # One minus a ratio of sums: the ends of its interval change places.
    ratio = compute_interval(squares[:, 0], spread, groups, config.num_resamples, config.seed, plan.unit)
    low, high = (None if end is None else 100 - end for end in (ratio.high, ratio.low))
    interval = Interval(low, high, ratio.unit, ratio.count, ratio.reliable)
    mixed, *layers = (100 * (1 - squares.sum(0) / spread.sum())).tolist()
    seeds = (100 * (1 - np.square(errors[..., 0]).sum(1) / spread.sum())).tolist()
    means = np.concatenate([np.full(len(fold.test), numbers[fold.train].mean()) for fold in plan.folds])
    absolute = np.abs(errors[..., 0]).mean(0)
    by_group = {name: float(absolute[rows].mean()) for name, rows in _list_rows(groups)}
    more = {"mean_error": float(absolute.mean()), "mean_error_of_mean": float(np.abs(means - wanted).mean())}
    return Figures(mixed, layers, told[0].weights, interval, by_group, seeds, told[0].rates, more)


@dataclass(frozen=True)
class Predictions:
    """What the networks of one encoder's features give for the tested rows, fold after fold: the mix, then each layer.

    Attributes:
        outputs: (n, 1 + S, C).
        weights: of the mix, mean of the folds.
        rates: of the mix in each fold.
    """

    outputs: npt.NDArray[np.float64]
    weights: list[float]
    rates: list[float]


def _predict(
    config: ProbeConfig, plan: Plan, targets: npt.NDArray[Any], num_outputs: int, features: FloatArray
) -> Predictions:
    outputs, weights, rates = [], [], []
    is_number = targets.dtype.kind == "f"
    for fold in track(plan.folds, "probe", unit="folds"):
        labels = [plan.values[row] if not is_number else "" for row in fold.train]
        groups = [plan.groups[row] for row in fold.train] if plan.is_apart else None
        learnt, middle, scale = targets[fold.train], 0.0, 1.0
        if is_number:
            middle, scale = float(learnt.mean()), float(learnt.std()) or 1.0
            learnt = ((learnt - middle) / scale).astype(np.float32)
        fitter = make_fitter(config, learnt, num_outputs, labels, groups)
        told = []
        # Of one state, as of log-mel statistics, the mix is all there is.
        for is_mixed in (True, False)[: features.shape[1]]:
            train, test = standardise(features[fold.train], features[fold.test], alike=is_mixed)
            probes, chosen = fitter.fit(train, is_mixed)
            known = {id(probe): probe(torch.from_numpy(test)).double().numpy() for probe in probes}
            told += [known[id(probe)][:, k] for k, probe in enumerate(probes)]
            if is_mixed:
                weights.append(probes[0].weights.numpy())
                rates += chosen
        outputs.append(np.stack(told, 1) * scale + middle)
    return Predictions(np.concatenate(outputs), np.mean(weights, axis=0).tolist(), rates)


def _list_rows(groups: Sequence[str]) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    owners = np.array(groups)
    for name in sorted(set(groups)):
        yield name, np.flatnonzero(owners == name)
