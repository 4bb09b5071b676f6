"""The search for weights of a beam with a language model."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
import torch

from speechssl.config.decoding import DecodingConfig
from speechssl.errors import DataError
from speechssl.evaluation.wer import compute_error_rates
from speechssl.inference.decoding import tuning
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.ngram import Ngram
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.inference.decoding.tuning import tune
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary

FAIRSEQ = Vocabulary(FAIRSEQ_SYMBOLS)
START = DecodingConfig(
    name="beam", lm="x", beam_width=20, lm_weight=0.87, word_bonus=-1.0, unknown_penalty=-5.0, blank_penalty=0.0
)


def make_weak_speech(num: int) -> tuple[list[torch.Tensor], list[str], Ngram]:
    """Make utterances of a recogniser that is sure of little but the blank, and a language model of their words."""
    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("ETAONIHS"), rng.integers(2, 6))) for _ in range(60)]
    texts = [" ".join(rng.choice(words, 3)) for _ in range(num)]
    logits = []
    for text in texts:
        labels = FAIRSEQ.encode(text)
        row = rng.standard_normal((2 * len(labels) + 1, 32))
        row[:, 0] += 6.0
        row[1::2, 0] -= 3.0
        row[1 + 2 * np.arange(len(labels)), labels] += rng.uniform(1.0, 5.0, len(labels))
        logits.append(torch.from_numpy(row))
    return logits, texts, train_ngram([*words, *texts[::2]], 2)


def test_a_search_finds_weights_that_are_better_and_says_what_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, texts, lm = make_weak_speech(8)
    monkeypatch.setattr(tuning, "COARSE_WORDS", 12)
    grid = {"lm_weight": (0.5, 1.0), "word_bonus": (0.0, 1.0), "blank_penalty": (0.0, 1.0)}
    monkeypatch.setattr(tuning, "GRID", grid)
    found = tune(logits, texts, lm, FAIRSEQ, START)
    points = {tuple(asdict(point).values())[:-2]: point for point in found.points}
    assert len(points) == len(found.points), "no point twice"
    weights = {name: getattr(found.config, name) for name in tuning.STEPS}
    assert found.config == replace(START, **weights)

    best = points[*weights.values(), 20, 8]
    assert found.best == best
    search = BeamSearch(FAIRSEQ, found.config, lm)
    decoded = search.decode(
        torch.nn.utils.rnn.pad_sequence(logits, batch_first=True), torch.tensor([*map(len, logits)])
    )
    assert (best.wer, best.cer) == pytest.approx(compute_error_rates(texts, decoded))

    defaults = points[START.lm_weight, START.word_bonus, START.blank_penalty, START.unknown_penalty, 20, 8]
    assert found.start == defaults
    assert best.wer < 0.8 * defaults.wer, "fairseq's are for recognisers that are nearly right"
    coarse = {(p.lm_weight, p.word_bonus, p.blank_penalty) for p in found.points if p.num_utterances < 8}
    assert coarse == set(product(*grid.values()))
    whole = [point for point in found.points if point.num_utterances == 8]
    assert len(whole) < 60
    assert best.wer == min(p.wer for p in whole if p.beam_width == 20)
    assert compute_error_rates(texts, found.texts) == (best.wer, best.cer)
    monkeypatch.setattr(tuning._Trial, "promises", lambda *_: True)
    thorough = tune(logits, texts, lm, FAIRSEQ, replace(START, num_workers=0))
    assert len(found.points) < 0.75 * len(thorough.points), "steps that promise nothing are not searched for"
    assert best.wer < thorough.best.wer + 5


def test_what_is_best_already_is_kept_and_needs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, texts, lm = make_weak_speech(4)
    monkeypatch.setattr(tuning, "GRID", {"blank_penalty": (0.0,)})
    monkeypatch.setattr(tuning, "STEPS", dict.fromkeys(tuning.STEPS, 0.0))
    found = tune(logits, texts, lm, FAIRSEQ, START)
    assert found.config == START
    with pytest.raises(DataError, match="`data.valid` must have words"):
        tune(logits, ["", "", "", ""], lm, FAIRSEQ, START)
