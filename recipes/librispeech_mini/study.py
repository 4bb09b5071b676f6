"""What pretraining and self-training are worth on one's own machine: characters wrong against processor time.

An arm with one amount of labels is a list of `speechssl` commands. A step that is finished is not run again, one
that was stopped goes on, and arms of one seed share steps.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import speechssl
from speechssl.checkpoints.layout import RESULT
from speechssl.data.manifest import load_manifests, save_manifest
from speechssl.durable import write_in_one_step
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.training.metrics import read_metrics

USAGE = """usage: recipes/librispeech_mini/run <manifests> <out> <arm> <labels> [seed] [key=value …]
       recipes/librispeech_mini/run table
  manifests  as recipes/librispeech_mini/prepare makes them, with books.arpa
  arm        scratch, contrastive, codes, or self: from scratch, then a student of its own texts
  labels     10m, 1h or all
  key=value  further words for every training, such as training.max_updates=3 in a rehearsal"""
RESULTS = Path(__file__).parent / "results"
ARMS, SETS = ("scratch", "contrastive", "codes", "self"), ("dev", "test", "test-other")
# Manifest; updates from scratch, after pretraining, of a student; further keys: few labels are learned by heart.
LABELS = {
    "10m": ("train-10m", 800, 600, 2000, "model.mask.prob=0.3"),
    "1h": ("train-1h", 3000, 1500, 4000, ""),
    "all": ("train", 10000, 4000, 6000, ""),
}
CODES, PRETRAINING = "objective=masked_codes objective.codes_per_frame=2", 1200
SURE = 0.2
"""Least confidence of a text that a student learns from: four fifths of them had more."""


@dataclass(frozen=True)
class Study:
    """One seed: where its speech and its steps lie, and further words for every training."""

    manifests: Path
    out: Path
    seed: int = 1
    more: tuple[str, ...] = ()

    def list_steps(self, arm: str, labels: str) -> list[tuple[str, list[str]]]:
        """List the steps of an arm in order: a name, under which its result lies in `out`, and its command."""
        labelled, updates, tuned, student, keys = LABELS[labels]
        scratch = self._train("finetune", f"scratch-{labels}", updates, f"model=small {keys}", self._path(labelled))
        if arm == "scratch":
            return [scratch, self._tune(scratch[0])]
        if arm == "self":
            texts = f"pseudo-{labels}.tsv"
            decoding = f"decoding=beam decoding.beam_width=12 decoding.lm={self._path('books.arpa')}"
            words = f"transcribe {self.out}/{scratch[0]} {self.out}/rest-{labels}.tsv {decoding} min_confidence={SURE}"
            both = f"{self._path(labelled)},{self.out / texts}"
            last = self._train("finetune", f"student-{labels}", student, f"init={self.out}/{scratch[0]} {keys}", both)
            heard = (texts, [*words.split(), f"out={self.out / texts}"])
            return [scratch, self._tune(scratch[0]), heard, last, self._tune(last[0])]
        speech = ",".join(map(self._path, ("train", "unlabelled", *self.find_more("*"))))
        first = self._train("pretrain", arm, PRETRAINING, f"model=small {CODES if arm == 'codes' else ''}", speech)
        last = self._train("finetune", f"{arm}-{labels}", tuned, f"init={self.out}/{arm} {keys}", self._path(labelled))
        return [first, last, self._tune(last[0])]

    def find_more(self, pattern: str) -> list[str]:
        """Name the manifests of more speech without labels."""
        return sorted(f"more/{path.stem}" for path in (self.manifests / "more").glob(f"{pattern}.tsv"))

    def write_rest(self, labels: str) -> None:
        """Write the manifest of LibriSpeech without a label in training: what its recogniser knows."""
        labelled = set(load_manifests([self._path(LABELS[labels][0])], "labels").column("id"))
        paths = [self._path(name) for name in ("train", "unlabelled", *self.find_more("LibriSpeech*"))]
        everything = load_manifests(paths, "manifests")
        rest = np.array([index for index, name in enumerate(everything.column("id")) if name not in labelled])
        save_manifest(everything.select(rest), self.out / f"rest-{labels}.tsv")

    def _path(self, name: str) -> str:
        return str(self.manifests / (name if "." in name else f"{name}.tsv"))

    def _tune(self, name: str) -> tuple[str, list[str]]:
        words = f"tune {self.out / name} {self._path('dev')} decoding.lm={self._path('books.arpa')}"
        return f"tune-{name}", [*words.split(), f"out={self.out}/tune-{name}"]

    def _train(self, verb: str, name: str, updates: int, words: str, data: str) -> tuple[str, list[str]]:
        own = f"{words} data.train=[{data}] data.valid={self._path('dev')} data.num_workers=0"
        own += f" data.cache_dir={self.out}/cache training.max_updates={updates} seed={self.seed}"
        # A network comes with `init`, and a key is given once.
        more = [word for word in self.more if not (word.startswith("model=") and "init=" in words)]
        given = {word.partition("=")[0] for word in more}
        kept = [word for word in own.split() if word.partition("=")[0] not in given]
        return name, [verb, *kept, *more, f"out={self.out / name}"]


def main(argv: Sequence[str]) -> int:
    """Run what is missing of an arm and write its line of `results/`, or print the table of all of them."""
    try:
        if list(argv) == ["table"]:
            print(format_table([json.loads(path.read_text()) for path in RESULTS.glob("*.json")]))
            return 0
        if len(argv) < 4 or argv[2] not in ARMS or argv[3] not in LABELS:
            raise ConfigError("the words must be those below")
        manifests, out, arm, labels, *others = argv
        seed = int(others.pop(0)) if others and others[0].isdigit() else 1
        run_arm(Study(Path(manifests), Path(out), seed, tuple(others)), arm, labels)
    except SpeechSSLError as error:
        print(f"study: {error}\n{USAGE}", file=sys.stderr)
        return 2
    return 0


def run_arm(study: Study, arm: str, labels: str) -> None:
    """Run the steps of an arm, measure its last recogniser, and write what came out."""
    study.out.mkdir(parents=True, exist_ok=True)
    if arm == "self":
        study.write_rest(labels)
    steps = study.list_steps(arm, labels)
    for name, words in steps:
        run_step(study.out, name, words)
    last, lm = steps[-2][0], {"decoding": "beam", "decoding.lm": str(study.manifests / "books.arpa")}
    result: dict[str, Any] = {"arm": arm, "labels": labels, "seed": study.seed, "more": study.more}
    result["date"] = time.strftime("%Y-%m-%d")
    result |= measure_cost(study.out, [name for name, _ in steps[:-1]]) | {"sets": {name: {} for name in SETS}}
    for name, (how, more) in ((name, each) for name in SETS for each in (("greedy", {}), ("lm", lm))):
        keys = {"checkpoint": f"{study.out}/{last}", "data.test": f"{study.manifests}/{name}.tsv", "overwrite": True}
        found = speechssl.evaluate(**keys, **more, out=f"{study.out}/{how}-{name}-{last}")
        result["sets"][name][how] = {key: found[key] for key in ("wer", "cer", "speakers")}
    RESULTS.mkdir(exist_ok=True)
    write_in_one_step(RESULTS / f"{arm}-{labels}-{study.seed}.json", json.dumps(result, indent=1) + "\n")


def run_step(out: Path, name: str, words: Sequence[str]) -> None:
    """Run a command unless it is finished, and note its processor time in `steps.jsonl`.

    Raises:
        ConfigError: it failed; its log says why.
    """
    if (out / name / RESULT).exists() or (out / name).is_file():
        return
    print("$ speechssl", *words, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (out / f"{name}.log").open("a") as log:
        env = {"OMP_NUM_THREADS": "1", **os.environ}
        code = subprocess.run([sys.executable, "-m", "speechssl", *words], stdout=log, stderr=log, env=env).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with (out / "steps.jsonl").open("a") as lines:
        lines.write(json.dumps({"name": name, "cpu_s": round(cpu_s, 1)}) + "\n")
    if code:
        raise ConfigError(f"`{name}` must end well, but ended with {code}: see {out / name}.log")


def measure_cost(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Add up what steps cost, everything included, and give CER on `dev` against the processor time until then.

    Returns:
        `cpu_s`, `hours_heard`, `steps` with the time of each, and `curve`: (processor seconds so far, CER) of every
        validation of a recogniser. Setting up and validating are spread over a step's updates.
    """
    noted = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    total, heard, curve, steps = 0.0, 0.0, [], {}
    for name in names:
        steps[name] = sum(line["cpu_s"] for line in noted if line["name"] == name)
        records = read_metrics(out / name) if (out / name).is_dir() else []
        updates = sum(record["split"] == "train" for record in records)
        for record in records:
            if record["split"] == "valid" and "cer" in record and record["update"]:
                curve.append((round(total + steps[name] * record["update"] / updates), round(record["cer"], 2)))
        heard += records[-1]["hours_seen"] if records else 0.0
        total += steps[name]
    return {"cpu_s": round(total), "hours_heard": round(heard, 3), "steps": steps, "curve": curve}


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Lay the results out as a Markdown table; several seeds are several rows."""
    order = {name: k for k, name in enumerate([*LABELS, *ARMS])}
    names = ["labels", "arm", "seed", "CPU min", "hours heard", "CER dev", "test", "other", "WER test"]
    rows = [[*names, "LM: dev", "test", "other"], ["---"] * 12]
    for result in sorted(results, key=lambda row: (order[row["labels"]], order[row["arm"]], row["seed"])):
        greedy, lm = ([result["sets"][name][how] for name in SETS] for how in ("greedy", "lm"))
        figures = [*(rates["cer"] for rates in greedy), greedy[1]["wer"], *(rates["wer"] for rates in lm)]
        cells = [result["labels"], result["arm"], str(result["seed"]), str(round(result["cpu_s"] / 60))]
        rows.append([*cells, *(f"{figure:.1f}" for figure in (result["hours_heard"], *figures))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
