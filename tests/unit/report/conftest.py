"""Run folders as the verbs write them, made of invented numbers, with a tiny untrained model and noise for speech."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from speechssl.config.model import ModelConfig, QuantizerConfig
from speechssl.config.verbs import FinetuneConfig, FinetuneDataConfig, PretrainConfig, PretrainDataConfig

NUM_UPDATES = 300


def tiny_model() -> ModelConfig:
    return ModelConfig(
        name="tiny", conv_channels=[8] * 7, num_layers=2, model_dim=16, ffn_dim=32, num_heads=2, position_kernel=8,
        position_groups=2, target_dim=8, layer_drop_prob=0.0, quantizer=QuantizerConfig(num_codes=12, codevector_dim=8),
    )  # fmt: skip


def write_lines(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_environment(folder: Path) -> None:
    environment = {
        "python": "3.12.1",
        "torch": "2.14.1",
        "device": "cpu",
        "git": "0123abc",
        "command": ["speechssl", "<x>", "&", "y"],
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")


def pretraining_rows(num_updates: int = NUM_UPDATES) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    rows = []
    for update in range(num_updates + 1):
        done = update / num_updates
        loss = 4.4 + 2.2 * math.exp(-4 * done)
        for split in ("train", "valid"):
            if (split == "valid" and update % (num_updates // 6)) or (split == "train" and update == 0):
                continue
            noise = 0.12 * rng.standard_normal() if split == "train" else 0.06
            row: dict[str, Any] = {
                "update": update, "split": split, "loss": loss + noise + 0.2, "loss_contrastive": loss + noise,
                "loss_diversity": 0.12 + 0.05 * math.exp(-6 * done), "loss_features": 0.08 * math.exp(-3 * done),
                "accuracy": 0.01 + 0.3 * (1 - math.exp(-3 * done)) + 0.01 * rng.standard_normal() * (split == "train"),
                "soft_perplexity": [11 - 2 * done, 11 - 3 * done],
                "hard_perplexity": [3 + 6 * done + rng.normal(0, 0.3), 2 + 5 * done + rng.normal(0, 0.3)],
                "removed_negatives": 0.2 * math.exp(-4 * done), "temperature": max(2 * 0.2**done, 0.5),
                "masked_share": 0.47 + 0.004 * rng.standard_normal(), "context_spread": 0.4 + 0.1 * done,
                "hours_seen": update * 96 / 3600,
            }  # fmt: skip
            if split == "train":
                row |= {
                    "grad_norm": 1 + math.exp(-5 * done) + 0.1 * rng.random(),
                    "lr": 1e-3 * min(done / 0.08, (1 - done) / 0.92 + 1e-9),
                }
                row |= {"audio_s_per_s": 150 + 8 * rng.standard_normal()}
            rows.append(row)
    return rows


def make_pretrain(folder: Path, valid: str = "", num_updates: int = NUM_UPDATES) -> Path:
    folder.mkdir(parents=True)
    data = PretrainDataConfig(train=["m/train.tsv"], valid=[valid] if valid else [])
    config = PretrainConfig(out=str(folder), model=tiny_model(), data=data)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
    write_environment(folder)
    write_lines(folder, pretraining_rows(num_updates))
    return folder


def make_finetune(folder: Path, init: str = "runs/base", valid: str = "", pace: float = 5.0) -> Path:
    folder.mkdir(parents=True)
    data = FinetuneDataConfig(train=["m/train.tsv"], valid=[valid] if valid else [])
    config = FinetuneConfig(out=str(folder), init=init, model=tiny_model(), data=data)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
    write_environment(folder)
    rows: list[dict[str, Any]] = []
    for update in range(1, 201):
        level = math.exp(-pace * update / 200)
        common = {"update": update, "hours_seen": update / 100}
        rows.append(
            common | {"split": "train", "loss": 40 + 300 * level, "lr": 1e-4, "grad_norm": 3.0, "audio_s_per_s": 90.0}
        )
        if update % 40 == 0:
            rows.append(
                common | {"split": "valid", "loss": 60 + 290 * level, "wer": 30 + 70 * level, "cer": 10 + 60 * level}
            )
    write_lines(folder, rows)
    return folder


def make_evaluate(folder: Path) -> Path:
    folder.mkdir(parents=True)
    header = "id\tspeaker\tword_errors\tnum_words\tletter_errors\tnum_letters\treference\thypothesis"
    rows = [
        "7-1-0\t7\t3\t8\t6\t36\tTHE QUICK BROWN FOX JUMPS OVER A DOG\tTHE QUICK BRAUN FOX OVER A THE DOG",
        "7-1-1\t7\t1\t4\t1\t16\tSHE SELLS SEA SHELLS\tSHE SELLS SEE SHELLS",
        "9-1-0\t9\t0\t5\t0\t25\tALL IS WELL <THAT> ENDS\tALL IS WELL <THAT> ENDS",
        "9-1-1\t9\t2\t2\t8\t8\tYES SIR\t",
    ]
    (folder / "utterances.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    confusions = ["unit\tkind\treference\thypothesis\tcount", "word\tsubstitution\tBROWN\tBRAUN\t4"]
    confusions += ["word\tdeletion\tJUMPS\t\t3", "word\tinsertion\t\tTHE\t2", "letter\tsubstitution\tE\tA\t7"]
    (folder / "confusions.tsv").write_text("\n".join(confusions) + "\n", encoding="utf-8")
    interval = {"low": 25.0, "high": 40.5, "unit": "speaker", "count": 2, "reliable": False}
    result = {
        "wer": 31.6,
        "wer_interval": interval,
        "cer": 17.6,
        "cer_interval": interval,
        "num_utterances": 4,
        "num_words": 19,
    }
    (folder / "result.json").write_text(json.dumps(result | {"checkpoint": "runs/ctc"}), encoding="utf-8")
    return folder


def make_tune(folder: Path) -> Path:
    folder.mkdir(parents=True)
    weights = {"lm_weight": 0.5, "word_bonus": 0.0, "blank_penalty": 1.0, "unknown_penalty": -9.0}
    points = [
        {**weights, "beam_width": 50, "num_utterances": 4, "wer": 31.25 + k, "cer": 17.5, "note": note}
        for k, note in enumerate(("kept", "", "start"))
    ]
    result = {
        "weights": weights, "wer": 31.25, "cer": 17.5, "greedy": {"wer": 42.0, "cer": 20.0}, "points": points,
        "lm": "<books>.arpa", "checkpoint": "runs/ctc", "kept": "runs/ctc/decoding.json",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def make_probe(folder: Path, measure: str = "accuracy") -> Path:
    folder.mkdir(parents=True)
    values = [61.0, 74.5, 70.25, 66.0, 58.0]
    layers = [
        {"layer": k, measure: v, f"{measure}_interval": {"low": v - 4, "high": v + 3}} for k, v in enumerate(values)
    ]
    result = {
        measure: 78.1,
        f"{measure}_interval": {"low": 74.0, "high": 81.0, "unit": "speaker", "count": 24, "reliable": True},
        "layers": layers, "layer_weights": [0.15, 0.35, 0.25, 0.15, 0.1],
        "baselines": {"log_mel": {measure: 49.5}, "untrained": {measure: 41.0}}, "checkpoint": "runs/base",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def make_analyse(folder: Path) -> Path:
    folder.mkdir(parents=True)
    interval = {"low": 60.0, "high": 80.0, "unit": "speaker", "count": 24, "reliable": True}
    layers = [
        {"layer": k, "dim": 64, "rank": 40.0 - 9 * k, "spread": 0.9, "norm": 12.0, "anisotropy": 0.1 * k,
         "cca_log_mel": 0.5 - 0.1 * k, "collapsed": False, "neighbour_accuracy": 70.0 + k, "variance_ratio": 0.5,
         "neighbour_accuracy_interval": interval, "cka_against": 0.9,
         "pnmi": 0.3 + 0.1 * k}
        for k in range(3)
    ]  # fmt: skip
    result = {
        "layers": layers, "log_mel": {"rank": 5.0, "neighbour_accuracy": 65.0}, "cca_chance": 0.2, "collapsed": [],
        "cka": [[1.0, 0.75, -0.01], [0.75, 1.0, 0.5], [-0.01, 0.5, 1.0]],
        "against": {"checkpoint": "runs/<other>", "layers": layers[:2], "cka": [[0.9, None], [0.5, 0.8], [0.4, 0.7]]},
        "label": {"column": "<speaker>", "num_values": 24, "majority": 5.0}, "num_frames": 900, "num_utterances": 30,
        "units": {"num_codes": 50},
        "checkpoint": "runs/base",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers of run folders."""
    return SimpleNamespace(
        pretrain=make_pretrain, finetune=make_finetune, evaluate=make_evaluate, tune=make_tune,
        probe=make_probe, analyse=make_analyse, lines=write_lines, model=tiny_model,
    )  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Twelve files of noise by three speakers."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(12):
        noise = rng.standard_normal(16_000 + 400 * k) * 0.1
        soundfile.write(tmp_path / f"{k}.wav", noise.astype(np.float32), 16_000)
        rows.append(f"u{k}\t{k}.wav\t16000\t{16_000 + 400 * k}\tspeaker {k % 3}\tA <B> C")
    path = tmp_path / "valid.tsv"
    head = f"# root={tmp_path}\nid\tpath\tsample_rate\tnum_samples\tspeaker\ttext\n"
    path.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    return path
