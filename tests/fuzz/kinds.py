"""The kinds of files that are damaged: how a whole one is made, and what reads it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from safetensors.torch import load_file, save_file

from speechssl.audio.reading import load_audio, read_info
from speechssl.checkpoints.clusters import Clusters, find_nearest, read_clusters, write_clusters
from speechssl.checkpoints.layout import METRICS
from speechssl.checkpoints.model_folder import save_model
from speechssl.checkpoints.snapshot import Progress
from speechssl.checkpoints.store import FILES, CheckpointStore, find_problem
from speechssl.config.adaptation import Adaptation, LoRAConfig
from speechssl.config.data import TextConfig
from speechssl.config.decoding import WEIGHTS
from speechssl.config.inference import CompareConfig
from speechssl.config.model import ModelConfig, QuantizerConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import FinetuneConfig, PretrainConfig, ReportConfig
from speechssl.corpora.folder import read_sidecar
from speechssl.corpora.librispeech import read_sexes, read_transcripts
from speechssl.corpora.table import read_table
from speechssl.data.files import find_files
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, Utterance, build_manifest, load_manifests, save_manifest
from speechssl.data.segments import read_segments
from speechssl.data.texts import format_trn, load_texts, match_texts
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.evaluation.trials import read_trials
from speechssl.inference.decoding.lm_texts import read_texts
from speechssl.inference.decoding.ngram import load_arpa
from speechssl.inference.embed import make_schema
from speechssl.inference.embedding_files import SUFFIXES, Earlier, write_embeddings
from speechssl.inference.embedding_reading import read_embeddings
from speechssl.inference.journal import Entry, Journal
from speechssl.inference.neighbours import find_neighbours
from speechssl.inference.shards import Shards
from speechssl.inference.timed import Span, TimedText
from speechssl.interop.adapted import start_adapting
from speechssl.interop.files import write_tensors
from speechssl.interop.load import load_for_inference, load_model, write_model
from speechssl.interop.names import export_weights
from speechssl.interop.onnx import OUTPUTS, describe_model
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from speechssl.training.metrics import JsonLinesWriter, read_metrics
from speechssl.training.optim import build_optimizer
from speechssl.training.resume import TrainingState
from speechssl.training.run_folder import claim_run, open_run
from speechssl.verbs import compare, report
from speechssl.verbs.kept import find_kept, write_kept
from tests.integration.test_families import FAMILIES
from tests.onnx_files import write_identity
from tests.unit.report.conftest import make_evaluate, make_finetune, make_pretrain


@dataclass(frozen=True)
class Kind:
    """One kind of files.

    Attributes:
        make: writes whole files into an empty folder.
        use: reads one of them, in a copy of that folder, as a verb would; it may write there.
        targets: patterns of the files that are damaged.
        covered: names of files that a checksum covers: any change in them must be refused.
    """

    make: Callable[[Path], object]
    use: Callable[[Path, Path], object]
    targets: Sequence[str] = ("*",)
    covered: Sequence[str] = field(default=())


SMALL = ModelConfig(
    conv_channels=[4] * 7, num_layers=1, model_dim=8, ffn_dim=8, num_heads=1, position_groups=2, target_dim=4,
    quantizer=QuantizerConfig(num_codes=4, codevector_dim=4),
)  # fmt: skip
ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-99\t<s>\t-0.5
-0.7\t</s>
-1.2\t<unk>
-0.9\tone\t-0.3
-0.8\ttwo\t-0.25

\\2-grams:
-0.2\t<s> one
-0.1\tone two
-0.4\ttwo </s>

\\end\\
"""
KEPT = {"weights": WEIGHTS, "wer": 7.5, "lm": "a.arpa", "lm_sha256": "ab" * 32, "update": 3, "data": ["dev.tsv"]}


def make_audio(folder: Path) -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal(2400)
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64"):
        soundfile.write(folder / f"a.{suffix}", sound, 16_000)
    soundfile.write(folder / "stereo.wav", np.stack([sound, sound], 1), 44_100, subtype="FLOAT")


def use_audio(_: Path, file: Path) -> None:
    read_info(file)
    load_audio(file)


def make_manifest() -> Manifest:
    rows = [
        Utterance(f"u{n}", Path(f"/c/{n % 7}/{n}.flac"), 16_000, 16_000 + n, 5 * n, f"s{n % 5}", f"HELLO {n} \\ \t")
        for n in range(40)
    ]
    manifest = build_manifest(rows, Path("/c"))
    table = manifest.table.append_column("sex", pa.array(["F", "M"] * 20))
    return Manifest(table.append_column("age", pa.array(range(40))), manifest.root, "m")


def make_parquet(folder: Path) -> None:
    save_manifest(make_manifest(), folder / "m.parquet")
    for codec in ("zstd", "gzip", "none"):
        pq.write_table(
            make_manifest().table, folder / f"{codec}.parquet", compression=codec, use_dictionary=codec != "none"
        )


def use_manifest(folder: Path, file: Path) -> None:
    manifest = load_manifests([str(file)], "data.train")
    for name in manifest.table.column_names:
        if manifest.has(name):
            manifest.column(name)
    assert len(manifest.digest) > 0 and manifest.total_s > 0 and manifest[len(manifest) - 1].duration_s > 0
    manifest.limit_to(5.0, 1)
    save_manifest(manifest, folder / "again.tsv")


def make_texts(folder: Path) -> None:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerows([["path", "sentence", "client_id"], *([f"{n}.wav", f'Oh, "{n}"', "ab"] for n in range(9))])
    (folder / "t.csv").write_text(text.getvalue())
    (folder / "t.tsv").write_text("path\ttext\tspeaker\n" + "".join(f"{n}.wav\tOH {n}\tx\n" for n in range(9)))
    (folder / "m.json").write_text('{"audio_filepath": "1.wav", "text": "x"}\n')
    (folder / "1-2.trans.txt").write_text("1-2-0000 HELLO\n1-2-0001 YOU\n")
    (folder / "SPEAKERS.txt").write_text("; ID | SEX\n1 | F | x | 2 | Ann\n2 | M | y | 3 | Bob\n")
    (folder / "a.txt").write_text("Hello there,\n you.")


def use_texts(_: Path, file: Path) -> None:
    if file.suffix == ".json":
        with suppress(DataError):
            read_table(file, None, {"path": "path"})
        return
    if file.suffix != ".txt":
        read_table(file, None, {"path": "path", "text": "text", "speaker": "speaker"})
        return
    for read in (read_transcripts, read_sexes, read_sidecar):
        read(file)
    find_files(str(file), "audio")


def make_transcripts(folder: Path) -> None:
    ids, texts = [f"u{n}" for n in range(20)], [f"one {n} naïve" for n in range(20)]
    (folder / "a.trn").write_text(format_trn(ids, texts))
    (folder / "text").write_text("".join(f"{name} {text}\n" for name, text in zip(ids, texts, strict=True)))
    (folder / "a.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in zip(ids, texts, strict=True)))
    rows = [f"{name}\ts\t{text}\t{text} x\n" for name, text in zip(ids, texts, strict=True)]
    (folder / "utterances.tsv").write_text("id\tspeaker\treference\thypothesis\n" + "".join(rows))


def use_transcripts(folder: Path, file: Path) -> None:
    """Score a file against itself, and compare the folder with itself where it is an evaluation's."""
    found = load_texts(str(file), "reference", "reference")
    assert match_texts(found, found) == list(found.texts)
    if file.name == "utterances.tsv":
        compare(
            CompareConfig(a=[str(folder)], b=[str(folder)], out=str(folder / "out"), overwrite=True, num_resamples=9)
        )


def make_lm_texts(folder: Path) -> None:
    lines = "the cat sat\nso a CAT is, oh!\n"
    (folder / "a.txt").write_text(lines)
    (folder / "1-2.trans.txt").write_text("1-2-0000 HELLO\n")
    (folder / "a.txt.gz").write_bytes(gzip.compress(lines.encode()))


def use_lm_texts(_: Path, file: Path) -> None:
    for _line in read_texts([str(file)], "texts"):
        pass


def make_segments(folder: Path) -> None:
    (folder / "a.ctm").write_text(";; words\na 1 0.0 0.5 HE 0.9\na 1 0.5 0.25 SAID\n")
    (folder / "a.rttm").write_text("SPEAKER a 1 0.0 0.5 <NA> <NA> ann <NA> <NA>\n")
    (folder / "a.csv").write_text('id,start,end,label\na,0,0.5,"HE"\n')
    (folder / "a.tsv").write_text("id\tstart\tend\na\t0\t0.5\n")
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n2\n<exists>\n1\n'
    (folder / "a.TextGrid").write_text(f'{head}"IntervalTier"\n"words"\n0\n2\n1\n0\n2\n"HE"\n')
    table = pa.table({"id": ["a", "b"], "start": [0.0, 1.0], "end": [1.0, 2.0], "label": ["x", "y"]})
    pq.write_table(table, folder / "a.parquet")


def use_segments(_: Path, file: Path) -> None:
    segments = read_segments(str(file))
    assert segments.digest and all(len(segments.find(name)[0]) for name in segments.ids)


EMBEDDED = {"settings": {"layers": ["1"]}}


def make_embeddings(folder: Path) -> None:
    """Write a table, and another one that was broken off."""
    schema = make_schema(4)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8, dtype=np.float32)), 4)
    texts = [["a", "b"], ["/a", "/b"], [None, None], ["1", "1"]]
    table = pa.table([*texts, [0.0, 0.0], [1.0, 1.0], vectors], schema=schema)
    write_embeddings(folder / "x.parquet", [table], schema, EMBEDDED)
    with suppress(KeyboardInterrupt), Shards(folder / "y.parquet", EMBEDDED, LeftOut()) as shards:
        shards.add(table)
        raise KeyboardInterrupt


def use_embeddings(folder: Path, file: Path) -> None:
    if file.name == "x.parquet":
        earlier = Earlier(file, make_schema(4), EMBEDDED["settings"])
        rows = [Utterance(name, folder / name, 16_000, 16_000) for name in ("a", "c")]
        with suppress(ConfigError):
            earlier.find_new(build_manifest(rows, folder))
        write_embeddings(folder / "z.parquet", earlier.iterate(), make_schema(4), EMBEDDED)
        return
    shards = Shards(folder / "y.parquet", EMBEDDED, LeftOut())
    write_embeddings(folder / "z.parquet", shards.iterate(make_schema(4)), make_schema(4))


def make_arpa(folder: Path) -> None:
    (folder / "a.arpa").write_text(ARPA)
    (folder / "a.arpa.gz").write_bytes(gzip.compress(ARPA.encode()))


def use_arpa(_: Path, file: Path) -> None:
    load_arpa(file).compute_perplexity(["one two", "three"])


def use_kept(folder: Path, _: Path) -> None:
    find_kept(str(folder))


def make_journal(folder: Path) -> None:
    spans = (Span("A", 0.1, 0.2, 0.5),)
    with suppress(KeyboardInterrupt), Journal(folder / "a.part", {"checkpoint": "x"}) as journal:
        for name in "abc":
            journal.add(Entry(TimedText(name, "a.wav", "", 0, 1.0, "A", 0.5, spans, spans)))
        raise KeyboardInterrupt


def use_journal(folder: Path, file: Path) -> None:
    """Go on from it: what is taken over must be what was written."""
    journal = Journal(file, {"checkpoint": "x"})
    for text, *_ in journal.iterate("abc"):
        assert (text.text, text.words) == ("A", (Span("A", 0.1, 0.2, 0.5),)), "changed without a word"


def make_recogniser() -> SpeechModel:
    torch.manual_seed(0)
    return SpeechModel(SMALL, Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDE'")), pretraining=False)


def make_pieces(folder: Path) -> None:
    labels = build_vocabulary(TextConfig(vocabulary="bpe", num_pieces=12), ["AB ABBA BABA", "CAB A"])
    model = SpeechModel(SMALL, labels)
    save_model(model, folder / "ours")
    write_model(model, folder / "huggingface", "huggingface")


def make_omniasr(folder: Path) -> None:
    """Write fairseq2's file of a recogniser, with its tokenizer beside it."""
    labels = build_vocabulary(TextConfig(vocabulary="bpe", num_pieces=12), ["AB ABBA BABA", "CAB A"])
    network = replace(SMALL, conv_norm="layer", conv_bias=True, norm_first=True, model_dim=16, num_heads=16)
    model = SpeechModel(network, labels)
    torch.save({"model": export_weights(model, "fairseq2"), "fs2": True}, folder / "omniASR.pt")
    assert labels.pieces is not None
    (folder / "omniASR_tokenizer.model").write_bytes(labels.pieces.to_bytes())


def write_formats(*formats: str) -> Callable[[Path], None]:
    """Write a recogniser and a pretrained model in some formats, one folder each."""

    def make(folder: Path) -> None:
        models = {"ctc": make_recogniser(), "pretrained": SpeechModel(SMALL, pretraining=True)}
        for name, model in models.items():
            for form in formats:
                if form == "speechssl":
                    save_model(model, folder / f"{name}-{form}")
                else:
                    suffix = "" if form == "huggingface" else ".pt"
                    write_model(model, folder / f"{name}-{form}{suffix}", form)
        if "huggingface" in formats:
            write_model(SpeechModel(replace(SMALL, front_end="log_mel")), folder / "own-code", "huggingface")

    return make


def make_small_weights(folder: Path) -> None:
    """Write an MMS folder with a file of another language, and a checkpoint beside one that it was adapted from."""
    labels = Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "|", *"ABC"))
    model = SpeechModel(replace(SMALL, norm_first=True, adapter_dim=2), labels)
    write_model(model, folder / "mms", "huggingface")
    tokens = json.loads((folder / "mms" / "vocab.json").read_text())
    (folder / "mms" / "vocab.json").write_text(json.dumps({"eng": tokens, "swh": tokens}))
    weights = {
        name: x for name, x in export_weights(model, "huggingface").items() if "adapter" in name or "lm_" in name
    }
    write_tensors(folder / "mms" / "adapter.swh.safetensors", weights)
    save_model(model, folder / "base")
    start_adapting(model, Adaptation(adapt="lora", init=str(folder / "base"), lora=LoRAConfig()))
    save_model(model, folder / "lora")


def use_small_weights(folder: Path, file: Path) -> None:
    load_model(str(file.parent), language="swh" if file.parent.name == "mms" else "")


def make_families(folder: Path) -> None:
    for name, (form, changes) in FAMILIES.items():
        write_model(SpeechModel(replace(SMALL, **changes), make_recogniser().vocabulary), folder / name, form)


def make_fairseq_families(folder: Path) -> None:
    """Write files of fairseq's other families, and of WavLM's authors; `transformers` makes their weights."""
    from tests.parity.test_fairseq_families import make_file

    for case in ("hubert", "data2vec", "wavlm"):
        make_file(case, folder / f"{case}.pt", finetuned=False)


def make_shards(folder: Path) -> None:
    """Write a Hugging Face folder as one pickled file, and in two parts of either kind."""
    write_model(make_recogniser(), folder / "pickle", "huggingface")
    whole = folder / "pickle" / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    for suffix in ("safetensors", "bin"):
        shutil.copytree(folder / "pickle", folder / suffix)
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        index = {}
        for number, names in enumerate(np.array_split(sorted(tensors), 2), 1):
            file = f"{stem}-{number:05d}-of-00002.{suffix}"
            part = {str(name): tensors[name] for name in names}
            (save_file if suffix == "safetensors" else torch.save)(part, folder / suffix / file)
            index |= dict.fromkeys(part, file)
        (folder / suffix / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    torch.save(tensors, folder / "pickle" / "pytorch_model.bin")


def make_clusters(folder: Path) -> None:
    centroids = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    made = Clusters(centroids, np.arange(6), "1", "runs/base", "ab" * 32, 1)
    write_clusters(folder / "u.clusters.safetensors", made)


def use_clusters(_: Path, file: Path) -> None:
    found = read_clusters(str(file), "codes")
    find_nearest(torch.zeros(3, found.centroids.shape[1]), torch.from_numpy(found.centroids))


def make_searched(folder: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    texts = [[f"u{k}" for k in range(6)], ["/a.flac"] * 6, ["s"] * 6, ["1"] * 6]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    table = pa.table([*texts, np.zeros(6), np.ones(6), column], schema=make_schema(4))
    for suffix in SUFFIXES:
        (folder / suffix).mkdir()
        write_embeddings(folder / suffix / f"e{suffix}", [table], table.schema, EMBEDDED)


def use_searched(_: Path, file: Path) -> None:
    name = file.name.replace(".index.tsv", file.parent.name)
    found = read_embeddings(str(file.with_name(name))).select_layer("1")
    find_neighbours(found.vectors, np.ones(found.vectors.shape[1], np.float32), 3)


def make_onnx(folder: Path) -> None:
    for what in OUTPUTS:
        write_identity(folder / f"{what}.onnx", describe_model(make_recogniser(), what))


def use_onnx(folder: Path, file: Path) -> None:
    model = load_for_inference(str(file), torch.device("cpu"))
    # Its graph is none of a recogniser, and is refused when it has run.
    with suppress(CheckpointError):
        model.logits(torch.zeros(1, 16_000))


def use_model(folder: Path, file: Path) -> None:
    load_model(str(file if file.suffix == ".pt" else file.parent))


def make_checkpoint(folder: Path) -> None:
    objective = ContrastiveObjective(SMALL, ContrastiveConfig(), 1, 10)
    state = TrainingState(objective, build_optimizer(objective.module, TrainingConfig()))
    for parameter in objective.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    snapshot = replace(state.take_snapshot(), progress=Progress(1, best_value=1.0, best_update=1))
    CheckpointStore(folder, 2).save(snapshot, is_best=True)


def use_checkpoint(_: Path, file: Path) -> None:
    """Load it for use where inference reads the file, and ask as a run that goes on would."""
    problem = find_problem(file.parent)
    if file.name in ("model.safetensors", "config.json"):
        load_model(str(file.parent))
    if problem:
        raise CheckpointError(problem)


CONFIGS = {"base": PretrainConfig(out="base", model=SMALL), "asr": FinetuneConfig(out="asr", init="base", model=SMALL)}


def make_runs(folder: Path) -> None:
    make_pretrain(folder / "base", num_updates=12)
    make_finetune(folder / "asr")
    make_evaluate(folder / "evaluated")
    for name, config in CONFIGS.items():
        records = read_metrics(folder / name)
        (folder / name / METRICS).unlink()
        writer = JsonLinesWriter(folder / name, 0)
        for record in records:
            writer.write(record)
        writer.close()
        claim_run(folder / name, config)
        shutil.copy(folder / name / METRICS, folder / f"{name}.log")


def use_run(folder: Path, file: Path) -> None:
    """Report a run, and go on with it as training does; a logged number that was changed must not stay."""
    run = folder / "copy"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(file.parent, run)
    report(ReportConfig(run=[str(run)], out=str(folder / "page.html"), overwrite=True))
    name = file.parent.name
    if name in CONFIGS:
        open_run(run, replace(CONFIGS[name], out=str(run)))
        JsonLinesWriter(run, 10**6).close()
        kept = (run / METRICS).read_bytes() if (run / METRICS).exists() else b""
        assert (folder / f"{name}.log").read_bytes().startswith(kept), "a changed log was taken without a word"


def make_trials(folder: Path) -> None:
    (folder / "voxceleb").write_text("1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n")
    (folder / "kaldi").write_text("a1 a2 target\na1 b1 nontarget\n")


def use_trials(_: Path, file: Path) -> None:
    trials = read_trials(str(file), ["a1", "a2", "b1"], ["/c/a/1.wav", "/c/a/2.wav", "/c/b/1.wav"])
    assert len(trials.first) == len(trials.second) == len(trials.same) > 1


KINDS: dict[str, Kind] = {
    "audio": Kind(make_audio, use_audio),
    "tsv": Kind(lambda folder: save_manifest(make_manifest(), folder / "m.tsv"), use_manifest),
    "parquet": Kind(make_parquet, use_manifest),
    "trials": Kind(make_trials, use_trials),
    "texts": Kind(make_texts, use_texts),
    "transcripts": Kind(make_transcripts, use_transcripts),
    "texts of a language model": Kind(make_lm_texts, use_lm_texts),
    "segments": Kind(make_segments, use_segments),
    "embeddings": Kind(make_embeddings, use_embeddings, ("*.parquet", ".*/*")),
    "arpa": Kind(make_arpa, use_arpa),
    "kept": Kind(lambda folder: write_kept(folder, KEPT), use_kept),
    "journal": Kind(make_journal, use_journal),
    "configs": Kind(write_formats("speechssl"), use_model, ("*/config.json",)),
    "foreign": Kind(write_formats("huggingface"), use_model, ("*/*.json",)),
    "pieces": Kind(make_pieces, use_model, ("*/*.model", "*/config.json")),
    "omniASR": Kind(make_omniasr, lambda folder, _: load_model(str(folder / "omniASR.pt"))),
    "safetensors": Kind(write_formats("speechssl", "huggingface"), use_model, ("*/*.safetensors",)),
    "small weights": Kind(make_small_weights, use_small_weights, ("mms/*", "lora/*")),
    "families": Kind(make_families, use_model, ("*/*.json", "*/*.safetensors")),
    "fairseq families": Kind(make_fairseq_families, use_model),
    "shards": Kind(make_shards, use_model, ("*/*.index.json", "*/*.safetensors", "*/*.bin")),
    "clusters": Kind(make_clusters, use_clusters),
    "searched embeddings": Kind(make_searched, use_searched, ("*/*",)),
    "onnx": Kind(make_onnx, use_onnx),
    "torch": Kind(write_formats("fairseq", "torchaudio"), use_model, ("*.pt",)),
    "checkpoint": Kind(make_checkpoint, use_checkpoint, ("checkpoints/update-*/*",), FILES),
    "runs": Kind(make_runs, use_run, ("*/*.*",)),
}
