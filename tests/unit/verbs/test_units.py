"""The verb `units`: what the units are by their definition, the clusters that stay, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import soundfile
import torch
from sklearn.cluster import MiniBatchKMeans

import speechssl
from speechssl.checkpoints.clusters import read_clusters
from speechssl.checkpoints.model_folder import save_model
from speechssl.config.model import ModelConfig
from speechssl.data.files import expand_audio
from speechssl.errors import CheckpointError, SpeechSSLError
from speechssl.inference.embed import Embedder, choose_layers
from speechssl.inference.source import Source
from speechssl.inference.units import choose_sample, collect_states, merge_repeats
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.seeds import make_rng
from tests.cases import each_case

LENGTHS = (1.0, 1.3, 6.5, 0.7)
"""Seconds of the clips; with window_s=5 one is longer than a window."""


@pytest.fixture
def workplace(
    tmp_path: Path, speech: Callable[..., np.ndarray], tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> Path:
    (tmp_path / "clips").mkdir()
    for number, seconds in enumerate(LENGTHS):
        soundfile.write(tmp_path / "clips" / f"{number}.flac", speech(seconds, number), 16_000)
    for name in ("model", "other"):
        torch.manual_seed(3 * (name == "model"))
        save_model(SpeechModel(tiny_model_config, pretraining=name == "model"), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(**keys: Any) -> dict[str, Any]:
    given = {"checkpoint": "model", "audio": ["clips"], "num_codes": 12, "device": "cpu", "window_s": 5.0}
    return speechssl.units(**(given | keys))


def read_tsv(path: str) -> dict[str, dict[str, str]]:
    head, *rows = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def embed_frames(layer: object) -> dict[str, np.ndarray]:
    """The states of each clip, from the embeddings that users get."""
    table = speechssl.embed("model", "clips", layer=layer, pooling="frames", window_s=5.0)
    states = np.array(table.column("embedding").to_pylist(), dtype=np.float32)
    names = np.array(table.column("id").to_pylist())
    return {str(name): states[names == name] for name in np.unique(names)}


@each_case("layer", [0, 1, "mean", "last"])
def test_units_are_the_nearest_clusters_of_frames_that_embed_gives(workplace: Path, layer: object) -> None:
    """And the clusters are scikit-learn's, with HuBERT's settings, of the same frames."""
    result = run(layer=layer, out=f"u-{layer}.tsv")
    states, rows = embed_frames(layer), read_tsv(f"u-{layer}.tsv")
    found = safetensors.torch.load_file(f"u-{layer}.clusters.safetensors")
    centroids = found["centroids"].numpy()
    assert rows.keys() == states.keys() == {"0", "1", "2", "3"}
    for name, frames in states.items():
        distances = ((frames[:, None] - centroids[None]) ** 2).sum(-1)
        assert rows[name]["units"] == " ".join(map(str, distances.argmin(1)))
        assert rows[name]["path"] == str(workplace / "clips" / f"{name}.flac")
    everything = np.concatenate([states[name] for name in sorted(states)])
    kmeans = MiniBatchKMeans(
        12, batch_size=10_000, max_no_improvement=100, n_init=20, reassignment_ratio=0.0,
        random_state=int(make_rng(1, "k-means").integers(2**31)),
    ).fit(everything)  # fmt: skip
    np.testing.assert_allclose(centroids, kmeans.cluster_centers_, atol=2e-4)
    assert result["num_frames"] == result["num_units"] == len(everything) == int(found["counts"].sum())
    counts = np.bincount(kmeans.labels_, minlength=12)
    assert result["num_used"] == [int((counts > 0).sum())]
    shares = counts[counts > 0] / counts.sum()
    assert result["perplexity"] == [pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)]


def test_the_same_command_gives_the_same_bytes_and_other_audio_the_same_units(workplace: Path) -> None:
    run(layer=1, out="a.tsv")
    run(layer=1, out="b.tsv", batch_s=1.0)
    run(layer=1, out="c.tsv", seed=2)
    assert Path("a.tsv").read_bytes() == Path("b.tsv").read_bytes() != Path("c.tsv").read_bytes()
    run(layer=1, out="d.tsv")
    assert Path("a.clusters.safetensors").read_bytes() == Path("d.clusters.safetensors").read_bytes()
    result = run(audio=["clips/2.flac"], num_codes=0, codes="a.clusters.safetensors", out="e")
    assert (result["layer"], result["num_codes"], result["clusters"]) == ("1", 12, "a.clusters.safetensors")
    assert json.loads(Path("e/result.json").read_text()) == result
    assert {path.name for path in Path("e").iterdir()} == {"result.json", "units.tsv"}
    assert read_tsv("e/units.tsv") == {"2": read_tsv("a.tsv")["2"]}
    # In whatever format the model comes, and with whatever heads.
    speechssl.convert(checkpoint="model", to="huggingface", out="hf")
    run(checkpoint="hf", codes="a.clusters.safetensors", out="f.tsv")
    assert read_tsv("f.tsv") == read_tsv("a.tsv")


def test_a_sample_is_drawn_by_its_seed_and_bounded(workplace: Path) -> None:
    manifest = expand_audio(["clips"])
    drawn = [choose_sample(manifest, 2.0, seed).column("id") for seed in range(20)]
    assert drawn == [choose_sample(manifest, 2.0, seed).column("id") for seed in range(20)]
    assert len({tuple(ids) for ids in drawn}) > 2
    for ids in drawn:
        assert ids == sorted(ids) and sum(LENGTHS[int(name)] for name in ids) >= 2.0
    assert choose_sample(manifest, 100.0, 1).column("id") == ["0", "1", "2", "3"]
    # One file that is much longer gives every n-th of its frames, across its windows.
    embedder = Embedder(load_model("model"), choose_layers(1, 2), "frames", window_s=5.0)
    long = manifest.select([2])
    every, some = (collect_states(embedder, Source.from_manifest(long), seconds) for seconds in (10.0, 1.0))
    assert len(every) == 324 and len(some) == 54
    np.testing.assert_array_equal(some, every[::6])
    with pytest.raises(SpeechSSLError, match="`num_codes` must be at most the 54 frames that fit_s gives, but is 60"):
        run(audio=["clips/2.flac"], layer=1, num_codes=60, fit_s=1.0, out="x.tsv")


def test_repeats_are_merged_by_choice(workplace: Path) -> None:
    run(layer=1, num_codes=3, out="whole.tsv")
    result = run(layer=1, codes="whole.clusters.safetensors", num_codes=3, merge=True, out="merged.parquet")
    whole, table = read_tsv("whole.tsv"), pq.read_table("merged.parquet").to_pylist()
    for row in table:
        assert all(a != b for a, b in zip(row["units"], row["units"][1:], strict=False))
        again = np.repeat(row["units"], row["durations"])
        assert whole[row["id"]]["units"] == " ".join(map(str, again))
    assert result["num_units"] == sum(len(row["units"]) for row in table) < result["num_frames"]
    run(layer=1, codes="whole.clusters.safetensors", num_codes=3, merge=True, out="merged.txt")
    lines = [f"{row['id']}|{' '.join(map(str, row['units']))}" for row in table]
    assert Path("merged.txt").read_text().splitlines() == lines
    pairs = np.array([[1, 2], [1, 2], [1, 3], [1, 2]])
    merged, durations = merge_repeats(pairs)
    assert merged.tolist() == [[1, 2], [1, 3], [1, 2]] and durations.tolist() == [2, 1, 1]


def test_a_quantizer_gives_the_codes_of_all_its_codebooks(workplace: Path) -> None:
    run(layer="quantizer", num_codes=0, out="q.tsv")
    result = run(layer="quantizer", num_codes=0, out="q.parquet")
    assert result["clusters"] is None and not list(Path().glob("*clusters*"))
    model = load_model("model")
    assert len(result["num_used"]) == model.config.quantizer.num_groups == 2
    for row in pq.read_table("q.parquet").to_pylist():
        if row["id"] == "2":
            continue  # longer than a window
        sound = torch.from_numpy(soundfile.read(f"clips/{row['id']}.flac", dtype="float32")[0])[None]
        assert row["units"] == model.codes(sound)[0][0].tolist()
        assert read_tsv("q.tsv")[row["id"]]["units"] == " ".join(f"{a}-{b}" for a, b in row["units"])
    with pytest.raises(CheckpointError, match="must be a model of the contrastive task .*, but other has none"):
        run(checkpoint="other", layer="quantizer", num_codes=0, out="x.tsv")


def test_what_does_not_fit_is_one_sentence(workplace: Path) -> None:
    run(layer=1, out="k.tsv")
    Path("u.clusters.safetensors").write_bytes(b"")
    Path("empty.clusters").write_bytes(b"")
    soundfile.write("a|b.wav", np.zeros(8000), 16_000)
    before = sorted(Path().iterdir())
    file = "k.clusters.safetensors"
    for keys, sentence in (
        ({"layer": 3}, "`layer` must be one layer: 0 to 2, mean, last or quantizer, but is 3"),
        ({"layer": [0, 1]}, r"`layer` must be one layer: .*, but is \[0, 1\]"),
        ({"layer": "all"}, "`layer` must be one layer: .*, but is 'all'"),
        ({"layer": True}, "`layer` must be one layer: .*, but is True"),
        ({"num_codes": 1}, "`num_codes` must be between 2 and 65536, or 0, but is 1"),
        ({"num_codes": 1000}, "`num_codes` must be at most the 47. frames that fit_s gives, but is 1000"),
        ({"fit_s": 0}, "`fit_s` must be positive"),
        ({"codes": file, "layer": 2}, f"`layer` must be 1, which {file} has clusters of, but is 2"),
        ({"codes": file, "num_codes": 13}, "`num_codes` must be 0 or the 12 of the clusters, but is 13"),
        ({"codes": file, "checkpoint": "other"}, r"`checkpoint` must be the model that the clusters are of \(model\)"),
        ({"codes": "nowhere"}, "`codes` must be a file of clusters .*, but nowhere cannot be read"),
        ({"codes": "empty.clusters"}, "`codes` must be a file of clusters that `speechssl units` wrote, but"),
        ({"codes": "model/model.safetensors"}, "`codes` must be a file of clusters that `speechssl units` wrote, but"),
        ({"codes": file, "layer": "quantizer"}, "`codes` must be left out with layer=quantizer"),
        ({"layer": "quantizer"}, "`num_codes` must be left out with layer=quantizer"),
        ({"out": "x.csv"}, "`out` must be a folder, or a file that ends in .tsv, .parquet, .txt"),
        ({"out": "k.tsv"}, "`out` must be a new place, but k.tsv holds a finished result"),
        ({"out": "u.tsv"}, "`out` must be a new place, but u.clusters.safetensors is there"),
        ({"audio": ["a|b.wav"], "codes": file, "out": "x.txt"}, r"`audio` must have ids without \| .* a\|b"),
        ({"audio": ["nowhere/*.flac"]}, "nowhere"),
    ):
        with pytest.raises(SpeechSSLError, match=sentence):
            run(**({"layer": "" if "codes" in keys else 1, "out": "x.tsv"} | keys))
        assert sorted(Path().iterdir()) == before, keys


def test_what_cannot_be_used_is_left_out_and_listed(workplace: Path) -> None:
    soundfile.write("clips/short.wav", np.zeros(300), 16_000)
    data = bytearray(Path("clips/0.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    Path("clips/damaged.flac").write_bytes(data)
    result = run(layer=1, out="a.tsv")
    assert (result["num_utterances"], result["num_left_out"]) == (4, 2)
    assert read_tsv("a.tsv").keys() == {"0", "1", "2", "3"} and "damaged" in Path("a.left_out.tsv").read_text()
    with pytest.raises(SpeechSSLError, match="none of 2 can be"):
        run(layer=1, audio=["clips/short.wav", "clips/damaged.flac"], out="b.tsv")
    assert read_clusters("a.clusters.safetensors", "codes").model == "model"
