"""The short table that a verb ends with."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.config.inference import EmbedConfig
from speechssl.config.verbs import PrepareConfig
from speechssl.errors import ConfigError
from speechssl.evaluation.statistics import Interval
from speechssl.verbs import embed, prepare
from speechssl.verbs.summary import format_summary

RATE = asdict(Interval(10.0, 20.0, "speaker", 40, True))
VALID = {"loss": 5.1, "accuracy": 0.4, "loss_contrastive": 4.0}
BASELINES = {"log_mel": {"accuracy": 97.0, "accuracy_interval": RATE}}
WEIGHTS = {"lm_weight": 0.5, "word_bonus": 0.0, "blank_penalty": 1.0, "unknown_penalty": -9.0, "beam_width": 50}
POINTS = [{**WEIGHTS, "wer": 40.0, "cer": 8.0, "note": "kept"}, {**WEIGHTS, "wer": 45.0, "cer": 8.5, "note": "start"}]

CASES = (
    (
        "pretrain",
        {"out": "runs/a", "updates": 300, "best_update": 200, "hours_seen": 2.0, "valid": VALID},
        ["updates", "300 (best: 200)", "2.0 h", "5.1 bits a masked frame", "40 %", str(Path("runs/a") / "report.html")],
    ),
    ("finetune", {"out": "a", "updates": 3, "best_update": 3, "hours_seen": 0.1, "valid": {"loss": 60, "wer": 12.34}},
     ["60 nats an utterance", "12.34 %"]),
    ("pretrain", {"out": "a", "updates": 3, "best_update": 3, "hours_seen": 0.1, "valid": {"loss": 0.5}}, ["0.5\n"]),
    ("evaluate", {"wer": 12.3, "wer_interval": RATE, "cer": 4.0, "cer_interval": RATE, "num_utterances": 7, "out": "x",
                  "num_words": 1000, "substitutions": 9, "deletions": 8, "insertions": 7},
     ["1,000: 9 substitutions, 8 deletions, 7 insertions", "WER",
      "12.30 % (95 %: 10.0 to 20.0 % over 40 speakers)", "4.00 %"]),
    ("score", {"wer": 12.3, "wer_interval": RATE, "cer": 4.0, "cer_interval": RATE, "num_words": 1000, "out": "x",
               "substitutions": 9, "deletions": 8, "insertions": 7, "sclite": {"wer": 12.4}, "num_utterances": 7,
               "num_wrong_utterances": 3},
     ["1,000: 9 substitutions, 8 deletions", "WER of NIST's sclite  12.40 %", "7, 3 with an error"]),
    ("compare", {"wer_a": 12.3, "wer_b": 10.0, "cer_a": 4.0, "cer_b": 3.0, "a": ["p"], "b": ["q", "r"], "out": "x",
                 "sentence": "B makes"}, ["a    WER 12.30 %, CER 4.00 %: p", "10.00 %", "q, r", "B makes"]),
    ("tune", {"points": POINTS, "greedy": {"wer": 50.0, "cer": 9.0}, "kept": "runs/a/decoding.json"},
     ["kept          0.5           0", "40.00 %", "greedy  ", "\nkept: runs/a/decoding.json"]),
    ("lm", {"ngrams": [1234, 56], "perplexity": 123.45, "test_units": 200, "test_units_unknown": 3, "unit": "word",
            "lm": "lm.arpa"}, ["1,234 of 1, 56 of 2", "123.5 (1.5 % of 200 words unknown)", "lm.arpa"]),
    ("probe", {"task": "identification", "accuracy": 90.0, "accuracy_interval": RATE, "baselines": BASELINES,
               "saturated": ["log_mel"], "out": "x"}, ["speaker accuracy, this model", "97.00 %", "saturated"]),
    ("transcribe", {"num_utterances": 3, "num_left_out": 1, "texts": "stdout"}, ["3, 1 left out"]),
    ("embed", {"num_utterances": 3, "num_left_out": 0, "num_rows": 3, "dim": 8, "layers": ["1", "2"], "out": "e.npy"},
     ["3 × 8, layers 1, 2", "e.npy"]),
    ("units", {"num_utterances": 3, "num_left_out": 0, "hours": 0.5, "num_units": 900, "num_frames": 1000, "layer": "3",
               "num_codes": 100, "num_used": [98], "perplexity": [71.23], "clusters": "u.clusters.safetensors",
               "out": "u.tsv"},
     ["900 of 1,000 frames", "98 of 100 in use (perplexity 71.2)", "u.clusters.safetensors"]),
    ("similar", {"num_embeddings": 1234, "dim": 768, "layer": "9", "out": "near.tsv"},
     ["1,234 × 768, layer 9", "near.tsv"]),
    ("similar", {"num_embeddings": 1234, "dim": 768, "layer": "9", "out": "stdout"}, ["1,234 × 768"]),
    ("analyse", {"layers": [{"layer": 0, "rank": 51.23, "norm": 7.0, "collapsed": True}], "log_mel": {"rank": 4.5},
                 "out": "x"}, ["effective rank", "51.2", "COLLAPSED", "log-mel", "4.5", "out: x"]),
    ("convert", {"kind": "ctc", "model": "base", "parameters": 1234, "to": "huggingface", "out": "hf"},
     ["base, 1,234 parameters", "hf"]),
    ("report", {"out": "a/report.html"}, ["a/report.html (open it in a browser)"]),
)  # fmt: skip


def test_every_verb_says_its_figures_and_where_its_files_are() -> None:
    for verb, result, parts in CASES:
        table = format_summary(verb, result)
        assert not [part for part in parts if part not in table], table
        assert table.count("\n") <= 5
    assert format_summary("doctor", {}) == ""


def test_a_verb_in_python_ends_in_its_table_and_refuses_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with caplog.at_level(logging.INFO, "speechssl"):
        prepare(PrepareConfig(root=str(tmp_path), corpus="folder", out=str(tmp_path / "m")))
    assert caplog.messages[-1] == f"all  0.0 min, 1 utterances, 0 speakers: {tmp_path / 'm' / 'all.tsv'}"
    with pytest.raises(ConfigError, match="`checkpoint` must be given"):
        embed(EmbedConfig(audio=[str(tmp_path)]))
