"""What errors in transcripts cost, and what is left of that with `tolerate_errors`: CER of `dev` of the demo's speech.

    python -m tests.benchmarks.wrong_transcripts <folder> [start=300] [updates=400] [rate=0.17] [keys of finetune]

A recogniser learns from `session` (8 minutes, right transcripts). It goes on, by as many updates each, with the right
transcripts of `train` (42 minutes), with wrong ones and plain CTC, and with wrong ones and the tolerant one, whose
penalties may be among the keys. What is there already is not made again.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import speechssl
from speechssl.data.manifest import Manifest, build_manifest, load_manifests, save_manifest

SMALL: dict[str, Any] = {
    "model": "small", "training": "finetune_demo", "data.limit_s": 0.0, "data.speed_perturbation": [],
    "model.model_dim": 128, "model.num_layers": 3, "model.ffn_dim": 512, "model.num_heads": 2,
    "model.mel_channels": [128, 128], "data.num_workers": 0, "training.checkpoint_every": 1000,
    "training.update_s": 8.0, "training.sub_batch_s": 8.0, "training.forward_s": 8.0, "best_by": "cer",
    "logging.tensorboard": False,
}  # fmt: skip
"""Seconds of processor time; `model.…` and others may be given otherwise."""

PENALTIES = ("star_penalty", "word_penalty", "penalty_decay")


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    out = Path(words.pop(0))
    given = dict(word.split("=", 1) for word in words)
    start, updates = int(given.pop("start", "300")), int(given.pop("updates", "400"))
    rate = float(given.pop("rate", "0.17"))
    penalties = {name: float(given.pop(name)) for name in PENALTIES if name in given}
    if not (out / "m").exists():
        speechssl.prepare(corpus="demo", root=str(out / "corpus"), out=str(out / "m"))
    right = load_manifests([str(out / "m" / "train.tsv")], "train")
    save_manifest(corrupt(right, rate, seed=1), out / "wrong.tsv")
    train(out, "start", out / "m" / "session.tsv", start, {**SMALL, **given, "text.vocabulary": "data"})
    keys = {**SMALL, **given, "init": str(out / "start"), "text.vocabulary": "init"}
    arms = {
        "right": train(out, "right", out / "m" / "train.tsv", updates, keys),
        "wrong": train(out, "wrong", out / "wrong.tsv", updates, keys),
        "tolerant": train(out, "tolerant", out / "wrong.tsv", updates, {**keys, "tolerate_errors": True, **penalties}),
    }
    print("| transcripts | CER of dev, % | times that of right ones |\n| --- | ---: | ---: |")
    for name, cer in arms.items():
        print(f"| {name} | {cer:.1f} | {cer / arms['right']:.2f} |")


def corrupt(manifest: Manifest, rate: float, seed: int) -> Manifest:
    """Replace each word by another, or leave it out, and add one behind it, each with the probability `rate`."""
    rng = random.Random(seed)
    known = [word for text in manifest.column("text") for word in text.split()]
    rows = []
    for row in range(len(manifest)):
        heard = []
        for word in (manifest[row].text or "").split():
            fate = rng.random()
            heard += [rng.choice(known)] if fate < rate else [] if fate < 2 * rate else [word]
            heard += [rng.choice(known)] if rng.random() < rate else []
        rows.append(replace(manifest[row], text=" ".join(heard)))
    return build_manifest(rows, manifest.root)


def train(out: Path, name: str, manifest: Path, updates: int, keys: Mapping[str, Any]) -> float:
    """Fine-tune, and give the CER of `dev` after the last update."""
    result = speechssl.finetune(
        **keys,
        **{"data.train": str(manifest), "data.valid": str(out / "m" / "dev.tsv"), "out": str(out / name)},
        **{"training.max_updates": updates, "training.validate_every": max(1, updates // 4)},
    )
    cer: float = result["valid"]["cer"]
    return cer


if __name__ == "__main__":
    main()
