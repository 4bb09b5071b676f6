"""The keys of the verbs that look at representations: `similar` and `analyse`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speechssl.config.inference import InferenceConfig
from speechssl.config.knobs import DAY_S, MISSING, check, check_choice, check_finite, knob
from speechssl.config.model import MAX_WIDTH


@dataclass(kw_only=True)
class AnalyseDataConfig:
    """Speech that a model is looked at with."""

    test: list[str] = knob([], "manifest or list of manifests")
    where: str = knob("", "keep the rows with this value, as column=value")
    max_s: float = knob(30.0, "how much of an utterance is used, from its start", "s")

    def __post_init__(self) -> None:
        check(0.025 <= self.max_s <= DAY_S, "data.max_s", f"between 0.025 s, one frame, and {DAY_S:g} s, a day", self.max_s)


@dataclass(kw_only=True)
class SimilarConfig(InferenceConfig):
    """Keys of `speechssl similar`."""

    out: str = knob("", "table to write (.tsv or .parquet), or a folder for it; empty: print it, and write nothing")
    checkpoint: str = knob("", "model that a clip is embedded with; empty: the one that the file of embeddings names")
    embeddings: str = knob(MISSING, "file that embed wrote (.parquet, .npy or .safetensors)")
    query: str = knob(MISSING, "id of one of its rows, or an audio file")
    top: int = knob(10, "how many neighbours to list")
    layer: Any = knob("", "which layer's rows count, where the file has several, as its column `layer` says it")
    pooling: str = knob("", "`mean`, `max` or `statistics`, for a clip; empty: as the file of embeddings names it")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.top >= 1, "top", "at least 1", self.top)
        check_choice("pooling", self.pooling, ("", "mean", "max", "statistics"))


@dataclass(kw_only=True)
class AnalyseConfig(InferenceConfig):
    """Keys of `speechssl analyse`."""

    data: AnalyseDataConfig = knob(AnalyseDataConfig, "speech to look at the model with")
    against: str = knob("", "second model, whose layers are compared with those of the first: as `checkpoint`")
    label: str = knob("", "column whose classes are looked for in the means of utterances, such as speaker; empty: none")
    segments: str = knob("", "CTM, TextGrids or table with id, start, end (s) and label, such as phones: k-means units of frames are compared with them; empty: none")
    tier: str = knob("", "tier of the TextGrids, such as phones; empty: their only one")
    num_codes: int = knob(100, "clusters of k-means, with `segments`", "", "HuBERT, arXiv 2106.07447 §IV-C: 100, 500")
    sample_s: float = knob(600.0, "audio that is listened to, utterances drawn by `seed`", "s")
    num_frames: int = knob(10_000, "frames of it that statistics are taken over; memory grows with it", "frames")
    weighted: bool = knob(False, "weight canonical correlations by how much of the layer lies in their direction", "", "Morcos et al. 2018 (projection weighted)")
    num_resamples: int = knob(1000, "bootstrap resamples behind an interval")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check_finite("sample_s", self.sample_s)
        check(self.sample_s > 0, "sample_s", "positive", self.sample_s)
        check(self.segments != "" or not self.tier, "tier", "left out without `segments`", self.tier)
        check(2 <= self.num_codes <= MAX_WIDTH, "num_codes", f"between 2 and {MAX_WIDTH}", self.num_codes)
        check(self.num_frames >= 100, "num_frames", "at least 100", self.num_frames)
        check(self.num_resamples >= 1, "num_resamples", "at least 1", self.num_resamples)
