"""From `decoding.*` to what reads texts off logits, and what a result says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechssl.config.decoding import DecodingConfig
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.greedy import greedy_decode
from speechssl.inference.decoding.lm_fit import Fit, load_lm
from speechssl.text.vocabulary import Vocabulary

Decode = Callable[[Tensor, Tensor], list[str]]
"""Logits (B, T, V) and valid frames (B,) → B texts."""


@dataclass(frozen=True)
class Decoder:
    """A way to read texts off logits, and what a result says of it.

    Attributes:
        decode: logits to texts.
        facts: how that is done.
        fit: of the language model's words and the recogniser's, where there is a language model.
        search: the beam search; None: greedy.
    """

    decode: Decode
    facts: dict[str, Any]
    fit: Fit | None = None
    search: BeamSearch | None = None

    def count_greedy(self, logits: Tensor) -> None:
        """Count the words that greedy decoding reads off logits (T, V)."""
        if self.fit is not None and self.search is not None:
            texts = greedy_decode(logits[None], torch.tensor([len(logits)]), self.search.vocabulary)
            self.fit.greedy_words += len(self.search.vocabulary.split(texts[0]))

    def count_text(self, text: str) -> None:
        """Count the words of a text that the search found."""
        if self.fit is not None and self.search is not None and self.search.lm is not None:
            self.fit.count([self.search.spell(word) for word in self.search.vocabulary.split(text)], self.search.lm)

    def describe(self) -> dict[str, Any]:
        """Give what a result says when all texts are decoded, and warn of a language model that does not fit them."""
        if self.fit is None:
            return self.facts
        self.fit.warn_of_unknown()
        return self.facts | {"beam": self.facts["beam"] | self.fit.describe()}


def build_decoder(config: DecodingConfig, vocabulary: Vocabulary, weights_from: str = "") -> Decoder:
    """Build the decoder that `decoding.*` asks for.

    Args:
        config: weights that it leaves open have their defaults.
        vocabulary: of the recogniser.
        weights_from: where its weights are from, for the result; empty: `keys` where it has some, else `defaults`.

    Raises:
        DataError: `decoding.lm` is no ARPA file, or has no word that the recogniser can write.
    """
    facts: dict[str, Any] = {"decoding": config.name}
    if config.name == "greedy":
        return Decoder(lambda logits, num_frames: greedy_decode(logits, num_frames, vocabulary), facts)
    search = BeamSearch(vocabulary, config, load_lm(config.lm, vocabulary) if config.lm else None)
    names: tuple[str, ...] = ("blank_penalty", "beam_width", "beam_threshold", "symbol_min_prob")
    keys: dict[str, Any] = {name: getattr(search.config, name) for name in names}
    lm, begun = search.lm, search.begun
    if lm is None or begun is None:
        return Decoder(search.decode, facts | {"beam": keys}, search=search)
    names = ("lm", "lm_weight", "word_bonus", "unknown_penalty")
    keys |= {name: getattr(search.config, name) for name in names}
    keys |= {"weights_from": weights_from or ("keys" if config.given else "defaults"), "lm_ngrams": lm.counts}

    def decode(logits: Tensor, num_frames: Tensor) -> list[str]:
        texts = search.decode(logits, num_frames)
        for text, row, length in zip(texts, logits, num_frames.tolist(), strict=True):
            decoder.count_greedy(row[:length])
            decoder.count_text(text)
        return texts

    decoder = Decoder(decode, facts | {"beam": keys}, Fit(len(lm.words), len(begun.words)), search)
    return decoder
