"""The Python face: checkpoints in and out, what a model gives, and every verb as a function of its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from speechssl.cli.run import run_verb as run_verb
from speechssl.cli.verbs import VERBS
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.progress import show_logs

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from torch import Tensor

    from speechssl.evaluation.wer import Scores
    from speechssl.inference.onnx_model import AnyModel
    from speechssl.model.speech_model import SpeechModel

    Audio = str | os.PathLike[str] | np.ndarray | Tensor | Sequence[str | os.PathLike[str] | np.ndarray | Tensor]
    Model = SpeechModel | str | os.PathLike[str]


def load(
    checkpoint: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    trainable: bool = False,
    weights: str = "",
    language: str = "",
) -> SpeechModel:
    """Load a model, with its head and vocabulary where it has them.

    Args:
        checkpoint: any value of the key `checkpoint`: a run folder (its best checkpoint), one checkpoint, a Hugging
            Face folder, a fairseq `.pt`, a torchaudio state dict, `torchaudio:BUNDLE` or a Hub id.
        device: where the weights go: a value of the key `device` (`auto`, `cpu`, `cuda`, `cuda:N`), or any
            `torch.device`.
        trainable: keep gradients and training mode; otherwise evaluation mode without gradients.
        weights: `model`, or `ema` for the moving average of a run with `training.ema_decay`; empty: those that its
            training validated.
        language: of a model with language adapters (MMS); empty: the one that it comes with.

    Raises:
        CheckpointError: nothing is there, it does not load, or it has no average or no such language.
        ConfigError: another value of `weights`, or a device that is not there.
    """
    from speechssl.devices import resolve_device
    from speechssl.interop.load import load_model

    where = resolve_device(device) if isinstance(device, str) else device
    return load_model(os.fspath(checkpoint), where, trainable, weights=weights, language=language)


def save(model: SpeechModel, folder: str | os.PathLike[str], format: str = "speechssl") -> None:
    """Save a model so that `load` and `checkpoint=` take it, or another toolkit does.

    Args:
        model: to save.
        folder: the folder to write, made if it is missing; for `fairseq`, `torchaudio` and ONNX the file.
        format: `speechssl`, `huggingface`, `fairseq` or `torchaudio`; for serving `onnx` (the logits of a recogniser,
            else features) or `onnx_features`, which `transcribe` and `embed` take by their path.

    Raises:
        ConfigError: another format, or its packages are not installed.
        CheckpointError: the format has no place for this network.
    """
    from speechssl.interop.load import write_model

    write_model(model, Path(folder), format)


@dataclass(frozen=True)
class PretrainingForward:
    """One forward of the contrastive task; sums are in nats.

    Attributes:
        logits: (B, M, 1 + K) float32; class 0 is the target, removed negatives are -inf.
        loss_sum: scalar with gradient: all parts with their weights; divided by `count` it is the loss.
        contrastive_sum: scalar, cross entropy over masked frames.
        diversity_sum: scalar, weighted codebook diversity times the masked frames.
        features_sum: scalar, weighted feature penalty times the masked frames.
        count: scalar int64, masked frames.
    """

    logits: Tensor
    loss_sum: Tensor
    contrastive_sum: Tensor
    diversity_sum: Tensor
    features_sum: Tensor
    count: Tensor


def pretraining_forward(
    model: SpeechModel,
    waveforms: Tensor,
    num_samples: Tensor | None,
    mask: Tensor,
    negatives: Tensor,
    gumbel_noise: Tensor | None,
    temperature: float,
) -> PretrainingForward:
    """Compute the contrastive task with everything that is usually drawn given explicitly.

    The batch counts as one sub-batch, and the loss has wav2vec 2.0's weights (§3.2, eq. 2).

    Args:
        model: with its pretraining heads.
        waveforms: (B, N) float32 at 16 kHz.
        num_samples: (B,) int64 valid samples, None where nothing is padded.
        mask: (B, T) bool, True on masked frames, never on padding.
        negatives: (B, M, K) int64, indices among the row's own M masked frames.
        gumbel_noise: (B, M, G, V); None chooses codes without noise.
        temperature: of the Gumbel softmax.

    Raises:
        CheckpointError: the model has no pretraining heads.
        DataError: `num_samples` are not those of the waveforms.
    """
    from speechssl.config.objective import ContrastiveConfig
    from speechssl.model.lengths import check_num_samples
    from speechssl.model.wav2vec2 import normalize_waveforms
    from speechssl.objectives.wav2vec2 import compute_terms

    if model.pretraining is None:
        raise CheckpointError("`model` must have its pretraining heads, but this one has none")
    check_num_samples(waveforms, num_samples)
    if model.config.normalize_waveform:
        waveforms = normalize_waveforms(waveforms, num_samples, model.config.waveform_epsilon)
    output = model.pretraining(waveforms, num_samples, mask, negatives, gumbel_noise, temperature)
    terms = compute_terms(output, waveforms.new_ones(1, len(waveforms)), ContrastiveConfig())
    contrastive, diversity, features = (terms.stats[name] for name in ("contrastive", "diversity", "features"))
    return PretrainingForward(output.logits, terms.sum, contrastive, diversity, features, terms.count)


@overload
def embed(
    model: Model,
    audio: Audio,
    *,
    layer: Any = ...,
    pooling: str = ...,
    sample_rate: int | None = ...,
    **keys: Any,
) -> pa.Table: ...


@overload
def embed(**keys: Any) -> dict[str, Any]: ...


def embed(model: Model | None = None, audio: Any = None, **keys: Any) -> pa.Table | dict[str, Any]:
    """Embed audio with a model, as a table; or, with keys only, run the verb `embed`.

    Args:
        model: from `load`, or what `load` takes.
        audio: what the key `audio` takes, or waveforms as arrays or tensors (with `sample_rate`). A file that cannot be
            used ends it, since rows are expected for all; the verb leaves it out.
        **keys: `layer`, `pooling`, `segments`, `tier`, `normalise`, `dtype`, `window_s`, `batch_s`,
            `precision` (here float32 unless it is given), `sample_rate`; or the keys of the verb.

    Returns:
        a pyarrow table with the columns of the verb's file; or the dict of the verb's JSON line.
    """
    if model is None:
        return _run_on_paths("embed", audio, keys)
    from speechssl.inference.embed import embed as embed_audio

    show_logs()
    loaded = _take_model(model)
    return embed_audio(loaded, audio, **_resolve_keys(embed_audio, loaded, keys))


@overload
def transcribe(model: Model, audio: Audio, *, sample_rate: int | None = ..., **keys: Any) -> list[str]: ...


@overload
def transcribe(**keys: Any) -> dict[str, Any]: ...


def transcribe(model: Model | None = None, audio: Any = None, **keys: Any) -> list[str] | dict[str, Any]:
    """Transcribe audio with a recogniser, in the order given; or, with keys only, run the verb `transcribe`.

    Args:
        model: from `load`, with a CTC head, or what `load` takes.
        audio: what the key `audio` takes, or waveforms as arrays or tensors (with `sample_rate`). A file that cannot be
            used ends it, since a text is expected for each; the verb leaves it out.
        **keys: `window_s`, `batch_s`, `precision` (here float32 unless it is given), `sample_rate`, `decode`; or the
            keys of the verb.
    """
    if model is None:
        return _run_on_paths("transcribe", audio, keys)
    from speechssl.inference.recognise import transcribe as transcribe_audio

    show_logs()
    loaded = _take_model(model)
    return transcribe_audio(loaded, audio, **_resolve_keys(transcribe_audio, loaded, keys))


@overload
def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    speakers: Sequence[str | None] | None = ...,
    ids: Sequence[str] | None = ...,
) -> Scores: ...


@overload
def score(**keys: Any) -> dict[str, Any]: ...


def score(
    references: Sequence[str] | None = None,
    hypotheses: Sequence[str] = (),
    speakers: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    **keys: Any,
) -> Scores | dict[str, Any]:
    """Score recognised texts against references; or, with keys only, run the verb `score` on two files.

    Args:
        references: n texts, compared as they are: `speechssl.text.normalise` has normalisers.
        hypotheses: n recognised texts.
        speakers: n speakers, where known: intervals are then over them.
        ids: n names of utterances; their numbers by default.
        **keys: of the verb.

    Raises:
        DataError: no reference has a word, or as the verb.
    """
    if references is None:
        return run_verb("score", keys)
    from speechssl.evaluation.wer import score as score_texts

    return score_texts(references, hypotheses, speakers, ids, **keys)


def _run_on_paths(verb: str, audio: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Run a verb without a model at hand; waveforms are for one.

    Raises:
        DataError: `audio` has waveforms.
    """
    items = audio if isinstance(audio, (list, tuple)) else [audio]
    if any(hasattr(item, "dtype") for item in items):
        raise DataError("`audio` must be paths where no model is given (speechssl.load gives one), but has waveforms")
    return run_verb(verb, keys if audio is None else {"audio": audio, **keys})


def _take_model(model: object) -> AnyModel:
    """Load a model that is given as a value of `checkpoint`, an ONNX file too.

    Raises:
        CheckpointError: it does not load, or is no model of this package.
    """
    import torch

    from speechssl.interop.load import load_for_inference
    from speechssl.model.wav2vec2 import Wav2Vec2

    if isinstance(model, (str, os.PathLike)):
        return load_for_inference(os.fspath(model), torch.device("cpu"))
    # A compiled model is of a class of torch's, and answers for the one inside.
    if not isinstance(getattr(model, "backbone", None), Wav2Vec2):
        raise CheckpointError(f"`model` must be from speechssl.load, or what it loads, but is a {type(model).__name__}")
    return cast("SpeechModel", model)


def _resolve_keys(function: Callable[..., Any], model: AnyModel, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys that a function shares with its verb as the verb does, and choose what `precision=auto` means.

    Raises:
        ConfigError: `batch_s`, `window_s` or `precision` has a value that it cannot have, or the function has no key
            of a name.
    """
    from inspect import signature
    from numbers import Real

    from speechssl.config.inference import InferenceConfig
    from speechssl.devices import resolve_precision

    names = [name for name in signature(function).parameters if name not in ("model", "audio")]
    for name, value in keys.items():
        if name not in names:
            raise ConfigError(f"`{name}` must be one of the keys {', '.join(names)} where a model is given, but is not")
        if name in ("batch_s", "window_s") and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ConfigError(f"`{name}` must be a number, but is {value!r}")
    shared = ("batch_s", "window_s", "precision")
    checked = InferenceConfig(**{name: keys[name] for name in shared if name in keys})
    if "precision" not in keys:
        return dict(keys)
    return {**keys, "precision": resolve_precision(checked.precision, model.device)}


def _make_function(name: str) -> Callable[..., dict[str, Any]]:
    """Make the function that runs a verb with the keys of its command line."""

    def run(**keys: Any) -> dict[str, Any]:
        return run_verb(name, keys)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"""Run the verb `{name}`: {VERBS[name].summary}.

    Args:
        **keys: those of `speechssl {name} --help all`: `seed=2`, nested dicts (`training={{"lr": 1e-3}}`) or
            dotted names (`**{{"training.lr": 1e-3}}`); `model="small"` chooses a preset.

    Returns:
        the dict of the command's JSON line.

    Raises:
        SpeechSSLError: what the command would answer with exit code 2.
    """
    return run


demo, prepare, pretrain, finetune = (_make_function(name) for name in ("demo", "prepare", "pretrain", "finetune"))
evaluate, tune, probe, convert = (_make_function(name) for name in ("evaluate", "tune", "probe", "convert"))
lm, compare, report, bench = (_make_function(name) for name in ("lm", "compare", "report", "bench"))
doctor, units, align = (_make_function(name) for name in ("doctor", "units", "align"))
similar, analyse = (_make_function(name) for name in ("similar", "analyse"))
