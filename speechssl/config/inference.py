"""The keys of the verbs that read a checkpoint and compute with it: `config/verbs.py` has the other verbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speechssl.config.common import CommonConfig
from speechssl.config.data import AnalyseDataConfig, ProbeDataConfig, TestDataConfig
from speechssl.config.decoding import DecodingConfig
from speechssl.config.knobs import MISSING, check, check_choice, check_finite, knob
from speechssl.config.model import MAX_WIDTH


@dataclass(kw_only=True)
class InferenceConfig(CommonConfig):
    """What every verb that reads a checkpoint takes."""

    checkpoint: str = knob(MISSING, "run folder (its best checkpoint), one checkpoint, Hugging Face folder, fairseq .pt, torchaudio file, torchaudio:BUNDLE or Hub id")
    weights: str = knob("", "which of its weights: `model`, or `ema`, the moving average of training.ema_decay; empty: those that its training validated")
    language: str = knob("", "language whose adapters, head and labels are taken of a model that has several (MMS), such as swh; empty: its own")
    out: str = knob("", "file or folder to write; empty: runs/<verb>-<date>-<time>")
    batch_s: float = knob(60.0, "most audio in one forward pass: changes memory use, never the result", "s")
    window_s: float = knob(30.0, "files up to this long are taken in one pass, longer ones in overlapping windows of a fixed plan", "s")

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_finite("batch_s", self.batch_s)
        check_finite("window_s", self.window_s)
        check(self.batch_s > 0, "batch_s", "positive", self.batch_s)
        check(self.window_s >= 5, "window_s", "at least 5 s", self.window_s)


@dataclass(kw_only=True)
class EvaluateConfig(InferenceConfig):
    """Keys of `speechssl evaluate`."""

    data: TestDataConfig = knob(TestDataConfig, "what is recognised")
    decoding: DecodingConfig = knob(DecodingConfig, "from frames to text")
    num_resamples: int = knob(1000, "bootstrap resamples behind an interval")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.decoding.nbest == 1, "decoding.nbest", "1, since `transcribe` lists texts", self.decoding.nbest)


@dataclass(kw_only=True)
class TuneConfig(InferenceConfig):
    """Keys of `speechssl tune`."""

    data: TestDataConfig = knob(TestDataConfig, "development speech: never what is reported")
    decoding: DecodingConfig = knob(lambda: DecodingConfig(name="beam"), "from frames to text; weights given here are tried as well")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.decoding.name == "beam", "decoding", "beam, which has a language model", self.decoding.name)
        check(self.decoding.nbest == 1, "decoding.nbest", "1, since `transcribe` lists texts", self.decoding.nbest)


@dataclass(kw_only=True)
class TranscribeConfig(InferenceConfig):
    """Keys of `speechssl transcribe`."""

    out: str = knob("", "file or folder for the texts; empty: print them, and write nothing")
    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    channel: int = knob(0, "channel to read of each file, from 1; 0: the mean of all")
    min_confidence: Any = knob("", "write a manifest that finetune takes, without utterances whose text is less sure than this, 0 to 1; empty: lines of text")
    decoding: DecodingConfig = knob(DecodingConfig, "from frames to text")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        plain = not self.makes_manifest and self.out != ""
        check(self.decoding.nbest == 1 or plain, "decoding.nbest", "1 without `out`, and with min_confidence", self.decoding.nbest)
        if self.makes_manifest:
            is_share = type(self.min_confidence) in (int, float) and 0 <= self.min_confidence <= 1
            check(is_share, "min_confidence", "a number between 0 and 1, or empty for lines of text", self.min_confidence)
            check(self.out.endswith((".tsv", ".parquet")), "out", "a manifest (.tsv or .parquet) with min_confidence", self.out)

    @property
    def makes_manifest(self) -> bool:
        """Whether a manifest comes out, rather than lines of text."""
        return bool(self.min_confidence != "")


@dataclass(kw_only=True)
class EmbedConfig(InferenceConfig):
    """Keys of `speechssl embed`."""

    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    channel: int = knob(0, "channel to read of each file, from 1; 0: the mean of all")
    layer: Any = knob("last", "0 to the number of blocks, a list such as [3,6], `all`, `mean`, `last`, or a probe's folder")
    pooling: str = knob("mean", "`mean`, `max`, `statistics` (mean and standard deviation) or `frames`")
    format: str = knob("parquet", "`parquet`, `npy` or `safetensors`, where `out` has no suffix that says so")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.layer != "", "layer", "a layer or a probe's folder", self.layer)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        check_choice("pooling", self.pooling, ("mean", "max", "statistics", "frames"))
        check_choice("format", self.format, ("parquet", "npy", "safetensors"))


@dataclass(kw_only=True)
class UnitsConfig(InferenceConfig):
    """Keys of `speechssl units`."""

    out: str = knob("", "table to write (.tsv, .parquet, or .txt with lines `id|3 3 7`), or a folder for it; empty: runs/units-<date>-<time>")
    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    channel: int = knob(0, "channel to read of each file, from 1; 0: the mean of all")
    layer: Any = knob("", "whose frames are clustered: 0 to the number of blocks, `mean` or `last`; or `quantizer`, the codes of wav2vec 2.0's pretraining; empty: that of `codes`, else `last`")
    num_codes: int = knob(0, "clusters of k-means; 0: those of `codes`, else 100", "", "GSLM, arXiv 2102.01192: 50, 100, 200")
    codes: str = knob("", "clusters that an earlier run wrote, so that other audio gets the same units; empty: fit them to `audio`")
    precision: str = knob("float32", "`float32`, in which targets of pretraining are computed too; `bf16`, or `auto`: bf16 where the device is faster with it")
    merge: bool = knob(False, "tell a unit that comes several times in a row once, with its `durations` in frames")
    fit_s: float = knob(3600.0, "audio that k-means is fitted to, utterances drawn by `seed`; memory grows with it", "s")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        is_number = self.num_codes == 0 or 2 <= self.num_codes <= MAX_WIDTH
        check(is_number, "num_codes", f"between 2 and {MAX_WIDTH}, or 0", self.num_codes)
        check_finite("fit_s", self.fit_s)
        check(self.fit_s > 0, "fit_s", "positive", self.fit_s)
        if self.layer == "quantizer":
            for key, value in (("codes", self.codes), ("num_codes", self.num_codes)):
                check(not value, key, "left out with layer=quantizer, which has codes of its own", value)


@dataclass(kw_only=True)
class ProbeConfig(InferenceConfig):
    """Keys of `speechssl probe`."""

    data: ProbeDataConfig = knob(ProbeDataConfig, "labelled speech")
    task: str = knob("identification", "`identification` or `verification`")
    num_trials: int = knob(20_000, "largest number of verification trials to make")
    updates: int = knob(300, "updates of each linear probe", "updates")
    lr: float = knob(0.02, "learning rate of each linear probe")
    num_resamples: int = knob(1000, "bootstrap resamples behind an interval")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check_choice("task", self.task, ("identification", "verification"))
        of_trials = self.task == "verification" or not self.data.trials
        check(of_trials, "data.trials", "left out with task=identification (task=verification takes it)", self.data.trials)
        check(self.num_trials >= 2, "num_trials", "at least 2, one of each kind", self.num_trials)
        check(self.updates >= 1, "updates", "at least 1", self.updates)
        check(self.lr > 0, "lr", "positive", self.lr)
        check(self.num_resamples >= 1, "num_resamples", "at least 1", self.num_resamples)


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
    sample_s: float = knob(600.0, "audio that is listened to, utterances drawn by `seed`", "s")
    num_frames: int = knob(10_000, "frames of it that statistics are taken over; memory grows with it", "frames")
    weighted: bool = knob(False, "weight canonical correlations by how much of the layer lies in their direction", "", "Morcos et al. 2018 (projection weighted)")
    num_resamples: int = knob(1000, "bootstrap resamples behind an interval")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check_finite("sample_s", self.sample_s)
        check(self.sample_s > 0, "sample_s", "positive", self.sample_s)
        check(self.num_frames >= 100, "num_frames", "at least 100", self.num_frames)
        check(self.num_resamples >= 1, "num_resamples", "at least 1", self.num_resamples)
