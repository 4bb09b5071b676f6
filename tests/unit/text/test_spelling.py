"""Folding: case, apostrophes and quotes, and what cannot be seen."""

from __future__ import annotations

import random
import unicodedata

from speechssl.config.data import TextConfig
from speechssl.text.spelling import fold, has_dotless_i, is_dotless_alphabet
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary, find_case
from tests.cases import each_case

TURKISH = ("<pad>", "|", *"abcçdefgğhıijklmnoöprsştuüvyz")


@each_case("case", ["upper", "lower"])
def test_turkish_has_two_letters_i_in_both_directions(case: str) -> None:
    text = "İyi ılık ISPARTA, ısparta ilik"
    vocabulary = build_vocabulary(TextConfig(vocabulary="data", case=case), [text])
    assert vocabulary.dotless_i
    for same in (
        ("İyi", "iyi", "i\u0307yi", "I\u0307yi"),
        ("ISPARTA", "ısparta", "Isparta"),
        ("DİYARBAKIR", "diyarbakır"),
    ):
        assert len({vocabulary.normalise_reference(word) for word in same}) == 1, same
    assert vocabulary.normalise("ılık") != vocabulary.normalise("ilik")
    assert vocabulary.decode(vocabulary.encode("Iı İi")) == ("II İİ" if case == "upper" else "ıı ii")
    assert "\u0307" not in vocabulary.symbols


def test_a_turkish_name_does_not_make_a_text_turkish() -> None:
    english = ["this is a list of cities in its original spelling", "the island is İstanbul"]
    assert not has_dotless_i(english)
    for case, written in (("upper", "IF I VISIT ISTANBUL I"), ("lower", "if i visit istanbul i")):
        vocabulary = build_vocabulary(TextConfig(vocabulary="data", case=case), english)
        assert not set("ıİ") & set(vocabulary.symbols)
        assert vocabulary.normalise_reference("If I visit İstanbul ı") == written


def test_an_alphabet_says_whether_it_has_a_dotless_i() -> None:
    assert Vocabulary(TURKISH, "lower").normalise_reference("İstanbul ISPARTA") == "istanbul ısparta"
    assert Vocabulary(FAIRSEQ_SYMBOLS).normalise("İstanbul ılık") == "ISTANBUL ILIK"
    assert not is_dotless_alphabet("abcdefghiı", "lower"), "a stray letter"
    assert not is_dotless_alphabet([*"abcdefghijklmnopqrstuvwxyzışğ", *"àáâãäåæçèéêëìíîï"], "lower"), (
        "a whole continent"
    )


def test_a_vocabulary_keeps_what_its_letters_mean_and_an_older_one_what_they_meant() -> None:
    config = TextConfig(vocabulary="data")
    vocabulary = build_vocabulary(config, ["İyi ılık ağ kuş"])
    stored = vocabulary.to_dict()
    assert Vocabulary.from_dict(stored) == vocabulary
    del stored["dotless_i"]
    older = Vocabulary.from_dict(stored)
    assert older.normalise("iyi") == "IYI", "i became I then, and so it was trained"
    assert Vocabulary.from_dict({"symbols": list(TURKISH), "case": "lower", "keep": ""}).dotless_i
    assert fold("Iı", "keep", dotless_i=True) == "Iı"


@each_case(
    "written, variant",
    [
        ("გამარჯობა", "ᲒᲐᲛᲐᲠᲯᲝᲑᲐ"),  # Georgian: nobody writes Mtavruli
        ("ᏣᎳᎩ ᏴᏫ", "ꮳꮃꭹ ᏼꮻ"),  # Cherokee: nobody writes small letters
    ],
)
def test_scripts_keep_the_case_that_people_write(written: str, variant: str) -> None:
    for case in ("upper", "lower"):
        assert fold(written, case) == fold(variant, case) == written
        vocabulary = build_vocabulary(TextConfig(vocabulary="data", case=case), [written])
        assert vocabulary.decode(vocabulary.encode(variant)) == written


def test_one_odd_letter_does_not_switch_folding_off() -> None:
    capitals = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    assert find_case([*capitals, "ß"]) == find_case([*capitals, "ŉ", "é"]) == "upper"
    assert find_case([*map(str.lower, capitals), "É"]) == "lower"
    assert find_case([*capitals, *map(str.lower, capitals)]) == find_case("aB") == "keep"
    assert find_case(["'", "٣", "م"]) == "keep"
    german = Vocabulary(("<pad>", "|", *capitals, "ß"), find_case([*capitals, "ß"]))
    assert german.normalise_reference("Guten Tag, Straße, STRAẞE") == "GUTEN TAG STRAßE STRAßE"
    assert german.decode(german.encode("Straße")) == "STRAßE", "the labels have a letter for it"
    odd = Vocabulary(("<pad>", "|", *capitals, "é"), "upper")
    assert odd.decode(odd.encode("café")) == "CAFé"
    assert odd.normalise_reference("CAFÉ") == odd.fold("CAFé")


def test_a_kept_letter_without_a_capital_is_a_label() -> None:
    vocabulary = build_vocabulary(TextConfig(keep="ß"), [])
    assert vocabulary.symbols[32:] == ("ß",)
    assert vocabulary.decode(vocabulary.encode("Straße")) == "STRAßE"
    assert build_vocabulary(TextConfig(), []).normalise("Straße STRAẞE") == "STRASSE STRASSE"


QUOTES = [
    ("He said ‘yes’ to me", "HE SAID YES TO ME"),
    ("'yes'", "YES"),
    ("``yes''", "YES"),
    ("`yes'", "YES"),
    ("‚ja‘, sagte er", "JA SAGTE ER"),
    ("’ord’", "ORD"),
    ("'two words' he said", "TWO WORDS HE SAID"),
    ("‘the dogs’ food,’ he said", "THE DOGS' FOOD HE SAID"),
    ("'Twas the dogs' food", "'TWAS THE DOGS' FOOD"),
    ("rock 'n' roll in the '90s", "ROCK 'N' ROLL IN THE ' S"),
    ("'t is Hans' huis", "'T IS HANS' HUIS"),
    ("’Tis the dogs’", "'TIS THE DOGS'"),
    ("‘Yes,’ he said, ‘it’s the boys’.’", "YES HE SAID IT'S THE BOYS'"),
    ("a ' b", "A B"),
    ("'one 'two words' more'", "ONE TWO WORDS MORE"),
    ("don´t don`t don＇t don‘t don′t donʼt donʻt", " ".join(["DON'T"] * 7)),
    ("5′ long, cafe´ ", "LONG CAFE"),
]


@each_case("text, written", QUOTES)
def test_the_place_tells_a_quote_from_an_apostrophe(text: str, written: str) -> None:
    vocabulary = Vocabulary(FAIRSEQ_SYMBOLS)
    assert vocabulary.normalise(text) == written.replace("' S", "'S")
    assert vocabulary.fold(vocabulary.normalise_reference(text)).split() == vocabulary.normalise_reference(text).split()


def test_what_is_folded_stays_as_it_is() -> None:
    """Recognised texts are folded as well: a reference that changed by it could never be met."""
    rng = random.Random(1)
    signs = "aSİı '’‘`,\u02bc\u200c\u200d\u200b\u0640\u0301\u0307-\u00adക"
    for case in ("upper", "lower", "keep"):
        vocabulary = Vocabulary(("<s>", "|", *"ASas'"), case)
        for _ in range(3000):
            text = "".join(rng.choices(signs, k=rng.randrange(12)))
            reference = vocabulary.normalise_reference(text)
            assert vocabulary.normalise_reference(vocabulary.fold(reference)) == reference, ascii(text)


@each_case(
    "sign, folded",
    [
        ("\u200b", "ab cd"),  # zero-width space: Khmer's between words
        ("\u2800", "ab cd"),  # blank of braille
        ("\u00a0", "ab cd"),
        ("\u2028", "ab cd"),
        ("\u200c", "ab\u200ccd"),  # non-joiner: Persian spells with it
        ("\u200d", "ab\u200dcd"),  # joiner: Sinhala
        ("\u180e", "ab\u180ecd"),  # vowel separator: Mongolian
        ("\u200c\u200c", "ab\u200ccd"),
        (" \u200c", "ab cd"),
        ("\u200d ", "ab cd"),
        ("\ufe0f", "abcd"),  # variation selector
        ("\U000e0101", "abcd"),
        ("\u0640", "abcd"),  # tatweel
        ("\u07fa", "abcd"),  # its kin in N'Ko
        ("\u034f", "abcd"),  # grapheme joiner
        ("\u00ad", "abcd"),
        ("\u3164", "abcd"),  # Hangul filler
        ("\ufeff", "abcd"),
        ("\u2066", "abcd"),
    ],
)
def test_the_unseen_separates_spells_or_is_nothing(sign: str, folded: str) -> None:
    text = f"ab{sign}cd"
    vocabulary = build_vocabulary(TextConfig(vocabulary="data", case="lower"), [text])
    assert vocabulary.normalise_reference(text) == vocabulary.normalise(text) == folded
    assert (sign[0] in vocabulary.symbols) is (sign[0] in folded and not sign[0].isspace())


def test_a_joiner_after_a_virama_ends_a_word() -> None:
    chillu = "അവന\u0d4d\u200d"
    assert fold(f"{chillu} a", "keep") == f"{chillu} a"
    assert fold("می\u200c خانه\u200d", "keep") == "می خانه"
    assert fold("\U0001f469\u200d\U0001f4bb", "keep") == "\U0001f469\U0001f4bb"


def test_composed_letters_stay_composed_whatever_the_case() -> None:
    for text in ("ΐ", "ǰ", "ŉ", "ﬁ", "ά", "ᾳ"):
        for case in ("upper", "lower", "keep"):
            assert unicodedata.is_normalized("NFC", fold(text, case))
