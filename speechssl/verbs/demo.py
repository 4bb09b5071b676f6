"""`speechssl demo`: the whole story on speech made on the spot, each step a command that a user could type."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.advice import spell
from speechssl.checkpoints.layout import RESULT
from speechssl.config.verbs import DemoConfig
from speechssl.demo.corpus import FOLDER, TEXTS, build_demo_corpus
from speechssl.demo.espeak import require_espeak
from speechssl.demo.plan import (
    MIN_UPDATES,
    Plan,
    choose_splits,
    measure_slowness,
    plan_finetuning,
    plan_pretraining,
    plan_scratch,
    shorten,
)
from speechssl.demo.table import make_rows
from speechssl.devices import resolve_device
from speechssl.durable import write_result
from speechssl.errors import ConfigError, StoppedOnRequest
from speechssl.printable import log_lines
from speechssl.verbs.frame import verb
from speechssl.verbs.output import check_writable

PLAN_NAME, ELAPSED_NAME = "plan.json", "elapsed.json"
DAY_H = 24.0

TIMING_UPDATES = {"pretrain": 40, "finetune": 24}
"""Updates of the two short runs that measure this machine's speed: shared machines have slow seconds and fast ones."""

TIMING_SHARE = 0.05
"""Largest share of the demo's time that each of them may take."""

RESET_LAYERS = 2
"""Of four. After 250 updates 70 to 71 % of the words of dev were wrong with two or three, 74 % with none, and 75 % from
scratch (2026-11-30, seed 1)."""

_PARTS = (
    "speech", "manifests", "timing", "pretrained", "finetuned", "from_scratch", "wer_finetuned", "wer_from_scratch",
    "lm.arpa", "lm_finetuned", "lm_from_scratch", "probe", "embeddings.parquet", "report.html", PLAN_NAME, ELAPSED_NAME,
    RESULT,
)  # fmt: skip
"""What the demo writes into its folder, and so what `overwrite` removes."""

_SPOKEN = {"pretrained": "pretraining", "finetuned": "fine-tuning", "from_scratch": "training from scratch"}

RunVerb = Callable[[str, Mapping[str, Any]], dict[str, Any]]

_logger = logging.getLogger("speechssl")


@verb
def demo(config: DemoConfig, run_verb: RunVerb) -> dict[str, Any]:
    """Tell the whole story, or go on where an earlier run of the same command stopped.

    Args:
        config: its keys.
        run_verb: runs a verb with the keys of its command line, presets included: `speechssl.api.run_verb`.

    Raises:
        ConfigError: the extra `demo` is not installed, or `out` cannot be written or holds another demo.
    """
    out = Path(config.out)
    resolve_device(config.device)
    if config.overwrite:
        # What would be refused later must not cost the demo that is there.
        require_espeak()
        check_writable(out)
        _remove(out)
    check_writable(out)
    story = Story(out, config, run_verb)
    story.check_same()
    finished = read_finished(out)
    if finished is not None:
        _logger.info("%s is finished", out)
        return finished
    try:
        result = story.summarise(story.run_steps())
    finally:
        story.save_elapsed()
    write_result(out, result)
    return result


def read_finished(folder: Path) -> dict[str, Any] | None:
    """Read the result of a step that is finished; None where it is not."""
    path = folder / RESULT
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _remove(out: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else that lies in its folder."""
    for name in _PARTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@dataclass
class Story:
    """One demo: where it writes, what it was asked for, and what runs its steps."""

    out: Path
    config: DemoConfig
    run_verb: RunVerb

    def __post_init__(self) -> None:
        self.start, self.earlier_s = time.monotonic(), 0.0
        if (self.out / ELAPSED_NAME).is_file():
            self.earlier_s = json.loads((self.out / ELAPSED_NAME).read_text(encoding="utf-8"))["seconds"]

    @property
    def spent_s(self) -> float:
        """Time that the demo has taken, earlier starts included."""
        return self.earlier_s + time.monotonic() - self.start

    @property
    def _total_s(self) -> float:
        """Time that the demo may take."""
        return 60 * self.config.minutes

    def save_elapsed(self) -> None:
        """Note the time for a later start, however this one ends."""
        (self.out / ELAPSED_NAME).write_text(json.dumps({"seconds": round(self.spent_s, 1)}) + "\n", encoding="utf-8")

    def check_same(self) -> None:
        """Make sure that `out` is new or holds this same demo.

        Raises:
            ConfigError: it was begun with another length or seed.
        """
        plan = Plan.load(self.out / PLAN_NAME)
        for name in ("minutes", "seed") if plan else ():
            stored, wanted = getattr(plan, name), getattr(self.config, name)
            if stored != wanted:
                raise ConfigError(
                    f"`{name}` must be {stored:g}, as in the demo that {self.out} holds, but is {wanted:g} "
                    "(overwrite=true starts afresh)"
                )

    def run_steps(self) -> dict[str, dict[str, Any]]:
        """Run every step that is not finished, in order, and return the result of each."""
        results = {"prepare": self._prepare()}
        results |= self._train()
        self._train_lm()
        for name in ("finetuned", "from_scratch"):
            keys = {"checkpoint": self._path(name), "data.test": [self._manifest("test")]}
            results[f"wer_{name}"] = self._step("evaluate", keys, f"wer_{name}")
            keys |= {"decoding": "beam", "decoding.lm": self._path("lm.arpa")}
            results[f"lm_{name}"] = self._step("evaluate", keys, f"lm_{name}")
        self._embed()
        results["probe"] = self._probe()
        results["report"] = self._report()
        return results

    def summarise(self, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Collect the figures of the JSON line and of the table."""
        from speechssl.training.metrics import read_metrics

        first = next(record for record in read_metrics(self.out / "pretrained") if record["split"] == "valid")
        plan = self._load_plan()
        cut = {part: (plan.parts[name].updates, plan.parts[name].planned) for name, part in _SPOKEN.items()}
        rows = make_rows(results, first, cut)
        return {
            "out": str(self.out),
            "minutes": round(self.spent_s / 60, 2),
            "rows": rows,
            "as_hoped": all(row["verdict"] != "not better" for row in rows),
            "report": self._path("report.html"),
        }

    def _prepare(self) -> dict[str, Any]:
        speech = self.out / "speech"
        log_lines("\nspeech by eSpeak NG: many voices, and no recording of anyone")
        build_demo_corpus(speech, self.config.seed, choose_splits(self.config.minutes))
        return self._step("prepare", {"root": str(speech), "corpus": "demo"}, "manifests")

    def _train(self) -> dict[str, dict[str, Any]]:
        """Pretrain; then fine-tune, and train from scratch on the same labels for as many updates.

        Each training is planned when its turn has come, by what was measured until then.
        """
        valid = {"data.valid": [self._manifest("dev")]}
        pretrain, scratch = (self._training_keys(verb) | valid for verb in ("pretrain", "finetune"))
        # The last blocks have learned to name codes, and are slower to learn letters than blocks drawn afresh.
        finetune = {"init": self._path("pretrained"), "reset_layers": RESET_LAYERS, **scratch}
        # The network comes with the checkpoint.
        del finetune["model"]

        self._plan("pretrained", self._plan_pretraining)
        results = {"pretrained": self._run_part("pretrain", pretrain, "pretrained")}
        self._plan("finetuned", self._plan_finetuning)
        results["finetuned"] = self._run_part("finetune", finetune, "finetuned")
        self._plan("from_scratch", lambda plan: plan_scratch(plan, self.spent_s, self.out / "finetuned"))
        return results | {"from_scratch": self._run_part("finetune", scratch, "from_scratch")}

    def _plan_pretraining(self, _: Plan) -> Plan:
        timing = self._time("pretrain")
        return plan_pretraining(self.config, self.spent_s, timing)

    def _plan_finetuning(self, plan: Plan) -> Plan:
        plan, _ = measure_slowness(plan, "pretrained", self.out / "pretrained")
        timing = self._time("finetune")
        return plan_finetuning(plan, self.spent_s, timing)

    def _plan(self, name: str, decide: Callable[[Plan], Plan]) -> None:
        """Decide how many updates a training makes; once for each demo."""
        plan = Plan.load(self.out / PLAN_NAME) or Plan(self.config.minutes, self.config.seed)
        if name not in plan.parts:
            plan = decide(plan)
            plan.save(self.out / PLAN_NAME)
            log_lines(f"\n{self._say_time()}: {plan.parts[name].updates} updates of {_SPOKEN[name]}")

    def _run_part(self, verb: str, keys: dict[str, Any], name: str) -> dict[str, Any]:
        """Run a training; where it falls behind, it stops saved, is planned anew and goes on to a nearer end."""
        while True:
            plan = self._load_plan()
            part = plan.parts[name]
            words = {**keys, "training.max_updates": part.updates}
            if part.updates < part.planned:
                words["training.schedule_updates"] = part.updates
            # The least number of updates is made however long it takes.
            hours = max(1.0, part.until_s - self.spent_s) / 3600 if part.updates > MIN_UPDATES else DAY_H
            words |= {"training.max_hours": round(hours, 5), "training.stop_when_late": True}
            result = self._step_in_time(verb, words, name)
            if result is not None:
                return result
            plan = shorten(plan, name, self.spent_s, self.out / name)
            plan.save(self.out / PLAN_NAME)
            updates = plan.parts[name].updates
            if updates < part.updates:
                log_lines(
                    f"\n{self._say_time()}, and this machine has become slower: {_SPOKEN[name]} ends after {updates} "
                    f"updates instead of {part.updates}"
                )

    def _load_plan(self) -> Plan:
        plan = Plan.load(self.out / PLAN_NAME)
        assert plan is not None, "there is a plan where something is trained"
        return plan

    def _say_time(self) -> str:
        return f"{self.spent_s:.0f} s of {self._total_s:.0f} s are gone"

    def _time(self, verb: str) -> Path:
        """Train for a few updates, and return the folder with their speeds."""
        hours = round(TIMING_SHARE * self._total_s / 3600, 5)
        keys = {"training.max_updates": TIMING_UPDATES[verb], "training.max_hours": hours}
        self._step_in_time(verb, {**self._training_keys(verb), **keys}, f"timing/{verb}")
        return self.out / "timing" / verb

    def _train_lm(self) -> None:
        """Train a language model on sentences that nobody speaks here, unless it is there."""
        if not (self.out / "lm.arpa").exists():
            texts = str(self.out / "speech" / FOLDER / TEXTS)
            self._run("lm", {"texts": [texts], "test": [self._manifest("dev")], "out": self._path("lm.arpa")})

    def _embed(self) -> None:
        """Embed the test split. The file is its own sign that the step is finished: it is written in one piece."""
        name = "embeddings.parquet"
        if not (self.out / name).exists():
            keys = {"checkpoint": self._path("pretrained"), "audio": [self._manifest("test")], "layer": "mean"}
            self._step("embed", keys, name)

    def _probe(self) -> dict[str, Any]:
        """Identify the speakers of training in sessions of their own: within one, its sound gives them away."""
        keys = {
            "checkpoint": self._path("pretrained"),
            "data.train": [self._manifest("train")],
            "data.test": [self._manifest("session")],
            # One rate: the demo's minutes are planned with it.
            "lr": 0.02,
        }
        return self._step("probe", keys, "probe")

    def _report(self) -> dict[str, Any]:
        trainings = ("pretrained", "finetuned", "from_scratch")
        runs = (*trainings, "wer_finetuned", "wer_from_scratch", "lm_finetuned", "lm_from_scratch", "probe")
        return self._run("report", {"run": [self._path(name) for name in runs], "out": self._path("report.html")})

    def _training_keys(self, verb: str) -> dict[str, Any]:
        objective = {"objective": "masked_codes"} if verb == "pretrain" else {}
        return {"model": "small", "training": f"{verb}_demo", **objective, "data.train": [self._manifest("train")]}

    def _step(self, verb: str, keys: dict[str, Any], name: str) -> dict[str, Any]:
        """Run one verb into a place of its own, unless it is finished there; training verbs see to that themselves."""
        finished = None if verb in ("pretrain", "finetune") else read_finished(self.out / name)
        if finished is not None:
            _logger.info("")
            _logger.info("%s is finished", self.out / name)
            return finished
        device = {} if verb == "prepare" else {"device": self.config.device}
        return self._run(verb, {**keys, "out": self._path(name), "seed": self.config.seed, **device})

    def _step_in_time(self, verb: str, keys: dict[str, Any], name: str) -> dict[str, Any] | None:
        """Run a training; None where its time limit has stopped it."""
        try:
            return self._step(verb, keys, name)
        except StoppedOnRequest as stop:
            if "max_hours" not in str(stop):
                raise
            return None

    def _run(self, verb: str, keys: dict[str, Any]) -> dict[str, Any]:
        """Run one command, and say it first as a user would type it."""
        log_lines(f"\n$ speechssl {verb} {' '.join(_format_word(*item) for item in keys.items())}")
        start = time.monotonic()
        try:
            result = self.run_verb(verb, keys)
        finally:
            self.save_elapsed()
        _logger.info("%s took %.0f s", verb, time.monotonic() - start)
        return result

    def _manifest(self, split: str) -> str:
        return self._path(f"manifests/{split}.tsv")

    def _path(self, name: str) -> str:
        return str(self.out / name)


def _format_word(key: str, value: Any) -> str:
    """Write `key=value` for a shell."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else value
    return spell(key, value)
