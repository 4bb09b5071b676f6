"""`speechssl convert`: between our checkpoints, Hugging Face folders, fairseq `.pt`, torchaudio files; ONNX out."""

from __future__ import annotations

import logging
import shlex
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from speechssl.checkpoints.layout import DECODING, RESULT
from speechssl.config.verbs import ConvertConfig
from speechssl.durable import remove, write_result, writing
from speechssl.errors import ConfigError
from speechssl.interop.foreign import Foreign, build_model, describe
from speechssl.interop.huggingface.families import has_class
from speechssl.interop.huggingface.hub import push_to_hub, require_hub
from speechssl.interop.huggingface.own_code import NOTE
from speechssl.interop.load import list_choices, open_checkpoint, write_model
from speechssl.interop.onnx import check_packages
from speechssl.interop.onnx_file import quantize_onnx
from speechssl.model.speech_model import SpeechModel
from speechssl.report.model_card import describe_run
from speechssl.verbs.frame import verb
from speechssl.verbs.kept import find_kept, write_kept
from speechssl.verbs.output import replacing_result, resolve_out

FILES = {"fairseq": "model.pt", "torchaudio": "model.pt", "onnx": "model.onnx", "onnx_features": "model.onnx"}
"""The formats that are one file, and its name where `out` is a folder."""

_logger = logging.getLogger("speechssl")


@verb
def convert(config: ConvertConfig) -> dict[str, Any]:
    """Read one checkpoint, write it in another format, and return what was read, chosen, written and left behind.

    `out` with a suffix is a file; without one it is a folder and gets `result.json` as well. `to=speechssl` takes along
    the weights of a language model that `tune` kept.

    Raises:
        CheckpointError: the checkpoint does not load, or the format has no place for its network.
        ConfigError: `out` cannot be written or holds a finished result, or the format's packages are not installed.
    """
    if config.push:
        require_hub("push")
    foreign = open_checkpoint(config.checkpoint, weights=config.weights, language=config.language)
    model = build_model(foreign)
    choices = list_choices(foreign)
    kept = find_kept(config.checkpoint) if config.to == "speechssl" else None
    _logger.info("; ".join([describe(foreign), *choices]))
    is_file = config.to in FILES and bool(Path(config.out).suffix) and not Path(config.out).is_dir()
    out = resolve_out(config.out, "convert", config.overwrite, is_file=is_file)
    target = out / FILES[config.to] if config.to in FILES and not is_file else out
    _check_free(target, config)
    # That is what safetensors and torch say of a full disk; an export to ONNX has other reasons to fail.
    also = (SafetensorError,) if config.to.startswith("onnx") else (SafetensorError, RuntimeError)
    with nullcontext() if is_file else replacing_result(out), writing(target, also=also):
        dropped, sizes = _write(model, target, config, foreign.card.update)
        if config.to == "speechssl":
            remove(target / DECODING)
        if kept:
            write_kept(target, kept)
    result = _summarise(config, foreign) | {
        "out": str(target),
        **sizes,
        "left_behind": [*foreign.dropped, *dropped],
        "notes": [*foreign.notes, *choices],
    }
    if config.to == "huggingface":
        result["notes"] += [] if has_class(model.config) else [NOTE]
    if not is_file:
        write_result(out, result)
    if config.push:
        result["url"] = push_to_hub(out, config.push)
    elif config.to == "huggingface":
        name = shlex.quote(out.resolve().name)
        _logger.info("to upload it: hf upload %s %s --exclude %s", name, shlex.quote(str(out)), RESULT)
    return result


def _write(
    model: SpeechModel, target: Path, config: ConvertConfig, update: int
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Write a model, and say what was left behind and how large the files of an export are, in bytes."""
    if config.to == "huggingface":
        return write_model(model, target, config.to, update, describe_run(config.checkpoint, update)), {}
    if not config.to.startswith("onnx"):
        return write_model(model, target, config.to, update), {}
    if not config.quantize:
        dropped = write_model(model, target, config.to, update)
        return dropped, {"bytes": _measure(target)}
    check_packages(("onnx", "onnxruntime"))
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        whole = Path(folder) / target.name
        dropped = write_model(model, whole, config.to, update)
        quantize_onnx(whole, target)
        sizes = {"bytes": _measure(target), "bytes_float32": _measure(whole)}
    _logger.info("%.1f MB in int8, %.1f MB in float32", sizes["bytes"] / 1e6, sizes["bytes_float32"] / 1e6)
    return dropped, sizes


def _measure(path: Path) -> int:
    """Measure an ONNX file and the data beside it, in bytes."""
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.exists())


def _check_free(target: Path, config: ConvertConfig) -> None:
    """Make sure that what is written beside the weights is not somebody else's.

    Raises:
        ConfigError: files are there and `overwrite` is false, or they belong to other weights.
    """
    written: list[Path] = []
    if config.to not in FILES:
        written = [target / name for name in ("config.json", "model.safetensors")]
    elif config.to == "torchaudio":
        written = [target.with_suffix(".json")]
    taken = next((path for path in written if path.exists()), None)
    if taken is None:
        return
    if not config.overwrite:
        raise ConfigError(f"`out` must be a new place, but {taken} is there (overwrite=true replaces it)")
    owners = [path for path in (taken.with_suffix(s) for s in (".pt", ".safetensors")) if path.exists()]
    if config.to == "torchaudio" and owners and not target.exists():
        raise ConfigError(f"`out` must have a name of its own, but {taken} tells of {owners[0]}")


def _summarise(config: ConvertConfig, foreign: Foreign) -> dict[str, Any]:
    """Say what was read: family, kind, size, vocabulary, and what decides the audio that enters."""
    card = foreign.card
    return {
        "checkpoint": config.checkpoint,
        "from": foreign.family,
        "to": config.to,
        "kind": card.kind,
        "model": card.model.name,
        "parameters": sum(value.numel() for value in foreign.weights.values()),
        "num_symbols": len(card.vocabulary) if card.vocabulary else None,
        "normalize_waveform": card.model.normalize_waveform,
        "waveform_epsilon": card.model.waveform_epsilon,
        "group_norm_frames": card.model.group_norm_frames if card.model.can_see_padding else None,
    }
