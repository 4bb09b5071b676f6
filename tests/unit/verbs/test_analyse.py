"""The verb `analyse`: the same moments of both models, what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import speechssl
from speechssl.config.model import ModelConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Utterance, build_manifest, load_manifest, save_manifest
from speechssl.data.segments import read_segments
from speechssl.errors import SpeechSSLError
from speechssl.evaluation.representations import compute_effective_rank
from speechssl.inference.embedder import Embedder, choose_layers
from speechssl.inference.sampling import label_frames, plan_frames, sample_log_mel, sample_states
from speechssl.inference.source import Source
from speechssl.model.log_mel import compute_log_mel
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case

TINY: dict[str, Any] = {"conv_channels": [8] * 7, "num_layers": 2, "model_dim": 16, "ffn_dim": 16, "num_heads": 2,
        "position_kernel": 8, "position_groups": 2}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """Two models, one of them with a last block that makes all frames equal, and eight clips by four speakers."""
    folder = tmp_path_factory.mktemp("analyse")
    torch.manual_seed(0)
    speechssl.save(SpeechModel(ModelConfig(**TINY)), str(folder / "model"))
    collapsed = SpeechModel(ModelConfig(**TINY))
    with torch.no_grad():
        weights = dict(collapsed.named_parameters())
        weights["backbone.transformer.blocks.1.ffn_norm.weight"].zero_()
        weights["backbone.transformer.blocks.1.ffn_norm.bias"].fill_(0.5)
    speechssl.save(collapsed, str(folder / "collapsed"))
    rows = []
    for k in range(8):
        sound = speech(0.7 + 0.1 * k, k, pitch_hz=90.0 + 40 * (k % 4))
        soundfile.write(folder / f"{k}.wav", sound, 16_000)
        rows.append(Utterance(f"u{k}", folder / f"{k}.wav", 16_000, len(sound), 0, f"s{k % 4}", None))
    save_manifest(build_manifest(rows, folder), folder / "m.tsv")
    lines = (folder / "m.tsv").read_text().splitlines()
    named = [lines[0], f"{lines[1]}\tsex\tone", *(f"{line}\t{'fm'[k % 2]}\tx" for k, line in enumerate(lines[2:]))]
    (folder / "m.tsv").write_text("\n".join(named) + "\n")
    return folder


def analyse(place: Path, out: Path, **keys: Any) -> dict[str, Any]:
    data = {"data.test": str(place / "m.tsv"), "device": "cpu", "out": str(out), "precision": "float32"}
    return speechssl.analyse(**{"checkpoint": str(place / "model"), **data, **keys})


def test_frames_are_the_models_own_and_log_mel_is_of_the_same_moments(place: Path) -> None:
    model, manifest = speechssl.load(place / "model"), load_manifest(place / "m.tsv")
    source = Source.from_manifest(manifest, LeftOut())
    embedder = Embedder(model, choose_layers("all", 2), "frames", 60, 30)
    plan = plan_frames(source, embedder, 120, 1)
    assert sum(map(len, plan.frames)) == 120 and all((np.diff(frames) > 0).all() for frames in plan.frames)
    sample, bands = sample_states(embedder, source, plan), sample_log_mel(source, plan)
    for index in (0, 7):
        waveform = source.read(index)
        layers = model(torch.from_numpy(waveform)[None]).layers
        for number, states in enumerate(layers):
            chosen = states[0, plan.frames[index]].numpy()
            np.testing.assert_allclose(sample.frames[index][number], chosen, atol=1e-5)
            np.testing.assert_allclose(sample.means[index][number], states[0].mean(0).numpy(), atol=1e-5)
        # Frame k begins at sample 320 k, as column 2 k of the bands does.
        np.testing.assert_array_equal(bands.frames[index][0], compute_log_mel(waveform).T[2 * plan.frames[index]])
    everything = plan_frames(source, embedder, 10_000, 1)
    assert [len(frames) for frames in everything.frames] == everything.counts.tolist()
    stacked = sample_states(embedder, source, everything).stack(list(range(8)))
    assert [states.shape for states in stacked] == [(everything.counts.sum(), 16)] * 3


def test_layers_are_described_compared_and_written(place: Path, tmp_path: Path) -> None:
    keys = {"against": str(place / "model"), "label": "speaker"}
    result = analyse(place, tmp_path / "a", **keys)
    assert [row["layer"] for row in result["layers"]] == [0, 1, 2] and result["collapsed"] == []
    assert [row["cka_against"] for row in result["layers"]] == pytest.approx([1, 1, 1])
    np.testing.assert_allclose(result["cka"], result["against"]["cka"], atol=1e-4)
    assert result["label"] == {"column": "speaker", "num_values": 4, "majority": 25.0}
    assert result["layers"][1]["neighbour_accuracy"] in (0.0, *(12.5 * k for k in range(1, 9)))
    assert result["log_mel"]["rank"] > 1
    model, manifest = speechssl.load(place / "model"), load_manifest(place / "m.tsv")
    source = Source.from_manifest(manifest)
    states = [model(torch.from_numpy(source.read(k))[None]).layers[1][0].numpy() for k in range(8)]
    assert result["layers"][1]["rank"] == pytest.approx(compute_effective_rank(np.concatenate(states)), rel=1e-3)
    assert result["num_frames"] == sum(map(len, states))
    table = [line.split("\t") for line in (tmp_path / "a" / "layers.tsv").read_text().splitlines()]
    assert [row[0] for row in table] == ["of", *["checkpoint"] * 3, *["against"] * 3, "log_mel"]
    assert len({len(row) for row in table}) == 1 and float(table[2][3]) == pytest.approx(result["layers"][1]["rank"])
    assert json.loads((tmp_path / "a" / "result.json").read_text())["num_utterances"] == 8
    again = analyse(place, tmp_path / "b", **keys)
    assert again["layers"] == result["layers"] and again["cka"] == result["cka"]
    other = analyse(place, tmp_path / "c", label="sex", num_frames=150, sample_s=4)
    assert other["num_frames"] == 150 and other["num_utterances"] < 8


def test_a_collapsed_layer_and_broken_files_are_said(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (place / "m.tsv").read_text().splitlines()
    (place / "broken.wav").write_bytes(b"RIFF")
    (place / "broken.tsv").write_text(
        "\n".join([*lines, lines[-1].replace("u7", "bad").replace("7.wav", "broken.wav")])
    )
    result = analyse(
        place, tmp_path / "a", checkpoint=str(place / "collapsed"), **{"data.test": str(place / "broken.tsv")}
    )
    assert result["collapsed"] == [2] and (result["num_utterances"], result["num_left_out"]) == (8, 1)
    assert "layer 2 has collapsed: effective rank 0.0 of 16" in caplog.text
    assert (tmp_path / "a" / "left_out.tsv").exists()
    assert result["layers"][2]["cca_log_mel"] is None or np.isnan(result["layers"][2]["cca_log_mel"])


def test_units_are_compared_with_the_labels_of_segments(place: Path, tmp_path: Path) -> None:
    rows = [f"u{k}\t{0.1 * n}\t{0.1 * n + 0.1}\t{'ab'[n % 2]}\n" for k in range(8) for n in range(5)]
    (tmp_path / "s.tsv").write_text("id\tstart\tend\tlabel\n" + "".join(rows))
    manifest = load_manifest(place / "m.tsv")
    source = Source.from_manifest(manifest)
    embedder = Embedder(speechssl.load(place / "model"), choose_layers("all", 2), "frames", 60, 30)
    plan = plan_frames(source, embedder, 10_000, 1)
    segments = read_segments(str(tmp_path / "s.tsv"))
    # The middle of frame k is at 0.020 k + 0.0125 s: frames 0 to 4 lie in the first 0.1 s, and labels end at 0.5 s.
    labels = label_frames(segments, plan, manifest.column("id"), [3])
    assert labels[:10] == [*"aaaaa", *"bbbbb"] and labels[20:25] == [*"aaaaa"] and not any(labels[25:])
    assert label_frames(segments, plan, ["?"] * 8, [3]) == [None] * len(labels)
    result = analyse(place, tmp_path / "a", segments=str(tmp_path / "s.tsv"), num_codes=20)
    assert result["units"]["num_labelled"] == 200 and result["units"]["majority"] == pytest.approx(60)
    for row in (*result["layers"], result["log_mel"]):
        assert 0 < row["pnmi"] < 1 and 0.6 <= row["phone_purity"] < 1 and 0 < row["cluster_purity"] < 1


@each_case(
    "keys, sentence",
    [
        ({"label": "colour"}, "`data.test` must have a column colour"),
        ({"label": "one"}, "`label` must be a column with two values or more, but one has x alone"),
        ({"against": "nowhere"}, "`against` must"),
        ({"segments": "gone.ctm"}, "`segments` must be a file of segments"),
        ({"tier": "phones"}, "`tier` must be left out without `segments`"),
        ({"num_frames": 9}, "`num_frames` must be at least 100, but is 9"),
        ({"sample_s": 0.5}, "`data.test` must have 100 frames or more, but has"),
        ({"data.test": "gone.tsv"}, "gone.tsv"),
    ],
)
def test_mistakes_are_a_sentence(place: Path, tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpeechSSLError, match=sentence):
        analyse(place, tmp_path / "a", **keys)
    assert not (tmp_path / "a").exists()
