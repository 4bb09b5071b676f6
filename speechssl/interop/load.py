"""The one entrance of `checkpoint=` and `init=`, and the one exit of `save` and `convert`."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from speechssl.advice import spell
from speechssl.checkpoints.checks import join, read_json, reading
from speechssl.checkpoints.checksums import CHECKSUMS, check_whole
from speechssl.checkpoints.model_folder import (
    AVERAGED,
    CONFIG,
    WEIGHT_FILES,
    ModelCard,
    check_stored,
    find_checkpoint,
    load_weights,
    no_average,
    read_card,
    save_model,
)
from speechssl.config.knobs import check_choice
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.onnx_model import AnyModel
from speechssl.interop.adapted import build_adapted
from speechssl.interop.fairseq.checkpoint import read_fairseq, write_fairseq
from speechssl.interop.files import list_tensors
from speechssl.interop.foreign import Foreign, build_model, describe, wrap
from speechssl.interop.huggingface.card import write_card
from speechssl.interop.huggingface.families import BARE_WAV2VEC2, WAVLM, check_fits, has_class
from speechssl.interop.huggingface.folder import list_left_behind as list_unplaced
from speechssl.interop.huggingface.folder import read_huggingface, refuse_unmerged, write_huggingface
from speechssl.interop.huggingface.hub import fetch_from_hub, is_hub_id
from speechssl.interop.huggingface.languages import refuse_language
from speechssl.interop.huggingface.own_code import MODEL_TYPE, NOTE, read_own, write_own
from speechssl.interop.huggingface.processor import EPSILON
from speechssl.interop.onnx import choose_output, write_onnx
from speechssl.interop.onnx import list_left_behind as list_not_served
from speechssl.interop.onnx_file import is_onnx, read_onnx
from speechssl.interop.torchaudio import (
    PREFIX,
    is_torchaudio,
    list_left_behind,
    read_bundle,
    read_torchaudio,
    write_torchaudio,
)
from speechssl.model.speech_model import SpeechModel

FORMATS = ("speechssl", "huggingface", "fairseq", "torchaudio", "onnx", "onnx_features")
"""What `save` and `convert` write; the first two are folders, the others files. ONNX is read back to be run alone."""

EPSILONS = {"huggingface": EPSILON, "fairseq": 1e-5, "torchaudio": 1e-5}
"""What each format's own code adds to the variance of a waveform; no file of theirs can say another."""

VALID_FRAMES = (
    "group_norm_frames=valid: batches give what single utterances give (all: padding leaks in, as it does there)"
)

_logger = logging.getLogger("speechssl")


def load_model(
    checkpoint: str,
    device: str | torch.device = "cpu",
    trainable: bool = False,
    key: str = "checkpoint",
    weights: str = "",
    log: bool = True,
    language: str = "",
) -> SpeechModel:
    """Load a model for use, wherever it comes from.

    Args:
        checkpoint: a run folder (its best checkpoint), one checkpoint folder, a Hugging Face folder, a fairseq `.pt`,
            a torchaudio state dict, `torchaudio:BUNDLE`, or a Hub id such as `facebook/wav2vec2-base-960h`.
        device: where the weights go.
        trainable: keep gradients and training mode; otherwise evaluation mode without gradients.
        weights: `model`, or `ema` for the moving average that a run with `training.ema_decay` keeps; empty: those
            that its training validated.
        log: say in one line which parts of an objective are left out.
        language: of a model with language adapters (MMS); empty: the one that it comes with.

    Returns:
        The model, with its CTC head and vocabulary or its pretraining heads where the checkpoint has them. What is
        known of a model of another toolkit is logged in one line.

    Raises:
        CheckpointError: nothing is there, a file is damaged, weights are missing or too many, or have no average.
        ConfigError: another value of `weights`.
    """
    if weights:
        check_choice("weights", weights, tuple(WEIGHT_FILES))
    model = _load(checkpoint, key, weights, log, language)
    model.to(device)
    return model.train(trainable).requires_grad_(trainable)


def _load(
    checkpoint: str, key: str, weights: str, log: bool, language: str, above: tuple[Path, ...] = ()
) -> SpeechModel:
    """Load a model on the CPU; `above` are checkpoints that were adapted from it, one from the other."""
    foreign = read_foreign(checkpoint, key, language)
    if foreign is None:
        folder = find_checkpoint(checkpoint, key)
        check_whole(folder, [CONFIG], key)
        card = read_card(folder, key)
        weights = weights or card.validated
        file = WEIGHT_FILES[weights]
        # Without an average there is another sentence than that of a damaged checkpoint.
        check_whole(folder, [file] if file != AVERAGED or (folder / file).exists() else [], key)
        check_stored(card, folder, key, weights)
        model = _build(card, folder, key, above)
        load_weights(model, folder, key, weights, log)
        model.merge()
    else:
        if weights == "ema":
            raise CheckpointError(no_average(f"{checkpoint} is of another toolkit"))
        model = build_model(foreign, key)
        _logger.info("%s=%s: %s", key, checkpoint, "; ".join([describe(foreign), *list_choices(foreign)]))
    return model


def _build(card: ModelCard, folder: Path, key: str, above: tuple[Path, ...]) -> SpeechModel:
    """Build the network of a checkpoint of ours; one that was adapted, around what it was adapted from.

    Raises:
        CheckpointError: as `build_adapted`, or it was adapted from itself.
    """
    if card.adaptation is None:
        return SpeechModel(card.model, card.vocabulary, pretraining=card.kind == "pretraining")
    place = folder.resolve()
    if place in above:
        raise CheckpointError(f"`{key}` must be adapted from another checkpoint, but {folder} is from itself")
    return build_adapted(
        card, folder, key, lambda of: _load(of.init, key, of.weights, False, of.language, (*above, place))
    )


def load_for_inference(checkpoint: str, device: torch.device, weights: str = "", language: str = "") -> AnyModel:
    """Load what only has to be run: a model as `load_model` does, or an ONNX file of `convert`.

    Raises:
        CheckpointError: as `load_model` and `read_onnx`, or an ONNX file with another value of `weights` or `language`.
    """
    with reading(path := Path(checkpoint), "checkpoint", "a model that can be read"):
        is_export = is_onnx(path)
    if not is_export:
        return load_model(checkpoint, device, weights=weights, language=language)
    if weights == "ema":
        raise CheckpointError(no_average(f"{checkpoint} is an ONNX file"))
    if language:
        raise refuse_language(language)
    return read_onnx(path, device=device)


def open_checkpoint(checkpoint: str, key: str = "checkpoint", weights: str = "", language: str = "") -> Foreign:
    """Read any checkpoint, one of ours too, with all that is known of it.

    Raises:
        CheckpointError: as `load_model`.
    """
    foreign = read_foreign(checkpoint, key, language)
    if foreign is not None:
        if weights == "ema":
            raise CheckpointError(no_average(f"{checkpoint} is of another toolkit"))
        return foreign
    folder = find_checkpoint(checkpoint, key)
    return wrap(load_model(str(folder), key=key, weights=weights), update=read_card(folder, key).update)


def read_stored_card(checkpoint: str, key: str = "init", language: str = "") -> ModelCard:
    """Read what a checkpoint says of its model: kind, network, vocabulary and update."""
    foreign = read_foreign(checkpoint, key, language)
    return read_card(find_checkpoint(checkpoint, key), key) if foreign is None else foreign.card


def find_update(checkpoint: str, key: str = "checkpoint") -> int | None:
    """Find after which update of its training a checkpoint of ours was saved; None for one of another toolkit.

    Raises:
        CheckpointError: the checkpoint is damaged, or is not there.
    """
    path = Path(checkpoint)
    if checkpoint.startswith(PREFIX) or path.is_file() or is_hub_id(checkpoint):
        return None
    if (path / CONFIG).is_file() and "version" not in read_json(path / CONFIG, key):
        return None
    return read_card(find_checkpoint(checkpoint, key), key).update


def read_foreign(checkpoint: str, key: str, language: str = "") -> Foreign | None:
    """Read a checkpoint of another toolkit; None where the value names one of ours, or nothing.

    The content decides, never the name: a folder by what its config.json says, a file by the names of its weights.

    Raises:
        CheckpointError: it is of another toolkit and does not load, or of none that is known, or has no such language.
    """
    foreign = _read_foreign(checkpoint, key, language)
    if language and (foreign is None or foreign.family != "huggingface"):
        if foreign is None:
            find_checkpoint(checkpoint, key)  # one that is not there has its own sentence
        raise refuse_language(language)
    return foreign


def _read_foreign(checkpoint: str, key: str, language: str) -> Foreign | None:
    # The readers say what is wrong; whatever they trip over that nobody thought of becomes a sentence here.
    with reading(path := Path(checkpoint), key, "a model that can be read"):
        if checkpoint.startswith(PREFIX):
            return read_bundle(checkpoint.removeprefix(PREFIX), key)
        if path.is_file():
            return _read_file(path, key)
        if is_hub_id(checkpoint):
            return _read_folder(fetch_from_hub(checkpoint, key, language), key, language)
        if (path / "adapter_config.json").is_file() and not (path / CONFIG).is_file():
            raise refuse_unmerged(path, key)
        if (path / CONFIG).is_file() and "version" not in (stored := read_json(path / CONFIG, key)):
            if "model_type" in stored:
                return _read_folder(path, key, language)
            raise CheckpointError(
                f"`{key}` must be a run folder, a checkpoint or a Hugging Face folder, but {path / CONFIG} has neither "
                "version nor model_type"
            )
        return None


def write_model(model: SpeechModel, out: Path, format: str, update: int = 0, training: str = "") -> tuple[str, ...]:
    """Write a model in one of the formats.

    Args:
        out: a folder for `speechssl` and `huggingface`, else a file.
        format: one of `FORMATS`.
        training: for the model card of a Hugging Face folder, see `write_card`.

    Returns:
        What the format has no place for and is left behind; it is logged too.

    Raises:
        ConfigError: there is no such format, or its packages are not installed.
        CheckpointError: the format has no place for this network, or `out` is a training run or a checkpoint of one.
    """
    if (out / CHECKSUMS).exists() or any((out / "checkpoints").glob("update-*")):
        what = "a checkpoint of a training run" if (out / CHECKSUMS).exists() else "a training run"
        raise CheckpointError(f"`out` must be a place of its own, but {out} is {what}")
    _check_fits(model, format)
    match format:
        case "speechssl":
            save_model(model, out, update)
        case "huggingface":
            if has_class(model.config):
                write_huggingface(model, out, update)
            else:
                write_own(model, out, update)
                _logger.warning(NOTE)
            write_card(out, model, training)
        case "fairseq":
            write_fairseq(model, out, update)
        case "torchaudio":
            write_torchaudio(model, out, update)
        case "onnx" | "onnx_features":
            write_onnx(model, out, "features" if format == "onnx_features" else "", update)
        case _:
            raise ConfigError(f"`format` must be one of {', '.join(FORMATS)}, but is {format!r}")
    dropped = _list_left_behind(model, format)
    if dropped:
        _logger.warning("%s has no place for: %s", format, ", ".join(dropped))
    return dropped


def _check_fits(model: SpeechModel, format: str) -> None:
    """Make sure that a format of others has a place for the whole network.

    Raises:
        CheckpointError: it has none.
    """
    config = model.config
    if format in ("speechssl", "huggingface") or format not in FORMATS:
        return
    if not format.startswith("onnx"):
        # torchaudio has wav2vec 2.0 and WavLM, fairseq the first.
        check_fits(WAVLM if format == "torchaudio" and config.position_buckets else BARE_WAV2VEC2, config, format)


def _list_left_behind(model: SpeechModel, format: str) -> tuple[str, ...]:
    """List what a model has and a format has no place for."""
    config = model.config
    if format.startswith("onnx"):
        return list_not_served(model, "features" if format == "onnx_features" else choose_output(model))
    keeps = format == "huggingface" and not has_class(config)
    theirs = config.waveform_epsilon if keeps else EPSILONS.get(format, config.waveform_epsilon)
    differs = config.normalize_waveform and config.waveform_epsilon != theirs
    epsilon = (f"waveform_epsilon={config.waveform_epsilon:g} (there it is {theirs:g})",) if differs else ()
    others = {"torchaudio": list_left_behind, "huggingface": list_unplaced}
    return (*(others[format](model) if format in others and not keeps else ()), *epsilon)


def list_choices(foreign: Foreign) -> tuple[str, ...]:
    """List what was chosen for a model of another toolkit that its checkpoint does not say."""
    config = foreign.card.model
    is_said = foreign.says_padding or foreign.family == "speechssl" or not config.can_see_padding
    return () if is_said or config.group_norm_frames != "valid" else (VALID_FRAMES,)


def _read_folder(path: Path, key: str, language: str) -> Foreign:
    """Read a Hugging Face folder: of a class that is there, or of our own code, which is never run here."""
    stored = read_json(path / CONFIG, key)
    if stored.get("model_type") != MODEL_TYPE:
        return read_huggingface(path, key, language)
    if language:
        raise refuse_language(language)
    return read_own(path, stored, key)


def _read_file(path: Path, key: str) -> Foreign:
    """Read a single file by what it holds."""
    if is_onnx(path):
        raise CheckpointError(
            f"`{key}` must have weights that can be trained or converted, but {path} is an ONNX file, which only "
            "evaluate, transcribe and embed take"
        )
    names = list_tensors(path, key)
    if names is None:
        return read_fairseq(path, key)
    if is_torchaudio(names):
        return read_torchaudio(path, key)
    folder = path.parent
    if (folder / CONFIG).is_file():
        raise CheckpointError(f"`{key}` must be the folder of {path.name}, but is the file: {spell(key, str(folder))}")
    raise CheckpointError(
        f"`{key}` must be a checkpoint of fairseq or torchaudio where it is a file, but {path} has the weights "
        f"{join(sorted(names))}"
    )
