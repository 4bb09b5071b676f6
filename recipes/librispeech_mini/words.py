"""Spoken words by speakers whom the classifier has not heard: a logistic regression on each layer's mean state."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import speechssl
from speechssl.checkpoints.model_folder import build_untrained, save_model
from speechssl.data.manifest import load_manifests
from speechssl.durable import write_result
from speechssl.errors import DataError
from speechssl.evaluation.probe_features import limit_source, pool_log_mel
from speechssl.interop.load import load_model
from speechssl.verbs.output import resolve_out

FloatArray = npt.NDArray[np.float32]

LONGEST_S = 5.0
"""So much of a recording is used for log-mel statistics; words are shorter."""

MAX_FOLDS = 6
"""Classifiers of a layer at most; each leaves out as many speakers."""

UNTRAINED_SEED = 1
"""Of the encoder as drawn, as `speechssl probe` draws it unless asked otherwise."""


def run(checkpoint: str, manifest: str, out: str) -> dict[str, Any]:
    """Measure a checkpoint, and beside it the same network as drawn and log-mel statistics.

    Args:
        checkpoint: as `speechssl embed` takes it.
        manifest: of single words, with `speaker` and `text`, the word: spoken digits, keywords.
        out: folder to write.

    Returns:
        `accuracy` of the best layer in percent, `layers` with each one's, `speakers` with each speaker's at the best
        layer; the same under `untrained`; `log_mel` and `log_mel_speakers`. The best layer is chosen on these same
        recordings; every layer's figure stands beside it.

    Raises:
        DataError: a speaker or word is missing, or there is one speaker.
    """
    recordings = load_manifests([manifest], "manifest")
    for name in ("speaker", "text"):
        recordings.require(name, "manifest")
    speakers, words = recordings.column("speaker"), recordings.column("text")
    if len(set(speakers)) < 2:
        raise DataError(f"`manifest` must have two speakers or more, but {manifest} has {len(set(speakers))}")
    folder = resolve_out(out, "words", overwrite=True)
    log_mel = classify(pool_log_mel(limit_source(recordings, LONGEST_S))[:, 0], words, speakers)
    result = {
        **measure(embed(checkpoint, manifest, folder / "states.npy"), words, speakers),
        "untrained": measure(embed_untrained(checkpoint, manifest, folder), words, speakers),
        "log_mel": _average(log_mel),
        "log_mel_speakers": log_mel,
        "num_utterances": len(words),
        "num_speakers": len(set(speakers)),
    }
    write_result(folder, result)
    return result


def measure(states: FloatArray, words: Sequence[str], speakers: Sequence[str]) -> dict[str, Any]:
    """Measure every layer, and name the best.

    Args:
        states: (n, L + 1, D).
        words: n labels.
        speakers: n speakers.
    """
    layers = [classify(states[:, layer], words, speakers) for layer in range(states.shape[1])]
    means = [_average(each) for each in layers]
    best = int(np.argmax(means))
    return {
        "accuracy": means[best],
        "layers": [{"layer": layer, "accuracy": mean} for layer, mean in enumerate(means)],
        "best_layer": best,
        "speakers": layers[best],
    }


def _average(accuracies: Mapping[str, float]) -> float:
    return float(np.mean(list(accuracies.values())))


def embed_untrained(checkpoint: str, manifest: str, folder: Path) -> FloatArray:
    """Embed every recording with the network of a checkpoint as it was drawn: (n, L + 1, D)."""
    drawn = folder / "untrained"
    save_model(build_untrained(load_model(checkpoint, torch.device("cpu")), UNTRAINED_SEED), drawn)
    states = embed(str(drawn), manifest, folder / "untrained.npy")
    shutil.rmtree(drawn)
    return states


def embed(checkpoint: str, manifest: str, path: Path) -> FloatArray:
    """Embed every recording with the mean of each layer: (n, L + 1, D), in the order of the manifest."""
    result = speechssl.embed(checkpoint=checkpoint, audio=manifest, layer="all", out=str(path), overwrite=True)
    rows: FloatArray = np.load(path).astype(np.float32)
    path.unlink()
    for index in path.parent.glob(f"{path.stem}*.tsv"):
        index.unlink()
    # A recording's layers follow each other.
    return rows.reshape(result["num_utterances"], len(result["layers"]), result["dim"])


def classify(features: FloatArray, words: Sequence[str], speakers: Sequence[str]) -> dict[str, float]:
    """Leave out speakers, `MAX_FOLDS` groups of them at most: accuracy on each in percent, of the others' classifier.

    Args:
        features: (n, D).
        words: n labels.
        speakers: n speakers.
    """
    from sklearn.linear_model import LogisticRegression

    owners, labels = np.array(speakers), np.array(words)
    names, accuracies = sorted(set(speakers)), dict[str, float]()
    for group in (names[fold::MAX_FOLDS] for fold in range(min(MAX_FOLDS, len(names)))):
        held = np.isin(owners, group)
        mean, deviation = features[~held].mean(0), features[~held].std(0) + 1e-5
        scaled = (features - mean) / deviation
        model = LogisticRegression(C=0.1, max_iter=3000).fit(scaled[~held], labels[~held])
        right = model.predict(scaled) == labels
        accuracies |= {name: 100 * float(right[owners == name].mean()) for name in group}
    return accuracies
