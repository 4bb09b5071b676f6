"""Sentencepieces as labels of a Hugging Face folder: `tokenizer.json` for `transformers`, the model itself for others.

No CTC tokenizer class of `transformers` has pieces, but its fast tokenizer opens any that `tokenizer.json` describes:
here the same cuts as sentencepiece's, and a decoder that merges a path as CTC does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechssl.checkpoints.model_folder import PIECES
from speechssl.interop.files import write_json
from speechssl.text.pieces import NORMAL, UNKNOWN, USER_DEFINED, WORD_START, Pieces

FAST, TOKENIZER = "tokenizer.json", "tokenizer_config.json"


def write_pieces(folder: Path, pieces: Pieces, tokens: tuple[str, ...], processor: str) -> None:
    """Write the model, and the files with which `transformers` opens it as a tokenizer.

    Args:
        folder: of the model.
        pieces: labels of its head.
        tokens: what Hugging Face calls them, the blank first.
        processor: the class that joins it with the feature extractor.
    """
    (folder / PIECES).write_bytes(pieces.to_bytes())
    place = {"type": "Metaspace", "replacement": WORD_START, "prepend_scheme": "always", "split": True}
    ctc = {"type": "CTC", "pad_token": tokens[0], "word_delimiter_token": WORD_START, "cleanup": False}
    special = [
        {
            "id": k, "content": tokens[k], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": piece.kind != USER_DEFINED,
        }
        for k, piece in enumerate(pieces.pieces)
        if piece.kind != NORMAL
    ]  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": place if pieces.starts_words else {**place, "prepend_scheme": "never"},
        "post_processor": None, "decoder": {"type": "Sequence", "decoders": [ctc, place]},
        "model": _describe_model(pieces, tokens),
    }  # fmt: skip
    write_json(folder / FAST, content)
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": processor,
        "pad_token": tokens[0],
        "unk_token": tokens[_find_unknown(pieces)],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    write_json(folder / TOKENIZER, tokenizer)


def _find_unknown(pieces: Pieces) -> int:
    return next(k for k, piece in enumerate(pieces.pieces) if piece.kind == UNKNOWN)


def _describe_model(pieces: Pieces, tokens: tuple[str, ...]) -> dict[str, Any]:
    """Describe how texts are cut, as the library `tokenizers` reads it."""
    unknown = _find_unknown(pieces)
    if pieces.kind == "unigram":
        scores = [piece.score for piece in pieces.pieces]
        vocabulary = [list(pair) for pair in zip(tokens, scores, strict=True)]
        return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": False}
    indices = {token: k for k, token in enumerate(tokens)}
    merges = _list_merges(pieces, indices) if pieces.kind == "bpe" else []
    return {
        "type": "BPE", "dropout": None, "unk_token": tokens[unknown], "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": False, "ignore_merges": False,
        "vocab": indices, "merges": merges,
    }  # fmt: skip


def _list_merges(pieces: Pieces, indices: dict[str, int]) -> list[list[str]]:
    """List which two pieces are joined to which, the best first: sentencepiece ranks pieces, `tokenizers` pairs."""
    merges: list[list[str]] = []
    for k in sorted(pieces.written, key=lambda k: -pieces.pieces[k].score):
        text = pieces.symbols[k]
        pairs = [[text[:cut], text[cut:]] for cut in range(1, len(text))]
        whole = [pair for pair in pairs if pair[0] in indices and pair[1] in indices]
        merges += sorted(whole, key=lambda pair: (indices[pair[0]], indices[pair[1]]))
    return merges
