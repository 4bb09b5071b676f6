"""Speed perturbation: what is heard, what is drawn, and a plan that knows every length."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechssl.config.data import FinetuneDataConfig, PretrainDataConfig, TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.data.augment import bound_lengths, change_speed, count_at_speed, draw_speeds
from speechssl.data.dataset import Example, ReadOptions, read_sub_batch
from speechssl.data.loader import iterate_updates
from speechssl.data.manifest import Manifest, Utterance, build_manifest
from speechssl.data.sampler import PlanConfig, SubBatch, UpdatePlanner
from speechssl.errors import ConfigError, DataError
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training.finetuning import select_usable
from speechssl.training.sources import select_long_enough
from tests.cases import each_case

SPEEDS = (0.9, 1.0, 1.1)
CROPS = PlanConfig(
    seed=1, sub_batch_samples=160_000, sub_batches_per_update=4, forward_samples=320_000, max_samples=64_000,
    speeds=SPEEDS,
)  # fmt: skip
WHOLE = replace(CROPS, max_samples=0, sub_batch_samples=400_000)


def draw_lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(16_000, 200_000, count)


def make_tone(hertz: float, num_samples: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(num_samples) / 16_000)).astype(np.float32)


def find_pitch(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(np.fft.rfftfreq(len(sound), 1 / 16_000)[spectrum.argmax()])


@each_case("speed", [0.9, 1.1, 1.25])
def test_a_tone_moves_with_the_tempo(speed: float) -> None:
    faster = change_speed(make_tone(1_000.0, 32_000), speed)
    assert len(faster) == count_at_speed(32_000, speed) == round(32_000 / speed)
    assert find_pitch(faster) == pytest.approx(1_000.0 * speed, abs=1.0)
    assert faster.dtype == np.float32
    middle = faster[2_000:-2_000]
    assert float(np.sqrt(2 * np.mean(middle**2))) == pytest.approx(0.5, rel=0.01)
    expected = make_tone(1_000.0 * speed, len(faster))
    assert float(np.abs(middle - expected[2_000:-2_000]).max()) < 0.01, "in phase: no sample is lost at the start"


def test_speed_one_is_the_same_samples() -> None:
    sound = make_tone(300.0, 5_000)
    assert np.array_equal(change_speed(sound, 1.0), sound)


def test_lengths_are_the_same_for_numbers_and_arrays() -> None:
    lengths = draw_lengths(2_000)
    for speed in (0.9, 1.1, 0.95):
        assert count_at_speed(lengths, speed).tolist() == [count_at_speed(int(n), speed) for n in lengths]


def test_every_epoch_draws_each_speed_equally_often_and_each_utterance_all_in_time() -> None:
    falling = np.argsort(-draw_lengths(301))
    drawn = np.stack([draw_speeds(falling, SPEEDS, np.random.default_rng(epoch)) for epoch in range(300)])
    for epoch in drawn:
        assert all(100 <= count <= 101 for count in Counter(epoch.tolist()).values())
    for speed in SPEEDS:
        share = (drawn == speed).mean(0)
        assert 0.2 < share.min() <= share.max() < 0.47, "a third of the epochs, within 5 standard deviations"


def test_one_that_stands_there_twice_is_drawn_twice_as_often() -> None:
    drawn = draw_speeds(np.arange(400), (0.9, 1.0, 1.0, 1.1), np.random.default_rng(0))
    assert Counter(drawn.tolist()) == {0.9: 100, 1.0: 200, 1.1: 100}


@each_case("count", [1, 2, 3, 4, 100, 1_001])
def test_no_epoch_is_longer_than_the_bound_and_the_bound_is_tight(count: int) -> None:
    lengths = draw_lengths(count, count)
    falling, bound = np.argsort(-lengths, kind="stable"), bound_lengths(lengths, SPEEDS)
    for epoch in range(50):
        actual = count_at_speed(lengths, draw_speeds(falling, SPEEDS, np.random.default_rng(epoch)))
        assert (np.sort(actual)[::-1] <= bound).all()
    if count > 1_000:
        assert bound.sum() < 1.005 * actual.sum()


@each_case("config", [CROPS, WHOLE])
def test_an_epoch_holds_every_utterance_once_in_sub_batches_that_fit(config: PlanConfig) -> None:
    lengths = draw_lengths(331)
    planner = UpdatePlanner(lengths, config)
    plain = UpdatePlanner(lengths, replace(config, speeds=()))
    # With rows of up to half a sub-batch; at 0.9 the longest no longer fit in twos.
    assert planner.sub_batches_per_epoch == pytest.approx(plain.sub_batches_per_epoch, rel=0.1)
    size, speeds = planner.sub_batches_per_epoch, []
    for epoch in range(3):
        batches = [planner.find_sub_batch(number) for number in range(epoch * size, (epoch + 1) * size)]
        assert Counter(chain.from_iterable(batch.indices for batch in batches)) == Counter(range(331))
        speeds.append(
            dict(
                zip(
                    chain.from_iterable(b.indices for b in batches),
                    chain.from_iterable(b.speeds for b in batches),
                    strict=True,
                )
            )
        )
        for batch in batches:
            played = [count_at_speed(int(lengths[i]), s) for i, s in zip(batch.indices, batch.speeds, strict=True)]
            if config.max_samples:
                played = [min(length, config.max_samples) for length in played]
                assert batch.crop_samples == min(played)
            assert len(played) == 1 or len(played) * max(played) <= config.sub_batch_samples
    assert speeds[0] != speeds[1] != speeds[2]


@each_case("config", [CROPS, WHOLE])
def test_any_update_can_be_asked_for_directly_and_forwards_fit(config: PlanConfig) -> None:
    lengths = draw_lengths(331)
    in_order = UpdatePlanner(lengths, config)
    plans = [in_order.plan_update(update) for update in range(1, 60)]
    assert UpdatePlanner(lengths, config).plan_update(43) == plans[42]
    for forward in chain.from_iterable(plans):
        rows = [(i, s) for b in forward.sub_batches for i, s in zip(b.indices, b.speeds, strict=True)]
        longest = max(min(count_at_speed(int(lengths[i]), s), config.max_samples or 10**9) for i, s in rows)
        assert len(forward.sub_batches) == 1 or len(rows) * longest <= config.forward_samples


def test_without_speeds_the_plan_is_the_one_it_was() -> None:
    planner = UpdatePlanner(draw_lengths(50), replace(CROPS, speeds=()))
    sub_batch = planner.find_sub_batch(7)
    assert sub_batch.speeds == ()
    assert sub_batch == SubBatch(7, 0, sub_batch.indices, sub_batch.crop_samples)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Twelve tones of 500, 550 … Hz, half of them at 44.1 kHz."""
    folder = tmp_path_factory.mktemp("tones")
    rows = []
    for number in range(12):
        rate = 16_000 if number % 2 else 44_100
        length = round((1.0 + 0.05 * number) * rate)
        wave = 0.5 * np.sin(2 * np.pi * (500 + 50 * number) * np.arange(length) / rate)
        soundfile.write(folder / f"{number}.flac", wave, rate)
        rows.append(Utterance(str(number), folder / f"{number}.flac", rate, length, text="A"))
    return build_manifest(rows, folder)


def prepare(examples: list[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
    return {"length": [np.array([len(example.waveform)]) for example in examples]}


@each_case("normalize", [False, True])
@each_case("crop", [0, 12_000])
def test_what_is_read_is_what_was_planned(tones: Manifest, crop: int, normalize: bool) -> None:
    config = PlanConfig(1, 64_000, 2, 128_000, max_samples=crop, speeds=SPEEDS)
    planner = UpdatePlanner(tones.num_samples_16k, config)
    seen = set()
    for number in range(2 * planner.sub_batches_per_epoch):
        batch = planner.find_sub_batch(number)
        examples = read_sub_batch(tones, batch, ReadOptions(1, normalize=normalize))
        for index, speed, example in zip(batch.indices, batch.speeds, examples, strict=True):
            played = count_at_speed(int(tones.num_samples_16k[index]), speed)
            assert len(example.waveform) == (batch.crop_samples or played)
            assert find_pitch(example.waveform) == pytest.approx((500 + 50 * index) * speed, abs=1.5)
            assert float(np.abs(example.waveform[-40:]).max()) > 0.2, "no silence at the end"
            seen.add(speed)
    assert seen == set(SPEEDS)


@each_case("crop", [0, 12_000])
def test_workers_and_where_a_run_begins_change_nothing(tones: Manifest, crop: int) -> None:
    planner = UpdatePlanner(tones.num_samples_16k, PlanConfig(1, 64_000, 2, 64_000, max_samples=crop, speeds=SPEEDS))
    runs = [
        list(iterate_updates(tones, planner, ReadOptions(1), prepare, (first, 5), workers))
        for first, workers in ((1, 0), (1, 2), (4, 1))
    ]
    for ours, theirs in ((runs[0], runs[1]), (runs[0][3:], runs[2])):
        assert len(ours) == len(theirs)
        for one, two in zip(chain.from_iterable(ours), chain.from_iterable(theirs), strict=True):
            assert torch.equal(one.waveforms, two.waveforms)
            assert (one.ids, one.plan) == (two.ids, two.plan)
    batch = runs[0][0][0]
    assert batch.audio_s == pytest.approx(float(batch.inputs["length"].sum()) / 16_000), "counted as it is fed"


def test_frames_suffice_for_the_labels_at_the_fastest_speed(tones: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    """The text and the word boundary after it need all frames at speed 1, so that at 1.1 they are too few."""
    vocabulary, network = build_vocabulary(TextConfig(), []), ModelConfig()
    frames = network.count_frames(int(tones.num_samples_16k[0]))
    rows = [replace(tones[0], text=("AB" * frames)[: frames - 1]), replace(tones[1], text="AB")]
    manifest = build_manifest(rows, Path(tones[0].path).parent)
    kept = {}
    for name, speeds in (("plain", []), ("faster", [1.0, 1.1]), ("slower", [0.9])):
        config = FinetuneConfig(out="x", data=FinetuneDataConfig(speed_perturbation=speeds))
        kept[name] = [len(select_usable(manifest, vocabulary, config, key)) for key in ("data.train", "data.valid")]
    assert kept == {"plain": [2, 2], "faster": [1, 2], "slower": [2, 2]}
    fewer = network.count_frames(count_at_speed(int(tones.num_samples_16k[0]), 1.1))
    assert [record.getMessage() for record in caplog.records] == [
        "data.train: left out, 1 of 2 utterances cannot be used: 1 too short for their text "
        f"(the first needs {frames} frames, and has {fewer} at speed 1.1): {tones[0].id}"
    ]


def test_every_reason_is_counted_and_named(tones: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    """Equal neighbours need a frame more; where nothing is left, the sentence is an error's."""
    vocabulary, network = build_vocabulary(TextConfig(), []), ModelConfig()
    frames, folder = network.count_frames(int(tones.num_samples_16k[0])), Path(tones[0].path).parent
    fits = ("AB" * frames)[: frames - 1]
    doubled = fits[:1] + fits[:-1]
    texts = {"silent": "...", "fits": fits, "doubled": doubled, "many": 2 * fits, "none": None}
    rows = [replace(tones[0], id=name, text=text) for name, text in texts.items()]
    config = FinetuneConfig(out="x")
    kept = select_usable(build_manifest(rows, folder), vocabulary, config, "data.train")
    assert kept.column("id") == ["fits"]
    assert caplog.messages == [
        "data.train: left out, 4 of 5 utterances cannot be used: 2 without labels: silent, none; 2 too short for their "
        f"text (the first needs {frames + 1} frames, and has {frames}): doubled, many"
    ]
    with pytest.raises(DataError, match=r"`data\.valid` must hold usable utterances, but 1 of 1 .* too short for"):
        select_usable(build_manifest(rows[2:3], folder), vocabulary, config, "data.valid")


def test_frames_suffice_for_masks_at_the_fastest_speed(tones: Manifest) -> None:
    network = ModelConfig()
    network.mask.length = network.count_frames(int(tones.num_samples_16k[0])) // 2 - 1
    config = PretrainConfig(out="x", data=PretrainDataConfig(min_s=0.5), model=network)
    assert len(select_long_enough(tones.select(np.array([0])), config, "data.train")) == 1
    config.data.speed_perturbation = [1.2]
    with pytest.raises(DataError, match="too short to mask"):
        select_long_enough(tones.select(np.array([0])), config, "data.train")


@each_case("speeds", [[0.9, 0.0], [1.0, 2.5], [-1.0], [float("nan")]])
def test_impossible_speeds_are_refused(speeds: list[float]) -> None:
    for schema in (PretrainDataConfig, FinetuneDataConfig):
        with pytest.raises(ConfigError, match=r"`data\.speed_perturbation` must be speeds between 0\.5 and 2, but is"):
            schema(speed_perturbation=speeds)
