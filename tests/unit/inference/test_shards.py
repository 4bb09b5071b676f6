"""Embeddings that are broken off go on where they were, to the same table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from speechssl.config.model import ModelConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.segments import Segments, read_segments
from speechssl.errors import ConfigError, DataError
from speechssl.inference import shards
from speechssl.inference.embed import Embedder, Rows, choose_layers
from speechssl.inference.embedding_files import write_embeddings
from speechssl.inference.shards import Shards
from speechssl.inference.source import FloatArray, Source
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case

Make = Callable[[LeftOut], Rows]


class Killed(BaseException):
    """What breaks a run off."""


@pytest.fixture
def make(tiny_model_config: ModelConfig, tmp_path: Path) -> Callable[[str, bool], Make]:
    """Make the rows of seven utterances of 0.5 to 7 s in windows of 2 s: one cannot be read, one not to its end."""
    torch.manual_seed(0)
    model = SpeechModel(tiny_model_config).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    lengths = np.array([8_000, 112_000, 9_000, 80_000, 30_000, 16_000, 70_000])
    waveforms: list[FloatArray] = [0.1 * rng.standard_normal(length).astype(np.float32) for length in lengths]

    def read(index: int) -> FloatArray:
        if index == 2:
            raise DataError("c must be whole, but is not")
        return waveforms[index]

    def stream(index: int) -> Iterator[FloatArray]:
        for first in range(0, lengths[index], 10_000):
            if index == 3 and first >= 50_000:
                raise DataError("d must hold finite samples, but has NaN or infinite ones")
            yield read(index)[first : first + 10_000]

    def choose(pooling: str, has_segments: bool) -> Make:
        found: Segments | None = None
        if has_segments:
            lines = [f"{name} 1 {0.45 * k:.2f} 0.6 L{k}" for name, n in zip("abcdefg", lengths, strict=True)
                     for k in range(int(n / 16_000 / 0.45) - 1) or [0]]  # fmt: skip
            (tmp_path / "s.ctm").write_text("\n".join(lines).replace("a 1 0.00 0.6", "a 1 0.00 0.4"))
            found = read_segments(str(tmp_path / "s.ctm"))

        def build(left_out: LeftOut) -> Rows:
            source = Source(list("abcdefg"), lengths, read, None, left_out, stream=stream)
            embedder = Embedder(model, choose_layers([0, 2], 2), pooling, batch_s=4.0, window_s=2.0)
            return Rows(embedder, source, found)

        return build

    return choose


def run(out: Path, make: Make, stop: int | None = None, is_clean: bool = True) -> tuple[pa.Table, LeftOut]:
    """Write a table, or break off once `stop` rows are made: with or without leave to write what waits."""
    left_out = LeftOut()
    kept = Shards(out, {"pooling": "x"}, left_out)
    rows = make(left_out)
    done, rows.begun = kept.find_place(rows)
    made = kept.num_rows
    try:
        with kept if is_clean else AsKilled(kept):
            for table in rows.iterate(done):
                kept.add(table)
                made += table.num_rows
                if stop is not None and made >= stop:
                    raise Killed
            kept.flush()
            write_embeddings(out, kept.iterate(rows.schema), rows.schema)
    except Killed:
        pass
    return (pq.read_table(out) if out.exists() else rows.schema.empty_table()), left_out


class AsKilled:
    """Leaves what is kept as a kill leaves it."""

    def __init__(self, kept: Shards) -> None:
        self.kept = kept

    def __enter__(self) -> Shards:
        return self.kept

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.kept.__exit__(None, None, None)


@each_case("form", [("mean", False), ("frames", False), ("statistics", True), ("frames", True)])
def test_killed_at_five_moments_the_table_is_that_of_one_run(
    make: Callable[[str, bool], Make], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, bool]
) -> None:
    """Each time with rows that wait to be written, and with two utterances that cannot be used."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 5_000)
    whole, left_out = run(tmp_path / "whole.parquet", make(*form))
    assert [item.id for item in left_out.items] == ["c", "d"]
    assert list(dict.fromkeys(whole.column("id").to_pylist())) == ["a", "b", "e", "f", "g"]
    moments = np.sort(np.random.default_rng(1).integers(1, whole.num_rows, size=5)).tolist()
    out = tmp_path / "parts.parquet"
    for number, moment in enumerate(moments):
        run(out, make(*form), stop=moment, is_clean=number % 2 == 0)
        assert not out.exists()
    found, left_out = run(out, make(*form))
    assert found.equals(whole)
    assert [item.id for item in left_out.items] == ["c", "d"]
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["parts.parquet", "whole.parquet"]
    assert not list(tmp_path.glob(".*")), "nothing stays"


def test_what_is_done_is_not_done_again(
    make: Callable[[str, bool], Make], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "x.parquet", make("frames", False), stop=400)
    caplog.set_level("INFO", "speechssl")
    left_out = LeftOut()
    kept = Shards(tmp_path / "x.parquet", {"pooling": "x"}, left_out)
    rows = make("frames", False)(left_out)
    done, begun = kept.find_place(rows)
    assert (done, list(begun)) == (frozenset({0}), [1])
    assert begun[1] + rows.count(0) == kept.num_rows >= 400
    assert f"going on from {kept.folder}, where {kept.num_rows} rows are done, up to b" in caplog.text
    rows.begun = begun
    assert sum(table.num_rows for table in rows.iterate(done) if table["id"][0].as_py() == "b") == (
        rows.count(1) - begun[1]
    )


def test_another_command_does_not_go_on_from_there(make: Callable[[str, bool], Make], tmp_path: Path) -> None:
    run(tmp_path / "x.parquet", make("mean", False), stop=2)
    with pytest.raises(ConfigError, match=r"`pooling` must be as the command had it .*'x', but is 'y' \(overwrite"):
        Shards(tmp_path / "x.parquet", {"pooling": "y"}, LeftOut())
    assert Shards(tmp_path / "x.parquet", {"pooling": "y"}, LeftOut(), overwrite=True).num_rows == 0


def test_what_a_disk_damaged_is_done_again_or_said(
    make: Callable[[str, bool], Make], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    whole, _ = run(tmp_path / "whole.parquet", make("frames", False))
    out = tmp_path / "x.parquet"
    run(out, make("frames", False), stop=600)
    files = sorted((tmp_path / ".x.parquet.part").glob("*.parquet"))
    files[2].write_bytes(files[2].read_bytes()[:-100])
    found, _ = run(out, make("frames", False))
    assert "the rest is done again" in caplog.text
    assert found.equals(whole)
    out.unlink()
    run(out, make("frames", False), stop=600)
    data = bytearray(files[2].read_bytes())
    data[len(data) // 2] ^= 255
    files[2].write_bytes(data)
    with pytest.raises(ConfigError, match="must be what this command has written"):
        run(out, make("frames", False))
