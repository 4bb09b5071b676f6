"""Batches: the same with any number of workers and from any first update."""

from __future__ import annotations

import errno
import logging
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from speechssl.audio import waveform
from speechssl.data.dataset import Example, ReadOptions
from speechssl.data.loader import Batch, choose_workers, iterate_updates, pad_stack, stack
from speechssl.data.manifest import Manifest, Utterance, build_manifest
from speechssl.data.sampler import ForwardPlan, PlanConfig, SubBatch, UpdatePlanner
from speechssl.errors import ConfigError
from tests.cases import each_case


def prepare(examples: list[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng([seed, number])
    return {"drawn": [rng.random(number % 3 + 1) for _ in examples]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("audio")
    rows = []
    for number in range(12):
        rate = 16_000 if number % 2 else 22_050
        length = round((1.0 + 0.1 * number) * rate)
        wave = np.random.default_rng(number).uniform(-0.5, 0.5, length).astype(np.float32)
        soundfile.write(folder / f"{number}.flac", wave, rate)
        rows.append(Utterance(str(number), folder / f"{number}.flac", rate, length))
    return build_manifest(rows, folder)


def read(
    manifest: Manifest, first: int, last: int, workers: int, crop: bool = True, **options: object
) -> list[list[Batch]]:
    config = PlanConfig(1, 48_000, 2, 96_000, max_samples=12_000 if crop else 0)
    planner = UpdatePlanner(manifest.num_samples_16k, config)
    return list(iterate_updates(manifest, planner, ReadOptions(1, **options), prepare, (first, last), workers))


def equal(one: Batch, two: Batch) -> bool:
    lengths = one.num_samples is None if two.num_samples is None else torch.equal(one.num_samples, two.num_samples)
    same_inputs = all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)
    return bool(torch.equal(one.waveforms, two.waveforms) and lengths and same_inputs and one.ids == two.ids)


@each_case("workers", [1, 2])
def test_workers_change_nothing(manifest: Manifest, workers: int) -> None:
    alone, helped = read(manifest, 1, 6, 0), read(manifest, 1, 6, workers)
    assert len(alone) == len(helped) == 6
    for one, two in zip(alone, helped, strict=True):
        assert all(equal(a, b) for a, b in zip(one, two, strict=True))


def test_any_update_can_be_read_directly(manifest: Manifest) -> None:
    everything, tail = read(manifest, 1, 6, 0), read(manifest, 5, 6, 0)
    assert all(equal(a, b) for a, b in zip(everything[4], tail[0], strict=True))


def test_crops_move_from_epoch_to_epoch(manifest: Manifest) -> None:
    seen = {}
    for batches in read(manifest, 1, 12, 0):
        for row, name in zip(batches[0].waveforms, batches[0].ids, strict=True):
            seen.setdefault(name, set()).add(row.numpy().tobytes())
    assert max(len(crops) for crops in seen.values()) > 1


def test_whole_utterances_are_padded_and_counted(manifest: Manifest) -> None:
    batch = next(b for u in read(manifest, 1, 6, 0, crop=False) for b in u if b.num_samples is not None)
    assert batch.num_samples is not None
    assert batch.waveforms.shape[1] % 16_000 == 0, "few shapes: the CPU prepares its kernels for each"
    for row, length, name in zip(batch.waveforms, batch.num_samples.tolist(), batch.ids, strict=True):
        assert length == manifest.num_samples_16k[int(name)]
        assert float(row[length:].abs().sum()) == 0.0
    assert batch.audio_s == pytest.approx(int(batch.num_samples.sum()) / 16_000)


def test_normalisation_is_over_the_whole_utterance(manifest: Manifest) -> None:
    batch = read(manifest, 1, 1, 0, normalize=True)[0][0]
    whole = read(manifest, 1, 6, 0, crop=False, normalize=True)
    for row in batch.waveforms:
        assert abs(float(row.std()) - 1.0) > 1e-6
    first = whole[0][0]
    length = int(first.num_samples[0]) if first.num_samples is not None else first.waveforms.shape[1]
    assert float(first.waveforms[0, :length].std(correction=0)) == pytest.approx(1.0, abs=1e-3)


def test_the_cache_gives_the_same_samples_each_time(manifest: Manifest, tmp_path: Path) -> None:
    cache, manifest = str(tmp_path / "cache"), manifest.select([1, 3, 5, 7, 9, 11])
    first, again = read(manifest, 1, 3, 0, cache_dir=cache), read(manifest, 1, 3, 0, cache_dir=cache)
    plain = read(manifest, 1, 3, 0)
    assert len(list((tmp_path / "cache").rglob("*.wav"))) > 0
    for one, two, three in zip(first, again, plain, strict=True):
        assert equal(one[0], two[0])
        torch.testing.assert_close(one[0].waveforms, three[0].waveforms, atol=1e-4, rtol=0)


def test_a_cache_that_cannot_be_written_is_no_fault_of_an_utterance(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(ConfigError, match="`data.cache_dir` must be a place that can be written, but is not"):
        read(manifest, 1, 1, 0, cache_dir=str(tmp_path / "cache"))


@each_case("size", [0, 20_000])
def test_a_damaged_file_of_the_cache_is_named(manifest: Manifest, tmp_path: Path, size: int) -> None:
    cache = str(tmp_path / "cache")
    read(manifest, 1, 6, 0, cache_dir=cache)
    damaged = sorted((tmp_path / "cache").rglob("*.wav"))[0]
    damaged.write_bytes(damaged.read_bytes()[:size])
    again = read(manifest, 1, 6, 0, cache_dir=cache)
    reasons = {each.reason for batches in again for batch in batches for each in batch.left_out}
    assert len(reasons) == 1
    assert str(damaged) in reasons.pop()


def test_a_crop_at_another_rate_is_a_stretch_of_the_whole(manifest: Manifest) -> None:
    """Up to the resampling filter's reach at the two ends."""
    whole = {
        n: row
        for u in read(manifest, 1, 6, 0, crop=False)
        for b in u
        for n, row in zip(b.ids, b.waveforms, strict=True)
    }
    for batch in (b for u in read(manifest, 1, 1, 0) for b in u):
        for name, row in zip(batch.ids, batch.waveforms.numpy(), strict=True):
            inner = row[1_000:-1_000]
            full = whole[name].numpy()
            errors = [np.abs(full[k : k + len(inner)] - inner).max() for k in range(len(full) - len(inner))]
            assert min(errors) < 2e-3


def test_membership_and_sizes_tell_the_sub_batches_apart(manifest: Manifest) -> None:
    batch = read(manifest, 1, 1, 0)[0][0]
    assert batch.membership.sum(0).tolist() == [1.0] * len(batch.ids)
    assert [size["rows"] for size in batch.sizes] == batch.membership.sum(1).int().tolist()


@each_case("padded", [True, False])
def test_torchs_loader_pins_every_tensor_of_a_batch(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    """Without a GPU: what would be pinned is copied and noted."""
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        pinned.append(copy.data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    rows = [Example(name, np.ones(size, np.float32), None, None) for name, size in (("a", 16_000), ("b", 15_000))]
    plan = ForwardPlan(1, (SubBatch(0, 0, (0, 1), 0),), True)
    batch = stack(plan, [(rows if padded else rows[:1], {"drawn": [np.ones(3)] * (2 if padded else 1)})])
    result = pin_memory(batch)
    assert isinstance(result, Batch) and equal(result, batch)
    tensors = [result.waveforms, result.membership, *result.inputs.values()]
    tensors += [] if result.num_samples is None else [result.num_samples]
    assert sorted(tensor.data_ptr() for tensor in tensors) == sorted(pinned)
    assert len(pinned) == (4 if padded else 3)
    assert (result.ids, result.plan, result.sizes) == (batch.ids, batch.plan, batch.sizes)


def test_pad_stack() -> None:
    stacked = pad_stack([np.ones((2, 1)), np.ones((1, 3))])
    assert stacked.tolist() == [[[1, 0, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]]


@each_case("workers", [0, 1])
def test_a_notice_comes_once_and_not_from_every_worker_of_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((16_000, 2), dtype=np.float32), 8_000)
    soundfile.write(tmp_path / "b.wav", np.zeros(96_000, dtype=np.float32), 48_000)
    rows = [Utterance("a", tmp_path / "a.wav", 8_000, 16_000), Utterance("b", tmp_path / "b.wav", 48_000, 96_000)]
    monkeypatch.setattr(waveform, "_noted", mmap.mmap(-1, 4096))
    caplog.set_level(logging.INFO, "speechssl")
    logger, handler = logging.getLogger("speechssl"), logging.FileHandler(tmp_path / "log")
    logger.addHandler(handler)
    for _ in range(3):
        read(build_manifest(rows, tmp_path), 1, 2, workers)
    logger.removeHandler(handler)
    handler.close()
    assert sorted((tmp_path / "log").read_text().splitlines()) == [
        "audio at 48000 Hz is resampled to 16000 Hz",
        "audio at 8000 Hz is resampled to 16000 Hz",
        "audio with 2 channels is mixed down to one",
    ]


@each_case("workers", [0, 1])
def test_a_damaged_file_is_left_out_and_named(manifest: Manifest, tmp_path: Path, workers: int) -> None:
    soundfile.write(tmp_path / "short.flac", np.zeros(8_000, dtype=np.float32), 16_000)
    rows = [manifest[row] for row in range(11)] + [Utterance("damaged", tmp_path / "short.flac", 16_000, 20_000)]
    whole, less = read(manifest, 1, 6, workers), read(build_manifest(rows, tmp_path), 1, 6, workers)
    found = {each.id: each for batches in less for batch in batches for each in batch.left_out}
    assert list(found) == ["damaged"]
    assert found["damaged"].path == str(tmp_path / "short.flac")
    assert "short.flac must hold the samples" in found["damaged"].reason
    assert "\n" not in found["damaged"].reason
    assert [len(batches) for batches in less] == [len(batches) for batches in whole], "as many forwards"
    assert not any("damaged" in batch.ids for batches in less for batch in batches if batch.plan.is_counted)


@each_case("crop", [True, False])
def test_a_forward_of_which_nothing_can_be_read_is_silent_and_not_counted(tmp_path: Path, crop: bool) -> None:
    rows = [Utterance(f"u{number}", tmp_path / "gone.flac", 16_000, 20_000 + number) for number in range(6)]
    for batches in read(build_manifest(rows, tmp_path), 1, 3, 0, crop):
        for batch in batches:
            assert not batch.plan.is_counted
            assert batch.valid_samples == 0
            assert len(batch.ids) == len(batch.sizes) == len(batch.plan.sub_batches) == 1
            assert float(batch.waveforms.abs().sum()) == 0.0
            assert batch.waveforms.shape[1] >= (12_000 if crop else 20_000)
            assert batch.left_out


def test_what_the_system_refuses_is_not_the_fault_of_a_file(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"must let it open audio, but do not .*Too many open files.* ulimit -n"):
        read(manifest, 1, 1, 0)


def test_workers_are_chosen_by_the_cores_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for given, cores, threads, processes, on_gpu, chosen in (
        (-1, 2, 2, 1, False, 1), (-1, 2, 1, 1, False, 1), (-1, 3, 2, 1, False, 1), (-1, 16, 8, 1, False, 2),
        (-1, 16, 1, 16, False, 1), (-1, 2, 2, 1, True, 2), (-1, 8, 8, 8, True, 1), (-1, 4, 1, 8, True, 1),
        (0, 16, 1, 1, False, 0), (5, 2, 2, 1, False, 5),
    ):  # fmt: skip
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert choose_workers(given, on_gpu) == chosen, (given, cores, threads, processes, on_gpu)
