"""`speechssl lm`: texts and manifests → n-gram language model, an ARPA file for `decoding.lm`."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from speechssl.config.knobs import check
from speechssl.config.verbs import LMConfig
from speechssl.durable import write_result
from speechssl.errors import DataError
from speechssl.inference.decoding.lm_texts import Speller, read_texts
from speechssl.inference.decoding.ngram import save_arpa
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.inference.recognise import require_recogniser
from speechssl.interop.load import load_for_inference
from speechssl.text.keep import name_letters
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from speechssl.verbs.frame import verb
from speechssl.verbs.output import replacing_result, resolve_out

LM_NAME = "lm.arpa"
"""The model's file, where `out` is a folder."""

_logger = logging.getLogger("speechssl")


@verb
def lm(config: LMConfig) -> dict[str, Any]:
    """Estimate an n-gram (interpolated modified Kneser-Ney), write it, and return the result.

    `out` with a suffix is the ARPA file; without one it is a folder and gets `lm.arpa` and `result.json`. Words are
    spelt as the recogniser writes them; what is left out of them is logged. The texts are read once, a line at a time.

    Raises:
        CheckpointError: `checkpoint` is no recogniser.
        ConfigError: no texts are given.
        DataError: a text cannot be read, or there are no words in them.
    """
    check(bool(config.texts), "texts", "one or more text files or manifests", config.texts)
    vocabulary = _choose_labels(config)
    is_file = bool(Path(config.out).suffix) and not config.out.endswith(os.sep) and not Path(config.out).is_dir()
    # Before the counting, which takes longer.
    speller, test_speller = Speller(vocabulary, config.unit), Speller(vocabulary, config.unit)
    held_out = list(test_speller.spell(read_texts(config.test, "test")))
    out = resolve_out(config.out, "lm", config.overwrite, is_file)
    target = out if is_file else out / LM_NAME
    model = train_ngram(speller.spell(read_texts(config.texts, "texts")), config.order, config.prune)
    _tell_left_out(speller, config)
    result: dict[str, Any] = {
        "order": model.order,
        "unit": config.unit,
        "ngrams": model.counts,
        "num_texts": speller.num_texts,
        "num_units": speller.num_units,
        "prune": config.prune,
        "left_out": dict(speller.left_out.most_common()),
    }
    if config.test:
        found = model.compute_perplexity(held_out)
        result |= {
            "perplexity": found.perplexity,
            "test_units": found.num_words,
            "test_units_unknown": found.num_unknown,
        }
    result |= {"texts": config.texts, "test": config.test, "lm": str(target), "out": str(out)}
    with nullcontext() if is_file else replacing_result(out):
        save_arpa(model, target)
        if not is_file:
            write_result(out, result)
    return result


def _choose_labels(config: LMConfig) -> Vocabulary:
    """Take the labels of the recogniser, or make those that `text.*` asks for."""
    if config.checkpoint:
        return require_recogniser(load_for_inference(config.checkpoint, torch.device("cpu")), config.checkpoint)
    texts: list[str] = []
    if config.text.vocabulary == "data":
        texts = [*read_texts(config.texts, "texts"), *read_texts(config.test, "test")]
        if not any(character.isalpha() for text in texts for character in text):
            raise DataError("`texts` must have letters with text.vocabulary=data, but none has")
    return build_vocabulary(config.text, texts)


def _tell_left_out(speller: Speller, config: LMConfig) -> None:
    """Name the spoken characters that no label stands for, or refuse them.

    Raises:
        DataError: there are some, and `text.unknown` is `refuse`.
    """
    if not speller.left_out:
        return
    letters = name_letters(dict(speller.left_out.most_common()))
    if config.text.unknown == "refuse":
        raise DataError(f"`texts` must be of the labels with text.unknown=refuse, but have {letters}")
    _logger.warning("left out of words, since no label stands for them (text.keep makes labels of them): %s", letters)
