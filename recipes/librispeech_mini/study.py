"""What pretraining and self-training are worth on one's own machine: characters wrong against processor time.

An arm with one amount of labels is a list of `speechssl` commands, each in a process of its own. A step that is
finished is not run again, one that was stopped goes on, and arms of one seed share steps.
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
import torch

import speechssl
from speechssl.audio.reading import SAMPLE_RATE, load_audio
from speechssl.checkpoints.layout import RESULT
from speechssl.data.manifest import load_manifests, save_manifest
from speechssl.durable import write_in_one_step
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.evaluation.representations import compute_effective_rank
from speechssl.training.metrics import read_metrics

USAGE = """usage: recipes/librispeech_mini/run <manifests> <out> <arm> <labels> [seed] [key=value …]
       recipes/librispeech_mini/run table
  manifests  as recipes/librispeech_mini/prepare makes them, with books.arpa
  arm        scratch, contrastive, codes, or self: from scratch, then a student of its own texts
  labels     10m, 1h or all
  key=value  further words for every training, such as training.max_updates=3 in a rehearsal"""

RESULTS = Path(__file__).parent / "results"
ARMS, SETS = ("scratch", "contrastive", "codes", "self"), ("dev", "test", "test-other")


@dataclass(frozen=True)
class Labels:
    """How much is made of one amount of labels.

    Attributes:
        manifest: the labelled speech.
        scratch, tuned, student: updates from scratch, after pretraining, and of a student.
        keys: of its fine-tunings. Few labels are learned by heart, and want more masks.
    """

    manifest: str
    scratch: int
    tuned: int
    student: int
    keys: str = ""


LABELS = {
    "10m": Labels("train-10m", 800, 600, 2000, "model.mask.prob=0.3"),
    "1h": Labels("train-1h", 3000, 1500, 4000),
    "all": Labels("train", 10000, 4000, 6000),
}
NETWORK, CODES, PRETRAINING = "model=small", "objective=masked_codes objective.codes_per_frame=2", 1200
SURE = 0.2
"""Least confidence of a text that a student learns from: four fifths of them had more."""


@dataclass(frozen=True)
class Study:
    """One seed: where its speech and its steps lie.

    Attributes:
        more: further words for every training.
    """

    manifests: Path
    out: Path
    seed: int = 1
    more: tuple[str, ...] = ()

    @property
    def lm(self) -> Path:
        """The n-gram that every recogniser is decoded with."""
        return self.manifests / "books.arpa"

    def list_steps(self, arm: str, labels: str) -> list[tuple[str, list[str]]]:
        """List the steps of an arm in order: a name, under which its result lies in `out`, and its command."""
        size = LABELS[labels]
        labelled, heard = self._join(size.manifest), self._join("train", "unlabelled", *self._find_more("*"))
        scratch = self._train("finetune", f"scratch-{labels}", size.scratch, f"{NETWORK} {size.keys}", labelled)
        if arm == "scratch":
            steps = [scratch]
        elif arm == "self":
            teacher, pseudo = f"scratch-{labels}", self.out / f"pseudo-{labels}.tsv"
            texts = ["transcribe", str(self.out / teacher), str(self.out / f"rest-{labels}.tsv")]
            texts += ["decoding=beam", f"decoding.lm={self.lm}", "decoding.beam_width=12"]
            both = f"data.train=[{self.manifests / size.manifest}.tsv,{pseudo}]"
            words = f"init={self.out / teacher} {size.keys}"
            student = self._train("finetune", f"student-{labels}", size.student, words, both)
            texts += [f"min_confidence={SURE}", f"out={pseudo}"]
            steps = [scratch, self._tune(teacher), (pseudo.name, texts), student]
        else:
            words = f"{NETWORK} {CODES}" if arm == "codes" else NETWORK
            keys = f"init={self.out / arm} {size.keys}"
            tuned = self._train("finetune", f"{arm}-{labels}", size.tuned, keys, labelled)
            steps = [self._train("pretrain", arm, PRETRAINING, words, heard), tuned]
        return [*steps, self._tune(steps[-1][0])]

    def write_rest(self, labels: str) -> None:
        """Write the manifest of LibriSpeech without a label in training: what its recogniser knows."""
        path = self.out / f"rest-{labels}.tsv"
        if path.exists():
            return
        labelled = set(load_manifests([f"{self.manifests / LABELS[labels].manifest}.tsv"], "labels").column("id"))
        names = ("train", "unlabelled", *self._find_more("LibriSpeech*"))
        everything = load_manifests([f"{self.manifests / name}.tsv" for name in names], "manifests")
        rest = np.array([index for index, id in enumerate(everything.column("id")) if id not in labelled])
        save_manifest(everything.select(rest), path)

    def _tune(self, name: str) -> tuple[str, list[str]]:
        words = ["tune", str(self.out / name), f"{self.manifests / 'dev'}.tsv", f"decoding.lm={self.lm}"]
        return f"tune-{name}", [*words, f"out={self.out / f'tune-{name}'}"]

    def _train(self, verb: str, name: str, updates: int, words: str, data: str) -> tuple[str, list[str]]:
        common = f"data.valid={self.manifests / 'dev'}.tsv data.num_workers=0 data.cache_dir={self.out / 'cache'}"
        own = [*words.split(), data, *common.split(), f"training.max_updates={updates}", f"seed={self.seed}"]
        begins = any(word.startswith("init=") for word in own)
        # A network comes with `init`, and a key is given once.
        more = [word for word in self.more if not (begins and word.startswith("model="))]
        given = {word.partition("=")[0] for word in more}
        kept = [word for word in own if word.partition("=")[0] not in given]
        return name, [verb, *kept, *more, f"out={self.out / name}"]

    def _join(self, *names: str) -> str:
        return f"data.train=[{','.join(f'{self.manifests / name}.tsv' for name in names)}]"

    def _find_more(self, pattern: str) -> list[str]:
        return sorted(f"more/{path.stem}" for path in (self.manifests / "more").glob(f"{pattern}.tsv"))


def main(argv: Sequence[str]) -> int:
    """Run an arm and write its results, or the table of all results."""
    try:
        if list(argv) == ["table"]:
            print(format_table([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))
            return 0
        if len(argv) < 4 or argv[2] not in ARMS or argv[3] not in LABELS:
            raise ConfigError("the words must be those below")
        manifests, out, arm, labels, *others = argv
        seed = int(others.pop(0)) if others and others[0].isdigit() else 1
        study = Study(Path(manifests), Path(out), seed, tuple(others))
        run_arm(study, arm, labels)
    except SpeechSSLError as error:
        print(f"study: {error}\n{USAGE}", file=sys.stderr)
        return 2
    return 0


def run_arm(study: Study, arm: str, labels: str) -> dict[str, Any]:
    """Run what is missing of an arm, measure its last recogniser, and write its line of `results/`."""
    study.out.mkdir(parents=True, exist_ok=True)
    if arm == "self":
        study.write_rest(labels)
    steps = study.list_steps(arm, labels)
    for name, words in steps:
        run_step(study.out, name, words)
    last = steps[-2][0]
    result = {"arm": arm, "labels": labels, "seed": study.seed, "date": time.strftime("%Y-%m-%d"), "more": study.more}
    result |= measure_cost(study.out, [name for name, _ in steps[:-1]])
    result["dimensions"] = measure_dimensions(study.out / steps[0][0], f"{study.manifests / 'dev'}.tsv")
    sets: dict[str, dict[str, Any]] = {name: {} for name in SETS}
    for name, rates in sets.items():
        keys = {"checkpoint": str(study.out / last), "data.test": f"{study.manifests / name}.tsv", "overwrite": True}
        for how, more in (("greedy", {}), ("lm", {"decoding": "beam", "decoding.lm": str(study.lm)})):
            found = speechssl.evaluate(**keys, **more, out=str(study.out / f"{how}-{name}-{last}"))
            rates[how] = {key: found[key] for key in ("wer", "cer", "speakers")}
    result["sets"] = sets
    RESULTS.mkdir(exist_ok=True)
    write_in_one_step(RESULTS / f"{arm}-{labels}-{study.seed}.json", json.dumps(result, indent=1) + "\n")
    return result


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


def measure_dimensions(checkpoint: Path, manifest: str, seconds: float = 10.0) -> list[float]:
    """Count the effective dimensions of each layer on some speech: exp of the entropy of the variances' shares.

    States that collapse to few dimensions leave a fine-tuning little to begin with.
    """
    model, rows = speechssl.load(str(checkpoint)), load_manifests([manifest], "manifest")
    found: list[list[torch.Tensor]] = []
    for index in range(0, len(rows), max(1, len(rows) // 24)):
        waveform = torch.from_numpy(load_audio(rows[index].path))[: int(seconds * SAMPLE_RATE)]
        with torch.no_grad():
            found.append([layer[0] for layer in model(waveform[None]).layers])
    return [round(compute_effective_rank(torch.cat(states).numpy()), 1) for states in zip(*found, strict=True)]


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Lay the results out as a Markdown table; several seeds are several rows."""
    order = {name: k for k, name in enumerate([*LABELS, *ARMS])}
    lines = [
        "| labels | arm | seed | CPU min | hours heard | CER dev | test | other | WER test | LM: dev | test | other |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in sorted(results, key=lambda row: (order[row["labels"]], order[row["arm"]], row["seed"])):
        greedy, lm = ([result["sets"][name][how] for name in SETS] for how in ("greedy", "lm"))
        figures = [*(rates["cer"] for rates in greedy), greedy[1]["wer"], *(rates["wer"] for rates in lm)]
        cells = [
            result["labels"],
            result["arm"],
            result["seed"],
            round(result["cpu_s"] / 60),
            round(result["hours_heard"], 1),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    return "\n".join(lines)
