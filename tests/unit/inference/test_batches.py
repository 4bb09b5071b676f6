"""The loop of inference: its batches, its progress, and how it ends early."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl import progress
from speechssl.config.model import ModelConfig
from speechssl.inference.batches import plan_batches, run_model, stream_model
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.source import FloatArray, Source
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case


def forward(model: AnyModel, waveforms: Tensor, num_samples: Tensor | None) -> tuple[list[Tensor], Tensor]:
    frames = model(waveforms, num_samples)
    return [frames.last], frames.num_frames


def count_frames(pieces: Iterator[list[Tensor]]) -> list[int]:
    return [len(frames) for (frames,) in pieces]


def make_source(num_samples: list[int]) -> tuple[Source, list[int]]:
    """Make silence of some lengths, and the list of what has been read of it."""
    read: list[int] = []

    def make(index: int) -> FloatArray:
        read.append(index)
        return np.zeros(num_samples[index], dtype=np.float32)

    return Source([str(k) for k in range(len(num_samples))], np.array(num_samples), make), read


@pytest.fixture
def model(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(0)
    return SpeechModel(tiny_model_config)


def test_long_audio_comes_in_pieces_and_progress_is_told(
    model: SpeechModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    advanced: list[float] = []
    advance = progress.Progress.advance

    def note(self: progress.Progress, n: float = 1, **values: float | str) -> None:
        advanced.append(3600 * n)
        advance(self, n, **values)

    monkeypatch.setattr(progress.Progress, "advance", note)
    source, _ = make_source([8_000, 40_000, 100, 16_000])
    with caplog.at_level(logging.INFO, "speechssl"):
        results = run_model(
            model, source, forward, count_frames,
            batch_s=2.0, window_s=1.0, chunk_batches=8, description="count", is_output=True,
        )  # fmt: skip
        first, pieces = next(results)
        assert len(advanced) == 1
        found = {first: pieces, **dict(results)}
    single = [(count - 400) // 320 + 1 for count in source.lengths]
    assert {index: sum(pieces) for index, pieces in found.items()} == {k: single[k] for k in (0, 1, 3)}
    assert list(found) == [0, 1, 3]
    assert [len(found[index]) for index in (0, 3)] == [1, 1]
    assert len(found[1]) > 2
    assert {line.partition(" in ")[0] for line in caplog.messages} == {
        "count: 0.00 of 0.00 h of audio",
        "count: all 0.00 h of audio",
    }
    # The batch of both short ones is told before any result is given, or the time left would jump.
    assert first == 0
    assert advanced[0] == pytest.approx(1.5)
    assert sum(advanced[1:]) == pytest.approx(0.02 * single[1])
    assert len(advanced) > 2
    assert model.training


def test_ctrl_c_reads_no_further(model: SpeechModel) -> None:
    def interrupt(*_: object) -> tuple[list[Tensor], Tensor]:
        raise KeyboardInterrupt

    source, read = make_source([16_000] * 60)
    results = run_model(
        model, source, interrupt, count_frames,
        batch_s=1.0, window_s=1.0, chunk_batches=60, description="count", is_output=False,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert len(read) <= 3


def test_batches_are_of_similar_length_and_keep_within_their_size() -> None:
    second = 16_000
    lengths = np.array([5, 100, 7, 7, 3, 10]) * second
    indices = np.array([0, 2, 3, 5])
    assert plan_batches(indices, lengths, 14 * second, equal=False) == [[5], [2, 3], [0]]
    assert plan_batches(indices, lengths, 100 * second, equal=False) == [[5, 2, 3, 0]]
    assert plan_batches(indices, lengths, 100 * second, equal=True) == [[5], [2, 3], [0]]
    assert plan_batches(np.array([1]), lengths, 14 * second, equal=False) == [[1]]
    assert plan_batches(np.array([], dtype=np.int64), lengths, 14 * second, equal=False) == []
    fractions = np.array([20_000, 17_000])
    assert plan_batches(np.arange(2), fractions, 50_000, equal=False) == [[0], [1]], "padding to 32,000 counts"
    assert plan_batches(np.arange(2), np.array([20_000, 20_000]), 50_000, equal=True) == [[0, 1]]


def test_what_is_done_is_not_done_again_and_the_rest_is_the_same_to_the_bit(model: SpeechModel) -> None:
    """Whatever is done already, in batches of several and in windows, and in any order."""
    rng = np.random.default_rng(0)
    waveforms = [
        0.1 * rng.standard_normal(size).astype(np.float32) for size in (8_000, 40_000, 7_900, 16_000, 100, 7_000)
    ]
    sizes = np.array([len(waveform) for waveform in waveforms])
    source = Source([str(k) for k in range(len(waveforms))], sizes, waveforms.__getitem__)

    def run(done: frozenset[int] = frozenset(), in_order: bool = True) -> list[tuple[int, Tensor]]:
        def collect(pieces: Iterator[list[Tensor]]) -> Tensor:
            return torch.cat([frames for (frames,) in pieces])

        given = {"batch_s": 2.0, "window_s": 1.0, "chunk_batches": 8, "description": "collect", "is_output": False}
        return list(run_model(model, source, forward, collect, done=done, in_order=in_order, **given))  # type: ignore[arg-type]

    whole = dict(run())
    assert list(whole) == [0, 1, 2, 3, 5]
    for done in (frozenset(), frozenset({0}), frozenset({1, 3}), frozenset({0, 2, 4, 5}), frozenset(range(6))):
        for in_order in (True, False):
            rest = dict(run(done, in_order))
            assert set(rest) == set(whole) - done
            assert list(rest) == sorted(rest) or not in_order
            assert all(torch.equal(frames, whole[index]) for index, frames in rest.items())


@each_case("first", [0, 30, 77, 123])
def test_windows_with_no_frame_that_is_needed_are_passed_over(model: SpeechModel, first: int) -> None:
    rng = np.random.default_rng(0)
    waveform = 0.1 * rng.standard_normal(40_000).astype(np.float32)
    source = Source(["a"], np.array([len(waveform)]), lambda _: waveform)

    def number(_: int, at: int, pieces: Iterator[list[Tensor]]) -> Iterator[tuple[int, Tensor]]:
        for (frames,) in pieces:
            yield at, frames
            at += len(frames)

    def run(firsts: dict[int, int]) -> list[tuple[int, Tensor]]:
        given = {"batch_s": 1.0, "window_s": 1.0, "chunk_batches": 8, "description": "collect", "is_output": True}
        found = stream_model(model, source, forward, number, first_frames=firsts, **given)  # type: ignore[arg-type]
        return [result for _, result in found]

    whole, rest = run({}), run({0: first})
    assert rest[0][0] <= first < rest[0][0] + len(rest[0][1])
    for (at, frames), (expected_at, expected) in zip(rest, whole[-len(rest) :], strict=True):
        assert at == expected_at
        assert torch.equal(frames, expected)


def test_a_long_file_is_held_a_piece_at_a_time() -> None:
    """Stretches that overlap, touch, and leave something out are those of the whole; no more is read than they need."""
    whole = np.arange(100_000, dtype=np.float32)
    given: list[int] = []

    def stream(_: int) -> Iterator[FloatArray]:
        for first in range(0, len(whole), 7_000):
            given.append(first)
            yield whole[first : first + 7_000]

    source = Source(["a"], np.array([len(whole)]), lambda _: whole, stream=stream)
    stretches = [(0, 10_000), (5_000, 10_000), (15_000, 1_000), (60_000, 20_000), (60_000, 10)]
    for (first, count), found in zip(stretches, source.read_stretches(0, stretches), strict=True):
        assert np.array_equal(found, whole[first : first + count])
        assert found.base is None or len(found.base) <= 20_000 + 7_000
        assert given[-1] < first + count + 20_000
    assert given[-1] == 77_000
    alone = Source(["a"], np.array([len(whole)]), lambda _: whole).read_stretches(0, stretches)
    assert [len(found) for found in alone] == [count for _, count in stretches]
