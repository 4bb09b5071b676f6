"""Nearest neighbours, and files of embeddings as they are read back."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.neighbors import NearestNeighbors

from speechssl.errors import DataError
from speechssl.inference.embed import make_schema
from speechssl.inference.embedding_files import write_embeddings
from speechssl.inference.embedding_reading import read_embeddings
from speechssl.inference.neighbours import ROWS_AT_ONCE, find_neighbours

SETTINGS = {"pooling": "statistics", "window_s": 20.0}
FACTS = {"checkpoint": "runs/ä", "weights": "", "settings": SETTINGS}


def make_rows(vectors: np.ndarray, layer: str = "1") -> pa.Table:
    count = len(vectors)
    ids = [f"id\t{k}" for k in range(count)]
    columns = [ids, [f"/a/{k}.flac" for k in range(count)], [None] * count, [layer] * count]
    arrays = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table([*columns, np.zeros(count), np.ones(count), arrays], schema=make_schema(vectors.shape[1]))


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2 * ROWS_AT_ONCE + 7, 6), dtype=np.float32) + 1
    query = rng.standard_normal(6, dtype=np.float32)
    distances, rows = NearestNeighbors(n_neighbors=12, metric="cosine").fit(vectors).kneighbors(query[None])
    found = find_neighbours(vectors, query, 12)
    assert found.rows.tolist() == rows[0].tolist()
    np.testing.assert_allclose(found.cosines, 1 - distances[0], atol=1e-5)
    assert find_neighbours(vectors, query * 1e-20, 11, left_out=rows[0][:1]).rows.tolist() == rows[0][1:].tolist()


def test_what_has_no_direction_is_nobodys_neighbour_and_equals_keep_their_order() -> None:
    vectors = np.array([[0, 0], [1, 0], [np.nan, 1], [2, 0], [-1, 0], [np.inf, 0]], dtype=np.float32)
    found = find_neighbours(vectors, vectors[3], 9)
    assert (found.rows.tolist(), found.cosines.tolist(), found.num_without) == ([1, 3, 4], [1, 1, -1], 3)
    assert find_neighbours(vectors.astype(np.float16), vectors[3], 1).rows.tolist() == [1]


def test_a_hundred_thousand_vectors_take_less_than_half_a_second() -> None:
    vectors = np.random.default_rng(0).standard_normal((100_000, 768), dtype=np.float32)
    seconds = []
    for row in (5, 50_000, 99_999):
        start = time.perf_counter()
        assert find_neighbours(vectors, vectors[row], 10).rows[0] == row
        seconds.append(time.perf_counter() - start)
    # Others share the machine: the fastest of three says what the work takes.
    assert min(seconds) < 0.5


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".safetensors"])
def test_what_was_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    path = tmp_path / f"e{suffix}"
    write_embeddings(path, [make_rows(vectors[:20]), make_rows(vectors[20:], "2")], make_schema(5), FACTS)
    found = read_embeddings(str(path))
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.facts == (FACTS | SETTINGS if suffix == ".parquet" else {})
    assert found.rows.column("id").to_pylist()[:2] == ["id\t0", "id\t1"]
    assert found.rows.column("speaker").null_count == 30
    second = found.select_layer("2")
    np.testing.assert_array_equal(second.vectors, vectors[20:])
    assert second.rows.num_rows == 10 and found.select_layer("3").rows.num_rows == 0


def test_what_is_no_file_of_embeddings_is_one_sentence(tmp_path: Path) -> None:
    vectors = np.ones((3, 2), np.float32)
    whole = make_rows(vectors)
    tables = {
        "no column embedding": whole.drop_columns(["embedding"]),
        "no id": whole.drop_columns(["id"]),
        "empty": whole.slice(0, 0),
        "lists": whole.set_column(6, "embedding", pa.array([[1.0, 2.0]] * 3)),
        "a gap": whole.set_column(6, "embedding", pa.array([[1.0, 2.0], None, [1.0, 2.0]], pa.list_(pa.float32(), 2))),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match="`embeddings` must be a file of embeddings .* that `speechssl"):
            read_embeddings(str(tmp_path / f"{name}.parquet"))
    np.save(tmp_path / "alone.npy", vectors)
    (tmp_path / "e.csv").write_text("id")
    write_embeddings(tmp_path / "cut.npy", [whole], whole.schema)
    index = tmp_path / "cut.index.tsv"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    for name, reason in (("alone.npy", "No such file"), ("e.csv", "ends in .csv"), ("cut.npy", "its index 2 rows")):
        with pytest.raises(DataError, match=reason):
            read_embeddings(str(tmp_path / name))


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    rows = make_rows(vectors.astype(np.float32))
    pq.write_table(rows.set_column(6, "embedding", column), tmp_path / "half.parquet")
    np.testing.assert_array_equal(read_embeddings(str(tmp_path / "half.parquet")).vectors, vectors)
