"""What the pictures are made of: the model and the speech behind a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechssl.data.manifest import load_manifests
from speechssl.model.speech_model import SpeechModel
from speechssl.report.live import Live, choose_evenly, choose_example, find_missing, list_long_enough, read_waveform
from speechssl.report.quantizer import count_codes, solve_masked
from speechssl.report.run_folder import load_run
from speechssl.report.speakers import (
    choose_utterances,
    compute_neighbour_agreement,
    embed_layers,
    make_speakers,
    reduce_to_plane,
)


@pytest.fixture
def live(make: SimpleNamespace, manifest: Path) -> Live:
    torch.manual_seed(0)
    model = SpeechModel(make.model(), pretraining=True).eval().requires_grad_(False)
    return Live(model, load_manifests([str(manifest)], key="data.valid"), held_out=True)


def test_what_is_missing_is_named(make: SimpleNamespace, tmp_path: Path, manifest: Path) -> None:
    folder = make.pretrain(tmp_path / "run", valid=str(manifest))
    assert "no checkpoint" in find_missing(load_run(folder))
    (folder / "checkpoints").mkdir()
    assert "not saved a checkpoint" in find_missing(load_run(folder))
    (folder / "checkpoints" / "best").mkdir()
    assert find_missing(load_run(folder)) == ""
    manifest.unlink()
    assert str(manifest) in find_missing(load_run(folder))


def test_choices_are_even_and_within_bounds(live: Live) -> None:
    assert choose_evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert choose_evenly([5, 6], 4) == [5, 6]
    assert len(list_long_enough(live)) == 12
    assert list_long_enough(live, 1.2) == list(range(8, 12))
    assert choose_example(live, 6.0) == 11
    assert choose_example(live, 1.0) == 0


def test_a_waveform_is_cut_at_its_own_rate(live: Live) -> None:
    assert len(read_waveform(live.manifest, 3, 0.5)) == 8000
    assert len(read_waveform(live.manifest, 3, 60.0)) == 17_200


def test_the_masked_task_is_solved_at_each_masked_frame(live: Live) -> None:
    waveform = read_waveform(live.manifest, 11, 9.0)
    mask, right = solve_masked(live, waveform, 20, seed=1)
    again, _ = solve_masked(live, waveform, 20, seed=1)
    other, _ = solve_masked(live, waveform, 20, seed=2)
    assert len(mask) == (len(waveform) - 400) // 320 + 1
    assert len(right) == mask.sum() > 10
    assert (mask == again).all()
    assert (mask != other).any()


def test_each_frame_counts_once_in_each_codebook(live: Live) -> None:
    counts, num_utterances = count_codes(live)
    frames = sum((16_000 + 400 * k - 400) // 320 + 1 for k in range(12))
    assert counts.shape == (2, 12)
    assert counts.sum(1).tolist() == [frames, frames]
    assert num_utterances == 12


def test_embeddings_are_means_over_an_utterances_own_frames(live: Live) -> None:
    rows = embed_layers(live, [11, 0], [0, 2])
    with torch.inference_mode():
        alone = live.model(torch.from_numpy(read_waveform(live.manifest, 0, 4.0))[None])
    assert rows[2].shape == (2, 16)
    assert np.allclose(rows[2][1], alone.layers[2][0].mean(0).numpy(), atol=1e-4)


def test_speakers_with_most_utterances_are_chosen(live: Live) -> None:
    chosen, speakers = choose_utterances(live)
    assert sorted(chosen) == list(range(12))
    assert all(speaker == f"speaker {index % 3}" for index, speaker in zip(chosen, speakers, strict=True))
    assert make_speakers(live).count("<svg") == 3


def test_without_speakers_no_voices(live: Live) -> None:
    table = live.manifest.table.drop_columns(["speaker"])
    nameless = type(live.manifest)(table, live.manifest.root, "m.tsv")
    assert make_speakers(Live(live.model, nameless, True)) == ""


def test_neighbours_agree_where_groups_lie_apart() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 20)) * 10
    points = np.concatenate([centre + rng.standard_normal((15, 20)) for centre in centres])
    speakers = [name for name in "abc" for _ in range(15)]
    assert compute_neighbour_agreement(points, speakers) == 1.0
    assert compute_neighbour_agreement(points, list(rng.permutation(speakers))) < 0.7
    plane = reduce_to_plane(points)
    assert plane.shape == (45, 2)
    assert compute_neighbour_agreement(plane, speakers) > 0.9


def test_few_points_are_drawn_by_principal_components() -> None:
    points = np.random.default_rng(0).standard_normal((4, 9)) * np.array([9, *[0.01] * 8])
    plane = reduce_to_plane(points)
    assert np.allclose(np.abs(plane[:, 0]), np.abs(points[:, 0] - points[:, 0].mean()), atol=0.2)
    assert reduce_to_plane(np.ones((1, 5))).shape == (1, 2)
