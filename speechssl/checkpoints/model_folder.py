"""The package's own checkpoints: a folder with weights (safetensors) and what is needed to build the model again."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from math import prod
from pathlib import Path
from typing import Any, cast, get_type_hints

import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from speechssl.checkpoints.adapted import check_frozen, count_learned, keep_learned
from speechssl.checkpoints.checks import (
    SHARED,
    check_header,
    check_names,
    check_shapes,
    join,
    read_json,
    reading,
    restore_vocabulary,
)
from speechssl.checkpoints.sharding import gather_whole, spread_like
from speechssl.config.adaptation import Adaptation
from speechssl.config.model import ModelConfig
from speechssl.durable import save_tensors
from speechssl.errors import CheckpointError, ConfigError, SpeechSSLError
from speechssl.model.speech_model import SpeechModel
from speechssl.parsing import read_bytes, show
from speechssl.text.pieces import MAX_BYTES
from speechssl.text.vocabulary import Vocabulary

FORMAT_VERSION = 1
WEIGHTS, AVERAGED, CONFIG = "model.safetensors", "ema.safetensors", "config.json"

PIECES = "sentencepiece.model"
"""The file of a vocabulary's pieces, which sentencepiece itself opens too."""

LEARNED = "objective."
"""How the names of weights begin that only the pretraining of a checkpoint needs: a `SpeechModel` has no such part."""

_logger = logging.getLogger("speechssl")

WEIGHT_FILES = {"model": WEIGHTS, "ema": AVERAGED}
"""Value of the key `weights` → the file of a checkpoint that it stands for; both have one layout."""


KINDS, MAX_UPDATE = ("pretraining", "ctc", "backbone"), 2**53

_CARD = {"version": int, "kind": str, "update": int, "model": dict}
"""What `config.json` of a checkpoint must say, and of which type; `vocabulary` is a mapping or null."""

TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a finite number", lambda value: type(value) in (int, float) and abs(value) < 1e300),
    str: ("text", lambda value: type(value) is str),
    list[str]: ("a list of texts", lambda value: type(value) is list and {*map(type, value)} <= {str}),
    list[int]: ("a list of whole numbers", lambda value: type(value) is list and {*map(type, value)} <= {int}),
}
"""What a value of each type of key is called, and how it is recognised: True is a number to Python."""


@dataclass(frozen=True)
class ModelCard:
    """What `config.json` of a checkpoint says.

    Attributes:
        kind: `pretraining`, `ctc`, or `backbone` for a model without heads.
        model: the network.
        vocabulary: of a recogniser.
        update: how far the training had come.
        validated: which of its weights the training validated, and so chose the best checkpoint by: `model` or `ema`.
        adaptation: of a checkpoint that holds only what has learned beside the frozen weights of another.
    """

    kind: str
    model: ModelConfig
    vocabulary: Vocabulary | None
    update: int
    validated: str = "model"
    adaptation: Adaptation | None = None


def find_checkpoint(checkpoint: str, key: str = "checkpoint") -> Path:
    """Find the checkpoint folder that a `checkpoint=` or `init=` value names.

    Args:
        checkpoint: a run folder (its best checkpoint) or one checkpoint folder.
        key: named in the error.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(checkpoint)
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        return path
    for name in ("best", "last"):
        if (path / "checkpoints" / name / CONFIG).is_file():
            return path / "checkpoints" / name
    if not path.exists():
        raise CheckpointError(f"`{key}` must be a run folder or a checkpoint, but {checkpoint} does not exist")
    others = sorted(folder.parent.name for folder in path.glob(f"checkpoints/update-*/{CONFIG}"))
    found = f"neither best nor last, only {', '.join(others)}: name one of these" if others else "no checkpoint"
    raise CheckpointError(f"`{key}` must be a run folder or a checkpoint, but {checkpoint} holds {found}")


def read_card(folder: Path, key: str = "checkpoint") -> ModelCard:
    """Read what a checkpoint holds, without its weights.

    Raises:
        CheckpointError: the file is damaged or of a later version.
    """
    path = folder / CONFIG
    stored = read_json(path, key)
    wrong = [name for name, kind in _CARD.items() if type(stored.get(name)) is not kind]
    if not isinstance(stored.get("vocabulary", ""), dict | None):
        wrong.append("vocabulary")
    validated = stored.get("validated", "model")
    if not isinstance(validated, str) or validated not in WEIGHT_FILES:
        wrong.append("validated")
    if wrong:
        raise CheckpointError(f"`{key}` must be a whole checkpoint, but {path} does not say {join(wrong)} as it should")
    version, kind, update = stored["version"], stored["kind"], stored["update"]
    if version != FORMAT_VERSION:
        raise CheckpointError(f"`{key}` must be of format {FORMAT_VERSION}, but {folder} is of format {show(version)}")
    if kind not in KINDS or not 0 <= update <= MAX_UPDATE or (kind == "ctc") != bool(stored["vocabulary"]):
        problem = f"{path} has kind {show(kind)}, update {show(update)} and {len(stored['vocabulary'] or ())} symbols"
        raise CheckpointError(f"`{key}` must be a whole checkpoint, but {problem}")
    labels = (
        restore_vocabulary(_find_pieces(stored["vocabulary"], folder, key), str(path), key) if kind == "ctc" else None
    )
    given = stored.get("adaptation")
    adaptation = None if given is None else build_config(Adaptation, given, key)
    if adaptation and kind != "ctc":
        raise CheckpointError(f"`{key}` must be a recogniser where it is adapted, but {path} has kind {kind}")
    return ModelCard(kind, build_config(ModelConfig, stored["model"], key), labels, update, validated, adaptation)


def _find_pieces(vocabulary: dict[str, Any], folder: Path, key: str) -> dict[str, Any]:
    """Take into what a card says of its vocabulary the pieces that lie beside it."""
    if "pieces" not in vocabulary:
        return vocabulary
    with reading(folder / PIECES, key):
        return vocabulary | {"pieces": base64.b64encode(read_bytes(folder / PIECES, MAX_BYTES)).decode()}


def list_card_files(folder: Path) -> list[str]:
    """Name the files of a checkpoint that `read_card` reads."""
    return [CONFIG, PIECES] if (folder / PIECES).exists() else [CONFIG]


def build_config(schema: type[Any], values: object, key: str = "checkpoint") -> Any:
    """Build a configuration dataclass from plain values; keys it does not have are an error.

    Args:
        schema: the dataclass.
        values: a mapping, as JSON gives it.
        key: the key that errors name.

    Raises:
        CheckpointError: an unknown key, or a value of the wrong type or out of range.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"`{key}` must have a mapping as its configuration, but has {show(values)}")
    hints = get_type_hints(schema)
    unknown = sorted(set(values) - {item.name for item in fields(schema)})
    if unknown:
        raise CheckpointError(f"`{key}` must have a configuration that this version knows, but has {show(unknown)}")
    needed = {item.name for item in fields(schema) if item.default is MISSING and item.default_factory is MISSING}
    if missing := sorted(needed - set(values)):
        raise CheckpointError(f"`{key}` must have {missing[0]} in its configuration, but has {show(sorted(values))}")
    built = {name: _read_value(hints[name], name, value, key) for name, value in values.items()}
    try:
        return schema(**built)
    except ConfigError as error:
        raise CheckpointError(f"`{key}` must be a network that can be built, but {error}") from error


def _read_value(hint: Any, name: str, value: Any, key: str) -> Any:
    """Read one value of a configuration, of exactly the type that its key has; a whole number will do for a float."""
    if is_dataclass(hint):
        return build_config(cast(type[Any], hint), value, key)
    must, fits = TYPES[hint]
    if not fits(value):
        raise CheckpointError(f"`{key}` must have {must} as {name} in its configuration, but has {show(value)}")
    return float(value) if hint is float else value


def check_stored(card: ModelCard, folder: Path, key: str = "checkpoint", weights: str = "model") -> None:
    """See from the header of the weights that they can be those of a network, before memory is taken for it.

    Args:
        card: of the checkpoint.
        folder: of the checkpoint.
        key: named in the error.
        weights: `model`, or `ema` for their moving average.

    Raises:
        CheckpointError: the file is damaged, or too small for what its card describes, or there is no average.
    """
    path = _find_weights(folder, weights)
    with reading(path, key):
        check_header(path)
        with safe_open(path, framework="pt") as file:
            count = sum(prod(file.get_slice(name).get_shape()) for name in set(file.keys()))
    adaptation = card.adaptation
    products = count_learned(card.model, adaptation) if adaptation else _count_products(card.model, card.kind)
    least = products + len(card.vocabulary or ()) * card.model.model_dim
    if count < least:
        problem = f"{path} has {count:,} numbers, and {CONFIG} beside it describes {least:,} or more"
        raise CheckpointError(f"`{key}` must be a whole checkpoint, but {problem}")


def _count_products(config: ModelConfig, kind: str) -> int:
    """Count the weights of the matrix products, without biases, norms and head: what grows with a product of sizes."""
    dim, features = config.model_dim, config.feature_dim
    count = config.num_front_end_weights + config.num_position_weights + (features != dim) * features * dim
    count += config.num_layers * config.num_block_weights
    if kind == "pretraining":
        codes, width = config.quantizer.num_codes, config.quantizer.codevector_dim
        count += features * config.quantizer.num_groups * codes + codes * width + (width + dim) * config.target_dim
    return count


def _find_weights(folder: Path, weights: str) -> Path:
    path = folder / WEIGHT_FILES[weights]
    if weights != "model" and not path.exists():
        raise CheckpointError(no_average(f"{folder} has none"))
    return path


def load_weights(
    model: SpeechModel, folder: Path, key: str = "checkpoint", weights: str = "model", log: bool = True
) -> None:
    """Load all weights that a model's checkpoint holds; none may be missing or left over but parts of an objective.

    Args:
        model: gets them.
        folder: of the checkpoint.
        key: named in the error.
        weights: `model`, or `ema` for their moving average.
        log: say in one line which parts of an objective are left over.

    Raises:
        CheckpointError: the file is damaged or does not fit, or there is no average; or the weights that the model was
            adapted from are others than when the checkpoint was made.
    """
    path = _find_weights(folder, weights)
    if model.adaptation is not None:
        check_frozen(model, read_card(folder, key).adaptation, folder, key)
    with reading(path, key):
        stored = safetensors.torch.load_file(path)
    own = keep_learned(model.state_dict(), model)
    aside = [name for name in stored if name.startswith(LEARNED) and name not in own]
    stored = {name: value for name, value in stored.items() if name not in aside}
    expected = {name: value for name, value in own.items() if not name.startswith(SHARED)}
    check_names(expected, stored, key, str(path))
    check_shapes(expected, stored, key, str(path))
    state = _expand(model, {name: spread_like(value, own[name]) for name, value in stored.items()})
    model.load_state_dict(state, strict=model.adaptation is None)
    if aside and log:
        _logger.info("%s=%s: left out is what only its pretraining needs: %s", key, folder, join(sorted(aside)))


def no_average(problem: str) -> str:
    """Say that `weights=ema` was asked for where there is no average."""
    return f"`weights` must be model where training kept no average (training.ema_decay), but is ema, and {problem}"


def save_model(model: SpeechModel, folder: str | Path, update: int = 0) -> None:
    """Write weights and configuration into a folder.

    Args:
        model: to save.
        folder: made if it is missing.
        update: how far the training had come.
    """
    write_model_files(Path(folder), collect_weights(model), describe_model(model, update))


def collect_weights(model: SpeechModel) -> dict[str, torch.Tensor]:
    """Name each tensor that a model's checkpoint holds once: the backbone is shared with the pretraining part.

    Weights that are spread over processes are gathered: every one must call it, and rank 0 alone gets them.
    """
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("pretraining.backbone.")}
    return gather_whole(keep_learned(weights, model))


def describe_model(model: SpeechModel, update: int, validated: str = "model") -> dict[str, Any]:
    """Make the content of `config.json`: all that building the model again needs beside its weights."""
    adaptation = model.adaptation
    return {
        "version": FORMAT_VERSION,
        "kind": "ctc" if model.head is not None else "pretraining" if model.pretraining is not None else "backbone",
        "update": update,
        "model": asdict(model.config),
        "vocabulary": model.vocabulary.to_dict() if model.vocabulary else None,
        **({} if validated == "model" else {"validated": validated}),
        **({} if adaptation is None else {"adaptation": asdict(adaptation)}),
    }


def write_model_files(folder: Path, weights: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Write what `collect_weights` and `describe_model` gave; the folder is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    vocabulary = description["vocabulary"]
    (folder / PIECES).unlink(missing_ok=True)
    if vocabulary and "pieces" in vocabulary:
        (folder / PIECES).write_bytes(base64.b64decode(vocabulary["pieces"]))
        description = description | {"vocabulary": vocabulary | {"pieces": PIECES}}
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def build_untrained(model: SpeechModel, seed: int) -> SpeechModel:
    """Build the same network with fresh weights: the baseline of what training gave. In evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = SpeechModel(model.config)
    return fresh.to(model.device).eval().requires_grad_(False)


def load_backbone_into(model: SpeechModel, source: SpeechModel, num_blocks: int | None = None) -> None:
    """Copy the backbone of `source` into `model` (fine-tuning, continued pretraining).

    Adapters that `source` lacks keep what `model` has.

    Args:
        model: gets the weights.
        source: has them.
        num_blocks: copy only so many transformer blocks, from the first; the others, and the norm that
            follows the last one, keep what `model` has. None copies all.

    Raises:
        SpeechSSLError: the networks have different shapes.
    """
    own, weights = model.backbone.state_dict(), source.backbone.state_dict()
    kept = list_after_block(model, num_blocks)
    is_new = {name for name in own if ".adapter." in name and name not in weights}
    own = {name: value for name, value in own.items() if name.startswith(kept) or name in is_new}
    load_into(model.backbone, {**weights, **own})


def load_into(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights that `init` has into what is to be trained.

    Raises:
        SpeechSSLError: they have different shapes or names.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        problem = " ".join(str(error).split("\n", 2)[1].split()) if "\n" in str(error) else str(error)
        raise SpeechSSLError(f"`init` must have the shape of `model`, but does not: {problem}") from error


def list_after_block(model: SpeechModel, num_blocks: int | None) -> tuple[str, ...]:
    """List how the names of the backbone's weights begin that come after its first `num_blocks` transformer blocks."""
    last = model.config.num_layers
    if num_blocks is None or num_blocks == last:
        return ()
    blocks = tuple(f"transformer.blocks.{number}." for number in range(num_blocks, last))
    # Post-norm models have this norm before the first block.
    return (*blocks, "transformer.norm.") if model.config.norm_first else blocks


def _expand(model: SpeechModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `collect_weights`."""
    if model.pretraining is None:
        return weights
    shared = {f"pretraining.{k}": v for k, v in weights.items() if k.startswith("backbone.")}
    return {**weights, **shared}
