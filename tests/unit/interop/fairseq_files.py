"""Files as fairseq's versions wrote them, made without fairseq: what the tests of its reader open."""

from __future__ import annotations

import argparse
import enum
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from speechssl.interop.fairseq.checkpoint import write_fairseq
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS

LAYOUTS = ("plain", "namespace", "namespace inside", "untyped DictConfig", "structured DictConfig", "stand-in classes")


LIBRISPEECH = "/checkpoint/data/speech/libri/960h/raw"
"""Where the data of the published models lay; it says which 32 letters their outputs are."""


def export(model: SpeechModel, folder: Path) -> dict[str, Any]:
    """What our own writer puts into a file, as plain values and without our own facts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_fairseq(model, folder / "export.pt", update=7)
    (folder / "dict.ltr.txt").unlink(missing_ok=True)
    stored: dict[str, Any] = torch.load(folder / "export.pt", weights_only=True)
    (folder / "export.pt").unlink()
    del stored["speechssl"]
    stored["cfg"]["task"]["data"] = LIBRISPEECH
    return stored


def write(stored: dict[str, Any], layout: str, path: Path, is_zip: bool = True, half: bool = False) -> None:
    """Write a file with its configuration in one of `LAYOUTS`, with everything else that a real file has."""
    weights = {name: value.half() if half else value for name, value in stored["model"].items()}
    some = next(iter(weights.values()))
    state = {
        **stored,
        "model": weights,
        "extra_state": {"epoch": 3, "best": torch.tensor(2.5).numpy()[()], "metrics": [("train", {"loss": 1.0})]},
        "last_optimizer_state": {"state": {0: {"step": 7, "exp_avg": torch.zeros_like(some)}}, "param_groups": []},
    }
    with stand_ins() as classes:
        state |= arrange(stored["cfg"], layout, classes)
        torch.save(state, path, _use_new_zipfile_serialization=is_zip)


def arrange(cfg: dict[str, Any], layout: str, classes: types.ModuleType) -> dict[str, Any]:
    """Give `args` and `cfg` as a layout has them."""
    match layout:
        case "plain":
            return {"args": None, "cfg": cfg}
        case "namespace":
            return {"args": flatten(cfg), "cfg": None}
        case "namespace inside":
            return {"args": None, "cfg": {name: argparse.Namespace(**part) for name, part in cfg.items()}}
        case "untyped DictConfig":
            return {"args": None, "cfg": OmegaConf.create(cfg)}
        case "structured DictConfig":
            parts = {name: structure(part, classes) for name, part in cfg.items() if name != "common"}
            return {"args": None, "cfg": OmegaConf.create({"common": {}, **parts})}
        case _:
            objects = {"cfg": cfg, "task_state": {"target_dictionary": classes.Dictionary()}}
            return {"args": None, **objects, "criterion": classes.Choice.layer_norm}


def flatten(cfg: dict[str, Any]) -> argparse.Namespace:
    """Make the one namespace of 2020, in which a fine-tuned model has another one as `w2v_args`."""
    flat = {**cfg["criterion"], **cfg["task"], **cfg["model"]}
    if "w2v_args" in flat:
        flat["w2v_args"] = flatten(flat["w2v_args"])
    flat["arch"] = flat.pop("_name")
    if "latent_temp" in flat:
        flat["latent_temp"] = str(tuple(flat["latent_temp"]))
    return argparse.Namespace(**flat)


def structure(part: dict[str, Any], classes: types.ModuleType) -> Any:
    """Make a DictConfig with a class of fairseq's behind it, and its enumerations for choices."""
    fields: list[Any] = []
    for name, value in part.items():
        if name == "extractor_mode":
            fields.append((name, classes.Choice, field(default=classes.Choice[value])))
        elif isinstance(value, (dict, list)):
            fields.append((name, Any, field(default_factory=lambda value=value: value)))
        else:
            fields.append((name, type(value), field(default=value)))
    name = f"{part['_name']}_config"
    schema = make_dataclass(name, fields)
    schema.__module__ = classes.__name__
    setattr(classes, name, schema)
    return OmegaConf.structured(schema)


@contextmanager
def stand_ins(symbols: Sequence[str] = FAIRSEQ_SYMBOLS) -> Iterator[types.ModuleType]:
    """A module as fairseq's would be, with a dictionary of symbols, which is gone when the file is read."""
    module = types.ModuleType("fairseq_stand_in")
    choice = enum.Enum("Choice", {"default": "default", "layer_norm": "layer_norm"}, module=module.__name__)

    @dataclass
    class Dictionary:
        symbols: list[str] = field(default_factory=lambda: list(symbols))
        indices: dict[str, int] = field(default_factory=lambda: {s: n for n, s in enumerate(symbols)})

    Dictionary.__module__, Dictionary.__qualname__ = module.__name__, "Dictionary"
    module.Choice, module.Dictionary = choice, Dictionary  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


def assert_same_weights(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare weights bit for bit."""
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
