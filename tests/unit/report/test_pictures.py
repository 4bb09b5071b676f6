"""What the pictures are made of: the model and the speech behind a run."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechssl.data.manifest import load_manifests
from speechssl.model.speech_model import SpeechModel
from speechssl.report.live import Live, Sounds, choose_example, find_missing, list_long_enough, read_waveform
from speechssl.report.pictures import (
    choose_utterances,
    compute_neighbour_agreement,
    count_codes,
    draw_spectrogram,
    embed_layers,
    encode_png,
    find_stretches,
    make_hearing,
    make_speakers,
    reduce_to_plane,
    solve_masked,
)
from speechssl.report.run_folder import load_run


@pytest.fixture
def live(make: SimpleNamespace, manifest: Path) -> Live:
    torch.manual_seed(0)
    model = SpeechModel(make.model(), pretraining=True).eval().requires_grad_(False)
    return Live(model, load_manifests([str(manifest)], key="data.valid"), held_out=True)


def test_what_is_missing_is_named(make: SimpleNamespace, tmp_path: Path, manifest: Path) -> None:
    folder = make.pretrain(tmp_path / "run", valid=str(manifest))
    assert "no checkpoint" in find_missing(load_run(folder))
    (folder / "checkpoints" / "best").mkdir(parents=True)
    assert find_missing(load_run(folder)) == ""
    manifest.unlink()
    assert str(manifest) in find_missing(load_run(folder))


def test_utterances_are_chosen_by_their_length(live: Live) -> None:
    assert len(list_long_enough(live)) == 12
    assert list_long_enough(live, 1.2) == list(range(8, 12))
    assert choose_example(live, 6.0) == 11
    assert choose_example(live, 1.0) == 0


def test_sounds_are_counted_and_what_has_no_room_is_said(live: Live) -> None:
    waveform = read_waveform(live.manifest, 0)
    sounds = Sounds()
    uri = sounds.encode(waveform)
    assert uri is not None and uri == sounds.encode(waveform), "the same page twice"
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert rate == 16_000 and abs(len(decoded) - len(waveform)) < 3000
    small = Sounds(budget=int(1.5 * len(uri)))
    assert [small.add_clip(live.manifest, k, waveform) for k in (0, 1, 0)] == [0, None, 0]
    assert small.num_bytes == len(uri) and len(small.clips) == 1
    assert small.describe().endswith("Left out to keep it small: 1 sound.")


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
    rows = embed_layers(live, [read_waveform(live.manifest, k, 4.0) for k in (11, 0)], [0, 2])
    with torch.inference_mode():
        alone = live.model(torch.from_numpy(read_waveform(live.manifest, 0, 4.0))[None])
    assert rows[2].shape == (2, 16)
    assert np.allclose(rows[2][1], alone.layers[2][0].mean(0).numpy(), atol=1e-4)


def test_speakers_with_most_utterances_are_chosen(live: Live) -> None:
    chosen, speakers = choose_utterances(live)
    assert sorted(chosen) == list(range(12))
    assert all(speaker == f"speaker {index % 3}" for index, speaker in zip(chosen, speakers, strict=True))
    (section,) = make_speakers(live, sounds := Sounds())
    assert [len(figure.content.points) for figure in section.figures] == [12, 12, 12]
    assert len(sounds.clips) == 12, "each once, however many maps it is on"
    assert all(
        0 <= place <= 100 for figure in section.figures for point in figure.content.points for place in point[:2]
    )


def test_without_speakers_no_voices(live: Live) -> None:
    table = live.manifest.table.drop_columns(["speaker"])
    nameless = type(live.manifest)(table, live.manifest.root, "m.tsv")
    assert make_speakers(Live(live.model, nameless, True), Sounds()) == []


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


def test_the_example_shows_mask_finds_and_codes(make: SimpleNamespace, live: Live, tmp_path: Path) -> None:
    strip = make_hearing(load_run(make.pretrain(tmp_path / "run")), live, Sounds())[0].figures[0].content
    num_frames = (20_400 - 400) // 320 + 1
    assert [sum(length for _, length, _ in lane) for lane in strip.codes] == [num_frames, num_frames]
    hidden = sum(length for _, length, is_hidden in strip.masked if is_hidden)
    assert len(strip.found) == hidden > 10
    assert strip.sound and strip.text == "A <B> C"
    assert find_stretches([7, 7, 3]) == [(0, 2, 7), (2, 1, 3)]


def test_spectrograms_have_high_frequencies_on_top_and_their_own_palettes() -> None:
    time = np.arange(16_000) / 16_000
    pictures = [draw_spectrogram(np.sin(2 * np.pi * hz * time).astype(np.float32)) for hz in (300, 5000)]
    low, high = (_read_png(base64.b64decode(uri.split(",")[1]))[:, 20:-20].mean((1, 2)) for uri, _ in pictures)
    dark = _read_png(base64.b64decode(pictures[0][1].split(",")[1])).mean()
    assert low.argmin() > high.argmin() + 40, "a tone is darkest in its own band"
    assert dark < 60 < low.mean()
    assert draw_spectrogram(np.zeros(1000, dtype=np.float32))[0].startswith("data:image/png;base64,")


def test_the_png_is_what_was_put_in() -> None:
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)], axis=1).astype(np.uint8)
    assert (_read_png(encode_png(levels, palette)) == palette[levels]).all()


def _read_png(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    while header := file.read(8):
        size, kind = struct.unpack(">I4s", header)
        body = file.read(size)
        assert struct.unpack(">I", file.read(4))[0] == zlib.crc32(kind + body)
        chunks[kind] = body
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, width + 1)
    return np.frombuffer(chunks[b"PLTE"], dtype=np.uint8).reshape(-1, 3)[rows[:, 1:]]
