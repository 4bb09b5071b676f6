"""Named normalisers, alone and before the folding of a vocabulary."""

from __future__ import annotations

import sys

import pytest
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
from whisper_normalizer.english import EnglishSpellingNormalizer

from speechssl.config.data import NORMALISERS, TextConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.text.normalise import find_normaliser
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from tests.cases import each_case

TEXTS = [
    "Mr. Brown won't pay $20.50 for twenty-one colours, um, on the 3rd!",
    "“Well-known,” she said — it's [noise] two hundred and five miles.",
    "I'm gonna analyse it, Dr. Who", "", "  ", "naïve café", "the 1960s, nineteen sixty four", "50% off & more",
]  # fmt: skip


@each_case(
    "name, text, normal",
    [
        ("none", "  Well-known,\u2009 x\n", "Well-known, x"),
        ("basic", "Well-known, ‘quoted’ words: it’s DOGS'.", "well known quoted words it's dogs'"),
        ("basic", "İstanbul ıssız ΣΑΣ Straße 20.5 50%", "istanbul ıssız σας straße 20 5 50%"),
        ("basic", "«Cafe\u0301» हिन्दी। 你好，世界", "café हिन्दी 你好 世界"),
        ("basic", "... ' —", ""),
        ("english", "Mr. Brown won't pay twenty-one colours, um", "mister brown will not pay 21 colors"),
        ("english", "[noise] (laughs)", ""),
    ],
)
def test_a_text_is_spelt(name: str, text: str, normal: str) -> None:
    normalise = find_normaliser(name)
    assert normalise(text) == normal
    assert normalise(normal) == normal


def test_english_is_what_transformers_has() -> None:
    reference = EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)
    assert list(map(find_normaliser("english"), TEXTS)) == [reference(text).strip() for text in TEXTS]


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="`normaliser` must be one of none, basic, english, but is 'french'"):
        find_normaliser("french")
    with pytest.raises(ConfigError, match=r"`text\.normaliser` must be one of none, basic, english, but is 'french'"):
        TextConfig(normaliser="french")
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    find_normaliser.cache_clear()
    with pytest.raises(
        ConfigError, match=r"`x` must be none or basic unless .*speechssl\[english\]'\), but is english"
    ):
        find_normaliser("english", "x")


def test_a_vocabulary_keeps_its_normaliser_and_uses_it_on_both_sides() -> None:
    texts = ["Twenty colours, it won't do", "Dr. No"]
    for name in NORMALISERS:
        vocabulary = build_vocabulary(TextConfig(vocabulary="data", normaliser=name, keep="0123456789"), texts)
        assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
        assert vocabulary.normaliser == name
        said = vocabulary.normalise_reference(texts[0])
        assert vocabulary.fold(vocabulary.decode(vocabulary.encode(texts[0]))) == said
    assert said == "20 COLORS IT WILL NOT DO"
    assert "U" not in vocabulary


def test_a_checkpoint_from_before_has_none_and_an_unknown_one_is_refused() -> None:
    stored = {"symbols": ["<s>", "|", "A"], "case": "upper", "keep": ""}
    assert Vocabulary.from_dict(stored).normaliser == "none"
    with pytest.raises(CheckpointError, match="must hold a vocabulary"):
        Vocabulary.from_dict({**stored, "normaliser": "french"})


def test_a_recogniser_that_goes_on_keeps_its_own() -> None:
    init = Vocabulary(("<s>", "|", "a"), "lower", normaliser="basic")
    assert build_vocabulary(TextConfig(vocabulary="init"), [], init).normaliser == "basic"
    with pytest.raises(ConfigError, match=r"`text\.normaliser` must be basic with text.vocabulary=init.*is english"):
        build_vocabulary(TextConfig(vocabulary="init", normaliser="english"), [], init)
