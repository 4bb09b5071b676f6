"""fairseq's `.pt` files of wav2vec 2.0, pretrained and fine-tuned with CTC: in and out, without fairseq."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoints.checks import reading
from speechssl.checkpoints.model_folder import ModelCard, build_config
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.fairseq.config import find_sections, find_task, read_config, write_config
from speechssl.interop.files import detach
from speechssl.interop.foreign import OURS, Foreign, find_kind, make_extra, read_extra, read_vocabulary
from speechssl.interop.inert_pickle import StoredTensor, simplify
from speechssl.interop.names import WRAPPERS, export_weights, respell, take_weights
from speechssl.interop.torch_file import StoredFile, look_into
from speechssl.model.speech_model import SpeechModel
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

FAIRSEQ_WRAPPERS = (*WRAPPERS, "w2v_encoder.", "w2v_model.")
"""What stands before a name: a fine-tuned model puts `w2v_encoder.w2v_model.` before the network's."""

HEADS = ("quantizer.", "project_q.", "final_proj.")
"""Weights of pretraining, which some fine-tuned files kept."""


def read_fairseq(path: Path, key: str = "checkpoint") -> Foreign:
    """Read a file of fairseq's, of any version, without running anything in it.

    Args:
        path: of the `.pt` file. A fine-tuned model's labels are read from the dictionary in it, as fairseq writes it
            since 2021, or from dict.ltr.txt beside it; without both they are LibriSpeech's, with a warning, where
            the file has 32 outputs and learnt from data in a folder of that name.
        key: the key that errors name.

    Returns:
        The model; float16 weights become float32.

    Raises:
        CheckpointError: the file is damaged, its configuration asks for what is not here, or weights or labels are
            missing or left over.
    """
    stored = look_into(path, key)
    tensors, dropped = _find_tensors(stored, key)
    source = respell(tensors, "fairseq", str(path), key, FAIRSEQ_WRAPPERS)
    kind = "ctc" if "proj.weight" in source else "pretraining" if "final_proj.weight" in source else "backbone"
    plain = _read_plain(stored, key)
    ours = read_extra(plain, key)
    is_finetuned = any("w2v_encoder." in name for name in tensors)
    left: tuple[str, ...] = ()
    if ours:
        config = build_config(ModelConfig, ours["model"], key)
    else:
        config, left = read_config(find_sections(plain, is_finetuned, str(path), key), kind, str(path), key)
    if kind == "ctc" and (extra := sorted(name for name in source if name.startswith(HEADS))):
        source = {name: value for name, value in source.items() if name not in extra}
        dropped = (*dropped, "heads of pretraining")
    weights = take_weights(source, config, kind, "fairseq", str(path), key)
    vocabulary = _read_vocabulary(path, plain, ours, len(weights["head.linear.bias"]), key) if kind == "ctc" else None
    card = ModelCard(kind, config, vocabulary, ours.get("update", _find_update(plain)))
    return Foreign("fairseq", card, weights, (*dropped, *left), says_padding=bool(ours))


def write_fairseq(model: SpeechModel, path: Path, update: int = 0) -> None:
    """Write a file that fairseq's `wav2vec2` or `wav2vec_ctc` loads strictly, of plain values alone.

    Args:
        model: a pretraining model or a recogniser.
        path: of the file. The labels of a recogniser are written to dict.ltr.txt beside it, which fairseq wants in
            its data folder.
        update: how far the training had come.

    Raises:
        CheckpointError: fairseq has no model for it: one without heads, or labels that are no dictionary of fairseq's.
    """
    kind, config = find_kind(model), model.config
    if kind == "backbone":
        raise CheckpointError(
            "`checkpoint` must have a CTC head or the heads of pretraining to be written for fairseq, but has neither"
        )
    if model.vocabulary is not None and model.vocabulary.symbols[: len(SPECIALS)] not in SPELLINGS_OF_SPECIALS:
        wanted = " or ".join(" ".join(specials) for specials in SPELLINGS_OF_SPECIALS)
        raise CheckpointError(
            f"`checkpoint` must have labels that begin with {wanted} to be written for fairseq, but has "
            f"{' '.join(model.vocabulary.symbols[: len(SPECIALS)])}"
        )
    weights = export_weights(model, "fairseq")
    if kind == "ctc":
        weights = {
            f"w2v_encoder.{'' if name.startswith('proj.') else 'w2v_model.'}{name}": value
            for name, value in weights.items()
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        "args": None,
        "cfg": write_config(config, kind),
        "model": detach(weights),
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": update}
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
        OURS: make_extra(model, update),
    }
    torch.save(stored, path)
    if model.vocabulary is not None:
        # fairseq reads "symbol count"; the counts only mattered when the dictionary was made.
        lines = "".join(f"{symbol} 1\n" for symbol in model.vocabulary.symbols[len(SPECIALS) :])
        dictionary = path.parent / DICTIONARY
        if dictionary.exists() and dictionary.read_text(encoding="utf-8", errors="replace") != lines:
            _logger.warning("%s had other labels: fairseq reads other checkpoints beside it wrongly now", dictionary)
        dictionary.write_text(lines, encoding="utf-8")


def _find_tensors(stored: StoredFile, key: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the weights; what is no tensor among them, such as a moving average, is left behind and named."""
    content = stored.content
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise CheckpointError(f"`{key}` must be a checkpoint of fairseq, but {stored.path} holds no model")
    found = {name: value for name, value in model.items() if isinstance(value, StoredTensor)}
    others = tuple(sorted(f"model[{show(name)}]" for name in model if name not in found))
    if not any(re.search(r"post_extract_proj|self_attn\.", name) for name in found):
        raise CheckpointError(f"`{key}` must be wav2vec 2.0 of fairseq, but the weights in {stored.path} are not")
    return stored.read(found, key), others


def _read_plain(stored: StoredFile, key: str) -> dict[str, Any]:
    """Read what stands beside the weights: the configurations, how far it was trained, our own facts."""
    names = ("cfg", "args", "optimizer_history", "task_state", OURS)
    with reading(stored.path, key, "a checkpoint whose configuration can be read"):
        return {name: simplify(stored.content[name]) for name in names if name in stored.content}


def _find_update(plain: dict[str, Any]) -> int:
    """Find how many updates the model was trained for; 0 where the file does not say."""
    match plain.get("optimizer_history"):
        case [*_, {"num_updates": int(update)}] if update >= 0 and type(update) is int:
            return update
    return 0


def _read_vocabulary(path: Path, plain: dict[str, Any], ours: dict[str, Any], num_rows: int, key: str) -> Vocabulary:
    """Find the labels of a head: our own facts, the dictionary in the file or beside it, or LibriSpeech's."""
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
            f"none, and does not say that it learnt from LibriSpeech ({PUBLISHED} has the labels of such a model)"
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
