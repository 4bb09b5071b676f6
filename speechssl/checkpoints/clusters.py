"""Clusters of a layer's states: how k-means finds them, which is nearest, and the file that they are kept in.

The file is safetensors: `centroids` (V, D) float32, `counts` (V,) int64, and in its metadata where they come from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from speechssl.checkpoints.adapted import digest_weights
from speechssl.checkpoints.checks import check_header, reading
from speechssl.config.knobs import check
from speechssl.config.model import MAX_WIDTH
from speechssl.durable import save_tensors
from speechssl.errors import ConfigError
from speechssl.model.speech_model import SpeechModel
from speechssl.parsing import open_regular
from speechssl.seeds import make_rng

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

FACTS = "clusters"
"""The one entry of the metadata, JSON: safetensors writes several in an order that differs from run to run."""

MAX_LAYER = 20
"""Longest name of a layer: Python refuses to read a number of thousands of digits."""


@dataclass(frozen=True)
class Clusters:
    """Clusters of the states of one layer.

    Attributes:
        centroids: (V, D).
        counts: (V,) frames of each among those that they were fitted to.
        layer: as the column `layer` of `embed` says it: `0` to `L`, `last` or `mean`.
        model: the value of `checkpoint` that was clustered, for people.
        digest: SHA-256 of its backbone: names, shapes and values.
        seed: of the fit.
    """

    centroids: FloatArray
    counts: IntArray
    layer: str
    model: str
    digest: str
    seed: int

    def check_model(self, model: SpeechModel, key: str, value: str) -> None:
        """Make sure that a model is the one whose states these are.

        Args:
            key: that names the model, with its value.

        Raises:
            ConfigError: it has other weights.
        """
        is_same = self.digest == digest_backbone(model) and self.centroids.shape[1] == model.dim
        check(is_same, key, f"the model that the clusters are of ({self.model}), with the weights it had then", value)

    def check_number(self, num_codes: int, key: str) -> None:
        """Make sure that a number of codes is theirs, or 0.

        Raises:
            ConfigError: it is another.
        """
        check(num_codes in (0, len(self.centroids)), key, f"0 or the {len(self.centroids)} of the clusters", num_codes)


def digest_backbone(model: SpeechModel) -> str:
    """Compute the SHA-256 of the weights that make the states: the same in whatever format, with whatever heads."""
    return digest_weights(model.backbone.state_dict())


def find_nearest(x: Tensor, codes: Tensor) -> Tensor:
    """Find the code that is nearest to each vector: (T, E), (V, E) → (T,) int64."""
    return (x.float() @ codes.T - codes.square().sum(1) / 2).argmax(1)


def fit_centroids(
    features: FloatArray, num_codes: int, seed: int, section: str = "objective.", num_starts: int = 20
) -> FloatArray:
    """Fit mini-batch k-means with HuBERT's settings (fairseq's `learn_kmeans`): (F, E) → (V, E), the same every time.

    Args:
        section: of the configuration, where `num_codes` and `fit_s` stand, for messages.
        num_starts: first centroids to try, of which the best go on; 20 are HuBERT's.

    Raises:
        ConfigError: there are fewer frames than codes.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < num_codes:
        raise ConfigError(
            f"`{section}num_codes` must be at most the {len(features)} frames that {section}fit_s gives, "
            f"but is {num_codes}"
        )
    kmeans = MiniBatchKMeans(
        num_codes,
        batch_size=10_000,
        max_no_improvement=100,
        n_init=num_starts,
        reassignment_ratio=0.0,
        random_state=int(make_rng(seed, "k-means").integers(2**31)),
    )
    centroids: FloatArray = kmeans.fit(features).cluster_centers_.astype(np.float32)
    return centroids


def write_clusters(path: Path, clusters: Clusters) -> None:
    """Write clusters to a file, the same bytes for the same clusters."""
    facts = {name: getattr(clusters, name) for name in ("layer", "model", "digest", "seed")}
    tensors = {name: torch.from_numpy(getattr(clusters, name).copy()) for name in ("centroids", "counts")}
    save_tensors(path, tensors, {FACTS: json.dumps(facts)})


def read_clusters(path: str, key: str) -> Clusters:
    """Read the clusters of a file.

    Args:
        key: that names the file, for messages.

    Raises:
        CheckpointError: it is missing, damaged, or no file of `write_clusters`.
    """
    with reading(Path(path), key, "a file of clusters that `speechssl units` wrote"):
        open_regular(path).close()
        check_header(Path(path))
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()[FACTS])
            shape = file.get_slice("centroids").get_shape()
            if len(shape) != 2 or not (2 <= shape[0] <= MAX_WIDTH and 1 <= shape[1] <= MAX_WIDTH):
                raise ValueError(f"its centroids have the shape {shape}")
            centroids, counts = file.get_tensor("centroids"), file.get_tensor("counts")
        if centroids.dtype != torch.float32 or not centroids.isfinite().all():
            raise ValueError("its centroids are no finite float32 numbers")
        if counts.dtype != torch.int64 or counts.shape != centroids.shape[:1] or int(counts.min()) < 0:
            raise ValueError("its counts are not one a centroid")
        layer, model, digest, seed = (facts[name] for name in ("layer", "model", "digest", "seed"))
        are_texts = all(isinstance(text, str) for text in (layer, model, digest)) and len(layer) <= MAX_LAYER
        if not are_texts or type(seed) is not int:
            raise ValueError("its metadata are not those of clusters")
    return Clusters(centroids.numpy(), counts.numpy(), layer, model, digest, seed)
