#!/usr/bin/env python
"""Estimate an n-gram from text and write it as an ARPA file for `decoding=beam decoding.lm=…`.

    python tools/train_ngram.py corpus.txt out=lm.arpa order=4
    python tools/train_ngram.py m/train.tsv dev.trans.txt out=lm.arpa test=m/dev.tsv

A text is a file with a sentence a line, a LibriSpeech `.trans.txt` (the utterance's name is left out), both also as
`.gz`, or a manifest with `text` (`.tsv`, `.parquet`). Its words are brought to what a recogniser writes, whose labels
`vocabulary`, `case` and `keep` describe as `text.*` of `speechssl finetune` does:

    vocabulary=fairseq            the 32 symbols (A to Z and the apostrophe); the default with case=upper
    vocabulary=data               all letters of the texts; the default with case=lower and case=keep
    keep=0123456789               further characters that are kept

Punctuation outside of the labels separates words; other characters outside are left out of them, and listed on stderr.
`test` is a text to give the perplexity of. An `out` that ends in .gz is compressed. The last line of stdout is one JSON
object.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from speechssl.config.data import TextConfig
from speechssl.data.manifest import load_manifests
from speechssl.errors import ConfigError, DataError, SpeechSSLError
from speechssl.inference.decoding.ngram import save_arpa
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.text.vocabulary import Vocabulary, build_vocabulary, is_silent
from speechssl.verbs.output import resolve_out

KEYS = {"out": "", "order": "4", "vocabulary": "", "case": "upper", "keep": "", "test": ""}
CHOICES = {"vocabulary": ("fairseq", "data"), "case": ("upper", "lower", "keep")}


def read_lines(path: Path) -> list[str]:
    """Read the sentences of a text as they stand there.

    Raises:
        ConfigError: the path is no file.
        DataError: it is not in UTF-8, or no manifest with `text`.
    """
    if path.suffix in (".tsv", ".parquet"):
        manifest = load_manifests([str(path)], "text")
        manifest.require("text", "text")
        return [text or "" for text in manifest.column("text")]
    if not path.is_file():
        raise ConfigError(f"a text must be a file, but {path} {'is a folder' if path.exists() else 'does not exist'}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"a text must be in UTF-8, but {path} is not ({error})") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"a text whose name ends in .gz must be compressed, but {path} is damaged ({error})") from error
    is_transcript = path.name.removesuffix(".gz").endswith(".trans.txt")
    return [line.partition(" ")[2] for line in lines] if is_transcript else lines


def read_words(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Split the command line into texts and keys."""
    given = [word for word in words if "=" in word and word.partition("=")[0] in KEYS]
    paths = [Path(word) for word in words if word not in given]
    keys = KEYS | dict(word.split("=", 1) for word in given)
    keys["vocabulary"] = keys["vocabulary"] or ("fairseq" if keys["case"] == "upper" else "data")
    if not paths or not keys["out"]:
        raise ConfigError("train_ngram must be given texts and out=…, as in: train_ngram.py corpus.txt out=lm.arpa")
    if not keys["order"].isdecimal() or int(keys["order"]) < 1:
        raise ConfigError(f"`order` must be a whole number of at least 1, but is {keys['order']!r}")
    for key, choices in CHOICES.items():
        if keys[key] not in choices:
            raise ConfigError(f"`{key}` must be one of {', '.join(choices)}, but is {keys[key]!r}")
    if keys["vocabulary"] == "fairseq" and keys["case"] != "upper":
        raise ConfigError(f"`case` must be upper with vocabulary=fairseq, but is {keys['case']!r}")
    if any(character.isspace() or character == "|" for character in keys["keep"]):
        raise ConfigError(f"`keep` must be characters other than spaces and '|', but is {keys['keep']!r}")
    return paths, keys


def build_labels(keys: dict[str, str], lines: Sequence[str]) -> Vocabulary:
    """Make the labels of the recogniser, and list on stderr which spoken characters of the lines are none.

    Raises:
        DataError: `vocabulary` is `data`, and the lines have no letters.
    """
    if keys["vocabulary"] == "data" and not any(character.isalpha() for line in lines for character in line):
        raise DataError("a text must have letters with vocabulary=data, but none has")
    vocabulary = build_vocabulary(TextConfig(**{key: keys[key] for key in ("vocabulary", "case", "keep")}), lines)
    counts = vocabulary.unknown_letters(lines)
    left_out = [f"{letter!r} {count} ×" for letter, count in counts.most_common() if not is_silent(letter)]
    if left_out:
        more = f" and {len(left_out) - 20} others" if len(left_out) > 20 else ""
        remedy = "keep=…" if keys["vocabulary"] == "data" else "vocabulary=data, keep=…"
        listed = ", ".join(left_out[:20]) + more
        print(f"train_ngram: left out of words, as outside the vocabulary ({remedy}): {listed}", file=sys.stderr)
    return vocabulary


def run(words: Sequence[str]) -> dict[str, object]:
    """Estimate, write, and measure."""
    paths, keys = read_words(words)
    start = time.monotonic()
    lines = [line for path in paths for line in read_lines(path)]
    test = read_lines(Path(keys["test"])) if keys["test"] else []
    vocabulary = build_labels(keys, [*lines, *test])
    out = resolve_out(keys["out"], "train_ngram", overwrite=True, is_file=True)
    model = train_ngram((vocabulary.normalise(line) for line in lines), int(keys["order"]))
    save_arpa(model, out)
    result: dict[str, object] = {"out": keys["out"], "order": model.order, "ngrams": model.counts}
    if keys["test"]:
        found = model.compute_perplexity(text for text in map(vocabulary.normalise, test) if text)
        result |= {"perplexity": found.perplexity, "num_words": found.num_words, "num_unknown": found.num_unknown}
    return result | {"seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    try:
        print(json.dumps(run(sys.argv[1:])))
    except SpeechSSLError as error:
        print(f"train_ngram: {error}", file=sys.stderr)
        sys.exit(2)
