"""Recognisers whose labels are sentencepieces, from folder to folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speechssl.checkpoints.checksums import write_checksums
from speechssl.checkpoints.model_folder import PIECES, read_card, save_model
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.verbs import FinetuneConfig
from speechssl.data.manifest import Utterance, build_manifest
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.load import load_model, write_model
from speechssl.interop.onnx import describe_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.pieces import Pieces
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from speechssl.training.finetuning import make_vocabulary, match_labels, start_from
from tests.cases import each_case

TEXTS = ["THE CAT SAT ON THE MAT", "THE OTHER CAT AND THE OTHER MAT", "A CAT IS A CAT", "नमस्ते दुनिया"]


def make_labels(kind: str = "bpe", num_pieces: int = 34) -> Vocabulary:
    return build_vocabulary(TextConfig(vocabulary=kind, num_pieces=num_pieces), TEXTS)


@pytest.fixture
def model(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(0)
    return SpeechModel(tiny_model_config, make_labels()).eval()


def test_a_checkpoint_holds_the_model_as_a_file(model: SpeechModel, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    assert model.vocabulary is not None
    assert Pieces.from_bytes((tmp_path / PIECES).read_bytes()) == model.vocabulary.pieces
    assert json.loads((tmp_path / "config.json").read_text())["vocabulary"]["pieces"] == PIECES
    assert read_card(tmp_path).vocabulary == model.vocabulary
    save_model(SpeechModel(model.config, Vocabulary(("<s>", "|", "A"))), tmp_path)
    assert not (tmp_path / PIECES).exists()


@each_case("damage", ["flipped", "cut", "gone", "other"])
@each_case("has_checksums", [True, False])
def test_a_damaged_file_is_seen(model: SpeechModel, tmp_path: Path, damage: str, has_checksums: bool) -> None:
    folder = tmp_path / f"{damage}{has_checksums}"
    save_model(model, folder)
    if has_checksums:
        write_checksums(folder)
    content = (folder / PIECES).read_bytes()
    changed = {"flipped": b"\xff" + content[1:], "cut": content[:-40], "other": make_labels("unigram", 30).pieces}
    match damage:
        case "gone":
            (folder / PIECES).unlink()
        case "other":
            pieces = changed["other"]
            assert isinstance(pieces, Pieces)
            (folder / PIECES).write_bytes(pieces.to_bytes())
        case _:
            (folder / PIECES).write_bytes(bytes(changed[damage]))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="`checkpoint` must"):
        load_model(str(folder))


@each_case("format", ["speechssl", "huggingface", "torchaudio"])
def test_round_trips_keep_labels_and_logits(model: SpeechModel, tmp_path: Path, format: str) -> None:
    path = tmp_path / ("a.pt" if format == "torchaudio" else format)
    write_model(model, path, format)
    read = load_model(str(path))
    assert read.vocabulary == model.vocabulary
    sound = torch.randn(1, 8000)
    assert torch.equal(read.logits(sound, None)[0], model.logits(sound, None)[0])


def test_fairseq_has_no_dictionary_for_them(model: SpeechModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="`checkpoint` must have labels that begin with <s> <pad> </s> <unk>"):
        write_model(model, tmp_path / "a.pt", "fairseq")


def test_a_folder_with_neither_says_which_files_hold_labels(model: SpeechModel, tmp_path: Path) -> None:
    write_model(model, tmp_path / "hf", "huggingface")
    (tmp_path / "hf" / PIECES).unlink()
    with pytest.raises(CheckpointError, match=f"must have vocab.json or {PIECES}, but .* has neither"):
        load_model(str(tmp_path / "hf"))


def test_onnx_metadata_hold_the_model(model: SpeechModel) -> None:
    facts = describe_model(model, "logits")
    stored = json.loads(facts["speechssl"])["vocabulary"]
    assert Vocabulary.from_dict(stored) == model.vocabulary


@pytest.mark.parity
@each_case("kind", ["bpe", "unigram"])
def test_transformers_opens_it_and_cuts_alike(tiny_model_config: ModelConfig, tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    labels = make_labels(kind, 34 if kind == "bpe" else 30)
    write_model(SpeechModel(tiny_model_config, labels), tmp_path / kind, "huggingface")
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / kind)
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / kind)
    assert theirs.config.vocab_size == len(labels) == len(processor.tokenizer)
    for text in TEXTS:
        ids = labels.encode(text)
        assert processor.tokenizer.encode(text) == ids
        path = [k for label in ids for k in (0, label, label)]
        assert processor.batch_decode([path]) == [labels.decode(ids)] == [text]


def test_the_head_goes_on_where_both_have_pieces(model: SpeechModel, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    config = FinetuneConfig(out="a", init=str(tmp_path), model=model.config)
    fresh = SpeechModel(model.config, make_labels("unigram", 30))
    assert model.vocabulary is not None and fresh.vocabulary is not None and fresh.head is not None
    start_from(fresh, config)
    assert model.head is not None
    rows = match_labels(model.vocabulary, fresh.vocabulary)
    shared = [(k, row) for k, row in enumerate(rows) if row is not None]
    assert len(shared) > 10 and rows[0] == 0
    assert all(model.vocabulary.symbols[row] == fresh.vocabulary.symbols[k] for k, row in shared)
    for k, row in shared:
        assert torch.equal(fresh.head.state_dict()["linear.weight"][k], model.head.state_dict()["linear.weight"][row])


def test_pieces_and_letters_share_no_head(model: SpeechModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(model, tmp_path)
    letters = SpeechModel(model.config, Vocabulary(("<s>", "|", "A", "C", "T")))
    assert letters.head is not None
    before = letters.head.state_dict()["linear.weight"].clone()
    start_from(letters, FinetuneConfig(out="a", init=str(tmp_path), model=model.config))
    assert torch.equal(letters.head.state_dict()["linear.weight"], before)
    assert "one of the two has letters for labels, the other pieces" in caplog.text


def test_init_gives_its_pieces_and_takes_no_letters_more(model: SpeechModel, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    rows = [Utterance("a", Path("/a.wav"), 16_000, 16_000, text="the cat")]
    config = FinetuneConfig(out="a", init=str(tmp_path), text=TextConfig(vocabulary="init"))
    train_set = build_manifest(rows, Path("/"))
    assert make_vocabulary(config, train_set, None) == model.vocabulary
    config.text.keep = "7"
    with pytest.raises(ConfigError, match="`text.keep` must be empty where the labels of `init` are pieces, but is 7"):
        make_vocabulary(config, train_set, None)
