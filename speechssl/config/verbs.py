"""The keys of each verb: its own (`config/inference.py` has the verbs that only read a checkpoint), and its sections'.

`conf/` holds values that differ from these defaults, `cli/` composes them, everything below takes these dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from speechssl.config.adaptation import ADAPTER_DIM, WEIGHTS, LoRAConfig
from speechssl.config.common import CommonConfig
from speechssl.config.data import (
    BenchDataConfig,
    FinetuneDataConfig,
    PretrainDataConfig,
    TextConfig,
)
from speechssl.config.knobs import MISSING, check, check_choice, knob
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig, ObjectiveConfig
from speechssl.config.training import LoggingConfig, TrainingConfig

MAX_PENALTY = 1000.0
"""Nats that nobody pays: e to the power of minus this is 0 in any precision."""


def _check_patience(training: TrainingConfig, valid: list[str]) -> None:
    check(not training.patience or bool(valid), "training.patience", "0 without data.valid", training.patience)


@dataclass(kw_only=True)
class PretrainConfig(CommonConfig):
    """Keys of `speechssl pretrain`."""

    out: str = knob(MISSING, "run folder to write")
    init: str = knob("", "model to start from (anything `checkpoint` takes), with a fresh schedule; empty: from scratch")
    weights: str = knob("", "which weights of `init`: `model`, or `ema`, the moving average of training.ema_decay; empty: those that its training validated")
    data: PretrainDataConfig = knob(PretrainDataConfig, "unlabelled speech")
    model: ModelConfig = knob(ModelConfig.leave_open, "the network; with `init`, its dimensions come from there")
    objective: ObjectiveConfig = knob(ContrastiveConfig, "what is learned")
    training: TrainingConfig = knob(TrainingConfig, "optimizer and schedule")
    logging: LoggingConfig = knob(LoggingConfig, "where metrics go")

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_choice("weights", self.weights, WEIGHTS)

        _check_patience(self.training, self.data.valid)
        # Keys of fine-tuning that stand in sections which both verbs have: none is dropped silently.
        check(self.model.self_conditioning == 0, "model.self_conditioning", "0 in pretraining, which has no CTC head", self.model.self_conditioning)
        check(self.model.length_adapter_layers == 0, "model.length_adapter_layers", "0 in pretraining, which looks at the frames of the blocks", self.model.length_adapter_layers)
        for name in ("unfreeze_share", "layer_lr_decay"):
            value = getattr(self.training, name)
            check(value == 1, f"training.{name}", "1 in pretraining, since it is for fine-tuning", value)

    @property
    def checkpoints_read(self) -> dict[str, str]:
        """Keys that name a checkpoint which the run begins with, with their values."""
        return {"init": self.init, **self.objective.checkpoints_read}


@dataclass(kw_only=True)
class FinetuneConfig(CommonConfig):
    """Keys of `speechssl finetune`."""

    out: str = knob(MISSING, "run folder to write")
    init: str = knob("", "pretrained model, or recogniser, whose CTC head goes on with the labels that it has (anything `checkpoint` takes); empty: train `model` from scratch")
    weights: str = knob("", "which weights of `init`: `model`, or `ema`, the moving average of training.ema_decay; empty: those that its training validated")
    language: str = knob("", "language whose adapters, head and labels are taken of a model that has several (MMS), such as swh; empty: its own")
    adapt: str = knob("all", "what learns: `all` weights; `lora`, low-rank differences in attention; or `adapters` after the blocks (model.adapter_dim); of the last two a checkpoint holds only these and the head, and needs `init` to be where it was")
    lora: LoRAConfig = knob(LoRAConfig, "the differences of adapt=lora")
    reset_layers: int = knob(0, "number of last transformer blocks to re-initialise instead of loading them from `init`", "blocks", "Pasad et al., arXiv 2107.04734 §5")
    freeze_layers: int = knob(-1, "number of first transformer blocks that stay as pretrained, and the front end with them, until training.unfreeze_share; -1: none, not even the front end; without `init` nothing is frozen", "blocks")
    intermediate_weight: float = knob(0.0, "weight of the CTC loss of a block inside the network, against 1 minus it for the output; 0: none", "", "arXiv 2102.03216: 0.3")
    intermediate_layer: int = knob(0, "block of that loss; 0: that of model.self_conditioning, or else the middle one", "", "arXiv 2102.03216")
    consistency_weight: float = knob(0.0, "weight of how far the outputs of two views of an utterance, masked differently, are apart; 0: one view; else blocks compute twice as much", "", "CR-CTC, arXiv 2410.05101: 0.2")
    tolerate_errors: bool = knob(False, "train with a CTC that tolerates missing, extra and wrong words in transcripts", "", "OTC, arXiv 2309.15796")
    star_penalty: float = knob(4.0, "what a frame of speech costs at the first update that the transcript does not have (tolerate_errors)", "nats", "docs/training.md")
    word_penalty: float = knob(20.0, "what a word of the transcript costs at the first update that is not heard (tolerate_errors)", "nats", "docs/training.md")
    penalty_decay: float = knob(0.7, "what is left of both penalties at the last update, as a share (tolerate_errors)", "", "docs/training.md")
    best_by: str = knob("wer", "metric of validation whose lowest value marks the best checkpoint: `wer` (then `cer`), `cer` or `loss`")
    data: FinetuneDataConfig = knob(FinetuneDataConfig, "transcribed speech")
    text: TextConfig = knob(TextConfig, "labels")
    model: ModelConfig = knob(ModelConfig.leave_open, "the network; with `init`, its dimensions come from there")
    training: TrainingConfig = knob(TrainingConfig, "optimizer and schedule")
    logging: LoggingConfig = knob(LoggingConfig, "where metrics go")

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_choice("weights", self.weights, WEIGHTS)
        check(self.reset_layers == 0 or bool(self.init), "reset_layers", "0 without `init`, since all blocks are new then", self.reset_layers)
        check_choice("best_by", self.best_by, ("wer", "cer", "loss"))
        self._check_adaptation()
        is_frozen = self.freeze_layers >= 0 or self.training.unfreeze_share == 1
        check(is_frozen, "training.unfreeze_share", "1 without freeze_layers", self.training.unfreeze_share)
        _check_patience(self.training, self.data.valid)
        self._check_losses()
        self._check_tolerance()

    def _check_adaptation(self) -> None:
        check_choice("adapt", self.adapt, ("all", "lora", "adapters"))
        must = "lora where keys of lora are given"
        check(self.adapt == "lora" or self.lora == LoRAConfig(), "adapt", must, self.adapt)
        check(bool(self.init) or not self.language, "language", "left out without `init`", self.language)
        check(bool(self.init) or self.text.vocabulary != "init", "text.vocabulary", "left out without `init`", self.text.vocabulary)
        if self.adapt == "all":
            return
        check(bool(self.init), "adapt", "all without `init`, since nothing is there to be adapted", self.adapt)
        check(self.reset_layers == 0, "reset_layers", "0 unless adapt is all, since new blocks must learn", self.reset_layers)
        if self.adapt == "adapters" and self.model.is_chosen and not self.model.adapter_dim:
            self.model = replace(self.model, adapter_dim=ADAPTER_DIM)

    def _check_losses(self) -> None:
        model = self.model
        check(0 <= self.intermediate_weight < 1, "intermediate_weight", "at least 0 and less than 1", self.intermediate_weight)
        must = "positive with model.self_conditioning, whose block learns by it"
        check(self.intermediate_weight > 0 or not model.self_conditioning, "intermediate_weight", must, self.intermediate_weight)
        must = f"0 or that of model.self_conditioning ({model.self_conditioning})"
        check(not model.self_conditioning or self.intermediate_layer in (0, model.self_conditioning), "intermediate_layer", must, self.intermediate_layer)
        check(model.length_adapter_layers == 0 or not self.intermediate_weight, "intermediate_weight", "0 where model.length_adapter_layers is more", self.intermediate_weight)
        check(self.consistency_weight >= 0, "consistency_weight", "positive, or 0 for one view", self.consistency_weight)
        has_masks = model.mask.prob > 0 or model.mask.channel_prob > 0
        check(has_masks or not self.consistency_weight, "consistency_weight", "0 without masks (model.mask.prob, model.mask.channel_prob)", self.consistency_weight)

    def _check_tolerance(self) -> None:
        for item in fields(self):
            if item.name in ("star_penalty", "word_penalty", "penalty_decay"):
                value = getattr(self, item.name)
                must = "left out without tolerate_errors=true"
                check(self.tolerate_errors or value == item.default, item.name, must, value)
                check(0 <= value <= MAX_PENALTY, item.name, f"between 0 and {MAX_PENALTY:g}", value)
        check(0 < self.penalty_decay <= 1, "penalty_decay", "positive and at most 1", self.penalty_decay)

    @property
    def checkpoints_read(self) -> dict[str, str]:
        """Keys that name a checkpoint which the run begins with, with their values."""
        return {"init": self.init}


@dataclass(kw_only=True)
class PrepareConfig:
    """Keys of `speechssl prepare`."""

    root: str = knob("", "folder that holds the corpus, or to download it to")
    corpus: str = knob("", "`librispeech`, `folder`, `table` or `demo`; empty: guessed from the folder")
    out: str = knob("", "folder for the manifests; empty: runs/prepare-<date>-<time>")
    splits: list[str] = knob([], "splits to take; empty: all of them")
    download: list[str] = knob([], "LibriSpeech parts to fetch first, such as [train-clean-100,dev-clean]")
    download_url: str = knob("https://www.openslr.org/resources", "server that holds the LibriSpeech archives")
    subset: list[str] = knob([], "nested subsets to write beside each split, such as [10m,1h,10h]")
    valid_share: float = knob(0.0, "share to hold out as `valid`, by speaker, or by file if speakers are unknown")
    format: str = knob("tsv", "`tsv` or `parquet`")
    table: str = knob("", "CSV or TSV file that lists the audio (corpus=table)")
    columns: dict[str, str] = knob({"path": "path", "text": "text", "speaker": "speaker"}, "which column of `table` holds path, text and speaker")
    channel: int = knob(0, "channel to read of each file, from 1; 0: the mean of all")
    speaker_pattern: str = knob("", "regular expression with one group that finds the speaker in a path (corpus=folder)")
    seed: int = knob(1, "seed of the subsets, the held-out share and the demo's speech")
    overwrite: bool = knob(False, "replace existing manifests")

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("tsv", "parquet"))
        check_choice("corpus", self.corpus, ("", "librispeech", "folder", "table", "demo"))
        check(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1", self.seed)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        check(0.0 <= self.valid_share < 1.0, "valid_share", "at least 0 and less than 1", self.valid_share)


@dataclass(kw_only=True)
class LMConfig:
    """Keys of `speechssl lm`."""

    texts: list[str] = knob([], "files with a sentence a line (.gz too), .trans.txt files, and manifests with `text`")
    order: int = knob(4, "words, or characters, of the longest n-gram", "", "KenLM is built for up to 6")
    out: str = knob("", "ARPA file (.arpa, .arpa.gz), or folder for it and its result; empty: runs/lm-<date>-<time>")
    test: list[str] = knob([], "held-out texts, of which the perplexity is given; empty: none")
    unit: str = knob("word", "`word`, or `character`: letters, with | between words")
    prune: list[int] = knob([], "n-grams of n words that were seen so many times or less are left out; the first must be 0, the last holds for longer ones too; empty: none", "", "KenLM: lmplz --prune")
    checkpoint: str = knob("", "recogniser whose labels spell the words; empty: `text.*` says how they are spelt")
    text: TextConfig = knob(lambda: TextConfig(unknown="drop"), "labels of the recogniser: as it was fine-tuned")
    overwrite: bool = knob(False, "replace a finished result")

    def __post_init__(self) -> None:
        check(1 <= self.order <= 16, "order", "between 1 and 16", self.order)
        check_choice("unit", self.unit, ("word", "character"))
        rises = self.prune == sorted(self.prune) and not any(self.prune[:1])
        check(rises, "prune", "0 first, and never less than before, as in [0,0,1]", self.prune)
        check(len(self.prune) <= self.order, "prune", f"at most as many numbers as `order`, {self.order}", self.prune)
        own = TextConfig(unknown=self.text.unknown)
        check(not self.checkpoint or self.text == own, "text", "left out with `checkpoint`, which has labels", str(self.text.vocabulary))
        check(self.text.vocabulary != "init", "text.vocabulary", "fairseq or data (`checkpoint` takes the labels of a recogniser)", "init")


@dataclass(kw_only=True)
class ConvertConfig:
    """Keys of `speechssl convert`."""

    checkpoint: str = knob(MISSING, "run folder (its best checkpoint), one checkpoint, Hugging Face folder, fairseq .pt, torchaudio file, torchaudio:BUNDLE or Hub id")
    weights: str = knob("", "which of its weights: `model`, or `ema`, the moving average of training.ema_decay; empty: those that its training validated")
    language: str = knob("", "language whose adapters, head and labels are taken of a model that has several (MMS), such as swh; empty: its own")
    to: str = knob("huggingface", "`speechssl`, `huggingface`, `fairseq`, `torchaudio`; for serving `onnx` (logits of a recogniser, else features) or `onnx_features`")
    quantize: str = knob("", "`int8`: weights of the products in 8 bits (dynamic quantisation; to=onnx or onnx_features); empty: all in float32")
    out: str = knob("", "folder to write, or file for fairseq, torchaudio and onnx; empty: runs/convert-<date>-<time>")
    push: str = knob("", "repository of the Hugging Face Hub to upload the folder to, `owner/model`, made private where there is none (to=huggingface); empty: none")
    overwrite: bool = knob(False, "replace a finished result")

    def __post_init__(self) -> None:
        check_choice("to", self.to, ("speechssl", "huggingface", "fairseq", "torchaudio", "onnx", "onnx_features"))
        check_choice("quantize", self.quantize, ("", "int8"))
        check(not self.quantize or self.to.startswith("onnx"), "quantize", "empty unless `to` is onnx or onnx_features", self.quantize)
        check(not self.push or self.to == "huggingface", "push", "empty unless `to` is huggingface", self.push)
        check(self.push.count("/") == 1 * bool(self.push), "push", "of the form owner/model", self.push)


@dataclass(kw_only=True)
class ReportConfig:
    """Keys of `speechssl report`."""

    run: list[str] = knob([], "one or more run folders")
    out: str = knob("", "page to write; empty: report.html in the first run folder")
    overwrite: bool = knob(True, "replace an existing page")


@dataclass(kw_only=True)
class DemoConfig:
    """Keys of `speechssl demo`."""

    out: str = knob("runs/demo", "folder to write")
    minutes: float = knob(8.5, "how long the whole demo should take on two cores", "min")
    seed: int = knob(1, "seed of the speech and of every step")
    device: str = knob("auto", "`auto`, `cpu`, `cuda` or `cuda:N`")
    overwrite: bool = knob(False, "replace a finished demo")

    def __post_init__(self) -> None:
        check(self.out != "", "out", "the folder of the demo", self.out)
        check(0.2 <= self.minutes <= 1440, "minutes", "at least 0.2 and at most 1440, a day", self.minutes)
        check(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1", self.seed)


@dataclass(kw_only=True)
class BenchConfig(CommonConfig):
    """Keys of `speechssl bench`."""

    job: str = knob("pretrain", "`pretrain`, `ctc`, `extract` or `load`")
    out: str = knob("", "folder for the result; empty: runs/bench-<date>-<time>")
    batch: int = knob(4, "rows per step", "rows")
    seconds: float = knob(5.0, "length of each row", "s")
    steps: int = knob(10, "steps to measure", "steps")
    warmup_steps: int = knob(3, "steps before them that are not measured", "steps")
    activation_checkpointing: bool = knob(False, "as `training.activation_checkpointing`, for `pretrain` and `ctc`")
    compile: bool = knob(False, "as `training.compile`, for `pretrain`, `ctc` and `extract`")
    data: BenchDataConfig = knob(BenchDataConfig, "speech to measure with; empty: noise made on the spot")
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
