"""Every knob, once: its default, unit, meaning and source.

`conf/` holds values that differ from these defaults, `cli/` composes them, everything below takes these dataclasses.
The defaults are wav2vec 2.0 BASE (arXiv 2006.11477 and fairseq's configuration); `F:` in a source means fairseq.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speechssl.config.decoding import DecodingConfig
from speechssl.config.knobs import DAY_S, MAX_WORKERS, MISSING, Key, check, check_choice, check_finite, knob, list_keys
from speechssl.config.model import MAX_WIDTH, MaskConfig, ModelConfig, QuantizerConfig
from speechssl.config.training import LoggingConfig, TrainingConfig

__all__ = [
    "MISSING", "DecodingConfig", "Key", "LoggingConfig", "MaskConfig", "ModelConfig", "QuantizerConfig", "TrainingConfig", "check", "check_choice",
    "check_finite", "knob", "list_keys",
]


@dataclass(kw_only=True)
class ContrastiveConfig:
    """The contrastive task (§3.2, eq. 2 to 4)."""

    num_negatives: int = knob(100, "negatives K for each masked frame, from the row's other masked frames", "", "§4.2")
    logit_temperature: float = knob(0.1, "κ, the temperature of the cosine similarities", "", "§4.2")
    diversity_weight: float = knob(0.1, "α, weight of the codebook diversity term", "", "§4.2")
    feature_penalty_weight: float = knob(10.0, "weight of the mean squared feature encoder output", "", "F: loss_weights")

    def __post_init__(self) -> None:
        check(1 <= self.num_negatives <= MAX_WIDTH, "objective.num_negatives", f"between 1 and {MAX_WIDTH}", self.num_negatives)
        check(self.logit_temperature > 0, "objective.logit_temperature", "positive", self.logit_temperature)


@dataclass(kw_only=True)
class ObjectiveConfig(ContrastiveConfig):
    """What pretraining learns. `name` says which; the keys of the other objective are then without effect."""

    targets: str = knob("random_projection", "masked_codes: `random_projection` of log-mel (BEST-RQ) or `kmeans` (HuBERT)", "", "arXiv 2202.01855, 2106.07447")
    num_codes: int = knob(0, "masked_codes: codes; 0: 8192 of a random projection, 100 of MFCC, 500 of a teacher's layer", "", "BEST-RQ §4, HuBERT §4")
    code_dim: int = knob(16, "masked_codes: dimensions that stacked log-mel is projected to", "", "BEST-RQ §4")
    stack_frames: int = knob(2, "masked_codes: log-mel frames, 10 ms apart, around the middle of a frame", "frames")
    teacher: str = knob("mfcc", "masked_codes: what k-means clusters: `mfcc`, or a layer of what `checkpoint` takes elsewhere", "", "HuBERT §4")
    teacher_layer: int = knob(6, "masked_codes: layer of the teacher, 0 to its number of blocks", "", "HuBERT §4, BASE")
    subtract_mean: bool = knob(False, "masked_codes: take each utterance's mean (in pretraining each crop's) from its MFCC", "", "cepstral mean normalisation")
    fit_s: float = knob(3600.0, "masked_codes: audio that k-means is fitted to, once as a run begins", "s")
    intermediate_layer: int = knob(0, "masked_codes: the same loss after this block too; 0: none", "", "ILS-SSL, arXiv 2112.08778")
    unmasked_weight: float = knob(0.0, "masked_codes: weight of the loss at the frames that are not masked", "", "HuBERT: (1 - α) / α")
    name: str = knob("wav2vec2", "`wav2vec2` or `masked_codes`; chosen as objective=…")

    def __post_init__(self) -> None:
        ContrastiveConfig.__post_init__(self)
        check_choice("objective.name", self.name, ("wav2vec2", "masked_codes"))
        check_choice("objective.targets", self.targets, ("random_projection", "kmeans"))
        is_number = self.num_codes == 0 or 2 <= self.num_codes <= MAX_WIDTH
        check(is_number, "objective.num_codes", f"between 2 and {MAX_WIDTH}, or 0 for the published number", self.num_codes)
        check(1 <= self.code_dim <= MAX_WIDTH, "objective.code_dim", f"between 1 and {MAX_WIDTH}", self.code_dim)
        check(1 <= self.stack_frames <= 1000, "objective.stack_frames", "between 1 and 1000 frames", self.stack_frames)
        check_finite("objective.fit_s", self.fit_s)
        check(self.fit_s > 0, "objective.fit_s", "positive", self.fit_s)
        check(self.unmasked_weight >= 0, "objective.unmasked_weight", "at least 0", self.unmasked_weight)


@dataclass(kw_only=True)
class SelectionConfig:
    """Which rows of which manifests."""

    limit_s: float = knob(0.0, "take a seeded, speaker-balanced subset of `data.train` this long; 0: all of it", "s")
    where: str = knob("", "keep the rows with this value, as column=value")
    num_workers: int = knob(2, "processes that read audio; 0 reads in the main process")
    cache_dir: str = knob("", "keep decoded audio here as 16 kHz WAV; empty: decode every time")

    def __post_init__(self) -> None:
        check(self.limit_s >= 0, "data.limit_s", "positive, or 0 for all", self.limit_s)
        check(0 <= self.num_workers <= MAX_WORKERS, "data.num_workers", f"between 0 and {MAX_WORKERS}", self.num_workers)


@dataclass(kw_only=True)
class TrainDataConfig(SelectionConfig):
    """How speech is changed before a model learns from it."""

    speed_perturbation: list[float] = knob([], "speeds, one of which is drawn for each training utterance and epoch, such as [0.9,1.0,1.1]; empty: none", "", "Ko et al. 2015")

    def __post_init__(self) -> None:
        SelectionConfig.__post_init__(self)
        within = all(0.5 <= speed <= 2.0 for speed in self.speed_perturbation)
        check(within, "data.speed_perturbation", "speeds between 0.5 and 2", self.speed_perturbation)

    @property
    def fastest(self) -> float:
        """The speed at which an utterance is shortest."""
        return max(self.speed_perturbation, default=1.0)


@dataclass(kw_only=True)
class PretrainDataConfig(TrainDataConfig):
    """Unlabelled speech."""

    train: list[str] = knob([], "manifest or list of manifests (.tsv or .parquet) to learn from")
    valid: list[str] = knob([], "manifest or list of manifests to validate on; empty: none")
    min_s: float = knob(2.0, "shortest utterance that is used", "s", "F: min_sample_size")
    max_s: float = knob(15.625, "longest crop", "s", "F: max_sample_size 250000")

    def __post_init__(self) -> None:
        TrainDataConfig.__post_init__(self)
        check(0 < self.max_s <= DAY_S, "data.max_s", f"positive and at most {DAY_S:g} s, a day", self.max_s)
        check(0 < self.min_s <= self.max_s, "data.min_s", f"positive and at most data.max_s ({self.max_s:g} s)", self.min_s)


@dataclass(kw_only=True)
class FinetuneDataConfig(TrainDataConfig):
    """Transcribed speech."""

    train: list[str] = knob([], "manifest or list of manifests with `text`")
    valid: list[str] = knob([], "manifest or list of manifests with `text`; empty: none")
    max_s: float = knob(40.0, "longest utterance that is used; longer ones are counted and named", "s")
    ascending_epochs: int = knob(0, "so many first epochs take short utterances first", "epochs")

    def __post_init__(self) -> None:
        TrainDataConfig.__post_init__(self)
        check(0 < self.max_s <= DAY_S, "data.max_s", f"positive and at most {DAY_S:g} s, a day", self.max_s)


@dataclass(kw_only=True)
class TextConfig:
    """From transcripts to CTC labels."""

    vocabulary: str = knob("fairseq", "`fairseq`: its 32 symbols; `data`: the letters of data.train")
    case: str = knob("upper", "`upper`, `lower` or `keep`")
    keep: str = knob("", "characters outside the vocabulary that are kept as labels of their own, such as 0123456789")
    unknown: str = knob("refuse", "letters and digits outside the vocabulary: `refuse` them, or `drop` them from the labels")

    def __post_init__(self) -> None:
        check_choice("text.vocabulary", self.vocabulary, ("fairseq", "data"))
        check_choice("text.case", self.case, ("upper", "lower", "keep"))
        check_choice("text.unknown", self.unknown, ("refuse", "drop"))


@dataclass(kw_only=True)
class CommonConfig:
    """What every verb that computes takes."""

    seed: int = knob(1, "seed of everything that is drawn")
    device: str = knob("auto", "`auto`, `cpu`, `cuda` or `cuda:N`")
    precision: str = knob("auto", "`float32`, `bf16`, or `auto`: bf16 where the device multiplies it faster")
    overwrite: bool = knob(False, "replace a finished result")

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, ("float32", "bf16", "auto"))
        check(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1", self.seed)


_WEIGHTS = ("model", "ema")
"""Which weights of a checkpoint `weights` may name."""


@dataclass(kw_only=True)
class PretrainConfig(CommonConfig):
    """Keys of `speechssl pretrain`."""

    out: str = knob(MISSING, "run folder to write")
    init: str = knob("", "what `checkpoint` takes elsewhere, to continue from with a fresh schedule; empty: from scratch")
    weights: str = knob("model", "which weights of `init`: `model`, or `ema`, the moving average that training.ema_decay keeps")
    data: PretrainDataConfig = knob(PretrainDataConfig, "unlabelled speech")
    model: ModelConfig = knob(ModelConfig.leave_open, "the network; with `init`, its dimensions come from there")
    objective: ObjectiveConfig = knob(ObjectiveConfig, "what is learned")
    training: TrainingConfig = knob(TrainingConfig, "optimizer and schedule")
    logging: LoggingConfig = knob(LoggingConfig, "where metrics go")

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_choice("weights", self.weights, _WEIGHTS)


@dataclass(kw_only=True)
class FinetuneConfig(CommonConfig):
    """Keys of `speechssl finetune`."""

    out: str = knob(MISSING, "run folder to write")
    init: str = knob("", "pretrained model, or a recogniser, whose head goes on where the labels are the same, as `checkpoint` takes elsewhere; empty: train `model` from scratch")
    weights: str = knob("model", "which weights of `init`: `model`, or `ema`, the moving average that training.ema_decay keeps")
    reset_layers: int = knob(0, "so many last transformer blocks start afresh instead of from init", "blocks", "Pasad et al., arXiv 2107.04734 §5")
    data: FinetuneDataConfig = knob(FinetuneDataConfig, "transcribed speech")
    text: TextConfig = knob(TextConfig, "labels")
    model: ModelConfig = knob(ModelConfig.leave_open, "the network; with `init`, its dimensions come from there")
    training: TrainingConfig = knob(TrainingConfig, "optimizer and schedule")
    logging: LoggingConfig = knob(LoggingConfig, "where metrics go")

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_choice("weights", self.weights, _WEIGHTS)
        check(self.reset_layers == 0 or bool(self.init), "reset_layers", "0 without `init`, where every block starts afresh", self.reset_layers)


@dataclass(kw_only=True)
class PrepareConfig:
    """Keys of `speechssl prepare`."""

    root: str = knob("", "folder that holds the corpus, or that it is downloaded to")
    corpus: str = knob("", "`librispeech`, `folder`, `table` or `demo`; empty: guessed from the folder")
    out: str = knob("", "folder for the manifests; empty: runs/prepare-<date>-<time>")
    splits: list[str] = knob([], "splits to take; empty: all that are there")
    download: list[str] = knob([], "LibriSpeech parts to fetch first, such as [train-clean-100,dev-clean]")
    download_url: str = knob("https://www.openslr.org/resources", "server that holds the LibriSpeech archives")
    subset: list[str] = knob([], "nested subsets to write beside each split, such as [10m,1h,10h]")
    valid_share: float = knob(0.0, "share held out as `valid`, by speaker, or by file where speakers are unknown")
    format: str = knob("tsv", "`tsv` or `parquet`")
    table: str = knob("", "CSV or TSV file that lists the audio (corpus=table)")
    columns: dict[str, str] = knob({"path": "path", "text": "text", "speaker": "speaker"}, "which column of `table` holds path, text and speaker")
    channel: int = knob(0, "channel of each file that is read, from 1; 0: the mean of all")
    speaker_pattern: str = knob("", "regular expression with one group that finds the speaker in a path (corpus=folder)")
    seed: int = knob(1, "seed of subsets, of the held-out share and of the demo's speech")
    overwrite: bool = knob(False, "replace manifests that are there")

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("tsv", "parquet"))
        check_choice("corpus", self.corpus, ("", "librispeech", "folder", "table", "demo"))
        check(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1", self.seed)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        check(0.0 <= self.valid_share < 1.0, "valid_share", "at least 0 and less than 1", self.valid_share)


@dataclass(kw_only=True)
class InferenceConfig(CommonConfig):
    """What every verb that reads a checkpoint takes."""

    checkpoint: str = knob(MISSING, "run folder (its best checkpoint), one checkpoint, Hugging Face folder, fairseq .pt, torchaudio file, torchaudio:BUNDLE or Hub id")
    weights: str = knob("model", "which of its weights: `model`, or `ema`, the moving average that training.ema_decay keeps")
    out: str = knob("", "file or folder to write; empty: runs/<verb>-<date>-<time>")
    batch_s: float = knob(60.0, "audio a forward may hold: memory only", "s")
    window_s: float = knob(30.0, "files up to this long are one pass; beyond it, a fixed plan of overlapping windows", "s")

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_finite("batch_s", self.batch_s)
        check_finite("window_s", self.window_s)
        check(self.batch_s > 0, "batch_s", "positive", self.batch_s)
        check(self.window_s >= 5, "window_s", "at least 5 s", self.window_s)


@dataclass(kw_only=True)
class TestDataConfig:
    """Which rows are evaluated."""

    test: list[str] = knob([], "manifest or list of manifests with `text`")
    where: str = knob("", "keep the rows with this value, as column=value")


@dataclass(kw_only=True)
class EvaluateConfig(InferenceConfig):
    """Keys of `speechssl evaluate`."""

    data: TestDataConfig = knob(TestDataConfig, "what is recognised")
    decoding: DecodingConfig = knob(DecodingConfig, "from frames to text")
    num_resamples: int = knob(1000, "bootstrap resamples behind an interval")


@dataclass(kw_only=True)
class TranscribeConfig(InferenceConfig):
    """Keys of `speechssl transcribe`."""

    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    channel: int = knob(0, "channel of each file that is read, from 1; 0: the mean of all")
    decoding: DecodingConfig = knob(DecodingConfig, "from frames to text")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)


@dataclass(kw_only=True)
class EmbedConfig(InferenceConfig):
    """Keys of `speechssl embed`."""

    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    channel: int = knob(0, "channel of each file that is read, from 1; 0: the mean of all")
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
class ProbeDataConfig:
    """Labelled speech for a probe."""

    train: list[str] = knob([], "manifest or list of manifests with `speaker`")
    test: list[str] = knob([], "the same; empty: split `data.train` by utterance, stratified")
    trials: str = knob("", "verification trials, one `label id id` a line; empty: made from data.test")
    where: str = knob("", "keep the rows with this value, as column=value")
    max_s: float = knob(10.0, "longest stretch of an utterance that is used, from its start", "s")

    def __post_init__(self) -> None:
        check(self.max_s >= 0.025, "data.max_s", "at least 0.025 s, one frame", self.max_s)


@dataclass(kw_only=True)
class ProbeConfig(InferenceConfig):
    """Keys of `speechssl probe`."""

    data: ProbeDataConfig = knob(ProbeDataConfig, "labelled speech")
    task: str = knob("identification", "`identification` or `verification`")
    num_trials: int = knob(20_000, "most verification trials that are made")
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
class ConvertConfig:
    """Keys of `speechssl convert`."""

    checkpoint: str = knob(MISSING, "run folder (its best checkpoint), one checkpoint, Hugging Face folder, fairseq .pt, torchaudio file, torchaudio:BUNDLE or Hub id")
    weights: str = knob("model", "which of its weights: `model`, or `ema`, the moving average that training.ema_decay keeps")
    to: str = knob("huggingface", "`speechssl`, `huggingface`, `fairseq`, `torchaudio`; for serving `onnx` (logits of a recogniser, else features) or `onnx_features`")
    out: str = knob("", "folder to write, or file for fairseq, torchaudio and onnx; empty: runs/convert-<date>-<time>")
    overwrite: bool = knob(False, "replace a finished result")

    def __post_init__(self) -> None:
        check_choice("to", self.to, ("speechssl", "huggingface", "fairseq", "torchaudio", "onnx", "onnx_features"))


@dataclass(kw_only=True)
class ReportConfig:
    """Keys of `speechssl report`."""

    run: list[str] = knob([], "one or more run folders")
    out: str = knob("", "page to write; empty: report.html in the first run folder")
    overwrite: bool = knob(True, "replace a page that is there")


@dataclass(kw_only=True)
class DemoConfig:
    """Keys of `speechssl demo`."""

    out: str = knob("runs/demo", "folder to write")
    minutes: float = knob(8.5, "time that the whole demo should take on two cores", "min")
    seed: int = knob(1, "seed of the speech and of every step")
    device: str = knob("auto", "`auto`, `cpu`, `cuda` or `cuda:N`")
    overwrite: bool = knob(False, "replace a finished demo")

    def __post_init__(self) -> None:
        check(self.out != "", "out", "the folder of the demo", self.out)
        check(0.2 <= self.minutes <= 1440, "minutes", "at least 0.2 and at most 1440, a day", self.minutes)
        check(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1", self.seed)


@dataclass(kw_only=True)
class BenchDataConfig(SelectionConfig):
    """Speech to measure with."""

    train: list[str] = knob([], "manifest or list of manifests (.tsv or .parquet) for `load`, and for `pretrain` in place of noise")


@dataclass(kw_only=True)
class BenchConfig(CommonConfig):
    """Keys of `speechssl bench`."""

    job: str = knob("pretrain", "`pretrain`, `ctc`, `extract` or `load`")
    out: str = knob("", "folder for the result; empty: runs/bench-<date>-<time>")
    batch: int = knob(4, "rows of a step", "rows")
    seconds: float = knob(5.0, "length of each row", "s")
    steps: int = knob(10, "steps that are measured", "steps")
    warmup_steps: int = knob(3, "steps before them that are not", "steps")
    activation_checkpointing: bool = knob(False, "as `training.activation_checkpointing`, for `pretrain` and `ctc`")
    compile: bool = knob(False, "as `training.compile`, for `pretrain`, `ctc` and `extract`")
    data: BenchDataConfig = knob(BenchDataConfig, "speech to measure with; without it noise made on the spot")
    model: ModelConfig = knob(ModelConfig, "the network; for `ctc` with the values of its fine-tuning preset")

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_choice("job", self.job, ("pretrain", "ctc", "extract", "load"))
        check(self.batch >= 1, "batch", "at least 1", self.batch)
        check(self.seconds >= 0.1, "seconds", "at least 0.1", self.seconds)
        check(self.steps >= 1, "steps", "at least 1", self.steps)
        check(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)


@dataclass(kw_only=True)
class DoctorConfig:
    """Keys of `speechssl doctor` (none)."""
