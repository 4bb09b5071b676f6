"""The labels of fairseq's recognisers: a dictionary in the file or beside it, four special symbols first."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from speechssl.checkpoints.checks import reading
from speechssl.errors import CheckpointError
from speechssl.interop.fairseq.config import find_task
from speechssl.interop.foreign import read_vocabulary
from speechssl.parsing import read_bytes, show
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary

_logger = logging.getLogger("speechssl")

DICTIONARY = "dict.ltr.txt"
"""File of a fine-tuned model's labels, as fairseq's recipes call it; it lies in the data folder there."""

PUBLISHED, MAX_DICTIONARY = "https://dl.fbaipublicfiles.com/fairseq/wav2vec/dict.ltr.txt", 4 << 20
"""Where LibriSpeech's dictionary is published, and the most bytes of one."""

SPECIALS = FAIRSEQ_SYMBOLS[:4]
"""What every dictionary of fairseq begins with; the first is the CTC blank."""

SPELLINGS_OF_SPECIALS = (SPECIALS, ("<pad>", "<s>", *SPECIALS[2:]))
"""How labels may begin to be written: as here, or as Hugging Face names the same rows, whose blank is `<pad>`.

fairseq goes by the row alone: row 0 is the blank, and is called `<s>` there. Rows never move.
"""


def read_labels(path: Path, plain: dict[str, Any], ours: dict[str, Any], num_rows: int, key: str) -> Vocabulary:
    """Find the labels of a head: our own facts, the dictionary in the file or beside it, or LibriSpeech's.

    Args:
        path: of the checkpoint.
        plain: what it says beside its weights, as plain values.
        ours: from `read_extra`.
        num_rows: outputs of the head.

    Raises:
        CheckpointError: there are none, or they do not fit the head.
    """
    beside, labels = path.parent / DICTIONARY, _find_symbols(plain)
    if ours.get("vocabulary") or labels is not None:
        return read_vocabulary(ours, labels or (), num_rows, str(path), key)
    if beside.is_file():
        return read_vocabulary({}, _read_dictionary(beside, key), num_rows, str(beside), key)
    return _assume_librispeech(path, plain, num_rows, key)


def _find_symbols(plain: dict[str, Any]) -> list[str] | None:
    """Find the dictionary that fairseq keeps in its files since 2021; its own reader prefers it too."""
    match plain.get("task_state"):
        case {"target_dictionary": {"symbols": [*symbols]}} if tuple(symbols[: len(SPECIALS)]) == SPECIALS:
            return symbols if all(isinstance(symbol, str) for symbol in symbols) else None
    return None


def _assume_librispeech(path: Path, plain: dict[str, Any], num_rows: int, key: str) -> Vocabulary:
    """Take LibriSpeech's letters where everything in the file points to them: their number and where its data lay.

    Other languages have 32 letters too. The published files say `…/speech/libri/960h/…`.

    Raises:
        CheckpointError: something else is as likely.
    """
    task = find_task(plain)
    has_letters = num_rows == len(FAIRSEQ_SYMBOLS) and task.get("labels") in (None, "ltr")
    if not has_letters or not re.search(r"(?<![a-z])libri", str(task.get("data")).lower()):
        raise CheckpointError(
            f"`{key}` must have {DICTIONARY} beside it, with the labels of its {num_rows} outputs, but {path} has "
            f"none, and does not say that it was trained on LibriSpeech ({PUBLISHED} has the labels of such a model)"
        )
    _logger.warning(
        "%s=%s: no %s in %s: its %d outputs are taken for the letters of LibriSpeech, since it was trained on %s",
        key, path, DICTIONARY, path.parent, num_rows, show(task["data"]),
    )  # fmt: skip
    return Vocabulary(FAIRSEQ_SYMBOLS)


def _read_dictionary(path: Path, key: str) -> tuple[str, ...]:
    """Read `symbol count` lines, as fairseq does: the four specials come first."""
    with reading(path, key, "a model with a dictionary beside it"):
        lines = read_bytes(path, MAX_DICTIONARY).decode("utf-8-sig").split("\n")
    rows = [line.rstrip().rsplit(" ", 1) for line in lines if line.strip()]
    if not all(len(row) == 2 and row[1].isascii() and row[1].isdigit() for row in rows):
        raise CheckpointError(f"`{key}` must have a dictionary of `symbol count` lines, but {path} has others")
    return (*SPECIALS, *(row[0] for row in rows))


def check_dictionary(vocabulary: Vocabulary | None) -> None:
    """Check that a vocabulary can be a dictionary of fairseq's.

    Raises:
        CheckpointError: it does not begin with fairseq's special symbols.
    """
    if vocabulary is not None and vocabulary.symbols[: len(SPECIALS)] not in SPELLINGS_OF_SPECIALS:
        wanted = " or ".join(" ".join(specials) for specials in SPELLINGS_OF_SPECIALS)
        raise CheckpointError(
            f"`checkpoint` must have labels that begin with {wanted} to be written for fairseq, but has "
            f"{' '.join(vocabulary.symbols[: len(SPECIALS)])}"
        )


def write_dictionary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the dictionary beside a checkpoint, with a warning where another one lay there."""
    # fairseq reads "symbol count"; the counts only mattered when the dictionary was made.
    lines = "".join(f"{symbol} 1\n" for symbol in vocabulary.symbols[len(SPECIALS) :])
    dictionary = folder / DICTIONARY
    if dictionary.exists() and dictionary.read_text(encoding="utf-8", errors="replace") != lines:
        _logger.warning("%s had other labels: fairseq reads other checkpoints beside it wrongly now", dictionary)
    dictionary.write_text(lines, encoding="utf-8")
