"""Logits cut at pauses: the text of the whole, words that stay whole, and times that go on counting."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.config.data import TextConfig
from speechssl.config.decoding import DecodingConfig
from speechssl.inference import stretches
from speechssl.inference.decoding.decoder import build_decoder
from speechssl.inference.readings import Reader, measure_confidence
from speechssl.inference.stretches import cut_stretches, find_cut
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary
from tests.cases import each_case

VOCABULARY = Vocabulary(FAIRSEQ_SYMBOLS)
FRAME_S = 0.02
BOUNDARY = VOCABULARY.symbols.index("|")


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "STRETCH_S", 2.0)
    monkeypatch.setattr(stretches, "LEAST_S", 0.7)


def make_logits(path: list[int], sharpness: float = 9.0) -> Tensor:
    return sharpness * torch.nn.functional.one_hot(torch.tensor(path), len(VOCABULARY)).float()


def speak(text: str, rng: np.random.Generator, has_pauses: bool = True) -> list[int]:
    """Make the path of a text: letters held for a while, blanks of any length between, boundaries now and then late."""
    path: list[int] = []
    for label in VOCABULARY.encode(text):
        if has_pauses or (path and path[-1] == label):
            path += [0] * int(rng.integers(1, 25 if label == BOUNDARY or (path and path[-1] == BOUNDARY) else 4))
        path += [label] * int(rng.integers(1, 4))
    return path


def cut_in_pieces(logits: Tensor, rng: np.random.Generator) -> Iterator[Tensor]:
    while len(logits):
        count = int(rng.integers(1, 80))
        yield logits[:count]
        logits = logits[count:]


def make_reader(decoding: str = "greedy") -> Reader:
    decoder = build_decoder(DecodingConfig(name=decoding), VOCABULARY)
    return Reader(VOCABULARY, decoder, FRAME_S, has_confidence=True, has_times=True)


def make_words(rng: np.random.Generator, count: int) -> str:
    return " ".join("".join(rng.choice(list("ABET"), rng.integers(1, 7))) for _ in range(count))


@each_case("seed", range(8))
def test_texts_of_stretches_are_the_text_of_the_whole(seed: int) -> None:
    """Speech with pauses and without any, and noise, in which a word may go on from one stretch to the next."""
    rng = np.random.default_rng(seed)
    text = make_words(rng, 60)
    paths = [speak(text, rng), speak(text, rng, has_pauses=False), list(rng.integers(0, 8, 1500))]
    paths += [[0] * 1000, [7] * 1000, [7, 0] * 500, list(np.repeat(np.arange(30) % 5 + 7, 40))]
    for path in paths:
        logits = make_logits(path)
        parts = list(cut_stretches(cut_in_pieces(logits, rng), VOCABULARY, FRAME_S))
        assert torch.equal(torch.cat([part.logits for part in parts]), logits)
        assert [part.first for part in parts] == list(np.cumsum([0, *(len(part.logits) for part in parts)])[:-1])
        assert all(35 <= len(part.logits) <= 100 for part in parts[:-1]) and len(parts[-1].logits) <= 100
        reader = Reader(VOCABULARY, make_reader().decoder, FRAME_S)
        whole = reader.decoder.decode(logits[None], torch.tensor([len(path)]))[0]
        # A letter that is held for longer than a stretch is the one that is written twice.
        assert reader.read([logits]).text == whole or path == [7] * 1000


@each_case("decoding", ["greedy", "beam"])
def test_words_and_characters_stand_where_they_were_said(decoding: str) -> None:
    rng = np.random.default_rng(1)
    text = make_words(rng, 50)
    path = speak(text, rng)
    reading = make_reader(decoding).read(cut_in_pieces(make_logits(path), rng))
    assert reading.text == text
    assert [word.text for word in reading.words] == text.split()
    assert "".join(c.text for c in reading.characters) == text.replace(" ", "")
    runs = [(s, k) for k, s in enumerate(path) if s not in (0, BOUNDARY) and (k == 0 or path[k - 1] != s)]
    # Their edges are the alignment's affair; the first frame of each is in its span, whatever stretch that was in.
    heard = [(k + 0.625) * FRAME_S for _, k in runs]
    spans = zip(reading.characters, heard, strict=True)
    assert all(c.start_s <= at <= c.end_s for c, at in spans)
    assert all(left.end_s <= right.start_s + 1e-9 for left, right in pairwise(reading.words))
    assert all(word.confidence > 0.9 for word in reading.words) and reading.confidence > 0.9


def test_confidence_is_that_of_the_whole_to_a_hair() -> None:
    rng = np.random.default_rng(2)
    path = speak(make_words(rng, 40), rng)
    logits = make_logits(path, 6.0) + torch.from_numpy(rng.standard_normal((len(path), len(VOCABULARY)))).float()
    reading = make_reader().read([logits])
    assert reading.confidence == pytest.approx(measure_confidence(logits, reading.text, VOCABULARY), rel=0.01)


def test_cuts_are_at_the_longest_pause_beside_a_boundary() -> None:
    a, b = BOUNDARY, 7
    assert find_cut(np.array([b, 0, 0, 0, 0, b, a, 0, 0, b]), a, 1) == (8, True), "not inside of the word"
    assert find_cut(np.array([b, 0, 0, a, b, 0, b, a, 0, 0, 0, 0, b]), a, 1) == (10, True)
    assert find_cut(np.array([b, a, b, 0, 0, 0, a, b]), a, 1) == (7, True), "behind the boundary, wherever that is"
    assert find_cut(np.array([b, b, a, b, 0, b]), a, 1) == (3, True), "no pause but a boundary"
    assert find_cut(np.array([b, b, 0, 0, 0, b, b]), a, 1) == (3, False), "nobody writes boundaries"
    assert find_cut(np.array([0, 0, 0, 0]), a, 2) == (3, True), "silence from the start"
    assert find_cut(np.array([0, 0, 0, 0]), a, 2, starts_word=False) == (3, False)
    assert find_cut(np.array([b, b, 8, 8, 9]), a, 1) == (4, False), "never within a label"


def test_a_word_that_goes_on_is_one() -> None:
    path = list(np.repeat([7, 8, 9, 10, 11, 12], 40))
    reading = make_reader().read([make_logits(path)])
    assert len(reading.words) == 1 and reading.words[0].text == reading.text == VOCABULARY.decode([7, 8, 9, 10, 11, 12])
    assert (reading.words[0].start_s, reading.words[0].end_s) == pytest.approx((0.0, 4.8), abs=0.02)


@each_case("kind", ["bpe", "data"])
def test_pieces_and_scripts_without_spaces_are_cut_as_well(kind: str) -> None:
    rng = np.random.default_rng(3)
    texts = [make_words(rng, 40) for _ in range(3)]
    if kind == "data":
        texts = [text.replace(" ", "") for text in texts]
    vocabulary = build_vocabulary(TextConfig(vocabulary=kind, num_pieces=20), texts)
    path: list[int] = []
    for text in texts:
        for label in vocabulary.encode(text):
            path += [label, *[0] * int(rng.integers(1, 12))]
    logits = torch.nn.functional.one_hot(torch.tensor(path), len(vocabulary)).float() * 9
    reader = Reader(vocabulary, build_decoder(DecodingConfig(), vocabulary), FRAME_S)
    assert len(list(cut_stretches([logits], vocabulary, FRAME_S))) > 3
    assert reader.read([logits]).text == reader.decoder.decode(logits[None], torch.tensor([len(path)]))[0]
