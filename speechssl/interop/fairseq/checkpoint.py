"""fairseq's `.pt` files of wav2vec 2.0, pretrained and fine-tuned with CTC: in and out, without fairseq.

HuBERT's, data2vec's and those of WavLM's authors, whose code began as fairseq's, are read too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoints.checks import reading
from speechssl.checkpoints.model_folder import ModelCard, build_config
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.fairseq.config import find_family, find_sections, read_config, write_config
from speechssl.interop.fairseq.labels import check_dictionary, read_labels, write_dictionary
from speechssl.interop.files import detach
from speechssl.interop.foreign import OURS, Foreign, find_kind, make_extra, read_extra
from speechssl.interop.inert_pickle import StoredTensor, simplify
from speechssl.interop.names import WRAPPERS, export_weights, respell, take_weights
from speechssl.interop.torch_file import StoredFile, look_into
from speechssl.model.speech_model import SpeechModel
from speechssl.parsing import show

FAIRSEQ_WRAPPERS = (*WRAPPERS, "w2v_encoder.", "w2v_model.")
"""What stands before a name: a fine-tuned model puts `w2v_encoder.w2v_model.` before the network's."""

HEADS = ("quantizer.", "project_q.", "final_proj.", "label_embs_concat", "target_glu.")
"""Weights of pretraining, which some fine-tuned files kept, and which only wav2vec 2.0's have a place for here."""


def read_fairseq(path: Path, key: str = "checkpoint") -> Foreign:
    """Read a file of fairseq's, of any version, without running anything in it.

    Args:
        path: of the `.pt` file. A fine-tuned model's labels are read from the dictionary in it, as fairseq writes it
            since 2021, or from dict.ltr.txt beside it; without both they are LibriSpeech's, with a warning, where
            the file has 32 outputs and was trained on data in a folder of that name.

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
        sections = find_sections(plain, is_finetuned, str(path), key)
        if kind == "pretraining" and find_family(sections) != "wav2vec2":
            kind = "backbone"
        config, left = read_config(sections, kind, str(path), key)
    if kind != "pretraining" and (extra := sorted(name for name in source if name.startswith(HEADS))):
        source = {name: value for name, value in source.items() if name not in extra}
        dropped = (*dropped, "heads of pretraining")
    weights = take_weights(source, config, kind, "fairseq", str(path), key)
    vocabulary = read_labels(path, plain, ours, len(weights["head.linear.bias"]), key) if kind == "ctc" else None
    card = ModelCard(kind, config, vocabulary, ours.get("update", _find_update(plain)))
    return Foreign("fairseq", card, weights, (*dropped, *left), says_padding=bool(ours))


def write_fairseq(model: SpeechModel, path: Path, update: int = 0) -> None:
    """Write a file that fairseq's `wav2vec2` or `wav2vec_ctc` loads strictly, of plain values alone.

    Args:
        model: a pretraining model or a recogniser.
        path: of the file. The labels of a recogniser are written to dict.ltr.txt beside it, which fairseq wants in
            its data folder.

    Raises:
        CheckpointError: fairseq has no model for it: one without heads, or labels that are no dictionary of fairseq's.
    """
    kind, config = find_kind(model), model.config
    if kind == "backbone":
        raise CheckpointError(
            "`checkpoint` must have a CTC head or the heads of pretraining to be written for fairseq, but has neither"
        )
    check_dictionary(model.vocabulary)
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
        write_dictionary(path.parent, model.vocabulary)


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
