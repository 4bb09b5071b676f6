"""The keys of the verbs that read a checkpoint and compute with it: `config/verbs.py` has the other verbs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.config.common import CommonConfig
from speechssl.config.data import NORMALISERS, ProbeDataConfig, TestDataConfig
from speechssl.config.decoding import DecodingConfig
from speechssl.config.knobs import MISSING, check, check_choice, check_finite, knob
from speechssl.config.model import MAX_WIDTH

FORMATS = ("tsv", "json", "srt", "vtt", "ctm", "textgrid", "stm")
"""How texts are written: `inference/text_formats.py`."""

TIMED_FORMATS = tuple(name for name in FORMATS if name != "tsv")
"""Those that say when a word is said."""


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
class ScoringConfig:
    """How texts are compared and errors counted."""

    normaliser: str = knob("none", "rules that both texts go through before they are compared: `none`, `basic` (lower case, no punctuation) or `english` (those of Whisper: numbers, contractions, spelling)", "", "arXiv 2212.04356 App. C")
    by: list[str] = knob([], "columns whose values get rates of their own, such as [sex,accent]")
    trn: bool = knob(False, "write reference.trn and hypothesis.trn too, for NIST's sclite")
    num_resamples: int = knob(1000, "bootstrap resamples behind an interval")

    def __post_init__(self) -> None:
        check_choice("normaliser", self.normaliser, ("", *NORMALISERS))
        check(self.num_resamples >= 1, "num_resamples", "at least 1", self.num_resamples)


@dataclass(kw_only=True)
class EvaluateConfig(ScoringConfig, InferenceConfig):
    """Keys of `speechssl evaluate`."""

    data: TestDataConfig = knob(TestDataConfig, "what is recognised")
    decoding: DecodingConfig = knob(DecodingConfig, "from frames to text")
    normaliser: str = knob("", "rules that both texts go through before they are compared: `none`, `basic` (lower case, no punctuation), `english` (those of Whisper); empty: as the recogniser spells, which was trained with text.normaliser")
    empty: bool = knob(False, "score utterances without a transcript as silence, in which every word is an insertion; false: leave them out")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        ScoringConfig.__post_init__(self)
        check(self.decoding.nbest == 1, "decoding.nbest", "1, since `transcribe` lists texts", self.decoding.nbest)


@dataclass(kw_only=True)
class ScoreConfig(ScoringConfig):
    """Keys of `speechssl score`."""

    reference: str = knob(MISSING, "what was said: a manifest or table with `id` and `text`, lines of `id<TAB>text`, NIST `.trn`, or Kaldi's `text`")
    hypothesis: str = knob(MISSING, "what was recognised, of the same ids, in any of these forms")
    out: str = knob("", "folder to write; empty: print the figures, and write nothing")
    seed: int = knob(1, "seed of the resampling")
    overwrite: bool = knob(False, "replace a finished result")

    def __post_init__(self) -> None:
        ScoringConfig.__post_init__(self)
        check(self.normaliser != "", "normaliser", f"one of {', '.join(NORMALISERS)}", self.normaliser)
        check(not self.trn or bool(self.out), "trn", "false without `out`, where nothing is written", self.trn)


@dataclass(kw_only=True)
class CompareConfig:
    """Keys of `speechssl compare`."""

    a: list[str] = knob([], "folder of `evaluate` or `score`, or one of each seed")
    b: list[str] = knob([], "as many folders of the same test set, which are compared with those of `a`")
    out: str = knob("", "folder to write; empty: runs/compare-<date>-<time>")
    num_resamples: int = knob(10_000, "bootstrap resamples behind the interval")
    seed: int = knob(1, "seed of the resampling")
    overwrite: bool = knob(False, "replace a finished result")

    def __post_init__(self) -> None:
        check(len(self.a) == len(self.b), "b", f"as many folders as `a` ({len(self.a)}), one a seed", self.b)
        check(self.num_resamples >= 1, "num_resamples", "at least 1", self.num_resamples)


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

    out: str = knob("", "file for all texts, or folder with a file for each (for tsv one for all); empty: print them, and write nothing")
    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    channel: int = knob(0, "channel to read of each file, from 1; 0: the mean of all")
    format: str = knob("", "`tsv` (id and text), `json`, `srt`, `vtt`, `ctm`, `textgrid` or `stm`, which have words in time; empty: what the suffix of `out` says, else tsv")
    min_confidence: Any = knob("", "write a manifest that finetune takes, without utterances whose text is less sure than this, 0 to 1; empty: lines of text")
    decoding: DecodingConfig = knob(DecodingConfig, "from frames to text")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        plain = not self.makes_manifest and self.out != ""
        check(self.decoding.nbest == 1 or plain, "decoding.nbest", "1 without `out`, and with min_confidence", self.decoding.nbest)
        check_choice("format", self.format, ("", *FORMATS))
        if self.makes_manifest:
            check(not self.format, "format", "left out with min_confidence, which makes a manifest", self.format)
            is_share = type(self.min_confidence) in (int, float) and 0 <= self.min_confidence <= 1
            check(is_share, "min_confidence", "a number between 0 and 1, or empty for lines of text", self.min_confidence)
            check(self.out.endswith((".tsv", ".parquet")), "out", "a manifest (.tsv or .parquet) with min_confidence", self.out)

    @property
    def makes_manifest(self) -> bool:
        """Whether a manifest comes out, rather than lines of text."""
        return bool(self.min_confidence != "")


@dataclass(kw_only=True)
class AlignConfig(InferenceConfig):
    """Keys of `speechssl align`."""

    out: str = knob("", "file or folder for the words in time; empty: print them, and write nothing")
    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    text: str = knob("", "what is said: a text file of one utterance, a folder with a `.txt` for each by its name, or the text itself of one; empty: the column `text` of a manifest")
    format: str = knob("", f"{', '.join(f'`{name}`' for name in TIMED_FORMATS)}; empty: as the suffix of `out` says, else ctm, a word a line")
    romanise: bool = knob(False, "spell the text in Latin letters before its labels are taken, any script (extra `romanise`: uroman)")
    channel: int = knob(0, "channel to read of each file, from 1; 0: the mean of all")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        check_choice("format", self.format, ("", *TIMED_FORMATS))


@dataclass(kw_only=True)
class EmbedConfig(InferenceConfig):
    """Keys of `speechssl embed`."""

    audio: list[str] = knob([], "files, folders, globs, a manifest, or a text file that lists paths")
    channel: int = knob(0, "channel to read of each file, from 1; 0: the mean of all")
    layer: Any = knob("last", "0 to the number of blocks, a list such as [3,6], `all`, `mean`, `last`, or a probe's folder")
    pooling: str = knob("mean", "`mean`, `max`, `statistics` (mean and standard deviation) or `frames`")
    segments: str = knob("", "CTM, RTTM, TextGrid, folder of TextGrids, or table with id, start, end (s) and label: a row a segment, with its label; empty: a row an utterance")
    tier: str = knob("", "tier of the TextGrids, such as phones; empty: their only one")
    normalise: str = knob("", "`l2`: vectors of length 1; empty: as the model gives them")
    dtype: str = knob("float32", "`float32`, or `float16` for half the size")
    append: bool = knob(False, "add to the table `out` what is new in `audio`, by id")
    format: str = knob("parquet", "`parquet`, `npy` or `safetensors`, where `out` has no suffix that says so")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check(self.layer != "", "layer", "a layer or a probe's folder", self.layer)
        check(self.channel >= 0, "channel", "1 or more, or 0 for the mean of all", self.channel)
        check_choice("pooling", self.pooling, ("mean", "max", "statistics", "frames"))
        check_choice("format", self.format, ("parquet", "npy", "safetensors"))
        check_choice("normalise", self.normalise, ("", "l2"))
        check_choice("dtype", self.dtype, ("float32", "float16"))
        check(self.segments != "" or not self.tier, "tier", "left out without `segments`", self.tier)
        if self.append:
            check(self.out != "", "out", "given with append=true", self.out)
            is_parquet = self.out.endswith(".parquet") or (not Path(self.out).suffix and self.format == "parquet")
            check(is_parquet, "out", "Parquet with append=true", self.out)
            check(not self.overwrite, "overwrite", "false with append=true", self.overwrite)


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


PROBE_RATES = (0.003, 0.01, 0.03, 0.1)
"""Learning rates that a probe chooses from where none is given."""


@dataclass(kw_only=True)
class ProbeConfig(InferenceConfig):
    """Keys of `speechssl probe`."""

    data: ProbeDataConfig = knob(ProbeDataConfig, "labelled speech")
    label: str = knob("speaker", "column that is told: speaker, digit, sex, age, any other")
    task: str = knob("auto", "`identification` (names), `regression` (numbers), `verification` (are two of one?), or `auto`: regression where the column has numbers that are not whole, or more than 20 of them, and is not speaker")
    group: str = knob("", "column whose values are never on both sides of a split; without data.test each is left out in turn; `id`: none such; empty: speaker where there is one, if it is not the label")
    folds: int = knob(10, "splits at most where groups are left out: of more groups, several are left out together")
    hidden: int = knob(0, "units of a hidden layer; 0: linear")
    updates: int = knob(300, "updates of each probe", "updates")
    lr: Any = knob("", "learning rates, of which each probe takes the best on a fifth of its training data (of its groups), or one; empty: [0.003,0.01,0.03,0.1], and 0.02 where too little can be held out")
    num_untrained: int = knob(1, "untrained encoders, each of its own seed, whose mean is the baseline")
    num_trials: int = knob(20_000, "largest number of verification trials to make")
    backend: str = knob("cosine", "how trials are scored: `cosine`, `plda`, `cosine-asnorm` or `plda-asnorm`, with scores normalised by a cohort, the speakers of data.train")
    cohort: int = knob(300, "nearest speakers of the cohort that normalise a score", "", "arXiv 1803.09153: 200 to 500")
    calibrate: bool = knob(False, "turn scores into log likelihood ratios by logistic regression on a fifth of the speakers of data.train")
    num_resamples: int = knob(1000, "bootstrap resamples behind an interval")

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        check_choice("task", self.task, ("auto", "identification", "regression", "verification"))
        check_choice("backend", self.backend, ("cosine", "plda", "cosine-asnorm", "plda-asnorm"))
        is_trials = self.task == "verification"
        of_trials = is_trials or not self.data.trials
        check(of_trials, "data.trials", f"left out with task={self.task} (task=verification takes it)", self.data.trials)
        check(self.label != "", "label", "a column", self.label)
        check(self.group != self.label, "group", "another column than label", self.group)
        check(not (is_trials and self.group), "group", "left out with task=verification", self.group)
        check(not (is_trials and self.hidden), "hidden", "0 with task=verification, which takes the mix alone", self.hidden)
        check(is_trials or self.backend == "cosine", "backend", "left out without task=verification", self.backend)
        check(is_trials or not self.calibrate, "calibrate", "left out without task=verification", self.calibrate)
        for name, least in (("folds", 2), ("hidden", 0), ("updates", 1), ("num_untrained", 1), ("cohort", 2)):
            check(getattr(self, name) >= least, name, f"at least {least}", getattr(self, name))
        self.list_rates()
        check(self.num_trials >= 2, "num_trials", "at least 2, one of each kind", self.num_trials)
        check(self.num_resamples >= 1, "num_resamples", "at least 1", self.num_resamples)

    def list_rates(self) -> list[float]:
        """List the learning rates.

        Raises:
            ConfigError: `lr` is neither a positive number nor a list of these.
        """
        given = PROBE_RATES if self.lr == "" else self.lr if isinstance(self.lr, (list, tuple)) else [self.lr]
        are_numbers = all(type(rate) in (int, float) and 0 < rate < float("inf") for rate in given)
        check(bool(given) and are_numbers, "lr", "a positive number or a list of them", self.lr)
        return [float(rate) for rate in given]
