"""`hydra/sweeper=optuna`: values of a sweep that are drawn by what earlier jobs came to.

The keys are spelt as for hydra's plugin, which needs an optuna older than 3; this is optuna itself. A batch of trials
is a function of the seed and of the finished trials before it, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from speechssl.cli.launchers import import_package
from speechssl.cli.overrides import list_sweep, parse_override
from speechssl.cli.sweep import METRICS, Launcher, find_value, make_table, plan_jobs, print_table, read_out, run_jobs
from speechssl.cli.words import Request, find_key, read_words, split_words
from speechssl.errors import ConfigError
from speechssl.parsing import parsing

_logger = logging.getLogger("speechssl")

KEYS = ("n_trials", "n_jobs", "direction", "metric", "seed")
HIGHER_IS_BETTER = frozenset({"accuracy", "audio_s_per_s"})


class Space:
    """What a sweep draws from, one distribution for each word that holds a list, a range or an interval.

    Args:
        optuna: the package.
        verb: name of the verb.
        words: those after the verb.
    """

    def __init__(self, optuna: ModuleType, verb: str, words: Sequence[str]) -> None:
        self.verb = verb
        self.bare, assignments = split_words(words)
        self.fixed: list[str] = []
        self.distributions: dict[str, Any] = {}
        for word in assignments:
            found = _read_distribution(optuna, verb, word)
            if found is None:
                self.fixed.append(word)
            else:
                self.distributions[word.partition("=")[0]] = found

    def build(self, params: Mapping[str, Any]) -> Request:
        """Build the request of one trial."""
        drawn = [f"{key}={value}" for key, value in params.items()]
        (request,) = read_words(self.verb, [*self.bare, *self.fixed, *drawn])
        return request


def run_optuna(verb: str, words: Sequence[str], keys: Mapping[str, Any], launcher: Launcher) -> dict[str, Any]:
    """Run trials in batches of `n_jobs`.

    Args:
        verb: name of the verb.
        words: those after the verb; lists, ranges and intervals (`tag(log,interval(1e-5,1e-3))`) are drawn from.
        keys: `hydra.sweeper.…`: `n_trials` (20), `n_jobs` (1, trials that are drawn together), `direction`
            (`minimize` or `maximize`), `metric` (a dotted name in the verb's result), `seed` (1).
        launcher: runs the jobs of a batch.

    Returns:
        As `run_sweep`, with `best`: the job whose metric is best.

    Raises:
        ConfigError: wrong keys, or a job that finished has no such metric.
    """
    optuna = import_package("optuna", "hydra/sweeper=optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = _check_settings(verb, keys)
    space = Space(optuna, verb, words)
    if not space.distributions:
        raise ConfigError("hydra/sweeper=optuna must be given keys to draw, such as seed=1,2,3, but is given none")
    rows: list[dict[str, Any]] = []
    root = ""
    while len(rows) < settings["n_trials"]:
        number = min(settings["n_jobs"], settings["n_trials"] - len(rows))
        drawn = draw_trials(optuna, space, rows, number, settings)
        requests = [space.build(params) for params in drawn]
        root = root or read_out(requests[0])
        jobs = plan_jobs(requests, root, first=len(rows))
        root = root or str(jobs[0].path.parents[1])
        for job, params in zip(jobs, drawn, strict=True):
            job.values = dict(params)
        rows += run_jobs(jobs, launcher)
        check_metric(verb, rows, settings["metric"])
    table = make_table(verb, rows)
    print_table(table)
    return {"jobs": rows, "table": table, "best": find_best(rows, settings)}


def check_metric(verb: str, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Make sure that jobs which finished have the metric: without it, nothing tells good values from bad ones.

    A figure that is null was not finite, which is a failed trial.

    Raises:
        ConfigError: one has not; the sentence names the figures that it has.
    """
    for row in rows:
        if "error" in row:
            continue
        figures = _list_figures({key: value for key, value in row.items() if key not in ("job", "values")})
        if metric not in figures:
            raise ConfigError(
                f"`hydra.sweeper.metric` must name a figure of the result of `{verb}`, but is {metric}, and job "
                f"{row['job']} has {', '.join(figures) or 'none'}"
            )


def _list_figures(result: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the dotted names of the numbers of a result."""
    names = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            names += _list_figures(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            names.append(f"{prefix}{key}")
    return names


def draw_trials(
    optuna: ModuleType, space: Space, rows: Sequence[Mapping[str, Any]], number: int, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Draw the values of the next trials from those before them."""
    sampler = optuna.samplers.TPESampler(seed=settings["seed"] + len(rows))
    study = optuna.create_study(direction=settings["direction"], sampler=sampler)
    for row in rows:
        value = find_value(row, settings["metric"])
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=dict(row["values"]), distributions=space.distributions, value=value
            )
        )
    return [study.ask(space.distributions).params for _ in range(number)]


def find_best(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the job whose metric is best; None where no job has it."""
    found = [(value, row) for row in rows if (value := find_value(row, settings["metric"])) is not None]
    if not found:
        return None
    choose = max if settings["direction"] == "maximize" else min
    value, row = choose(found, key=lambda pair: float(pair[0]))
    return {"job": row["job"], "values": row["values"], settings["metric"]: value}


def _check_settings(verb: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    for key in keys:
        if key not in KEYS:
            has = ", ".join(f"hydra.sweeper.{item}" for item in KEYS)
            raise ConfigError(f"`hydra.sweeper.{key}` must be a key of hydra/sweeper=optuna, but that has {has}")
    metric = keys.get("metric") or METRICS.get(verb, ("",))[0]
    if not metric:
        raise ConfigError(f"`hydra.sweeper.metric` must name a figure of the result of `{verb}`, but is missing")
    default = "maximize" if str(metric).rpartition(".")[2] in HIGHER_IS_BETTER else "minimize"
    settings = {"n_trials": 20, "n_jobs": 1, "seed": 1, "direction": default, **keys, "metric": metric}
    if settings["direction"] not in ("minimize", "maximize"):
        raise ConfigError(f"`hydra.sweeper.direction` must be minimize or maximize, but is {settings['direction']!r}")
    for name, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0)):
        if not isinstance(settings[name], int) or settings[name] < least:
            raise ConfigError(f"`hydra.sweeper.{name}` must be at least {least}, but is {settings[name]!r}")
    return settings


def _read_distribution(optuna: ModuleType, verb: str, word: str) -> Any:
    """Read what a word draws from; None for a single value."""
    override = parse_override(word)
    if override is None or not override.is_sweep_override():
        return None
    if not override.is_interval_sweep():
        return optuna.distributions.CategoricalDistribution(list_sweep(override))
    interval, key = override.value(), override.key_or_group
    is_log = "log" in interval.tags
    with parsing(f"`{key}`", "an interval that optuna takes", ConfigError):
        if find_key(verb, key).type_name == "int":
            return optuna.distributions.IntDistribution(int(interval.start), int(interval.end), log=is_log)
        return optuna.distributions.FloatDistribution(float(interval.start), float(interval.end), log=is_log)
