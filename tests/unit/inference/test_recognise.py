"""Recognition of manifests: batches, order, windows, and who may not recognise."""

from __future__ import annotations

import logging
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from speechssl.config.decoding import DecodingConfig
from speechssl.config.model import ModelConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, Utterance, build_manifest
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.inference import recognise as recognition
from speechssl.inference.decoding.decoder import build_decoder
from speechssl.inference.readings import Reader, measure_confidence
from speechssl.inference.recognise import (
    iterate_readings,
    iterate_texts,
    recognise,
    require_recogniser,
    transcribe,
)
from speechssl.inference.source import Source
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary
from tests.cases import each_case

VOCABULARY = Vocabulary(FAIRSEQ_SYMBOLS)


class EchoModel(nn.Module):
    """Reads the symbol of each frame off its first sample: 64 times the sample is the index."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config, self.vocabulary, self.head = config or ModelConfig(), VOCABULARY, nn.Identity()
        self.device = torch.device("cpu")
        self.calls: list[tuple[tuple[int, ...], bool, bool]] = []

    def logits(self, waveforms: Tensor, num_samples: Tensor | None) -> tuple[Tensor, Tensor]:
        self.calls.append((tuple(waveforms.shape), num_samples is None, self.training))
        lengths = torch.full((len(waveforms),), waveforms.shape[1]) if num_samples is None else num_samples
        frames = self.config.count_frames(lengths)
        symbols = (waveforms[:, ::320][:, : int(frames.max())] * 64).round().long()
        return torch.nn.functional.one_hot(symbols, len(VOCABULARY)).float(), frames


def say(text: str, hold: int = 3) -> np.ndarray:
    """Make audio that `EchoModel` hears as `text`: a blank and `hold` frames for each label."""
    path = [symbol for label in VOCABULARY.encode(text) for symbol in [0, *[label] * hold]]
    return np.append(np.repeat(np.array(path) / 64, 320), np.zeros(80)).astype(np.float32)


def write(folder: Path, waveforms: dict[str, np.ndarray]) -> Manifest:
    """Write audio files and list them."""
    rows = []
    for name, waveform in waveforms.items():
        path = folder / f"{name}.wav"
        soundfile.write(path, waveform, 16_000, subtype="PCM_16")
        rows.append(Utterance(name, path, 16_000, len(waveform), 0, None, None))
    return build_manifest(rows, folder)


TEXTS = ["TEA", "A LONG WAY TO GO", "IT'S", "HELLO WORLD", "SO", "WELL WELL WELL"]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write(tmp_path, {f"u{k}": say(text) for k, text in enumerate(TEXTS)})


@each_case("batch_s", [0.1, 1.0, 3.0, 60.0])
@each_case("batches_a_chunk", [1, 32])
def test_texts_come_in_the_manifests_order(
    manifest: Manifest, batch_s: float, batches_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognition, "CHUNK_BATCHES", batches_a_chunk)
    assert recognise(EchoModel(), manifest, batch_s=batch_s) == TEXTS


def test_batches_hold_what_they_may(manifest: Manifest) -> None:
    model = EchoModel()
    recognise(model, manifest, batch_s=3.0)
    assert len(model.calls) < len(TEXTS)
    assert all(shape[0] == 1 or shape[0] * shape[1] <= 3.0 * 16_000 for shape, _, _ in model.calls)


def test_long_audio_goes_in_windows_and_says_the_same(tmp_path: Path) -> None:
    text = " ".join(["THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG"] * 6)
    manifest = write(tmp_path, {"short": say("SO"), "long": say(text), "last": say("TEA")})
    whole, parts = EchoModel(), EchoModel()
    assert manifest.num_samples_16k[1] > 15 * 16_000
    assert recognise(whole, manifest, batch_s=60.0, window_s=60.0) == ["SO", text, "TEA"]
    for batch_s in (5.0, 60.0):
        assert recognise(parts, manifest, batch_s=batch_s, window_s=5.0) == ["SO", text, "TEA"]
    assert max(shape[1] for shape, _, _ in parts.calls) <= 5.0 * 16_000


def test_too_short_is_empty_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write(tmp_path, {"a": say("TEA"), "blip": np.full(399, 0.5, dtype=np.float32)})
    with caplog.at_level(logging.WARNING, "speechssl"):
        assert recognise(EchoModel(), manifest) == ["TEA", ""]
    assert "1 utterances are shorter than one frame and stay empty: blip" in caplog.text


def test_rows_with_an_offset_are_read_in_part(tmp_path: Path) -> None:
    first, second = say("HELLO"), say("WORLD")
    write(tmp_path, {"both": np.concatenate([first, second])})
    rows = [
        Utterance("b", tmp_path / "both.wav", 16_000, len(second), len(first), None, None),
        Utterance("a", tmp_path / "both.wav", 16_000, len(first), 0, None, None),
    ]
    assert recognise(EchoModel(), build_manifest(rows, tmp_path)) == ["WORLD", "HELLO"]


def test_group_norm_over_all_frames_gets_no_padding(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"a": say("TEA"), "b": say("HELLO"), "c": say("SEA")})
    model = EchoModel(ModelConfig(group_norm_frames="all"))
    assert recognise(model, manifest) == ["TEA", "HELLO", "SEA"]
    assert [shape[0] for shape, _, _ in model.calls] == [1, 2]
    assert all(unpadded for _, unpadded, _ in model.calls)


def test_a_model_in_training_mode_recognises_in_evaluation_mode(manifest: Manifest) -> None:
    model = EchoModel().train()
    recognise(model, manifest)
    assert not any(training for _, _, training in model.calls)
    assert model.training


def test_texts_keep_coming(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "CHUNK_BATCHES", 1)
    model = EchoModel()
    texts = iterate_texts(model, Source.from_manifest(manifest), batch_s=0.1)
    assert next(texts) == (0, TEXTS[0])
    assert len(model.calls) < len(TEXTS)
    texts.close()


def test_what_cannot_be_read_is_left_out_and_the_others_stay_in_order(tmp_path: Path) -> None:
    """A missing file, a damaged one, one of another rate, a long one: each in a batch with others, or alone."""
    long = "A LONG TEXT THAT TAKES WINDOWS " * 8
    waveforms = {name: say(name.upper()) for name in ("tea", "gone", "sea", "cut", "so", "rate")}
    manifest = write(tmp_path, waveforms | {"long": say(long), "longcut": say(long), "it": say("IT")})
    (tmp_path / "gone.wav").unlink()
    for name in ("cut", "longcut"):
        data = (tmp_path / f"{name}.wav").read_bytes()
        (tmp_path / f"{name}.wav").write_bytes(data[: len(data) // 2])
    soundfile.write(tmp_path / "rate.wav", waveforms["rate"], 8_000)
    left_out = LeftOut("data.test")
    for batch_s in (0.1, 60.0):
        texts = recognise(EchoModel(), manifest, batch_s, 5.0, left_out=left_out)
        assert texts == ["TEA", "SEA", "SO", long.strip(), "IT"]
    assert [item.id for item in left_out.items] == ["cut", "gone", "longcut", "rate"]
    assert left_out.items[1].path == str(tmp_path / "gone.wav")
    assert "but is not: No such file" in left_out.items[1].reason
    with pytest.raises(DataError, match="cut.wav must be whole"):
        transcribe(EchoModel(), [tmp_path / "tea.wav", tmp_path / "cut.wav"])


@each_case("audio", [3, None, b"x", [0.5, 0.25], {"array": np.zeros(800)}, [np.zeros(800), None]])
def test_what_is_neither_paths_nor_waveforms_gets_a_sentence(audio: object) -> None:
    with pytest.raises(DataError, match="`audio` must be"):
        transcribe(EchoModel(), audio, sample_rate=16_000)  # type: ignore[arg-type]


@each_case("rate", ["16000", 16_000.5, True, 0])
def test_a_rate_that_is_none_gets_a_sentence(rate: object) -> None:
    with pytest.raises(DataError, match="`sample_rate` must be"):
        transcribe(EchoModel(), say("TEA"), sample_rate=rate)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`decode` must be a function"):
        transcribe(EchoModel(), say("TEA"), sample_rate=16_000, decode="beam")  # type: ignore[arg-type]


def test_transcribe_takes_paths(manifest: Manifest, tmp_path: Path) -> None:
    paths = [tmp_path / "u3.wav", tmp_path / "u0.wav"]
    assert transcribe(EchoModel(), paths) == [TEXTS[3], TEXTS[0]]
    assert transcribe(EchoModel(), str(paths[0])) == [TEXTS[3]]
    assert transcribe(EchoModel(), [paths[0], paths[1], paths[0]]) == [TEXTS[3], TEXTS[0], TEXTS[3]]


def test_texts_are_read_by_the_decoder_that_is_given(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"a": say("TEA"), "long": say("A LONG TEXT THAT TAKES WINDOWS " * 8)})
    model = EchoModel()
    beam = build_decoder(DecodingConfig(name="beam"), require_recogniser(model))
    assert recognise(model, manifest, window_s=5.0, decode=beam.decode) == recognise(model, manifest, window_s=5.0)
    shapes: list[int] = []

    def count(logits: torch.Tensor, num_frames: torch.Tensor) -> list[str]:
        shapes.append(int(num_frames.sum()))
        return ["X"] * len(logits)

    assert recognise(model, manifest, window_s=5.0, decode=count) == ["X", "X"]
    assert len(shapes) == 2


def test_without_a_head_there_is_no_recogniser(manifest: Manifest) -> None:
    model = EchoModel()
    model.vocabulary = None  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="`checkpoint` must be a recogniser.*finetune it first"):
        require_recogniser(model)
    with pytest.raises(CheckpointError, match="`checkpoint`"):
        transcribe(model, "nowhere.wav")


def test_transcribe_takes_waveforms_with_their_rate(tmp_path: Path) -> None:
    waveforms = [say("TEA"), say("HELLO")]
    assert transcribe(EchoModel(), waveforms, sample_rate=16_000) == ["TEA", "HELLO"]
    assert transcribe(EchoModel(), waveforms[1], sample_rate=16_000) == ["HELLO"]
    with pytest.raises(DataError, match="`audio` must be waveforms with a sample_rate"):
        transcribe(EchoModel(), waveforms)
    with pytest.raises(DataError, match="also has files"):
        transcribe(EchoModel(), [waveforms[0], "a.wav"], sample_rate=16_000)


def test_a_real_model_says_the_same_in_any_batch(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = SpeechModel(tiny_model_config, VOCABULARY).eval()
    rng = np.random.default_rng(0)
    sizes = (8000, 20_000, 9_111)
    noise = {f"n{k}": 0.1 * rng.standard_normal(size).astype(np.float32) for k, size in enumerate(sizes)}
    manifest = write(tmp_path, noise)
    texts = recognise(model, manifest, batch_s=60.0)
    assert texts == recognise(model, manifest, batch_s=0.1)
    assert any(texts)


def test_confidence_is_the_probability_of_a_text_per_symbol() -> None:
    """All paths one by one, by the definition; it grows with certainty, and lies between 0 and 1."""
    vocabulary, rng = Vocabulary(("<s>", "|", "A", "B")), np.random.default_rng(0)
    logits = torch.from_numpy(2 * rng.standard_normal((6, 4)))
    probs: dict[str, float] = {}
    for path in product(range(4), repeat=6):
        labels = [k for k, _ in groupby(path) if k]
        inner = "".join(" AB"[k - 1] for k in labels)
        # Boundaries that write nothing, before the first word or after another one, are no labels of a transcript.
        if not inner.startswith(" ") and "  " not in inner:
            share = float(logits.softmax(-1)[range(6), list(path)].prod())
            probs[inner.rstrip()] = probs.get(inner.rstrip(), 0.0) + share
    for text in ("A", "AB", "A B", "BAB"):
        expected = probs[text] ** (1 / (len(text) + 1))
        assert measure_confidence(logits, text, vocabulary) == pytest.approx(expected, rel=1e-6)
    path = torch.eye(4)[[0, 2, 0, 3, 1]]
    sharper = [measure_confidence(scale * path, "AB", vocabulary) for scale in (0.4, 4.0, 40.0)]
    assert sharper == sorted(sharper) and sharper[0] < 0.5 and 0.999 < sharper[-1] <= 1.0
    assert measure_confidence(logits, "", vocabulary) == 0.0


def test_readings_have_the_texts_and_their_confidence(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"b": say("HELLO"), "blip": np.full(399, 0.5, dtype=np.float32), "a": say("TEA")})
    reader = Reader(VOCABULARY, build_decoder(DecodingConfig(), VOCABULARY), 0.02, has_confidence=True)
    found = iterate_readings(EchoModel(), Source.from_manifest(manifest), 60.0, 30.0, "float32", reader)
    readings = [reading for _, reading in found]
    assert [reading.text for reading in readings] == ["HELLO", "", "TEA"]
    assert readings[1].confidence == 0.0
    assert all(0.0 < readings[k].confidence < 0.5 for k in (0, 2))  # one-hot logits are far from sure
