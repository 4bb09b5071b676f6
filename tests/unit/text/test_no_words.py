"""Scripts that put no space between words, and labels of several letters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from speechssl.config.data import TextConfig
from speechssl.config.decoding import DecodingConfig
from speechssl.evaluation.wer import score
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.inference.readings import measure_confidence
from speechssl.text.spelling import lacks_words
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from tests.cases import each_case

CHINESE = ["今天天气很好。", "今天，我们去学校", "学校今天没有课"]


@each_case(
    "texts, lacks",
    [
        (CHINESE, True),
        (["สวัสดีครับ", "ขอบคุณ"], True),
        (["ありがとうございます", "東京タワー"], True),
        (["今天 天气", "很好"], False),
        (["YES", "NO", "STOP"], False),
        (["안녕하세요"], False),
        (["今天OKAYOKAY"], False),
        (["", "12"], False),
    ],
)
def test_texts_have_no_words_by_their_script_and_their_spaces(texts: list[str], lacks: bool) -> None:
    assert lacks_words(texts) is lacks


def test_data_builds_labels_without_a_boundary() -> None:
    vocabulary = build_vocabulary(TextConfig(vocabulary="data", case="lower"), CHINESE)
    assert "|" not in vocabulary.symbols and not vocabulary.has_words
    assert vocabulary.normalise("今天，我们 去学校。") == "今天我们去学校"
    assert vocabulary.normalise_reference("今天，我们 去学校吗？") == "今天我们去学校吗"
    for text in CHINESE:
        assert vocabulary.decode(vocabulary.encode(text)) == vocabulary.normalise(text)
    spaced = build_vocabulary(TextConfig(vocabulary="data", case="lower"), ["今天 天气", "很好"])
    assert "|" in spaced.symbols and spaced.has_words
    pieces = build_vocabulary(TextConfig(vocabulary="bpe", num_pieces=22), CHINESE)
    assert not pieces.has_words and pieces.decode(pieces.encode(CHINESE[1])) == "今天我们去学校"
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_wer_is_cer_where_references_have_no_words() -> None:
    said, heard = ["今天天气很好", "我们去学校"], ["今天气很好", "我门去学校吗"]
    scores = score(said, heard, speakers=["a", "b"])
    assert scores.wer == scores.cer == pytest.approx(100 * 3 / 11) and not scores.has_words
    assert scores.num_words == scores.num_letters == 11
    assert scores.compute_wer_interval(100, 0) == scores.compute_cer_interval(100, 0)
    assert score(["ONE TWO"], ["ONE"]).has_words
    assert score(["今天 天气"], ["今天 气"]).wer == 50


def test_labels_of_several_letters_are_read_longest_first() -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>", "|", "t", "tʃ", "a", "aɪ", "madeupword0001"), "keep")
    assert [vocabulary.symbols[k] for k in vocabulary.encode("tʃaɪ taʃ")] == ["tʃ", "aɪ", "|", "t", "a", "|"]
    assert vocabulary.decode([1, 4, 6, 2, 7, 3]) == "tʃaɪ t"
    assert vocabulary.can_write("tʃa") and not vocabulary.can_write("tʃe")


def test_a_language_model_of_characters_helps_where_there_are_no_words() -> None:
    vocabulary = Vocabulary(("<pad>", *"今天气很"), "keep")
    lm = train_ngram(["今 天 天 气", "天 气 很", "今 天 很"], order=3)
    log_probs = np.log(np.full((5, 5), 0.05))
    # Whether 今 or 很 came first is not heard; the model knows.
    for frame, labels in enumerate([(1, 4), (0,), (2,), (0,), (3,)]):
        log_probs[frame, list(labels)] = math.log(0.8 / len(labels))
    log_probs[0, 4] += 0.01
    plain = BeamSearch(vocabulary, DecodingConfig(name="beam", blank_penalty=0.0))
    assert plain.search(log_probs)[0] == "很天气"
    config = DecodingConfig(name="beam", lm="x", lm_weight=1.0, word_bonus=0.0, blank_penalty=0.0)
    search = BeamSearch(vocabulary, config, lm)
    assert search.search(log_probs)[0] == "今天气"
    assert search.score_text("今天气") == pytest.approx(math.log(10) * lm.score_sentence(["今", "天", "气"]))
    assert 0 < measure_confidence(torch.from_numpy(log_probs), "今天气", vocabulary) < 1
