"""Texts in time: where words are, what is passed over, and that hours take no more than minutes would."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.config.data import TextConfig
from speechssl.errors import DataError
from speechssl.inference.alignment import align_text, align_words, split_words
from speechssl.inference.anchors import PART, find_cuts
from speechssl.inference.decoding.greedy import greedy_decode
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary
from tests.cases import each_case

VOCABULARY = Vocabulary(FAIRSEQ_SYMBOLS)
FRAME_S = 0.02
SHIFT_S = 0.0025
"""Half of what a frame sees beyond its hop: it stands for the middle of its window."""


def say(text: str, prob: float = 0.9, blanks: int = 1) -> tuple[Tensor, list[float]]:
    """Make logits of a text that a recogniser is sure of, and give the time at which the first frame of each word is.

    Each label has a frame, with blanks behind it; `_` is ten frames of silence.
    """
    frames: list[int] = []
    starts: list[float] = []
    for word in text.split():
        if word == "_":
            frames += [0] * 10
            continue
        starts.append(len(frames) * FRAME_S)
        for label in VOCABULARY.encode(word):
            frames += [label] + [0] * blanks
    probs = torch.full((len(frames), len(VOCABULARY)), (1 - prob) / (len(VOCABULARY) - 1))
    probs[torch.arange(len(frames)), frames] = prob
    return probs.log(), starts


def test_words_and_characters_are_where_they_are_said() -> None:
    logits, starts = say("HELLO _ SEE ALL _ _ ILL")
    words, characters = align_text(logits, "Hello, see – all ill!", VOCABULARY, FRAME_S)
    assert [word.text for word in words] == ["Hello,", "see", "all", "ill!"]
    assert "".join(span.text for span in characters) == "HELLOSEEALLILL"
    assert [word.start_s for word in words] == pytest.approx([s + SHIFT_S for s in starts], abs=0.031)
    # Behind a pause a word begins with its letter; close ones share what lies between.
    assert words[0].start_s == pytest.approx(SHIFT_S)
    assert words[2].start_s == words[1].end_s
    assert words[3].start_s - words[2].end_s > 0.3
    assert {round(span.confidence, 4) for span in (*words, *characters)} == {0.9}


def test_nothing_overlaps_and_a_decoders_text_keeps_its_words() -> None:
    """Noise, and so texts that no one wrote: leading apostrophes, letters in a row, words of one letter."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(30):
        logits = torch.randn(60, len(VOCABULARY), generator=draw)
        text = greedy_decode(logits[None], torch.tensor([60]), VOCABULARY)[0]
        words, characters = align_text(logits, text, VOCABULARY, FRAME_S)
        assert [word.text for word in words] == text.split()
        assert "".join(span.text for span in characters) == text.replace(" ", "")
        for spans in (words, characters):
            assert all(span.start_s < span.end_s and 0 < span.confidence < 1 for span in spans)
            assert all(one.end_s <= other.start_s for one, other in pairwise(spans))


@each_case(
    "text, written, heard",
    [
        ("in 1984 we", "IN_1984_WE", "INNINEWE"),
        ("the naïve man", "THE_naïve_MAN", "THENAIVEMAN"),
        ("well-known man", "WELL-KNOWN_MAN", "WELLKNOWNMAN"),
        ("„So it is“", "SO_IT_IS", "SOITIS"),
    ],
)
def test_what_the_vocabulary_lacks_is_a_star(text: str, written: str, heard: str) -> None:
    said = {"INNINEWE": "IN NINE WE", "THENAIVEMAN": "THE NAIVE MAN", "WELLKNOWNMAN": "WELL KNOWN MAN"}
    logits, starts = say(said.get(heard, "SO IT IS"))
    words, characters = align_text(logits, text, VOCABULARY, FRAME_S)
    stars = [span for span in characters if span.confidence == 0]
    assert len(words) == len(written.split("_"))
    assert words[-1].start_s == pytest.approx(starts[-1] + SHIFT_S, abs=0.031)
    assert [span.text for span in stars] == [part for part in ("1984", "Ï") if part in text.upper()]
    assert all(word.end_s <= other.start_s for word, other in pairwise(words))


def test_a_word_that_is_a_star_has_the_time_of_what_is_said_there() -> None:
    logits, starts = say("IN _ NINETEEN EIGHTY _ WE")
    words, _ = align_text(logits, "in 1984 we", VOCABULARY, FRAME_S)
    assert words[1].start_s == pytest.approx(starts[1] + SHIFT_S, abs=0.041)
    assert words[1].end_s == pytest.approx(starts[3] - 0.2, abs=0.1)
    assert words[1].confidence == 0


def test_words_that_nobody_said_and_speech_that_nobody_wrote_are_passed_over() -> None:
    said = "THE MAN SAW _ SOME VERY SMALL BIRDS _ IN THE GARDEN"
    logits, starts = say(said, 0.99)
    given = "YESTERDAY MORNING THE MAN SAW IN THE BEAUTIFUL OLD GARDEN TODAY"
    words, characters = align_words(logits, split_words(given, VOCABULARY), VOCABULARY, FRAME_S, tolerant=True)
    assert [word.text for word in words] == ["THE", "MAN", "SAW", "IN", "THE", "GARDEN"]
    assert "".join(span.text for span in characters) == "THEMANSAWINTHEGARDEN"
    expected = [starts[k] + SHIFT_S for k in (0, 1, 2, 7, 8, 9)]
    assert [word.start_s for word in words] == pytest.approx(expected, abs=0.031)
    # Whoever asks for every word gets every word.
    assert len(align_text(logits, given, VOCABULARY, FRAME_S)[0]) == 11


def test_a_true_text_is_all_there_however_bad_the_recogniser_is() -> None:
    text = "THE MAN SAW SOME VERY SMALL BIRDS IN THE GARDEN"
    rng = np.random.default_rng(0)
    logits, starts = say(text)
    wrong = rng.random(len(logits)) < 0.3
    logits[wrong] = logits[wrong][:, rng.permutation(len(VOCABULARY))]
    words, _ = align_text(logits, text, VOCABULARY, FRAME_S, tolerant=True)
    assert [word.text for word in words] == text.split()
    assert [word.start_s for word in words] == pytest.approx(starts, abs=0.1)


@each_case("text", ["", " – ", "!!"])
def test_without_labels_there_is_nothing_to_place(text: str) -> None:
    assert align_text(say("A")[0], text, VOCABULARY, FRAME_S) == ((), ())


def test_a_text_that_does_not_fit_is_a_sentence_unless_words_may_be_passed_over() -> None:
    logits = say("A B")[0][:4]
    with pytest.raises(DataError, match=r"`text` must fit into the 4 frames of its audio, but has 5 labels: 'ALL B'"):
        align_text(logits, "ALL B", VOCABULARY, FRAME_S)
    assert len(align_text(logits, "ALL B", VOCABULARY, FRAME_S, tolerant=True)[0]) <= 1
    with pytest.raises(DataError, match="into the 0 frames"):
        align_text(logits[:0], "A", VOCABULARY, FRAME_S)
    assert align_text(logits[:0], "A", VOCABULARY, FRAME_S, tolerant=True) == ((), ())


def make_book(num_words: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("ETAOINSHR", k=draw.randint(1, 8))) for _ in range(num_words)]


def corrupt(logits: Tensor, share: float) -> Tensor:
    """Let a share of the frames say something else."""
    rng = np.random.default_rng(0)
    wrong = torch.from_numpy(rng.random(len(logits)) < share)
    return torch.where(wrong[:, None], logits[:, torch.from_numpy(rng.permutation(logits.shape[1]))], logits)


def test_an_hour_against_its_text_takes_memory_of_its_length() -> None:
    """The trellis of all of it would have 33,000 × 22,000 steps, 0.7 GB; a page is missing, and one is not said."""
    book = make_book(2000)
    logits, starts = say(" ".join(book), blanks=2)
    logits = corrupt(logits, 0.1)
    given = [*book[:500], *book[600:1200], *make_book(2060)[2000:], *book[1200:]]
    told = [*range(500), *range(600, 1200), *[-1] * 60, *range(1200, 2000)]
    tracemalloc.start()
    try:
        words, _ = align_text(logits, " ".join(given), VOCABULARY, FRAME_S, tolerant=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(logits) > 30_000
    assert peak < 100 * 2**20
    rows = split_words(" ".join(given), VOCABULARY)
    assert len(rows) == len(told)
    found = iter([*words, None])
    word, right, heard = next(found), 0, 0
    for row, number in zip(rows, told, strict=True):
        if word is None or word.text != row.written:
            continue
        heard += 1
        right += number >= 0 and abs(word.start_s - starts[number]) < 0.1
        word = next(found)
    assert word is None
    assert heard >= 1880 and right > 0.99 * heard


def cut(text: Sequence[str], logits: Tensor) -> list[tuple[int, int]]:
    columns = VOCABULARY.encode(" ".join(text))
    boundary = VOCABULARY.symbols.index("|")
    begins = [0, *(k + 1 for k, column in enumerate(columns[:-1]) if column == boundary)]
    return find_cuts(logits.numpy(), np.array(columns), begins)


def test_cuts_are_where_the_same_word_begins_in_both() -> None:
    book = make_book(600)
    logits, starts = say(" ".join(book))
    for share, least in ((0.0, 9), (0.1, 3)):
        cuts = cut(book, corrupt(logits, share))
        assert len(cuts) >= least
        begins = {len(" ".join(book[:k])) + 1: starts[k] / FRAME_S for k in range(1, 600)}
        assert all(0 <= begins[label] - frame <= 2 for frame, label in cuts)
        assert all(b - a >= PART for (_, a), (_, b) in pairwise(cuts))


def test_no_cut_is_made_where_nothing_tells_where() -> None:
    """A short text; one that says the same all the time; one of which the recogniser reads nothing; another text."""
    book = make_book(300)
    logits, _ = say(" ".join(book))
    assert not cut(book[:60], say(" ".join(book[:60]))[0])
    assert not cut(["LA"] * 400, say(" ".join(["LA"] * 400))[0])
    assert not cut(book, torch.zeros_like(logits))
    assert not cut(book, logits[:0])
    assert not cut(make_book(900)[600:], logits)


@each_case("kind", ["bpe", "unigram"])
def test_words_of_pieces_are_where_they_are_said(kind: str) -> None:
    texts = ["see all ill", "all the hills", "hello all"]
    vocabulary = build_vocabulary(TextConfig(vocabulary=kind, num_pieces=16), texts)
    frames: list[int] = []
    starts = []
    for word in ("hello", "all"):
        starts.append(len(frames) * FRAME_S)
        frames += [k for label in vocabulary.encode(word) for k in (label, 0)] + [0] * 12
    logits = torch.nn.functional.one_hot(torch.tensor(frames), len(vocabulary)).float() * 12
    for text in ("Hello, all", "hello 7 all"):
        words, characters = align_text(logits, text, vocabulary, FRAME_S, tolerant=True)
        assert [word.text for word in words if word.text != "7"] == [part for part in text.split() if part != "7"]
        found = [word.start_s for word in words if word.text != "7"]
        assert found == pytest.approx(starts, abs=0.031)
        assert "".join(span.text for span in characters).replace("7", "") == "HELLOALL"


def test_each_label_is_a_word_where_nobody_writes_spaces() -> None:
    vocabulary = build_vocabulary(TextConfig(vocabulary="data"), ["你好吗", "好"])
    frames = [k for label in vocabulary.encode("你好") for k in (label, 0, 0)]
    logits = torch.nn.functional.one_hot(torch.tensor(frames), len(vocabulary)).float() * 12
    words, _ = align_text(logits, "你好", vocabulary, FRAME_S)
    assert [word.text for word in words] == ["你", "好"]
    assert words[1].start_s == pytest.approx(3 * FRAME_S, abs=0.031)
