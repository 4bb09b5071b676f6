"""Every draw of the package, as named streams: a function of the seed, the stream, and what the draw applies to.

No generator is carried from one draw to the next, so that a resumed run, another number of ranks or workers, and
another order of the same work all draw the same. Two streams of one seed are independent.
"""

from __future__ import annotations

import numpy as np

STREAMS = {
    # A training. Behind each stream stand the numbers that it is drawn for.
    "weights": "fresh weights",
    "dropout": "dropout of one forward: update, first sub-batch",
    "layer drop": "blocks that LayerDrop keeps: update",
    "gumbel": "Gumbel noise of the quantizer: sub-batch",
    "mask": "spans that are masked, and the negatives of the contrastive task: sub-batch",
    "channel mask": "channels that are masked in fine-tuning: sub-batch",
    "second mask": "spans that are masked in the second view of consistency_weight: sub-batch",
    "second channel mask": "channels that are masked there: sub-batch",
    "order": "ties of length, and the order of sub-batches: epoch",
    "speed": "speed of each utterance: epoch",
    "crop": "where a crop begins: epoch, utterance",
    # What a training begins with.
    "limit": "the subset of `data.limit_s`",
    "projection": "the matrix of random-projection targets",
    "codes": "the codes of random-projection targets",
    "units": "utterances that the clusters of `units` are fitted to",
    "k-means": "first centroids and mini-batches of k-means",
    # Corpora, evaluation and measurements.
    "held out": "speakers or files of `valid_share`",
    "probe": "weights of a probe",
    "probe split": "utterances that a probe is tested on",
    "trials": "pairs of a verification test",
    "speaker bootstrap": "speakers that each resample of an EER draws",
    "bootstrap": "units that each resample of an error rate draws",
    "picture": "mask and negatives of the report's example",
    "frames": "frames that `analyse` looks at",
    "shuffle": "frames that `analyse` puts beside others for chance level",
    "bench": "noise that `bench` computes on: number of the batch",
}  # fmt: skip
"""Stream → what is drawn from it."""

_NUMBERS = {
    "order": [0x0DE2], "speed": [0x5BEED], "crop": [0xC209], "limit": [0x5B5E7], "held out": [0x4A11D],
    "probe split": [0x5917], "trials": [0x7217], "speaker bootstrap": [0xEE2], "bootstrap": [], "picture": [],
}  # fmt: skip
"""Streams whose number is not the bytes of their name: they keep the one that runs and results were made with."""


def make_rng(seed: int, stream: str, *numbers: int) -> np.random.Generator:
    """Make the generator of one stream at one place.

    Args:
        seed: of the run.
        stream: one of `STREAMS`.
        numbers: what the draw applies to, such as the number of a sub-batch.
    """
    assert stream in STREAMS, f"{stream!r} is no stream"
    number = _NUMBERS.get(stream, [int.from_bytes(stream.encode(), "little")])
    return np.random.default_rng([seed, *number, *numbers])


def make_torch_seed(seed: int, stream: str, *numbers: int) -> int:
    """Derive a 63-bit seed for torch in the same way."""
    return int(make_rng(seed, stream, *numbers).integers(0, 2**63 - 1))
