"""Words cut into pieces: sentencepiece models, trained, read and stored."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sentencepiece

from speechssl.config.data import TextConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.objectives.ctc import count_needed_frames
from speechssl.text.pieces import CONTROL, NORMAL, UNKNOWN, Piece, Pieces
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from tests.cases import each_case

TEXTS = {
    "latin": ["The cat sat on the mat, didn't it?", "the other cat and the other mat", "a well-known café"],
    "devanagari": ["नमस्ते दुनिया, यह एक परीक्षा है", "यह दुनिया एक परीक्षा", "नमस्ते यह परीक्षा है"],
    "arabic": ["مرحبا بالعالم هذا اختبار", "هذا العالم اختبار", "مرحبا هذا اختبار آخر"],
    "chinese": ["今天天气很好。", "今天我们去学校", "学校今天没有课"],
}


def make(script: str, kind: str = "unigram", extra: int = 2) -> Vocabulary:
    """Train as many pieces as there are letters, and some more."""
    letters = build_vocabulary(TextConfig(vocabulary="data", case="lower"), TEXTS[script])
    size = len(letters) + 1 + extra
    return build_vocabulary(TextConfig(vocabulary=kind, case="lower", num_pieces=size), TEXTS[script])


def train(texts: list[str], **options: Any) -> bytes:
    """Train with the library alone."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, minloglevel=3, **{"vocab_size": 40, **options}
    )
    return out.getvalue()


@each_case("script", sorted(TEXTS))
@each_case("kind", ["bpe", "unigram"])
def test_labels_give_the_normalised_text_back(script: str, kind: str) -> None:
    vocabulary = make(script, kind)
    for text in TEXTS[script]:
        labels = vocabulary.encode(text)
        assert vocabulary.decode(labels) == vocabulary.normalise(text) != ""
        assert all(2 <= k < len(vocabulary) for k in labels)
        assert len(labels) <= len(vocabulary.normalise(text)) + 1
    assert vocabulary.decode([0, 1]) == "" and vocabulary.encode("?!") == []


def test_letters_decide_what_can_be_written() -> None:
    vocabulary = make("latin")
    assert vocabulary.can_write("mates") is True and vocabulary.can_write("quay") is False
    assert vocabulary.normalise("The 7 ▁mats!") == "the mats"
    assert vocabulary.unknown_letters(["7 mats"]) == {"7": 1}
    assert vocabulary.normalise_reference("7 mats!") == "7 mats"


def test_it_is_the_same_every_time_and_cuts_as_the_library_does() -> None:
    text = " ".join(TEXTS["latin"]).lower()
    first, again = make("latin"), make("latin")
    assert first == again and first.pieces is not None
    library = sentencepiece.SentencePieceProcessor(model_proto=first.pieces.to_bytes())
    assert library.encode(first.normalise(text)) == first.encode(text)
    assert library.decode(first.encode(text)) == first.normalise(text)


@each_case("kind", ["bpe", "unigram", "char"])
def test_models_of_others_cut_as_they_did(kind: str) -> None:
    """Their table of normalisation is left out, and their specials stand where they stood."""
    texts = [text.lower() for text in TEXTS["latin"]]
    content = train(texts, model_type=kind, vocab_size=26 if kind == "char" else 40, pad_id=3, hard_vocab_limit=False)
    read, library = Pieces.from_bytes(content), sentencepiece.SentencePieceProcessor(model_proto=content)
    assert read.kind == kind and len(read.to_bytes()) < len(content)
    assert [piece.kind for piece in read.pieces[:4]] == [UNKNOWN, CONTROL, CONTROL, CONTROL]
    for text in texts:
        assert read.encode(text) == library.encode(text)
    assert Pieces.from_bytes(read.to_bytes()) == read


def test_doubled_pieces_need_a_frame_between_them() -> None:
    vocabulary = Vocabulary(PIECES.symbols, pieces=PIECES)
    assert vocabulary.encode("A A") == [3, 3] and count_needed_frames([3, 3]) == 3


PIECES = Pieces(
    "bpe",
    (
        Piece("<s>", 0.0, CONTROL), Piece("<unk>", 0.0, UNKNOWN), Piece("▁", -2.0, NORMAL), Piece("▁A", 0.0, NORMAL),
        Piece("A", -3.0, NORMAL), Piece("B", -4.0, NORMAL),
    ),
)  # fmt: skip


@each_case(
    "keys, sentence",
    [
        (
            {"num_pieces": 5},
            r"`text.num_pieces` must be at least \d+, with a piece for each of the \d+ letters",
        ),
        (
            {"num_pieces": 5000},
            r"`text.num_pieces` must be between \d+ and \d+ for the texts of data.train, but is",
        ),
        ({"num_pieces": 3}, "`text.num_pieces` must be between 4 and 65,536, but is 3"),
        ({"keep": "▁"}, "`text.keep` must be characters other than spaces, '|' and '▁', but has '▁'"),
    ],
)
@each_case("kind", ["bpe", "unigram"])
def test_mistakes_are_sentences(kind: str, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("'|'", r"'\|'")):
        build_vocabulary(TextConfig(vocabulary=kind, **keys), TEXTS["latin"])


def test_kept_characters_are_pieces_though_no_text_has_them() -> None:
    vocabulary = build_vocabulary(TextConfig(vocabulary="bpe", num_pieces=12, keep="7"), ["ONE TWO", "TWO ONE ONE"])
    assert vocabulary.decode(vocabulary.encode("one 7 two")) == "ONE 7 TWO"


def test_a_vocabulary_is_stored_whole() -> None:
    vocabulary = make("latin")
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@each_case(
    "change",
    [
        lambda stored: stored | {"pieces": "no base64!"},
        lambda stored: stored | {"pieces": stored["pieces"][:40]},
        lambda stored: stored | {"pieces": 7},
        lambda stored: stored | {"symbols": [*stored["symbols"][:-1], "other"]},
    ],
)
def test_a_damaged_one_is_refused(change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    with pytest.raises((CheckpointError, ConfigError), match="must"):
        Vocabulary.from_dict(change(make("latin").to_dict()))


@each_case(
    "content, why",
    [
        (b"", "0 pieces"),
        (b"\x0a", "cut off"),
        (b"\xff" * 40, "without an end"),
        (b"\x0b\x0a", "a field of kind 3"),
        (train(TEXTS["latin"], model_type="word", vocab_size=12, hard_vocab_limit=False), "no model of unigrams"),
        (train(TEXTS["latin"], model_type="bpe", vocab_size=300, byte_fallback=True), "a byte"),
        (train(TEXTS["latin"], model_type="bpe", treat_whitespace_as_suffix=True), "before words"),
    ],
)
def test_other_files_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Pieces.from_bytes(content)


def test_pieces_that_contradict_themselves_are_refused() -> None:
    for pieces in (
        (*PIECES.pieces, PIECES.pieces[-1]),
        (*PIECES.pieces, Piece("", 0.0, NORMAL)),
        (*PIECES.pieces, Piece("C", float("nan"), NORMAL)),
        PIECES.pieces[2:],
    ):
        with pytest.raises(ValueError, match="piece"):
            replace(PIECES, pieces=pieces)
