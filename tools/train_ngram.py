#!/usr/bin/env python
"""Estimate an n-gram from text and write it as an ARPA file for `decoding=beam decoding.lm=…`.

    python tools/train_ngram.py corpus.txt out=lm.arpa order=4
    python tools/train_ngram.py m/train.tsv dev.trans.txt out=lm.arpa test=m/dev.tsv

A text is a file with a sentence a line, a LibriSpeech `.trans.txt` (the utterance's name is left out), or a manifest
with `text` (`.tsv`, `.parquet`). Its words are brought to what a recogniser with fairseq's 32 symbols writes;
`case=lower` and `case=keep` are for one whose labels were built from data. `test` is a text to give the perplexity of.
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.data.manifest import load_manifests
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.evaluation.ngram import save_arpa
from speechssl.evaluation.ngram_training import train_ngram
from speechssl.text import FAIRSEQ_SYMBOLS, Vocabulary, fold

KEYS = {"out": "", "order": "4", "case": "upper", "test": ""}


def read_texts(path: Path, case: str) -> Iterator[str]:
    """Yield the sentences of a text, normalised as a recogniser's transcripts are."""
    if path.suffix in (".tsv", ".parquet"):
        manifest = load_manifests([str(path)], "text")
        manifest.require("text", "text")
        lines = [text or "" for text in manifest.column("text")]
    elif path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.name.endswith(".trans.txt"):
            lines = [line.partition(" ")[2] for line in lines]
    else:
        raise ConfigError(f"a text must be a file, but {path} {'is a folder' if path.exists() else 'does not exist'}")
    vocabulary = Vocabulary(FAIRSEQ_SYMBOLS)
    for line in lines:
        yield vocabulary.normalise(line) if case == "upper" else " ".join(fold(line, case).split())


def read_words(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Split the command line into texts and keys."""
    paths = [Path(word) for word in words if word.partition("=")[0] not in KEYS]
    keys = KEYS | dict(word.split("=", 1) for word in words if word.partition("=")[0] in KEYS and "=" in word)
    if not paths or not keys["out"]:
        raise ConfigError("train_ngram must be given texts and out=…, as in: train_ngram.py corpus.txt out=lm.arpa")
    if not keys["order"].isdigit() or int(keys["order"]) < 1:
        raise ConfigError(f"`order` must be a whole number of at least 1, but is {keys['order']!r}")
    if keys["case"] not in ("upper", "lower", "keep"):
        raise ConfigError(f"`case` must be one of upper, lower, keep, but is {keys['case']!r}")
    return paths, keys


def run(words: Sequence[str]) -> dict[str, object]:
    """Estimate, write, and measure."""
    paths, keys = read_words(words)
    start = time.monotonic()
    model = train_ngram((text for path in paths for text in read_texts(path, keys["case"])), int(keys["order"]))
    save_arpa(model, keys["out"])
    result: dict[str, object] = {"out": keys["out"], "order": model.order, "ngrams": model.counts}
    if keys["test"]:
        found = model.compute_perplexity(text for text in read_texts(Path(keys["test"]), keys["case"]) if text)
        result |= {"perplexity": found.perplexity, "num_words": found.num_words, "num_unknown": found.num_unknown}
    return result | {"seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    try:
        print(json.dumps(run(sys.argv[1:])))
    except SpeechSSLError as error:
        print(f"train_ngram: {error}", file=sys.stderr)
        sys.exit(2)
