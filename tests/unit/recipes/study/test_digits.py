"""Digits by unseen speakers: a speaker is judged by a classifier that has not heard it."""

from __future__ import annotations

import numpy as np

from recipes.librispeech_mini.study.digits import classify


def test_a_digit_that_all_speakers_share_is_found_in_the_unseen_one() -> None:
    rng = np.random.default_rng(0)
    words, speakers = ["ONE", "TWO", "THREE"] * 12, [name for name in "abc" for _ in range(12)]
    centres = {word: rng.normal(size=8) for word in set(words)}
    features = np.stack([centres[word] for word in words]) + 0.05 * rng.normal(size=(36, 8))
    assert classify(features.astype(np.float32), words, speakers) == {"a": 100.0, "b": 100.0, "c": 100.0}


def test_what_only_the_speaker_knows_does_not_help() -> None:
    rng = np.random.default_rng(0)
    words, speakers = ["ONE", "TWO", "THREE"] * 12, [name for name in "abc" for _ in range(12)]
    # Each speaker says each word in a way of its own: a split by utterance would find all of them.
    centres = {(word, name): rng.normal(size=8) for word in sorted(set(words)) for name in "abc"}
    features = np.stack([centres[key] for key in zip(words, speakers, strict=True)])
    assert np.mean(list(classify(features.astype(np.float32), words, speakers).values())) < 70
