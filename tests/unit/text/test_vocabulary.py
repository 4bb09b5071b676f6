"""Text to labels and back."""

from __future__ import annotations

import json

import pytest

from speechssl.config.data import TextConfig
from speechssl.errors import CheckpointError, ConfigError, DataError, SpeechSSLError
from speechssl.text.spelling import fold
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary, is_silent
from tests.cases import each_case


@pytest.fixture
def fairseq() -> Vocabulary:
    return build_vocabulary(TextConfig(), [])


def test_fairseq_has_its_32_symbols_in_its_order(fairseq: Vocabulary) -> None:
    assert len(fairseq) == 32
    assert fairseq.symbols[:6] == ("<s>", "<pad>", "</s>", "<unk>", "|", "E")
    assert "".join(fairseq.symbols[4:]) == "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"


def test_encode_is_fairseqs_ltr_with_a_boundary_after_each_word(fairseq: Vocabulary) -> None:
    symbols = [fairseq.symbols[k] for k in fairseq.encode("hello World")]
    assert "".join(symbols) == "HELLO|WORLD|"


@each_case(
    "text, normal",
    [
        ("don't", "DON'T"),
        ("don\u2019t", "DON'T"),
        ("DOGS' 'TIS", "DOGS' 'TIS"),
        ("  two\t words \n", "TWO WORDS"),
        ("well-known, truly.", "WELL KNOWN TRULY"),
        ("a|b", "A B"),
        ("caf\u00e9 5%", "CAF"),
        ("<s> <unk>", "S UNK"),
        ("stra\u00dfe", "STRASSE"),
        ("co\u00adoperate", "COOPERATE"),
        ("12 34", ""),
        ("", ""),
    ],
)
def test_labels_give_the_normalised_text_back(fairseq: Vocabulary, text: str, normal: str) -> None:
    assert fairseq.normalise(text) == normal
    assert fairseq.decode(fairseq.encode(text)) == normal
    assert fairseq.normalise(normal) == normal
    assert all(4 <= k < 32 for k in fairseq.encode(text))


def test_decode_skips_blanks_and_specials(fairseq: Vocabulary) -> None:
    assert fairseq.decode([4, 0, 5, 1, 2, 3, 4, 4, 6]) == "E T"


def test_reference_keeps_what_the_model_cannot_write(fairseq: Vocabulary) -> None:
    assert fairseq.normalise_reference("The caf\u00e9, in 1912 \u2014 at 5%!") == "THE CAF\u00c9 IN 1912 AT 5%"


def test_unknown_letters_are_counted_after_folding(fairseq: Vocabulary) -> None:
    counts = fairseq.unknown_letters(["caf\u00e9 \u00c9t\u00e9", "5, 5"])
    assert counts == {"\u00c9": 3, "5": 2, ",": 1}


def test_composed_and_decomposed_letters_are_one() -> None:
    assert fold("e\u0301", "upper") == fold("\u00c9", "upper") == "\u00c9"


@each_case("mark", ["\u200e", "\u200f", "\u061c", "\u2060", "\u202a", "\u2069", "\ufeff", "\u00ad"])
def test_what_cannot_be_seen_is_nothing(mark: str) -> None:
    assert fold(f"{mark}shalom{mark} b", "keep") == "shalom b"


def test_joiners_stay_where_scripts_spell_with_them() -> None:
    assert fold("\u0645\u06cc\u200c\u062e", "keep") == "\u0645\u06cc\u200c\u062e"


def test_an_imported_vocabulary_keeps_its_own_spelling() -> None:
    vocabulary = Vocabulary(("<pad>", "|", "a", "i", "l", "m", "\u2019"), case="lower")
    ids = vocabulary.encode("L'AMI")
    assert vocabulary.encode("l\u2019ami") == ids
    assert vocabulary.decode(ids) == "l\u2019ami"
    assert vocabulary.fold("l\u2019ami") == vocabulary.normalise_reference("l\u2019ami") == "l'ami"
    assert not vocabulary.unknown_letters(["l\u2019ami"])
    both = Vocabulary(("<pad>", "|", "a", "\u2019", "'"), case="lower")
    assert both.encode("a'") == both.encode("a\u2019") == [2, 4, 1]


def test_keep_adds_labels_at_the_end_and_travels() -> None:
    vocabulary = build_vocabulary(TextConfig(keep="210E"), [])
    assert vocabulary.symbols[:32] == FAIRSEQ_SYMBOLS
    assert vocabulary.symbols[32:] == ("0", "1", "2")
    assert vocabulary.keep == "012"
    assert vocabulary.decode(vocabulary.encode("room 102")) == "ROOM 102"


def test_what_is_kept_may_be_typed_by_its_number() -> None:
    vocabulary = build_vocabulary(TextConfig(keep=r"\u200c\x37\U00020000\N"), [])
    assert vocabulary.symbols[32:] == ("7", "\\", "\u200c", "\U00020000")
    assert vocabulary.keep == "7\\\u200c\U00020000"


def test_no_message_has_a_whole_vocabulary_in_it() -> None:
    chinese = tuple(map(chr, range(0x4E00, 0x4E00 + 3500)))
    for make in (
        lambda: Vocabulary(("<s>", *chinese, "<s>")),
        lambda: Vocabulary(("<s>", "|", *chinese, chinese[0])),
        lambda: Vocabulary.from_dict({"symbols": list(chinese), "case": "Upper", "keep": ""}),
    ):
        with pytest.raises(SpeechSSLError) as caught:
            make()
        assert len(str(caught.value)) < 300


def test_data_vocabulary_is_the_letters_sorted() -> None:
    config = TextConfig(vocabulary="data", case="lower", keep="7")
    vocabulary = build_vocabulary(config, ["B\u00e4r, 9!", "it's"])
    assert vocabulary.symbols == ("<s>", "|", "'", "b", "i", "r", "s", "t", "\u00e4", "7")
    assert vocabulary.decode(vocabulary.encode("B\u00c4R'S 79")) == "b\u00e4r's 7"


def test_dict_survives_json(fairseq: Vocabulary) -> None:
    for vocabulary in (fairseq, build_vocabulary(TextConfig(vocabulary="data", case="keep"), ["\u00c5b"])):
        again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
        assert again == vocabulary
        assert hash(again) == hash(vocabulary)


@each_case(
    "stored", [{}, {"symbols": 3, "case": "upper", "keep": ""}, {"symbols": [1, 2, 3], "case": "upper", "keep": ""}]
)
def test_a_damaged_vocabulary_is_a_checkpoint_error(stored: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="`checkpoint` must hold a vocabulary"):
        Vocabulary.from_dict(stored)


@each_case(
    "config, message",
    [
        (TextConfig(case="lower"), "`text.case` must be upper"),
        (TextConfig(keep="a b"), "`text.keep` must be"),
        (TextConfig(keep="|"), "`text.keep` must be"),
        (TextConfig(keep="\u0640"), r"`text.keep` must be what spells words, but U\+0640 is left out of every text"),
        (TextConfig(keep=r"\x20"), "`text.keep` must be characters other than spaces"),
        (TextConfig(keep=r"\U00110000"), "`text.keep` must be characters of Unicode"),
        (TextConfig(keep=r"\ud800"), "`text.keep` must be characters other than"),
    ],
)
def test_contradictions_name_their_key(config: TextConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_vocabulary(config, [])


def test_no_letters_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"`data\.train` must have transcripts with letters"):
        build_vocabulary(TextConfig(vocabulary="data"), ["12", "", "''"])


@each_case("symbols", [("<s>", "|"), ("<s>",), ("<s>", "<unk>", "[PAD]"), ("<s>", "|", "A", "A")])
def test_a_vocabulary_needs_a_blank_and_distinct_letters(symbols: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"`text\.vocabulary`"):
        Vocabulary(symbols)


def test_silent_is_punctuation_only() -> None:
    assert all(is_silent(c) for c in ".,;:!?-\u2014\u201c\u00bf|`")
    assert not any(is_silent(c) for c in "a\u00e97%&@#'\u20ac+")
