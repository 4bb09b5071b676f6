"""The verb `embed`: where it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import soundfile

from speechssl.checkpoints.model_folder import save_model
from speechssl.config.inference import EmbedConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import ConfigError, DataError
from speechssl.model.speech_model import SpeechModel
from speechssl.verbs import embed

Speech = Callable[..., np.ndarray]


@pytest.fixture
def workplace(tmp_path: Path, speech: Speech, tiny_model_config: ModelConfig) -> Path:
    (tmp_path / "clips").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "clips" / f"{number}.flac", speech(1.0 + 0.3 * number, number), 16_000)
    save_model(SpeechModel(tiny_model_config, pretraining=True), tmp_path / "model")
    return tmp_path


def make_config(workplace: Path, out: str, **keys: object) -> EmbedConfig:
    given = {"audio": [str(workplace / "clips")], "device": "cpu"} | keys
    return EmbedConfig(checkpoint=str(workplace / "model"), out=str(workplace / out), **given)  # type: ignore[arg-type]


def test_a_suffix_names_a_file(workplace: Path) -> None:
    result = embed(make_config(workplace, "x.parquet", layer=[0, 2], pooling="statistics"))
    table = pq.read_table(workplace / "x.parquet")
    assert table.num_rows == result["num_rows"] == 6
    assert result["dim"] == 64
    assert table.schema.field("embedding").type.list_size == 64
    assert result["out"] == str(workplace / "x.parquet")


def test_a_folder_gets_the_format_and_the_result(workplace: Path) -> None:
    result = embed(make_config(workplace, "folder", format="npy", pooling="frames"))
    assert np.load(workplace / "folder" / "embeddings.npy").shape == (result["num_rows"], 32)
    lines = (workplace / "folder" / "embeddings.index.tsv").read_text().splitlines()
    assert len(lines) == result["num_rows"] + 1
    assert lines[2].split("\t")[4:] == ["0.02", "0.045"]
    assert json.loads((workplace / "folder" / "result.json").read_text()) == result
    with pytest.raises(ConfigError, match="overwrite=true"):
        embed(make_config(workplace, "folder", format="npy"))


def test_a_finished_file_stays(workplace: Path) -> None:
    embed(make_config(workplace, "x.npy"))
    with pytest.raises(ConfigError, match="overwrite=true"):
        embed(make_config(workplace, "x.npy"))
    embed(make_config(workplace, "x.npy", layer="all", overwrite=True))
    assert len(np.load(workplace / "x.npy")) == 9


def test_a_manifest_beside_the_array_is_not_its_index(workplace: Path) -> None:
    (workplace / "x.tsv").write_text("precious")
    embed(make_config(workplace, "x.npy"))
    assert (workplace / "x.tsv").read_text() == "precious"


@pytest.mark.parametrize(
    ("out", "keys", "error", "message"),
    [
        ("x.csv", {}, ConfigError, "`out` must end in .parquet, .npy, .safetensors"),
        ("x.npy", {"layer": 7}, ConfigError, "`layer` must be 0 to 2"),
        ("x.npy", {"audio": ["nowhere/*.flac"]}, DataError, "nowhere"),
    ],
)
def test_a_mistake_leaves_nothing(
    workplace: Path, out: str, keys: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("*", ".")):
        embed(make_config(workplace, out, **keys))
    assert {path.name for path in workplace.iterdir()} == {"clips", "model"}


@pytest.mark.parametrize("out", ["x.npy", "x.safetensors", "x.parquet", "folder"])
def test_what_cannot_be_used_is_left_out_and_listed(workplace: Path, out: str) -> None:
    """A damaged file, a short one and a link to itself among three that are whole."""
    clips = workplace / "clips"
    data = bytearray((clips / "1.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (clips / "damaged.flac").write_bytes(data)
    soundfile.write(clips / "short.wav", np.zeros(399), 16_000)
    (clips / "loop.wav").symlink_to("loop.wav")
    result = embed(make_config(workplace, out))
    assert (result["num_utterances"], result["num_rows"], result["num_left_out"]) == (3, 3, 3)
    assert result["hours"] == pytest.approx(3.9 / 3600)
    table = workplace / (f"{out}/left_out.tsv" if out == "folder" else "x.left_out.tsv")
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    assert [row[0] for row in rows] == ["id", "damaged", "loop", "short"]
    assert "400 samples" in rows[3][2]
    alone = embed(make_config(workplace, "alone.npy", audio=[str(clips / f"{k}.flac") for k in range(3)]))
    assert alone["num_left_out"] == 0
    expected = np.load(workplace / "alone.npy")
    if out == "x.safetensors":
        made = safetensors.numpy.load_file(workplace / out)["embeddings"]
    elif out == "x.npy":
        made = np.load(workplace / out)
    else:
        made = np.stack(pq.read_table(result["out"]).column("embedding").to_pylist())
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_nothing_that_can_be_used_is_a_mistake(workplace: Path) -> None:
    for path in (workplace / "clips").iterdir():
        path.write_bytes(path.read_bytes()[:5000] + bytes(9000))
    with pytest.raises(DataError, match=r"`audio` must have some that can be used, but none of 3 can be: .*0\.flac"):
        embed(make_config(workplace, "x.npy"))
    assert {path.name for path in workplace.iterdir()} == {"clips", "model"}
