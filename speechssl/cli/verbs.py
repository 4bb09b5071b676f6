"""The verbs: what each does in one line, its main inputs, and two examples."""

from __future__ import annotations

from dataclasses import dataclass

from speechssl.config import verbs as schemas
from speechssl.errors import ConfigError


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Args:
        schema: dataclass in `speechssl.config` that holds its keys.
        summary: one line for `speechssl --help`.
        inputs: keys that bare words fill, in order. A last one that is a list takes all the words that are left.
        examples: what a user would type, without `speechssl`.
    """

    schema: type
    summary: str
    inputs: tuple[str, ...]
    examples: tuple[str, str]


VERBS: dict[str, Verb] = {
    "demo": Verb(
        schemas.DemoConfig,
        "the whole story on speech made on the spot, in minutes: corpus, pretraining, WER, speakers, report",
        ("out", "minutes"),
        ("demo", "demo runs/quick minutes=3"),
    ),
    "prepare": Verb(
        schemas.PrepareConfig,
        "a corpus → manifests",
        ("root", "corpus", "out"),
        ("prepare LibriSpeech out=m/ls subset=[10m,1h]", "prepare recordings/ folder out=m/own valid_share=0.05"),
    ),
    "pretrain": Verb(
        schemas.PretrainConfig,
        "unlabelled speech → model",
        ("model", "data.train", "data.valid", "out"),
        (
            "pretrain model=small data.train=m/train.tsv data.valid=m/dev.tsv out=runs/small",
            "pretrain init=runs/small data.train=m/own.tsv out=runs/continued training.max_updates=2000",
        ),
    ),
    "finetune": Verb(
        schemas.FinetuneConfig,
        "pretrained model + transcripts → CTC recogniser",
        ("init", "data.train", "data.valid", "out"),
        (
            "finetune runs/small data.train=m/train-1h.tsv data.valid=m/dev.tsv out=runs/ctc",
            "finetune model=small data.train=m/train-1h.tsv out=runs/scratch seed=2",
        ),
    ),
    "evaluate": Verb(
        schemas.EvaluateConfig,
        "recogniser + transcribed manifest → WER and CER with intervals and an error breakdown",
        ("checkpoint", "data.test"),
        (
            "evaluate runs/ctc m/test.tsv",
            "evaluate runs/ctc data.test=[m/a.tsv,m/b.tsv] out=runs/wer decoding=beam decoding.lm=lm.arpa",
        ),
    ),
    "transcribe": Verb(
        schemas.TranscribeConfig,
        "recogniser + audio → text",
        ("checkpoint", "audio"),
        ("transcribe runs/ctc talk.flac", "transcribe runs/ctc recordings/ out=texts.tsv"),
    ),
    "embed": Verb(
        schemas.EmbedConfig,
        "model + audio → embeddings in a file that pandas, NumPy or a vector database opens",
        ("checkpoint", "audio"),
        ("embed runs/small clips/*.flac layer=3", "embed runs/small recordings/ pooling=frames out=frames.parquet"),
    ),
    "probe": Verb(
        schemas.ProbeConfig,
        "frozen model + labels → speaker identification or verification, per layer, beside two baselines",
        ("checkpoint", "data.train", "data.test"),
        ("probe runs/small m/train.tsv", "probe runs/small m/train.tsv m/test.tsv task=verification out=runs/probe"),
    ),
    "convert": Verb(
        schemas.ConvertConfig,
        "between our checkpoints, Hugging Face folders, fairseq .pt and torchaudio files; ONNX for serving",
        ("checkpoint", "to", "out"),
        ("convert runs/base huggingface out=hf/base", "convert facebook/wav2vec2-base speechssl out=models/base"),
    ),
    "report": Verb(
        schemas.ReportConfig,
        "one or more run folders → one self-contained HTML page",
        ("run",),
        ("report runs/small", "report runs/small runs/ctc out=both.html"),
    ),
    "bench": Verb(
        schemas.BenchConfig,
        "how fast this machine does the package's work: audio a second, share of its peak, memory, time by part",
        ("job", "model"),
        ("bench pretrain base batch=4 seconds=5", "bench load data.train=m/train.tsv data.num_workers=2"),
    ),
    "doctor": Verb(
        schemas.DoctorConfig,
        "what is installed, what is missing and how to get it, what this machine can do",
        (),
        ("doctor", "doctor | tail -n 1"),
    ),
}

LATER_VERBS = ("check",)
"""Verbs that a later version brings; until then they are answered with exit code 2."""


def find_verb(name: str) -> Verb:
    """Return the verb called `name`.

    Raises:
        ConfigError: there is none of that name, or not yet.
    """
    from difflib import get_close_matches

    if name in VERBS:
        return VERBS[name]
    if name in LATER_VERBS:
        raise ConfigError(f"the verb must be one of {', '.join(VERBS)}, but {name!r} only comes with a later version")
    near = get_close_matches(name, VERBS, n=1)
    hint = f"; the nearest is `{near[0]}`" if near else ""
    raise ConfigError(f"the verb must be one of {', '.join(VERBS)}, but is {name!r}{hint}")
