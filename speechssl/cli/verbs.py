"""The table of the verbs: what each does in one line, its main inputs, the keys a user meets first, examples."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from speechssl import config as schemas
from speechssl.config.knobs import Key, list_keys
from speechssl.errors import ConfigError


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Args:
        schema: dataclass in `speechssl.config` that holds its keys.
        summary: one line for `speechssl --help`.
        inputs: keys that bare words fill, in order. A last one that is a list takes all the words that are left.
        first: further keys of `speechssl <verb> --help`; `--help all` has the rest.
        examples: what a user would type, without `speechssl`.
    """

    schema: type
    summary: str
    inputs: tuple[str, ...]
    first: tuple[str, ...]
    examples: tuple[str, ...]


VERBS: dict[str, Verb] = {
    "demo": Verb(
        schemas.DemoConfig,
        "the whole story on speech made on the spot, in minutes: corpus, pretraining, WER, speakers, report",
        ("out", "minutes"),
        ("seed", "device", "overwrite"),
        ("demo", "demo runs/quick minutes=3"),
    ),
    "prepare": Verb(
        schemas.PrepareConfig,
        "a corpus → manifests",
        ("root", "corpus", "out"),
        ("splits", "download", "subset", "valid_share", "table", "columns", "format"),
        ("prepare LibriSpeech out=m/ls 'subset=[10m,1h]'", "prepare recordings/ folder out=m/own valid_share=0.05"),
    ),
    "pretrain": Verb(
        schemas.PretrainConfig,
        "unlabelled speech → model",
        ("model", "data.train", "data.valid", "out"),
        ("init", "objective", "training.max_updates", "training.lr", "training.update_s", "training.forward_s"),
        (
            "pretrain small m/train.tsv m/dev.tsv out=runs/small",
            "pretrain init=runs/small data.train=m/own.tsv out=runs/continued training.max_updates=2000",
        ),
    ),
    "finetune": Verb(
        schemas.FinetuneConfig,
        "pretrained model + transcripts → CTC recogniser",
        ("init", "data.train", "data.valid", "out"),
        ("model", "text.vocabulary", "text.keep", "training.max_updates", "training.lr", "training.forward_s"),
        (
            "finetune runs/small m/train-1h.tsv m/dev.tsv out=runs/ctc",
            "finetune model=small data.train=m/train-1h.tsv out=runs/scratch seed=2",
        ),
    ),
    "evaluate": Verb(
        schemas.EvaluateConfig,
        "recogniser + transcribed manifest → WER and CER with intervals and an error breakdown",
        ("checkpoint", "data.test"),
        ("decoding", "decoding.lm", "out", "by", "normaliser", "data.where", "device", "overwrite"),
        (
            "evaluate runs/ctc m/test.tsv",
            "evaluate runs/ctc 'data.test=[m/a.tsv,m/b.tsv]' out=runs/wer decoding=beam decoding.lm=lm.arpa",
        ),
    ),
    "score": Verb(
        schemas.ScoreConfig,
        "reference + hypothesis texts → WER and CER with intervals, no model",
        ("reference", "hypothesis"),
        ("normaliser", "by", "trn", "out", "overwrite"),
        ("score m/test.tsv texts.tsv", "score ref.trn hyp.trn normaliser=english out=runs/score"),
    ),
    "compare": Verb(
        schemas.CompareConfig,
        "two evaluations of one set → the paired difference with its interval and tests",
        ("a", "b"),
        ("out", "num_resamples", "seed", "overwrite"),
        ("compare runs/wer-a runs/wer-b", "compare 'a=[runs/a1,runs/a2]' 'b=[runs/b1,runs/b2]' out=runs/a-b"),
    ),
    "tune": Verb(
        schemas.TuneConfig,
        "recogniser + development speech → weights of the language model, kept beside the recogniser",
        ("checkpoint", "data.test"),
        ("decoding.lm", "out", "data.where", "decoding.beam_width", "batch_s", "window_s", "device", "overwrite"),
        ("tune runs/ctc m/dev.tsv decoding.lm=lm.arpa",),
    ),
    "lm": Verb(
        schemas.LMConfig,
        "texts and manifests → n-gram language model (ARPA)",
        ("texts",),
        ("order", "out", "test", "prune", "unit", "checkpoint", "text.vocabulary", "text.case", "overwrite"),
        (
            "lm books.txt.gz m/train.tsv out=lm.arpa order=3 test=m/dev.tsv",
            "lm corpus.txt out=lm.arpa.gz 'prune=[0,0,1]'",
        ),
    ),
    "transcribe": Verb(
        schemas.TranscribeConfig,
        "recogniser + audio → text",
        ("checkpoint", "audio"),
        ("out", "format", "decoding", "decoding.lm", "channel", "window_s", "device", "overwrite"),
        (
            "transcribe runs/ctc talk.flac",
            "transcribe runs/ctc recordings/ out=texts.tsv",
            "transcribe runs/ctc talk.flac out=talk.srt",
        ),
    ),
    "align": Verb(
        schemas.AlignConfig,
        "audio + its text → words and characters in time",
        ("checkpoint", "audio"),
        ("text", "format", "out", "romanise", "channel", "window_s", "device", "overwrite"),
        ("align runs/ctc talk.flac text=talk.txt", "align runs/ctc m/test.tsv format=textgrid out=aligned"),
    ),
    "embed": Verb(
        schemas.EmbedConfig,
        "model + audio → embeddings in a file that pandas, NumPy or a vector database opens",
        ("checkpoint", "audio"),
        ("layer", "pooling", "segments", "out", "append", "format", "channel", "device"),
        ("embed runs/small clips/*.flac layer=3", "embed runs/small recordings/ pooling=frames out=frames.parquet"),
    ),
    "similar": Verb(
        schemas.SimilarConfig,
        "embeddings + a clip or id → the nearest ones",
        ("embeddings", "query"),
        ("top", "out", "layer", "checkpoint", "device", "overwrite"),
        ("similar clips.parquet clip.flac", "similar clips.parquet 84-121123-0001 top=5 out=near.tsv"),
    ),
    "probe": Verb(
        schemas.ProbeConfig,
        "frozen model + labels → any column told, or speakers verified, per layer, beside two baselines",
        ("checkpoint", "data.train", "data.test"),
        ("label", "task", "group", "hidden", "data.trials", "backend", "calibrate", "out", "data.where", "device"),
        (
            "probe runs/small m/train.tsv",
            "probe runs/small m/all.tsv label=age group=speaker",
            "probe runs/small m/train.tsv m/test.tsv task=verification out=runs/probe",
        ),
    ),
    "analyse": Verb(
        schemas.AnalyseConfig,
        "model + speech → rank, similarity and, with labels, class structure by layer",
        ("checkpoint", "data.test"),
        ("against", "out", "label", "segments", "sample_s", "num_frames", "device", "overwrite"),
        ("analyse runs/small m/dev.tsv", "analyse runs/asr m/dev.tsv against=runs/small label=speaker out=runs/layers"),
    ),
    "units": Verb(
        schemas.UnitsConfig,
        "model + audio → discrete units, by k-means of a layer or the model's own quantizer",
        ("checkpoint", "audio"),
        ("layer", "num_codes", "out", "codes", "merge", "fit_s", "seed", "device"),
        (
            "units runs/small m/train.tsv layer=3 num_codes=100 out=u/train.tsv",
            "units runs/small m/test.tsv codes=u/train.clusters.safetensors out=u/test.tsv",
        ),
    ),
    "convert": Verb(
        schemas.ConvertConfig,
        "between our checkpoints, Hugging Face folders, fairseq .pt and torchaudio files; ONNX for serving",
        ("checkpoint", "to", "out"),
        ("weights", "overwrite"),
        ("convert runs/base huggingface out=hf/base", "convert facebook/wav2vec2-base speechssl out=models/base"),
    ),
    "report": Verb(
        schemas.ReportConfig,
        "one or more run folders → one self-contained HTML page",
        ("run",),
        ("out", "overwrite"),
        ("report runs/small", "report runs/small runs/ctc out=both.html"),
    ),
    "bench": Verb(
        schemas.BenchConfig,
        "how fast this machine does the package's work: audio a second, share of its peak, memory, time by part",
        ("job", "model"),
        ("batch", "seconds", "steps", "data.train", "data.num_workers", "precision", "device", "out"),
        ("bench pretrain base batch=4 seconds=5", "bench load data.train=m/train.tsv data.num_workers=2"),
    ),
    "doctor": Verb(
        schemas.DoctorConfig,
        "what is installed, what is missing and how to get it, what this machine can do",
        (),
        (),
        ("doctor",),
    ),
}


def find_verb(name: str) -> Verb:
    """Return the verb called `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in VERBS:
        return VERBS[name]
    near = get_close_matches(name, VERBS, n=1)
    hint = f"; the nearest is `{near[0]}`" if near else ""
    raise ConfigError(f"the verb must be one of {', '.join(VERBS)}, but is {name!r}{hint}")


@cache
def map_keys(verb: str) -> dict[str, Key]:
    """Map the name of every key of a verb to its declaration, those of all objectives included."""
    return {key.path: key for key in list_keys(VERBS[verb].schema, with_alternatives=True)}
