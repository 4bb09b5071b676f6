"""Embeddings: the same whatever the batch and the file format, with times and layers that can be trusted."""

from __future__ import annotations

from collections.abc import Callable
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
from speechssl.inference import embedding_files
from speechssl.inference.embed import Embedder, Rows, choose_layers, embed
from speechssl.inference.embedder import LayerChoice
from speechssl.inference.embedding_files import write_embeddings
from speechssl.inference.source import Source
from speechssl.model.speech_model import Frames, SpeechModel
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


@each_case("dtype", ["float32", "float16"])
def test_every_format_holds_the_same(model: SpeechModel, source: Source, tmp_path: Path, dtype: str) -> None:
    rows = Rows(Embedder(model, choose_layers([0, 2], 2)), source, dtype=dtype)
    for suffix in (".parquet", ".npy", ".safetensors"):
        assert write_embeddings(tmp_path / f"out{suffix}", rows.iterate(), rows.schema) == 10
    expected = np.array(pq.read_table(tmp_path / "out.parquet").column("embedding").to_pylist(), dtype=dtype)
    assert expected.shape == (10, model.dim)
    for made in (
        np.load(tmp_path / "out.npy"),
        safetensors.numpy.load_file(tmp_path / "out.safetensors")["embeddings"],
    ):
        assert made.dtype == dtype
        np.testing.assert_array_equal(made, expected)
    lines = (tmp_path / "out.index.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["id", "path", "speaker", "layer", "start_s", "end_s"]
    assert [line.split("\t")[0] for line in lines[1:]] == pq.read_table(tmp_path / "out.parquet").column(
        "id"
    ).to_pylist()
    names = {"out.parquet", "out.npy", "out.safetensors", "out.index.tsv"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_row_groups_do_not_depend_on_how_rows_come(
    model: SpeechModel, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "GROUP_BYTES", 3 * 4 * model.dim)
    rows = Rows(Embedder(model, choose_layers([0, 2], 2)), source)
    tables = list(rows.iterate())
    for name, given in (("one", tables), ("all", [pa.concat_tables(tables)])):
        write_embeddings(tmp_path / f"{name}.parquet", given, rows.schema)
        groups = pq.ParquetFile(tmp_path / f"{name}.parquet").metadata
        assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [3, 3, 3, 1]
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "all.parquet").read_bytes()


def test_frames_of_several_layers_come_in_time(model: SpeechModel, folder: Path) -> None:
    both = embed(model, str(folder / "0.flac"), layer=[0, 2], pooling="frames")
    assert both.column("layer").to_pylist()[:4] == ["0", "2", "0", "2"]
    assert both.column("start_s").to_pylist()[:4] == [0.0, 0.0, 0.02, 0.02]
    alone = vectors(embed(model, str(folder / "0.flac"), layer=2, pooling="frames"))
    np.testing.assert_array_equal(vectors(both)[1::2], alone)


@each_case("pooling", ["mean", "max", "statistics", "frames"])
def test_a_segment_is_pooled_over_the_frames_whose_middle_it_has(
    model: SpeechModel, folder: Path, tmp_path: Path, pooling: str
) -> None:
    """Segments overlap, are shorter than a frame, and end a little behind the file."""
    spans = [
        ("1", 0.0, 0.5, "A"),
        ("1", 0.3, 1.1, "B"),
        ("1", 1.2, 1.205, "C"),
        ("1", 2.0, 2.45, "D"),
        ("3", 0, 1, "E"),
    ]
    lines = "".join(f"{name}\t{first}\t{last}\t{label}\n" for name, first, last, label in reversed(spans))
    (tmp_path / "s.tsv").write_text("id\tstart\tend\tlabel\n" + lines)
    files = [str(folder / f"{name}.flac") for name in (1, 3)]
    frames = {name: embed(model, str(folder / f"{name}.flac"), pooling="frames", layer=2) for name in ("1", "3")}
    table = embed(model, files, segments=tmp_path / "s.tsv", layer=2, pooling=pooling)
    parts = []
    for name, first, last, _ in spans:
        middles = np.array(frames[name].column("start_s")) + 0.0125
        inside = np.flatnonzero((middles >= first) & (middles < last))
        inside = inside if len(inside) else np.flatnonzero(middles >= first)[:1]
        part = vectors(frames[name])[inside]
        both = np.concatenate([part.mean(0), part.std(0)])
        parts.append({"mean": part.mean(0), "max": part.max(0), "statistics": both, "frames": part}[pooling])
    expected = np.concatenate(parts) if pooling == "frames" else np.stack(parts)
    np.testing.assert_allclose(vectors(table), expected, atol=1e-4)
    if pooling != "frames":
        found = zip(*(table.column(key).to_pylist() for key in ("id", "start_s", "end_s", "label")), strict=True)
        assert list(found) == spans


def test_segments_that_are_not_of_the_audio(model: SpeechModel, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s.ctm").write_text("1 1 0.0 0.5 A\n9 1 0 1 B\n")
    with pytest.raises(DataError, match=r"`segments` must have some of 2, but .*s\.ctm has none"):
        embed(model, [str(folder / "1.flac"), str(folder / "2.flac")], segments=tmp_path / "s.ctm")
    (tmp_path / "s.ctm").write_text("9 1 0.0 0.5 A\n")
    with pytest.raises(DataError, match="`segments` must be of the utterances in `audio`, such as 1, but .* 9 is its"):
        embed(model, str(folder / "1.flac"), segments=tmp_path / "s.ctm")
    (tmp_path / "s.ctm").write_text("1 1 0.0 0.5 A\n1 1 2.0 0.6 B\n")
    with pytest.raises(DataError, match=r"`segments` must lie within 1, which lasts 2\.40 s, .* from 2 to 2\.6 s"):
        embed(model, str(folder / "1.flac"), segments=tmp_path / "s.ctm")


def test_vectors_of_length_one_and_in_float16(model: SpeechModel, folder: Path) -> None:
    plain = vectors(embed(model, str(folder)))
    unit = vectors(embed(model, str(folder), normalise="l2"))
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5)
    half = embed(model, str(folder), dtype="float16")
    assert half.schema.field("embedding").type.value_type == pa.float16()
    np.testing.assert_array_equal(vectors(half), plain.astype(np.float16))
    for key, value in (("normalise", "l1"), ("dtype", "int8")):
        with pytest.raises(ConfigError, match=f"`{key}` must be one of"):
            embed(model, str(folder), **{key: value})  # type: ignore[arg-type]


def test_a_number_that_float16_has_not_is_no_infinity(model: SpeechModel, source: Source) -> None:
    def scale(frames: Frames) -> list[torch.Tensor]:
        return [1e6 * frames.last]

    rows = Rows(Embedder(model, LayerChoice(("last",), scale)), source, dtype="float16")
    with pytest.raises(ConfigError, match="`dtype` must be float32 for numbers beyond 65504, but 1 has"):
        list(rows.iterate())


def read_pyarrow(path: Path) -> np.ndarray:
    kind = pq.read_schema(path).field("embedding").type
    assert (kind.value_type, kind.list_size) == (pa.float32(), 32)
    return vectors(pq.read_table(path))


def read_pandas(path: Path) -> np.ndarray:
    return np.stack(pytest.importorskip("pandas").read_parquet(path)["embedding"])


def read_polars(path: Path) -> np.ndarray:
    polars = pytest.importorskip("polars")
    column = polars.read_parquet(path)["embedding"]
    assert column.dtype == polars.Array(polars.Float32, 32)
    found: np.ndarray = column.to_numpy()
    return found


def read_duckdb(path: Path) -> np.ndarray:
    """DuckDB reads a list, of which the cast makes an array: its distances want one."""
    duckdb = pytest.importorskip("duckdb")
    query = "SELECT embedding::FLOAT[32] AS v, array_cosine_similarity(v, v) FROM read_parquet(?)"
    found = duckdb.sql(query, params=[str(path)])
    assert str(found.types[0]) == "FLOAT[32]"
    rows = found.fetchall()
    assert [row[1] for row in rows] == pytest.approx([1.0] * len(rows), abs=1e-5)
    return np.array([row[0] for row in rows], dtype=np.float32)


@each_case("read", [read_pyarrow, read_pandas, read_polars, read_duckdb])
def test_other_tools_read_a_column_of_vectors(
    model: SpeechModel, source: Source, tmp_path: Path, read: Callable[[Path], np.ndarray]
) -> None:
    rows = Rows(Embedder(model, choose_layers([0, 2], 2)), source)
    tables = list(rows.iterate())
    write_embeddings(tmp_path / "x.parquet", tables, rows.schema, {"settings": {"pooling": "mean"}})
    np.testing.assert_array_equal(read(tmp_path / "x.parquet"), vectors(pa.concat_tables(tables)))


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
