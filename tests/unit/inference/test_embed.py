"""Embeddings: the same whatever the batch and the file format, with times and layers that can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import soundfile
import torch

from speechssl.config.model import ModelConfig
from speechssl.data.files import expand_audio
from speechssl.errors import ConfigError, DataError
from speechssl.inference.embed import Embedder, choose_layers, embed, iterate_tables
from speechssl.inference.embedding_files import write_embeddings
from speechssl.inference.source import Source
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case

Speech = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speech: Speech) -> Path:
    """Files of 0.9 to 2.4 s."""
    made = tmp_path_factory.mktemp("clips")
    for number, seconds in enumerate((0.9, 2.4, 1.3, 1.3, 2.0)):
        soundfile.write(made / f"{number}.flac", speech(seconds, number), 16_000)
    return made


@pytest.fixture
def model(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(0)
    return SpeechModel(tiny_model_config).eval().requires_grad_(False)


@pytest.fixture
def source(folder: Path) -> Source:
    return Source.from_manifest(expand_audio([str(folder)]))


def vectors(table: object) -> np.ndarray:
    return np.stack(table.column("embedding").to_pylist())  # type: ignore[attr-defined]


def test_rows_come_in_order_with_their_columns(model: SpeechModel, folder: Path) -> None:
    table = embed(model, str(folder), layer="all")
    assert table.column_names == ["id", "path", "speaker", "layer", "start_s", "end_s", "embedding"]
    assert table.column("id").to_pylist() == [str(number) for number in range(5) for _ in range(3)]
    assert table.column("layer").to_pylist() == ["0", "1", "2"] * 5
    assert table.column("end_s").to_pylist()[::3] == pytest.approx([0.9, 2.4, 1.3, 1.3, 2.0])
    assert vectors(table).shape == (15, model.dim)


def test_mean_is_that_of_the_models_own_frames(model: SpeechModel, folder: Path) -> None:
    waveform, _ = soundfile.read(folder / "1.flac", dtype="float32")
    frames = model(torch.from_numpy(waveform)[None])
    for layer, expected in ((1, frames.layers[1]), ("last", frames.last), ("mean", torch.stack(frames.layers).mean(0))):
        table = embed(model, str(folder / "1.flac"), layer=layer)
        np.testing.assert_allclose(vectors(table)[0], expected[0].mean(0).numpy(), atol=1e-5)
    statistics = vectors(embed(model, str(folder / "1.flac"), layer=2, pooling="statistics"))[0]
    np.testing.assert_allclose(statistics[model.dim :], frames.layers[2][0].std(0, correction=0).numpy(), atol=1e-4)
    peaks = vectors(embed(model, str(folder / "1.flac"), layer=2, pooling="max"))[0]
    np.testing.assert_allclose(peaks, frames.layers[2][0].max(0).values.numpy(), atol=1e-5)


@each_case("batch_s", [0.5, 3.0, 60.0])
def test_the_batch_does_not_matter(model: SpeechModel, folder: Path, batch_s: float) -> None:
    alone = vectors(embed(model, str(folder), batch_s=0.1))
    np.testing.assert_allclose(vectors(embed(model, str(folder), batch_s=batch_s)), alone, atol=2e-5)


def test_frames_start_every_20_ms_and_see_25(model: SpeechModel, folder: Path) -> None:
    table = embed(model, str(folder / "0.flac"), pooling="frames")
    starts, ends = np.array(table.column("start_s")), np.array(table.column("end_s"))
    assert table.num_rows == (14_400 - 400) // 320 + 1
    np.testing.assert_allclose(starts, 0.02 * np.arange(len(starts)))
    np.testing.assert_allclose(ends - starts, 0.025)


def test_long_audio_goes_in_windows_whose_result_does_not_depend_on_the_batch(
    model: SpeechModel, tmp_path: Path, speech: Speech
) -> None:
    soundfile.write(tmp_path / "long.flac", speech(13.0, 7), 16_000)
    path = str(tmp_path / "long.flac")
    windowed = embed(model, path, pooling="frames", window_s=5.0, batch_s=5.0)
    again = embed(model, path, pooling="frames", window_s=5.0, batch_s=60.0)
    single = embed(model, path, pooling="frames")
    assert windowed.num_rows == single.num_rows == (13 * 16_000 - 400) // 320 + 1
    np.testing.assert_allclose(vectors(windowed), vectors(again), atol=1e-5)
    pooled = vectors(embed(model, path, window_s=5.0))[0]
    np.testing.assert_allclose(pooled, vectors(windowed).mean(0), atol=1e-5)


def test_every_format_holds_the_same(model: SpeechModel, source: Source, tmp_path: Path) -> None:
    embedder = Embedder(model, choose_layers([0, 2], 2))
    for suffix in (".parquet", ".npy", ".safetensors"):
        assert write_embeddings(tmp_path / f"out{suffix}", iterate_tables(embedder, source), embedder.dim) == 10
    expected = np.stack(pq.read_table(tmp_path / "out.parquet").column("embedding").to_pylist())
    assert expected.shape == (10, model.dim)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "out.safetensors")["embeddings"], expected)
    lines = (tmp_path / "out.index.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["id", "path", "speaker", "layer", "start_s", "end_s"]
    assert [line.split("\t")[0] for line in lines[1:]] == pq.read_table(tmp_path / "out.parquet").column(
        "id"
    ).to_pylist()
    names = {"out.parquet", "out.npy", "out.safetensors", "out.index.tsv"}
    assert {path.name for path in tmp_path.iterdir()} == names


@each_case("suffix", [".parquet", ".npy", ".safetensors"])
def test_an_interruption_keeps_what_is_done_under_another_name(
    model: SpeechModel, source: Source, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder(model, choose_layers([0, 2], 2))
    out, part = tmp_path / f"out{suffix}", tmp_path / f".out{suffix}.part"

    def break_off(after: int) -> Iterator[pa.Table]:
        yield from islice(iterate_tables(embedder, source), after)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_embeddings(out, break_off(2), embedder.dim)
    assert not out.exists()
    assert f"broken off: the first 4 rows are in {part}" in caplog.text
    whole = tmp_path / f"whole{suffix}"
    write_embeddings(whole, iterate_tables(embedder, source), embedder.dim)
    np.testing.assert_array_equal(read_file(part, suffix), read_file(whole, suffix)[:4])
    if suffix != ".parquet":
        lines = (tmp_path / "whole.index.tsv").read_text().splitlines()[:5]
        assert (tmp_path / ".out.index.tsv.part").read_text().splitlines() == lines
    with pytest.raises(KeyboardInterrupt):
        write_embeddings(out, break_off(0), embedder.dim)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name], "a part of nothing is none"


def read_file(path: Path, suffix: str) -> np.ndarray:
    """Read the vectors of a file, by a suffix that its name may not have."""
    if suffix == ".parquet":
        return vectors(pq.read_table(path))
    return np.load(path) if suffix == ".npy" else safetensors.numpy.load_file(path)["embeddings"]


@each_case("layer", [3, -1, [0, 9], "first", "3", True, [True], 1.0, None, {}, [], b"\x01", np.array(0.5)])
def test_a_layer_that_is_not_there(layer: object) -> None:
    with pytest.raises(ConfigError, match="`layer` must be 0 to 2"):
        choose_layers(layer, 2)


@each_case("layer", [np.int64(1), np.array([1]), torch.tensor(1), (1,), range(1, 2)])
def test_a_layer_may_be_any_whole_number(layer: object) -> None:
    assert choose_layers(layer, 2).names == ("1",)


@each_case("text", ["", "[]", "{", '{"layer_weights": [1, "x", 2]}', '{"layer_weights": 3}', "\udce9"])
def test_a_damaged_probe_gets_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match="must be"):
        choose_layers(tmp_path, 2)


def test_a_probes_folder_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"layer_weights": [0.5, 0.25, 0.25]}')
    assert choose_layers(tmp_path, 2).names == choose_layers(str(tmp_path), 2).names


def test_a_probes_mix_is_a_weighted_sum(model: SpeechModel, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"layer_weights": [0.5, 0.25, 0.25]}')
    mixed = vectors(embed(model, str(folder), layer=str(tmp_path)))
    layers = [vectors(embed(model, str(folder), layer=k)) for k in range(3)]
    np.testing.assert_allclose(mixed, 0.5 * layers[0] + 0.25 * layers[1] + 0.25 * layers[2], atol=1e-5)


def test_arrays_need_their_rate_and_audio_a_frame(model: SpeechModel, speech: Speech) -> None:
    wave = speech(1.0, 3)
    np.testing.assert_allclose(
        vectors(embed(model, wave, sample_rate=16_000)),
        model(torch.from_numpy(wave)[None]).last[0].mean(0)[None],
        atol=1e-5,
    )
    with pytest.raises(DataError, match="sample_rate"):
        embed(model, wave)
    with pytest.raises(DataError, match=r"`audio` must be at least 400 samples at 16 kHz \(25 ms\)"):
        embed(model, wave[:300], sample_rate=16_000)
