"""Beam search: against all paths of small inputs, with and without an n-gram."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.config.data import TextConfig
from speechssl.config.decoding import WEIGHTS, DecodingConfig
from speechssl.errors import ConfigError, DataError
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.decoder import build_decoder
from speechssl.inference.decoding.greedy import greedy_decode, merge_path
from speechssl.inference.decoding.lm_fit import Beginnings, Fit
from speechssl.inference.decoding.ngram import Ngram, save_arpa
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.text.pieces import CONTROL, NORMAL, UNKNOWN, Piece, Pieces
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary
from tests.cases import each_case

SMALL = Vocabulary(("<s>", "<pad>", "|", "A", "B"))
FAIRSEQ = Vocabulary(FAIRSEQ_SYMBOLS)
GIVEN: dict[str, Any] = {"lm_weight": 0.7, "word_bonus": -1.0, "blank_penalty": 0.0, "unknown_penalty": -5.0}
EXACT = DecodingConfig(name="beam", beam_width=10_000, beam_threshold=1e9, symbol_min_prob=0.0, **GIVEN)


def draw(num_frames: int, seed: int, vocabulary: Vocabulary = SMALL, sharpness: float = 2.0) -> np.ndarray:
    """Draw ln of symbols' probabilities, (T, V)."""
    logits = sharpness * np.random.default_rng(seed).standard_normal((num_frames, len(vocabulary)))
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def sum_over_paths(log_probs: np.ndarray, vocabulary: Vocabulary = SMALL) -> dict[str, float]:
    """Give ln P of every text: its paths one by one."""
    texts: dict[str, float] = defaultdict(float)
    for path in itertools.product(range(len(vocabulary)), repeat=len(log_probs)):
        prob = math.exp(sum(log_probs[t, k] for t, k in enumerate(path)))
        texts[vocabulary.decode(merge_path(path))] += prob
    return {text: math.log(prob) for text, prob in texts.items()}


def make_lm() -> Ngram:
    return train_ngram(["A B", "AB A", "A BA A", "B A", "BB AB"], order=3)


@each_case("seed", range(6))
def test_a_wide_beam_finds_the_best_of_all_texts(seed: int) -> None:
    log_probs = draw(6, seed)
    texts = sum_over_paths(log_probs)
    assert math.fsum(map(math.exp, texts.values())) == pytest.approx(1.0)
    best = max(texts, key=texts.__getitem__)
    assert BeamSearch(SMALL, EXACT).search(log_probs) == (best, pytest.approx(texts[best]))


@each_case("seed", range(6))
@each_case("weight", [0.3, 1.5])
def test_a_wide_beam_with_an_ngram_finds_the_best_of_all_texts(seed: int, weight: float) -> None:
    log_probs, lm = draw(6, seed, sharpness=1.0), make_lm()
    config = DecodingConfig(
        name="beam", lm="x", beam_width=10_000, beam_threshold=1e9, symbol_min_prob=0.0, lm_weight=weight,
        word_bonus=0.4, unknown_penalty=-1.3, blank_penalty=0.0,
    )  # fmt: skip
    search = BeamSearch(SMALL, config, lm)

    def score(text: str) -> float:
        words = text.split()
        unknown = sum(word not in lm for word in words)
        return weight * math.log(10) * lm.score_sentence(words) + 0.4 * len(words) - 1.3 * unknown

    totals = {text: found + score(text) for text, found in sum_over_paths(log_probs).items()}
    best = max(totals, key=totals.__getitem__)
    assert search.search(log_probs) == (best, pytest.approx(totals[best]))
    assert search.score_text(best) == pytest.approx(score(best))


def test_the_ngram_decides_between_texts_that_sound_alike() -> None:
    log_probs = draw(30, 1, FAIRSEQ, sharpness=0.0)
    said = [0, *FAIRSEQ.encode("SEE THE SEA"), 0, 0]
    log_probs = np.full((len(said) * 2, 32), math.log(1e-3))
    for k, symbol in enumerate(said):
        log_probs[2 * k, symbol] = math.log(0.96)
        log_probs[2 * k + 1, 0] = math.log(0.96)
    letters = FAIRSEQ.symbols.index
    last = 2 * (1 + len("SEE THE SE"))
    log_probs[last, letters("A")] = log_probs[last, letters("E")] = math.log(0.48)
    log_probs[last, letters("E")] += 0.05
    log_probs = torch.from_numpy(log_probs).log_softmax(-1).numpy()
    config = DecodingConfig(name="beam")
    assert BeamSearch(FAIRSEQ, config).search(log_probs)[0] == "SEE THE SEE"
    lm = train_ngram(["SEE THE SEA", "SEE ME", "I SEE"], order=3)
    assert BeamSearch(FAIRSEQ, config, lm).search(log_probs)[0] == "SEE THE SEA"


def test_the_penalty_of_unknown_words_keeps_them_out_and_is_not_needed_to_write_one() -> None:
    said = FAIRSEQ.encode("QUIXOTIC")
    log_probs = np.full((len(said), 32), math.log(1e-3))
    log_probs[range(len(said)), said] = math.log(0.96)
    log_probs = torch.from_numpy(log_probs).log_softmax(-1).numpy()
    lm = train_ngram(["A QUICK FOX"], order=2)
    mild, hard = (DecodingConfig(name="beam", unknown_penalty=penalty) for penalty in (-1.0, -500.0))
    assert BeamSearch(FAIRSEQ, mild, lm).search(log_probs)[0] == "QUIXOTIC"
    assert BeamSearch(FAIRSEQ, hard, lm).search(log_probs)[0] != "QUIXOTIC"


@each_case("seed", range(4))
def test_a_wider_beam_never_scores_worse_than_the_best_path(seed: int) -> None:
    log_probs = draw(40, seed, FAIRSEQ, sharpness=3.0)
    texts = [BeamSearch(FAIRSEQ, DecodingConfig(name="beam", beam_width=k)).search(log_probs) for k in (1, 8, 64)]
    scores = [score for _, score in texts]
    assert scores[2] >= scores[1] - 1e-9
    assert scores[2] > log_probs.max(1).sum()


def test_a_beam_of_one_is_the_best_path_where_frames_are_certain() -> None:
    logits = torch.from_numpy(draw(200, 0, FAIRSEQ, sharpness=30.0))[None]
    narrow = build_decoder(DecodingConfig(name="beam", beam_width=1), FAIRSEQ)
    greedy = greedy_decode(logits, torch.tensor([200]), FAIRSEQ)
    assert len(greedy[0]) > 50
    assert narrow.decode(logits, torch.tensor([200])) == greedy


def test_rows_are_read_to_their_lengths_and_scale_does_not_matter() -> None:
    rows = torch.stack([torch.from_numpy(draw(12, seed, FAIRSEQ)) for seed in (1, 2)])
    decoder = build_decoder(DecodingConfig(name="beam"), FAIRSEQ)
    first = decoder.decode(rows, torch.tensor([12, 5]))
    changed = rows.clone()
    changed[1, 5:] = 9.0
    assert decoder.decode(changed + 3.0, torch.tensor([12, 5])) == first
    assert decoder.decode(rows, torch.tensor([0, 0])) == ["", ""]


def test_greedy_is_a_decoder_too_and_facts_tell_them_apart(tmp_path: Path) -> None:
    rows = torch.from_numpy(draw(12, 3, FAIRSEQ))[None]
    greedy = build_decoder(DecodingConfig(), FAIRSEQ)
    assert greedy.decode(rows, torch.tensor([12])) == greedy_decode(rows, torch.tensor([12]), FAIRSEQ)
    assert greedy.facts == {"decoding": "greedy"}
    keys = {"blank_penalty": 0.0, "beam_width": 50, "beam_threshold": 25.0, "symbol_min_prob": 1e-4}
    assert build_decoder(DecodingConfig(name="beam"), FAIRSEQ).facts == {"decoding": "beam", "beam": keys}
    lm = make_lm()
    save_arpa(lm, tmp_path / "lm.arpa")
    config = DecodingConfig(name="beam", lm=str(tmp_path / "lm.arpa"))
    facts = build_decoder(config, FAIRSEQ).facts["beam"]
    assert (facts["lm"], facts["lm_ngrams"]) == (str(tmp_path / "lm.arpa"), lm.counts)
    assert facts.items() >= (WEIGHTS | {"weights_from": "defaults"}).items()
    facts = build_decoder(replace(config, word_bonus=2), FAIRSEQ).facts["beam"]
    assert facts.items() >= (WEIGHTS | {"word_bonus": 2, "weights_from": "keys"}).items()


def test_words_are_asked_for_as_texts_are_spelt() -> None:
    """An imported vocabulary may have a typographic apostrophe, which no language model's text has."""
    plain, typographic = (Vocabulary(("<s>", "<pad>", "|", "L", "A", mark)) for mark in ("'", "\u2019"))
    lm = train_ngram(["L'A L'A A", "A L'A", "L'A"], 2)
    log_probs = draw(6, 3, plain, sharpness=1.0)
    text, score = BeamSearch(plain, EXACT, lm).search(log_probs)
    assert "'" in text
    assert BeamSearch(typographic, EXACT, lm).search(log_probs) == (text.replace("'", "\u2019"), pytest.approx(score))


def say(text: str, vocabulary: Vocabulary) -> torch.Tensor:
    """Make sure frames that say a text, letter by letter with pauses between."""
    ids = [0]
    for letter in text.replace(" ", "|"):
        ids += [vocabulary.symbols.index(letter), 0]
    logits = torch.zeros(1, len(ids), len(vocabulary))
    logits[0, range(len(ids)), ids] = 6.0
    return logits


def write_unigrams(path: Path, words: list[str]) -> str:
    """Write a model by hand: what others make has not been through our folding."""
    lines = ["-2\t<unk>", "-99\t<s>", "-1\t</s>", *(f"-1\t{word}" for word in words)]
    path.write_text(
        f"\\data\\\nngram 1={len(lines)}\n\n\\1-grams:\n" + "\n".join(lines) + "\n\n\\end\\\n", encoding="utf-8"
    )
    return str(path)


FRENCH = Vocabulary(("<pad>", "|", *"abcdefghijklmnopqrstuvwxyzé\u2019"), "lower")
GERMAN = Vocabulary(("<pad>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZß"), "upper")


@each_case(
    "vocabulary, words, text",
    [
        (FAIRSEQ, ["the", "cat", "sat", "I"], "THE CAT SAT"),
        (FAIRSEQ, ["The", "Cat,", "sat", "'"], "THE CAT SAT"),
        (FAIRSEQ, ["don\u2019t", "it\u00b4s"], "DON'T IT'S"),
        (FRENCH, ["c\u2019est", "l'eau", "Bonne"], "c\u2019est l\u2019eau bonne"),
        (FRENCH, ["e\u0301te\u0301", "bonne\u00ad"], "été été bonne"),
        (GERMAN, ["Straße", "grau"], "STRAßE GRAU"),
    ],
)
def test_an_ngram_is_brought_to_the_recognisers_spelling(
    vocabulary: Vocabulary, words: list[str], text: str, tmp_path: Path
) -> None:
    config = DecodingConfig(name="beam", lm=write_unigrams(tmp_path / "lm.arpa", words))
    decoder = build_decoder(config, vocabulary)
    logits = say(text, vocabulary)
    assert decoder.decode(logits, torch.tensor([logits.shape[1]])) == [text]
    beam = decoder.describe()["beam"]
    assert beam["output_words"] == beam["output_words_known"] == len(text.split())
    assert beam["lm_words"] == len(words)


def test_an_ngram_of_other_letters_is_refused(tmp_path: Path) -> None:
    path = write_unigrams(tmp_path / "lm.arpa", ["кот", "x" * 300 + "é"])
    told = (
        r"`decoding.lm` must have words that the recogniser can write \(case: upper\), but the words of .* are КОТ, X"
    )
    with pytest.raises(DataError, match=told) as caught:
        build_decoder(DecodingConfig(name="beam", lm=path), FAIRSEQ)
    assert len(str(caught.value)) < 400


def test_how_well_an_ngram_fits_stands_in_the_result_and_below_half_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logits = say("THE CAT", FAIRSEQ)
    frames = torch.tensor([logits.shape[1]])
    given = DecodingConfig(name="beam", **GIVEN | {"lm_weight": 0.87, "unknown_penalty": 0.0})
    half = write_unigrams(tmp_path / "half.arpa", ["THE", "кот"])
    decoder = build_decoder(replace(given, lm=half), FAIRSEQ)
    assert decoder.decode(logits, frames) == ["THE CAT"]
    found = {"lm_words": 2, "lm_words_writable": 1, "output_words": 2, "output_words_known": 1, "greedy_words": 2}
    assert decoder.describe()["beam"].items() >= found.items()
    assert not caplog.records
    path = write_unigrams(tmp_path / "few.arpa", ["T", "H", "кот", "пёс", "мышь", "ёж", "well-known"])
    decoder = build_decoder(replace(given, lm=path), FAIRSEQ)
    assert "of the 7 words of decoding.lm the recogniser can write only 2; it cannot write КОТ" in caplog.text
    decoder.decode(logits, frames)
    decoder.describe()
    assert "decoding.lm knows only 0 of the 1 words that were recognised" in caplog.text


def test_words_that_a_language_model_leaves_out_are_said(caplog: pytest.LogCaptureFixture) -> None:
    quiet = (Fit(9, 9, output_words=20, greedy_words=30), Fit(9, 9), Fit(9, 9, output_words=30, greedy_words=20))
    for fit in quiet:
        fit.warn_of_silence()
    for errors in ((30, 10, 0), (30, 20, 5), (30, 2, 20)):
        quiet[0].warn_of_silence(*errors)
    assert not caplog.records
    Fit(9, 9, output_words=10, greedy_words=40).warn_of_silence()
    quiet[0].warn_of_silence(30, 12, 2)
    assert caplog.messages == [
        "with decoding.lm 75 % of the words of greedy decoding are left out: `speechssl tune` finds better weights",
        "with decoding.lm 40 % of the words that were said are left out: `speechssl tune` finds better weights",
    ]


def test_beginnings_are_those_of_the_words() -> None:
    lm = train_ngram(["ABA AB B", "AB ABAB BA", "é AB"], 1)
    begun = Beginnings(lm, SMALL)
    assert begun.words == ["AB", "ABA", "ABAB", "B", "BA"]
    for beginning in ("A", "AB", "ABA", "ABAB", "B", "BB", "ABABA"):
        expected = [lm.log_probs[word] for word in begun.words if word.startswith(beginning)]
        assert begun.get(beginning) == (max(expected) if expected else None)
        expected_next = {letter: begun.get(beginning + letter) for letter in "AB" if begun.get(beginning + letter)}
        assert begun.get_next(beginning) == expected_next


def test_a_blank_penalty_is_taken_from_the_blank_of_every_frame() -> None:
    log_probs, penalised = draw(6, 2, sharpness=1.0), draw(6, 2, sharpness=1.0)
    penalised[:, 0] -= 1.5
    penalised -= np.logaddexp.reduce(penalised, 1, keepdims=True)
    found = BeamSearch(SMALL, replace(EXACT, blank_penalty=1.5)).search(log_probs)
    assert found == BeamSearch(SMALL, EXACT).search(penalised)
    texts = sum_over_paths(penalised)
    assert found == (max(texts, key=texts.__getitem__), pytest.approx(max(texts.values())))
    assert np.array_equal(log_probs, draw(6, 2, sharpness=1.0)), "what is given stays as it is"
    with pytest.raises(ConfigError, match=r"`decoding.blank_penalty` must be left out with decoding=greedy"):
        DecodingConfig(blank_penalty=1.0)
    with pytest.raises(ConfigError, match=r"`decoding.blank_penalty` must be at least 0, but is -1"):
        DecodingConfig(name="beam", blank_penalty=-1.0)


def test_other_weights_on_the_same_search_are_those_of_a_new_one() -> None:
    log_probs, lm = draw(40, 1, sharpness=1.0), make_lm()
    search = BeamSearch(SMALL, EXACT, lm)
    texts = [search.search(log_probs[:9])]
    other = DecodingConfig(name="beam", lm_weight=1.3, word_bonus=2.0, unknown_penalty=-0.5)
    assert search.reweigh(other).search(log_probs) == BeamSearch(SMALL, other, lm).search(log_probs)
    assert [search.search(log_probs[:9])] == texts


def test_an_ngram_is_for_a_beam() -> None:
    with pytest.raises(ConfigError, match=r"`decoding.lm` must be left out with decoding=greedy"):
        DecodingConfig(lm="lm.arpa")
    with pytest.raises(ConfigError, match=r"`decoding.beam_width` must be at least 1"):
        DecodingConfig(name="beam", beam_width=0)


def make_noisy_speech(seed: int) -> tuple[str, np.ndarray, Ngram]:
    """Make words that a small language model knows, and noisy frames that say them."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("ETAONIHS"), rng.integers(2, 8))) for _ in range(4000)]
    said = " ".join(rng.choice(words, 30))
    labels = FAIRSEQ.encode(said)
    logits = rng.standard_normal((500, 32))
    places = np.sort(rng.choice(np.arange(0, 500, 2), len(labels), replace=False))
    logits[:, 0] += 8.0
    logits[places, 0] -= 8.0
    logits[places, labels] += rng.uniform(3.0, 9.0, len(labels))
    return said, torch.from_numpy(logits).log_softmax(-1).numpy(), train_ngram([*words, said], 2)


@each_case("seed", range(2))
def test_texts_that_put_off_their_boundaries_do_not_crowd_out_what_was_said(seed: int) -> None:
    said, log_probs, lm = make_noisy_speech(seed)
    search = BeamSearch(FAIRSEQ, DecodingConfig(name="beam", beam_width=50, **GIVEN), lm)
    labels = torch.tensor([FAIRSEQ.encode(said)])
    frames = torch.from_numpy(log_probs)[:, None]
    sizes = torch.tensor([len(log_probs)]), torch.tensor([labels.shape[1]])
    heard = -float(torch.nn.functional.ctc_loss(frames, labels, *sizes, reduction="sum"))
    assert search.search(log_probs)[1] >= heard + search.score_text(said)


def test_the_likeliest_texts_are_listed_with_scores_that_add_up() -> None:
    lm = train_ngram(["SEE THE SEA", "SEE ME", "I SEE"], order=3)
    config = DecodingConfig(name="beam", lm="x", nbest=6, **GIVEN | {"lm_weight": 0.7, "word_bonus": 0.3})
    search = BeamSearch(FAIRSEQ, config, lm)
    log_probs = torch.from_numpy(np.random.default_rng(4).standard_normal((12, 32)) * 2).log_softmax(-1).numpy()
    listed = search.list_best(log_probs, 6)
    assert len({found.text for found in listed}) == 6
    assert [found.total for found in listed] == sorted((found.total for found in listed), reverse=True)
    assert search.search(log_probs) == (listed[0].text, listed[0].total)
    assert search.list_best(log_probs, 3) == listed[:3]
    for found in listed:
        words = found.text.split()
        added = 0.7 * found.lm + 0.3 * len(words) + search.config.unknown_penalty * found.num_unknown
        assert found.total == pytest.approx(found.acoustic + added)
        assert found.lm == pytest.approx(math.log(10) * lm.score_sentence(words))
        assert found.num_unknown == sum(word not in lm for word in words)


PIECES = Pieces(
    "bpe",
    tuple(
        Piece(text, -float(k), kind)
        for k, (text, kind) in enumerate(
            [("<s>", CONTROL), ("<unk>", UNKNOWN), ("▁", NORMAL), ("▁A", NORMAL), ("A", NORMAL), ("B", NORMAL)]
        )
    ),
)
CUT = Vocabulary(PIECES.symbols, pieces=PIECES)
NO_BARE = Vocabulary(
    (bare := replace(PIECES, pieces=tuple(p for p in PIECES.pieces if p.text != "▁"))).symbols, pieces=bare
)


@each_case("vocabulary", [CUT, NO_BARE])
@each_case("seed", range(4))
def test_pieces_are_searched_as_letters_are(seed: int, vocabulary: Vocabulary) -> None:
    log_probs = draw(5, seed, vocabulary)
    texts = sum_over_paths(log_probs, vocabulary)
    best = max(texts, key=texts.__getitem__)
    assert BeamSearch(vocabulary, EXACT).search(log_probs) == (best, pytest.approx(texts[best]))


@each_case("vocabulary", [CUT, NO_BARE])
@each_case("seed", range(4))
def test_a_word_ends_where_the_next_piece_begins_with_its_mark(seed: int, vocabulary: Vocabulary) -> None:
    log_probs, lm = draw(5, seed, vocabulary, sharpness=1.0), make_lm()
    search = BeamSearch(vocabulary, replace(EXACT, lm="x", word_bonus=0.5), lm)
    totals = {text: p + search.score_text(text) for text, p in sum_over_paths(log_probs, vocabulary).items()}
    best = max(totals, key=totals.__getitem__)
    assert search.search(log_probs) == (best, pytest.approx(totals[best]))


def test_an_ngram_decides_between_pieces_that_sound_alike() -> None:
    texts = ["THE CAT SAT", "THE CAT ATE", "A CAT SAT", "THE MAT"]
    vocabulary = build_vocabulary(TextConfig(vocabulary="bpe", num_pieces=15), texts)
    heard = vocabulary.encode("THE CAT SAT")
    log_probs = np.full((2 * len(heard) + 1, len(vocabulary)), -9.0)
    for k, label in enumerate(heard):
        log_probs[2 * k, label] = log_probs[2 * k + 1, 0] = -0.1
    log_probs[2 * len(heard) :, 0] = -0.1
    config = DecodingConfig(name="beam", lm="x", lm_weight=1.0, beam_width=50)
    found = BeamSearch(vocabulary, config, train_ngram(texts, order=3)).search(log_probs)[0]
    assert found == "THE CAT SAT"
    assert found == BeamSearch(vocabulary, DecodingConfig(name="beam")).search(log_probs)[0]
    wrong = BeamSearch(vocabulary, replace(config, lm_weight=40.0), train_ngram(["MAT"] * 9, order=2))
    assert wrong.search(log_probs)[0] != "THE CAT SAT"
