"""Which speech a verb reads, and how transcripts become labels; `F:` in a source means fairseq."""

from __future__ import annotations

from dataclasses import dataclass

from speechssl.config.knobs import DAY_S, MAX_WORKERS, check, check_choice, knob
from speechssl.config.model import MAX_WIDTH


@dataclass(kw_only=True)
class SelectionConfig:
    """Which rows of which manifests."""

    limit_s: float = knob(0.0, "take a seeded, speaker-balanced subset of `data.train` this long; 0: all of it", "s")
    where: str = knob("", "keep the rows with this value, as column=value")
    num_workers: int = knob(-1, "processes that read audio; 0 reads in the main process; -1: as many as there are cores beside the threads, 1 at least and 2 at most")
    cache_dir: str = knob("", "keep decoded audio here as 16 kHz WAV; empty: decode every time")

    def __post_init__(self) -> None:
        check(self.limit_s >= 0, "data.limit_s", "positive, or 0 for all", self.limit_s)
        check(-1 <= self.num_workers <= MAX_WORKERS, "data.num_workers", f"between 0 and {MAX_WORKERS}, or -1 to have it chosen", self.num_workers)


@dataclass(kw_only=True)
class TrainDataConfig(SelectionConfig):
    """How speech is changed before a model learns from it."""

    speed_perturbation: list[float] = knob([], "speeds to draw from for each training utterance and epoch, such as [0.9,1.0,1.1]; empty: none", "", "Ko et al. 2015")

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
    max_s: float = knob(40.0, "longest utterance that is used; longer ones are left out and named", "s")
    ascending_epochs: int = knob(0, "number of first epochs that take short utterances first", "epochs")

    def __post_init__(self) -> None:
        TrainDataConfig.__post_init__(self)
        check(0 < self.max_s <= DAY_S, "data.max_s", f"positive and at most {DAY_S:g} s, a day", self.max_s)


@dataclass(kw_only=True)
class TestDataConfig:
    """Which rows are evaluated."""

    test: list[str] = knob([], "manifest or list of manifests with `text`")
    where: str = knob("", "keep the rows with this value, as column=value")


@dataclass(kw_only=True)
class ProbeDataConfig:
    """Labelled speech for a probe."""

    train: list[str] = knob([], "manifest or list of manifests with `speaker`")
    test: list[str] = knob([], "the same; empty: split `data.train` by utterance, stratified")
    trials: str = knob("", "verification trials, one `label id id` a line; empty: made from data.test")
    where: str = knob("", "keep the rows with this value, as column=value")
    max_s: float = knob(10.0, "how much of an utterance is used, from its start", "s")

    def __post_init__(self) -> None:
        check(self.max_s >= 0.025, "data.max_s", "at least 0.025 s, one frame", self.max_s)


@dataclass(kw_only=True)
class BenchDataConfig(SelectionConfig):
    """Speech to measure with."""

    train: list[str] = knob([], "manifest or list of manifests (.tsv or .parquet), for `load`, and for `pretrain` instead of noise")


NORMALISERS = ("none", "basic", "english")


@dataclass(kw_only=True)
class TextConfig:
    """From transcripts to CTC labels."""

    vocabulary: str = knob("fairseq", "`fairseq` (its 32 symbols), `data` (the letters of data.train), `bpe` or `unigram` (sentencepieces of its texts) or `init` (the labels of a recogniser that is fine-tuned again, and their case)")
    num_pieces: int = knob(500, "labels of vocabulary=bpe and unigram, the blank and one for the unknown among them")
    case: str = knob("upper", "`upper`, `lower` or `keep`; not for vocabulary=init")
    keep: str = knob("", "characters to add to the vocabulary, such as 0123456789")
    normaliser: str = knob("none", "rules for transcripts before they become labels or are scored, stored with the recogniser: `none`, `basic` (lower case, no punctuation) or `english` (those of Whisper: numbers, contractions, spelling); `text.case` follows", "", "arXiv 2212.04356 App. C")
    unknown: str = knob("refuse", "what to do with letters and digits outside the vocabulary: `refuse` them, or `drop` them from the labels")

    def __post_init__(self) -> None:
        check_choice("text.vocabulary", self.vocabulary, ("fairseq", "data", "bpe", "unigram", "init"))
        check(3 < self.num_pieces <= MAX_WIDTH, "text.num_pieces", f"between 4 and {MAX_WIDTH:,}", self.num_pieces)
        check_choice("text.case", self.case, ("upper", "lower", "keep"))
        check_choice("text.normaliser", self.normaliser, NORMALISERS)
        check_choice("text.unknown", self.unknown, ("refuse", "drop"))
