"""The verb `similar`: clips and ids, what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import speechssl
from speechssl.cli.main import main
from speechssl.config.model import ModelConfig
from speechssl.errors import SpeechSSLError
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """Five clips, and embeddings of the first four: Parquet of one layer and of two, and an array without metadata."""
    folder = tmp_path_factory.mktemp("similar")
    config = ModelConfig(name="tiny", conv_channels=[8] * 7, num_layers=2, model_dim=16, ffn_dim=16, num_heads=2,
                         position_kernel=8, position_groups=2)  # fmt: skip
    speechssl.save(SpeechModel(config), str(folder / "model"))
    (folder / "clips").mkdir()
    for number in range(5):
        place = folder / ("clips" if number < 4 else ".")
        soundfile.write(place / f"{number}.wav", speech(0.6 + 0.1 * number, number), 16_000)
    soundfile.write(folder / "short.wav", np.zeros(300), 16_000)
    keys: dict[str, Any] = {"checkpoint": str(folder / "model"), "audio": str(folder / "clips"), "device": "cpu"}
    speechssl.embed(**keys, out=str(folder / "e.parquet"), layer=1, pooling="statistics")
    speechssl.embed(**keys, out=str(folder / "two.parquet"), layer=[0, 2])
    speechssl.embed(**keys, out=str(folder / "frames.parquet"), layer=1, pooling="frames")
    speechssl.embed(**keys, out=str(folder / "e.npy"), layer=1)
    return folder


def test_a_clip_is_embedded_as_the_rows_were(place: Path) -> None:
    for name, keys in (
        ("e.parquet", {}),
        ("two.parquet", {"layer": 2}),
        ("e.npy", {"checkpoint": str(place / "model")}),
    ):
        given = {"embeddings": str(place / name), "device": "cpu", "top": 3, **keys}
        found = speechssl.similar(**given, query=str(place / "clips" / "2.wav"), out="")
        assert found["neighbours"][0]["id"] == "2", name
        # Where precision=auto is bf16, a row alone differs in its last bits from one in a batch.
        assert found["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-4)
        by_id = speechssl.similar(**given, query="2")
        assert by_id["is_id"] and [row["id"] for row in by_id["neighbours"][:2]] == [
            row["id"] for row in found["neighbours"][1:]
        ]
    vectors = np.stack(pq.read_table(place / "e.parquet").column("embedding").to_pylist())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = speechssl.similar(embeddings=str(place / "e.parquet"), query="0")
    assert [row["similarity"] for row in found["neighbours"]] == pytest.approx(sorted(unit[1:] @ unit[0])[::-1])


def test_the_table_is_printed_alone_or_written(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["similar", str(place / "e.parquet"), "0", "top=2"]) == 0
    out, err = capsys.readouterr()
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert head == ["rank", "similarity", "id", "path", "speaker"]
    assert [row[0] for row in rows] == ["1", "2"] and rows[0][3] == str(place / "clips" / f"{rows[0][2]}.wav")
    result = json.loads(err.splitlines()[-1])
    assert [row["id"] for row in result["neighbours"]] == [row[2] for row in rows] and result["out"] == "stdout"
    assert main(["similar", str(place / "frames.parquet"), "0", "top=2"]) == 0
    frames = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert frames[0][-2:] == ["start_s", "end_s"] and "0" not in {row[2] for row in frames}
    for name in ("near.tsv", "near.parquet", "folder"):
        assert main(["similar", str(place / "e.parquet"), "0", f"out={tmp_path / name}"]) == 0
        assert main(["similar", str(place / "e.parquet"), "0", f"out={tmp_path / name}"]) == 2
    written = (tmp_path / "near.tsv").read_text()
    assert written == (tmp_path / "folder" / "similar.tsv").read_text() and written.count("\n") == 4
    assert (tmp_path / "folder" / "result.json").exists()
    assert pq.read_table(tmp_path / "near.parquet").column("rank").to_pylist() == [1, 2, 3]


@each_case(
    "name, query, keys, sentence",
    [
        ("e.parquet", "nobody", {}, "`query` must be an id in .* or an audio file, but 'nobody' is neither"),
        ("e.npy", "4.wav", {}, "`checkpoint` must be given where a clip is asked for"),
        ("two.parquet", "0", {}, r"`layer` must be one of those of .* \('0', '2'\), but is ''"),
        ("e.parquet", "4.wav", {"pooling": "mean"}, "whose vectors have 32 numbers, but .* gives 16"),
        ("e.parquet", "model/config.json", {}, "config.json must be audio that libsndfile reads"),
        ("e.parquet", "short.wav", {}, "`query` must be at least 400 samples"),
        ("e.parquet", "0", {"top": 0}, "`top` must be at least 1"),
        ("e.parquet", "0", {"out": "x.csv"}, "`out` must be a folder, or a file that ends in .tsv or .parquet"),
        ("gone.parquet", "0", {}, "`embeddings` must be a file of embeddings .* cannot be read"),
    ],
)
def test_mistakes_are_a_sentence(place: Path, name: str, query: str, keys: dict[str, Any], sentence: str) -> None:
    path = place / query
    with pytest.raises(SpeechSSLError, match=sentence):
        speechssl.similar(embeddings=str(place / name), query=str(path) if path.exists() else query, **keys)
