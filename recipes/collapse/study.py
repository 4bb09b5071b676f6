"""Seeds of a network (`tiny` by default) with 60 s of speech an update: healthy ones, and ones made to collapse.

Every run leaves one JSON line in `out`; the same command goes on with the runs that are missing, and prints the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import speechssl
from speechssl.errors import CollapseError, ConfigError, NumericalError, SpeechSSLError

USAGE = """usage: recipes/collapse/run train=<manifest>[,<manifest>] valid=<manifest> digits=<manifest> out=<folder>
    [healthy=20] [provoked=20] [updates=400] [model=tiny]
  train, valid   speech, as `speechssl prepare` writes it
  digits         spoken digits with `speaker` and `text`: what a healthy run must have learned something about
"""

HIGHEST_BITS = 6.2
"""What the contrastive loss of a healthy run on `valid` must have come down to; guessing is 6.66 bits."""

PROVOCATIONS: tuple[Mapping[str, Any], ...] = (
    {"objective.diversity_weight": -5.0},
    {"training.weight_decay": 50.0},
    {"training.lr": 0.2},
)
"""A reward for few codes; weights that vanish; a rate that throws the front-end out of the range where it responds."""


def main(argv: Sequence[str]) -> int:
    """Run what is missing and print the table."""
    try:
        given = read_words(argv)
        out = Path(given["out"])
        healthy = [run_once(given, out, seed, {}) for seed in range(1, int(given["healthy"]) + 1)]
        provoked = [
            run_once(given, out, 100 + number, PROVOCATIONS[number % len(PROVOCATIONS)])
            for number in range(int(given["provoked"]))
        ]
    except SpeechSSLError as error:
        print(f"collapse: {error}\n{USAGE}", file=sys.stderr)
        return 2
    print("\n".join(format_table(healthy, provoked)))
    return 0


def read_words(argv: Sequence[str]) -> dict[str, str]:
    """Read key=value words.

    Raises:
        ConfigError: a key is missing or unknown.
    """
    given = {"healthy": "20", "provoked": "20", "updates": "400", "model": "tiny"}
    given |= dict(word.split("=", 1) for word in argv if "=" in word)
    known = {"train", "valid", "digits", "out", "healthy", "provoked", "updates", "model"}
    if set(given) != known:
        raise ConfigError(f"the keys must be {', '.join(sorted(known))}, but are {', '.join(sorted(given))}")
    return given


def run_once(given: Mapping[str, str], out: Path, seed: int, provocation: Mapping[str, Any]) -> dict[str, Any]:
    """Pretrain one seed and look at what became of it, or read what an earlier call found."""
    name = f"{'provoked' if provocation else 'healthy'}-{seed}"
    path = out / f"{name}.json"
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record
    keys = {
        "model": given["model"],
        "seed": seed,
        "data.train": given["train"].split(","),
        "data.valid": [given["valid"]],
        "data.num_workers": 0,
        "data.cache_dir": str(out / "cache"),
        "training.update_s": 60.0,
        "training.sub_batch_s": 60.0,
        "training.forward_s": 60.0,
        "training.max_updates": int(given["updates"]),
        "training.validate_every": int(given["updates"]),
        "training.checkpoint_every": int(given["updates"]),
        "training.log_every": 100,
        "logging.tensorboard": False,
    }
    record = {"seed": seed, "provocation": dict(provocation)} | pretrain(keys | dict(provocation), out / name)
    if not provocation and not record["collapsed"]:
        record |= probe(out / name, given["digits"], seed)
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return record


def pretrain(keys: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Pretrain, and say when it was warned of and whether it was stopped."""
    message = ""
    try:
        speechssl.pretrain(**keys, out=str(out))
    except CollapseError as error:
        message = str(error)
    except NumericalError:
        message = "the numerical guard stopped it, too many updates in a row were skipped"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    # A skipped update has no figures.
    train = [line for line in lines if line["split"] == "train" and "collapse_warning" in line]
    valid = [line for line in lines if line["split"] == "valid"]
    return {
        "collapsed": bool(message),
        "message": message,
        "updates": train[-1]["update"],
        "first_warning": next((line["update"] for line in train if line["collapse_warning"]), 0),
        "train_bits": train[-1]["loss_contrastive"],
        "valid_bits": valid[-1]["loss_contrastive"],
        "valid_accuracy": valid[-1]["accuracy"],
        "valid_perplexity": valid[-1]["hard_perplexity"],
    }


def probe(run: Path, manifest: str, seed: int) -> dict[str, Any]:
    """Measure digits by unheard speakers on the layers of a run, and on those of an untrained network."""
    keys = {"data.train": manifest, "label": "text", "lr": 0.02, "seed": seed, "overwrite": True}
    found = speechssl.probe(checkpoint=str(run), out=str(run / "digits"), **keys)
    layers = {"trained": found["layers"], "untrained": found["baselines"]["untrained"]["layers"]}
    return {"digits": {name: [layer["accuracy"] for layer in each] for name, each in layers.items()}}


def format_table(healthy: Sequence[dict[str, Any]], provoked: Sequence[dict[str, Any]]) -> list[str]:
    """Write the runs as two Markdown tables, and one line of what they come to under each."""
    rows = ["| seed | bits | accuracy, % | hard perplexity | warned | stopped | digits, % | untrained |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in healthy:
        perplexity = "+".join(f"{value:.0f}" for value in run["valid_perplexity"])
        best = [f"{max(run['digits'][name]):.1f}" for name in ("trained", "untrained")] if "digits" in run else ["", ""]
        warned = str(run["first_warning"] or "never")
        cells = [run["seed"], f"{run['valid_bits']:.2f}", f"{100 * run['valid_accuracy']:.1f}", perplexity, warned]
        rows.append(f"| {' | '.join(map(str, [*cells, 'yes' if run['collapsed'] else 'no', *best]))} |")
    learned = sum(run["valid_bits"] <= HIGHEST_BITS for run in healthy)
    better = sum("digits" in run and max(run["digits"]["trained"]) > max(run["digits"]["untrained"]) for run in healthy)
    alarms = sum(run["collapsed"] for run in healthy)
    reached = f"{learned} of {len(healthy)} at {HIGHEST_BITS} bits or below"
    rows += ["", f"{reached}, {better} better than untrained, {alarms} stopped."]
    rows += ["", "| seed | provoked by | warned at | stopped at | sign |", "| --- | --- | --- | --- | --- |"]
    for run in provoked:
        by = ", ".join(f"`{key}={value:g}`" for key, value in run["provocation"].items())
        sign = run["message"].partition(", ")[2].partition(". ")[0] or "none"
        stopped = run["updates"] if run["collapsed"] else "never"
        rows.append(f"| {run['seed']} | {by} | {run['first_warning'] or 'never'} | {stopped} | {sign} |")
    caught = sum(run["collapsed"] for run in provoked)
    return [*rows, "", f"{caught} of {len(provoked)} caught."]
