"""The verb `embed`: where it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import soundfile

from speechssl.checkpoints.clusters import digest_backbone
from speechssl.checkpoints.model_folder import save_model
from speechssl.config.inference import EmbedConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import ConfigError, DataError
from speechssl.inference.shards import Shards
from speechssl.interop.load import load_model
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


def test_what_becomes_of_each_kind_of_file(workplace: Path, speech: Speech) -> None:
    """As the table in docs/embeddings.md says; what stands beside them is as it is alone."""
    clips, wave = workplace / "clips", speech(1.2, 9)
    soundfile.write(clips / "narrow.wav", wave[::2], 8_000)
    soundfile.write(clips / "stereo.wav", np.stack([wave, wave], 1), 16_000)
    soundfile.write(clips / "mono.wav", wave, 16_000)
    soundfile.write(clips / "silent.wav", np.zeros(16_000), 16_000)
    shutil.copy(clips / "0.flac", clips / "twin.flac")
    (clips / "empty.wav").write_bytes(b"")
    soundfile.write(clips / "nothing.wav", np.zeros(0), 16_000)
    soundfile.write(clips / "nan.wav", np.where(np.arange(16_000) == 9_000, np.nan, 0.1), 16_000, subtype="FLOAT")
    data = (clips / "mono.wav").read_bytes()
    (clips / "cut.wav").write_bytes(data[: len(data) // 2])
    (clips / "text.flac").write_text("no audio")
    result = embed(make_config(workplace, "x.parquet"))
    table = pq.read_table(workplace / "x.parquet")
    found = dict(zip(table.column("id").to_pylist(), np.array(table.column("embedding").to_pylist()), strict=True))
    assert list(found) == ["0", "1", "2", "mono", "narrow", "silent", "stereo", "twin"]
    assert all(np.isfinite(vector).all() for vector in found.values())
    np.testing.assert_allclose(found["twin"], found["0"], atol=1e-5)
    np.testing.assert_allclose(found["stereo"], found["mono"], atol=1e-3)
    rows = [line.split("\t") for line in (workplace / "x.left_out.tsv").read_text().splitlines()[1:]]
    reasons = {name: reason for name, _, reason in rows}
    assert result["num_left_out"] == 5
    for name, words in {"cut": "must be whole", "empty": "is empty", "nan": "has NaN", "nothing": "has 0 samples",
                        "text": "must be audio"}.items():  # fmt: skip
        assert words in reasons.pop(name)
    assert not reasons
    alone = embed(make_config(workplace, "alone.npy", audio=[str(clips / f"{k}.flac") for k in range(3)]))
    assert alone["num_rows"] == 3
    np.testing.assert_allclose(np.load(workplace / "alone.npy"), [found[str(k)] for k in range(3)], atol=1e-5)


def test_an_interrupted_command_goes_on(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(kept: Shards, table: pa.Table) -> None:
        add(kept, table)
        if kept.num_rows + sum(part.num_rows for part in kept._waiting) >= 50:
            raise KeyboardInterrupt

    keys = {"layer": "all", "pooling": "frames", "window_s": 5.0}
    embed(make_config(workplace, "whole.parquet", **keys))
    add = Shards.add
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "add", break_off)
        with pytest.raises(KeyboardInterrupt):
            embed(make_config(workplace, "x.parquet", **keys))
    assert not (workplace / "x.parquet").exists()
    with pytest.raises(ConfigError, match="`normalise` must be as the command had it"):
        embed(make_config(workplace, "x.parquet", **keys, normalise="l2"))
    result = embed(make_config(workplace, "x.parquet", **keys))
    assert result["num_utterances"] == 3
    assert (workplace / "x.parquet").read_bytes() == (workplace / "whole.parquet").read_bytes()
    assert not (workplace / ".x.parquet.part").exists()


def test_a_table_is_added_to(workplace: Path, speech: Speech) -> None:
    """Only what is new is embedded; a table of other settings, or an id of another file, is refused."""
    embed(make_config(workplace, "x.parquet", layer=[0, 2], append=True))
    before = pq.read_table(workplace / "x.parquet")
    soundfile.write(workplace / "clips" / "00.flac", speech(1.1, 5), 16_000)
    (workplace / "clips" / "bad.wav").write_bytes(b"RIFF")
    result = embed(make_config(workplace, "x.parquet", layer=[0, 2], append=True))
    assert (result["num_utterances"], result["num_left_out"], result["num_rows"]) == (1, 1, 8)
    after = pq.read_table(workplace / "x.parquet")
    assert after.slice(0, 6).equals(before)
    assert after.column("id").to_pylist()[6:] == ["00", "00"]
    written = (workplace / "x.parquet").read_bytes()
    again = embed(make_config(workplace, "x.parquet", layer=[0, 2], append=True))
    assert (again["num_utterances"], again["num_rows"]) == (0, 8)
    assert (workplace / "x.parquet").read_bytes() == written
    with pytest.raises(ConfigError, match=r"`layers` must be that of .*x\.parquet, \['0', '2'\], to add to it, but is"):
        embed(make_config(workplace, "x.parquet", layer=1, append=True))
    (workplace / "more").mkdir()
    soundfile.write(workplace / "more" / "0.flac", speech(1.1, 6), 16_000)
    with pytest.raises(ConfigError, match="`audio` must have ids of its own to be added to"):
        embed(make_config(workplace, "x.parquet", layer=[0, 2], append=True, audio=[str(workplace / "more")]))
    pq.write_table(pa.table({"id": ["a"]}), workplace / "other.parquet")
    with pytest.raises(ConfigError, match="`out` must be embeddings that `embed` wrote, to be added to"):
        embed(make_config(workplace, "other.parquet", append=True))
    no_text = pa.array([b"\xff"] * len(after), pa.binary()).view(pa.string())
    pq.write_table(after.set_column(after.column_names.index("path"), "path", no_text), workplace / "other.parquet")
    with pytest.raises(ConfigError, match=r"`out` must be embeddings .* Invalid UTF8 sequence"):
        embed(make_config(workplace, "other.parquet", layer=[0, 2], append=True))


def test_a_table_says_what_made_it(workplace: Path) -> None:
    embed(make_config(workplace, "x.parquet", layer=1, pooling="statistics", normalise="l2", dtype="float16"))
    facts = json.loads(pq.read_schema(workplace / "x.parquet").metadata[b"speechssl"])
    assert facts["checkpoint"] == str(workplace / "model")
    expected = {"layers": ["1"], "pooling": "statistics", "normalise": "l2", "dtype": "float16", "sample_rate": 16_000}
    assert {key: facts["settings"][key] for key in expected} == expected
    model = load_model(str(workplace / "model"))
    assert facts["settings"]["weights_sha256"] == digest_backbone(model)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tier": "phones"}, "`tier` must be left out without `segments`"),
        ({"out": "", "append": True}, "`out` must be given with append=true"),
        ({"out": "x.npy", "append": True}, "`out` must be Parquet with append=true"),
        ({"out": "x.parquet", "append": True, "overwrite": True}, "`overwrite` must be false with append=true"),
        ({"normalise": "l1"}, "`normalise` must be one of l2"),
        ({"dtype": "int8"}, "`dtype` must be one of float32, float16"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbedConfig(checkpoint="runs/base", **keys)


def test_segments_give_rows_with_a_label(workplace: Path) -> None:
    (workplace / "s.ctm").write_text("0 1 0.1 0.3 HELLO\n0 1 0.5 0.4 YOU\n1 1 0 1 OH\n")
    result = embed(make_config(workplace, "x.npy", segments=str(workplace / "s.ctm"), pooling="max"))
    assert (result["num_rows"], result["num_left_out"]) == (3, 1)
    lines = (workplace / "x.index.tsv").read_text().splitlines()
    assert lines[0].split("\t")[3:] == ["layer", "start_s", "end_s", "label"]
    assert lines[1].split("\t")[3:] == ["last", "0.1", "0.4", "HELLO"]
    assert "has none" in (workplace / "x.left_out.tsv").read_text()
