"""Masked codes: the loss against its definition, targets that lie where the sound is, sums that do not care how they
are stacked, and signs of bad health."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from speechssl.checkpoints.clusters import find_nearest, fit_centroids
from speechssl.checkpoints.model_folder import save_model
from speechssl.config.model import ModelConfig
from speechssl.config.objective import MaskedCodesConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch, stack
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives import codes as targets
from speechssl.objectives import masked_codes
from speechssl.objectives.masked_codes import MaskedCodesObjective
from speechssl.objectives.protocol import Beginning, add_terms
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary

Speech = Callable[..., np.ndarray]


def build(config: ModelConfig, seed: int = 1, heard: Sequence[Batch] = (), **keys: Any) -> MaskedCodesObjective:
    """Build an objective that is fitted to what is heard; without, one whose centroids a checkpoint would bring."""
    for name in ("dropout", "attention_dropout", "input_dropout", "feature_dropout"):
        setattr(config, name, 0.0)
    torch.manual_seed(0)
    task = MaskedCodesConfig(**({"num_codes": 64} | keys))
    beginning = Beginning(not heard, 0.0, lambda seconds: iter(heard), lambda make: make())
    return masked_codes.build(PretrainConfig(model=config, seed=seed), task, beginning)


def set_codes(objective: MaskedCodesObjective, codes: np.ndarray) -> None:
    objective.module.objective.codes.copy_(torch.from_numpy(codes))


@pytest.fixture
def objective(tiny_model_config: ModelConfig) -> MaskedCodesObjective:
    return build(tiny_model_config)


@pytest.fixture
def teacher(tiny_model_config: ModelConfig, tmp_path: Path) -> Path:
    torch.manual_seed(5)
    save_model(SpeechModel(tiny_model_config), tmp_path / "teacher")
    return tmp_path / "teacher"


def make_batch(objective: MaskedCodesObjective, speech: Speech, numbers: tuple[int, ...] = (0, 1)) -> Batch:
    """Sub-batches 0 and 1 have rows of 2.0 and 3.0 s."""
    collate, parts, plans = objective.make_collate(), [], []
    for number in numbers:
        rows = [Example(f"{number}-{row}", speech(2.0 + number, 10 * number + row), None, None) for row in range(3)]
        parts.append((rows, collate(rows, 1, number)))
        plans.append(SubBatch(number, 0, (0, 1, 2), len(rows[0].waveform)))
    return stack(ForwardPlan(1, tuple(plans), True), parts)


# By the definition, without a line of the package: Kaldi's log-mel, window by window.


def mel(hz: float) -> float:
    return 1127.0 * math.log(1.0 + hz / 700.0)


def compute_log_mel_frame(window: np.ndarray) -> np.ndarray:
    """One window of 400 samples: no offset, pre-emphasis, Povey's window, power spectrum, 80 triangles over mel."""
    x = window - window.mean()
    x = x - 0.97 * np.concatenate([x[:1], x[:-1]])
    x = x * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(x, 512)) ** 2
    low, high = mel(20.0), mel(8000.0)
    width = (high - low) / 81
    out = []
    for band in range(80):
        left, peak, right = (low + (band + k) * width for k in range(3))
        energy = 0.0
        for number in range(256):
            at = mel(number * 16000 / 512)
            if left < at < right:
                energy += power[number] * min((at - left) / (peak - left), (right - at) / (right - peak))
        out.append(math.log(max(energy, float(np.finfo(np.float32).eps))))
    return np.array(out)


def compute_codes(waveform: np.ndarray, projection: np.ndarray, codes: np.ndarray) -> list[int]:
    """BEST-RQ: each code is the nearest, on the unit sphere, to the projection of two normalised log-mel frames."""
    x = np.pad(32768 * waveform.astype(np.float64), 80, "reflect")
    frames = np.array([compute_log_mel_frame(x[at : at + 400]) for at in range(0, len(x) - 399, 160)])
    frames = (frames - frames.mean(0)) / frames.std(0)
    found = []
    for k in range((len(waveform) - 400) // 320 + 1):
        z = np.concatenate([frames[2 * k], frames[2 * k + 1]]) @ projection
        found.append(int(np.argmin([np.sum((z / np.linalg.norm(z) - code) ** 2) for code in codes])))
    return found


@pytest.mark.parametrize(("intermediate_layer", "unmasked_weight"), [(0, 0.0), (1, 0.0), (1, 0.5)])
def test_the_loss_is_an_independent_computation(
    tiny_model_config: ModelConfig, speech: Speech, intermediate_layer: int, unmasked_weight: float
) -> None:
    keys = {"intermediate_layer": intermediate_layer, "unmasked_weight": unmasked_weight}
    objective = build(tiny_model_config, feature_penalty_weight=3.0, **keys)
    objective.module.train()
    batch = make_batch(objective, speech, (0,))
    terms = objective.compute(batch, 1)
    weights = {name: value.detach().double().numpy() for name, value in objective.module.state_dict().items()}
    features = objective.module.backbone.encode(batch.waveforms, batch.num_samples)
    context, states = objective.module.backbone.contextualise(features, batch.inputs["mask"])
    total, count = 0.0, 0
    for row, mask in enumerate(batch.inputs["mask"]):
        codes = compute_codes(batch.waveforms[row].numpy(), weights["objective.projection"], weights["objective.codes"])
        for frame in range(len(mask)):
            weight = 1.0 if mask[frame] else unmasked_weight
            count += int(mask[frame])
            inner = [states[intermediate_layer]] if intermediate_layer and mask[frame] else []
            for head, x in enumerate([context, *inner]):
                scores = weights[f"objective.heads.{head}.weight"] @ x[row, frame].detach().double().numpy()
                scores = scores + weights[f"objective.heads.{head}.bias"]
                total += weight * (math.log(sum(math.exp(score) for score in scores)) - scores[codes[frame]])
    penalty = 3.0 * float(features.raw.detach().double().square().mean()) * count
    assert int(terms.count) == count
    assert float(terms.sum.detach()) == pytest.approx(total + penalty, rel=1e-5)


def test_a_step_in_the_sound_changes_the_codes_there_and_only_there(tiny_model_config: ModelConfig) -> None:
    """A sound of period 10 ms is the same in all windows: one code until 1.0 s, another one after it."""
    for keys in ({}, {"targets": "kmeans"}):
        objective = build(tiny_model_config, **keys)
        time = np.arange(32_000) / 16_000
        quiet, loud = (sum(np.sin(2 * np.pi * hz * time) for hz in tones) for tones in ((200, 900), (400, 2500)))
        waveform = (0.1 * np.where(time < 1.0, quiet, 3 * loud)).astype(np.float32)
        if keys:
            x = targets.compute_mfcc(waveform, 99, targets.Grid(320, 400))
            set_codes(objective, np.concatenate([x[[20, 80]], 1e3 * np.ones((62, 39))]).astype(np.float32))
        codes = objective.make_collate().find_codes(waveform, np.ones(99, dtype=np.bool_))[:, 0]
        changes = np.flatnonzero(np.diff(codes[3:-3])) + 4  # the ends are reflected
        assert codes[20] != codes[80]
        # 25 ms from 0.98 s on reach beyond 1.0 s; differences of MFCC reach 40 ms further.
        assert changes.min() >= (46 if keys else 48)
        assert changes.max() <= (53 if keys else 51)


def test_with_subtract_mean_codes_do_not_depend_on_loudness(tiny_model_config: ModelConfig, speech: Speech) -> None:
    waveform = speech(2.0, 1)
    masked = np.ones(99, dtype=np.bool_)
    for subtract_mean, is_same in ((True, True), (False, False)):
        objective = build(tiny_model_config, targets="kmeans", subtract_mean=subtract_mean)
        grid = targets.Grid(320, 400)
        x = targets.compute_mfcc(waveform, 99, grid, subtract_mean)
        set_codes(objective, fit_centroids(x.numpy(), 64, 1))
        codes, quieter = (objective.make_collate().find_codes(factor * waveform, masked) for factor in (1.0, 0.02))
        assert len(set(codes[:, 0])) > 20
        assert bool((codes == quieter).mean() > 0.99) == is_same
        batch = make_batch(objective, speech, (0,))
        row = masked_codes.describe_by_mfcc(batch.waveforms[0].numpy(), tiny_model_config, objective.task)
        assert torch.equal(row, targets.compute_mfcc(batch.waveforms[0].numpy(), len(row), grid, subtract_mean))


@pytest.mark.parametrize(("kernels", "field"), [([10, 3, 3, 3, 3, 2, 2], 400), ([10, 3, 3, 3, 3, 4, 2], 720)])
def test_codes_have_the_middle_of_the_encoders_frames(kernels: list[int], field: int, speech: Speech) -> None:
    """With a wider receptive field the same windows come later: they lie around its middle."""
    waveform = speech(2.0, 1)
    expected = targets.stack_log_mel(waveform[(field - 400) // 2 :], 80, targets.Grid(320, 400), 1)
    # The statistics are those of slightly different stretches: compare after taking them out again.
    x = targets.stack_log_mel(waveform, 80, targets.Grid(320, field), 1)
    assert float(torch.corrcoef(torch.stack([x.flatten(), expected.flatten()]))[0, 1]) > 0.99


@pytest.mark.parametrize("source", ["random_projection", "kmeans", "teacher"])
def test_one_forward_of_two_sub_batches_is_two_forwards_of_one(
    tiny_model_config: ModelConfig, speech: Speech, teacher: Path, source: str
) -> None:
    keys: dict[str, Any] = {"targets": source if source != "teacher" else "kmeans", "num_codes": 20}
    if source == "teacher":
        keys |= {"teacher": str(teacher), "teacher_layer": 1}
    heard = [make_batch(build(tiny_model_config, **keys), speech)]
    objective = build(tiny_model_config, heard=heard, **keys, intermediate_layer=1, unmasked_weight=0.5)
    stacked = objective.compute(make_batch(objective, speech, (0, 1)), 1)
    together = add_terms([objective.compute(make_batch(objective, speech, (number,)), 1) for number in (0, 1)])
    assert float(stacked.sum.detach()) == pytest.approx(float(together.sum.detach()), rel=1e-5)
    assert int(stacked.count) == int(together.count)
    assert (stacked.stats["code_counts"] > 0).sum() > 3
    for name, value in stacked.stats.items():
        torch.testing.assert_close(value, together.stats[name], rtol=1e-4, atol=1e-4)
    names, parameters = zip(*objective.module.named_parameters(), strict=True)
    first, second = (torch.autograd.grad(terms.sum, parameters) for terms in (stacked, together))
    for name, gradient, other in zip(names, first, second, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-3, msg=name)


def test_collate_is_a_function_of_seed_audio_and_sub_batch(
    objective: MaskedCodesObjective, tiny_model_config: ModelConfig, speech: Speech
) -> None:
    rows = [Example(str(k), speech(2.0, k), None, None) for k in range(3)]
    collate = objective.make_collate()
    first, again, other = collate(rows, 1, 5), pickle.loads(pickle.dumps(collate))(rows, 1, 5), collate(rows, 1, 6)
    assert all((a == b).all() for a, b in zip(first["codes"], again["codes"], strict=True))
    assert any((a != b).any() for a, b in zip(first["mask"], other["mask"], strict=True))
    assert [mask.sum() for mask in first["mask"]] == [len(row) for row in first["codes"]]
    reseeded = build(tiny_model_config, seed=2).make_collate()(rows, 1, 5)
    assert any((a != b).any() for a, b in zip(first["codes"], reseeded["codes"], strict=True))
    louder = [replace(row, waveform=0.5 * row.waveform) for row in rows]
    assert all((a == b).mean() > 0.99 for a, b in zip(first["codes"], collate(louder, 1, 5)["codes"], strict=True))


def test_losses_add_up_in_bits_and_entropy_is_of_all_targets_so_far(
    objective: MaskedCodesObjective, speech: Speech
) -> None:
    terms = objective.compute(make_batch(objective, speech), 1).detach()
    metrics = objective.summarise(terms, 1)
    assert metrics["loss"] == pytest.approx(metrics["loss_codes"] + metrics["loss_features"], rel=1e-5)
    assert metrics["loss"] == pytest.approx(float(terms.sum) / int(terms.count) / math.log(2), rel=1e-6)
    assert metrics["loss_codes"] == pytest.approx(math.log2(64), abs=0.3)
    assert 0.3 < metrics["masked_share"] < 0.6
    shares = terms.stats["code_counts"].numpy() / int(terms.count)
    entropy = -sum(p * math.log2(p) for p in shares if p > 0)
    assert metrics["target_entropy"] == pytest.approx(entropy, rel=1e-6)
    assert metrics["code_perplexity"] == pytest.approx(2**entropy, rel=1e-6)
    objective.watch.counts += 1_000.0
    assert objective.summarise(terms, 1)["target_entropy"] > 5.9


def make_healthy(objective: MaskedCodesObjective, speech: Speech) -> tuple[Any, dict[str, Any]]:
    terms = objective.compute(make_batch(objective, speech), 1).detach()
    return terms, objective.summarise(terms, 1)


def test_health_is_silent_where_all_is_well_and_names_what_is_not(
    objective: MaskedCodesObjective, speech: Speech
) -> None:
    terms, metrics = make_healthy(objective, speech)
    health = objective.watch.observe(terms, metrics, 1)
    assert not health.problem and not health.warning
    few = objective.watch.observe(terms, metrics | {"masked_share": 0.1}, 2)
    assert "10% of the frames are masked, where model.mask.prob=0.65 should give 48%" in few.warning
    objective.watch.counts[3] = 1e6
    same = objective.watch.observe(terms, metrics | {"code_perplexity": 1.2}, 3)
    assert "the targets use 1.2 of 64 codes" in same.warning


def test_predictions_that_stay_constant_after_the_warm_up_are_a_collapse(
    objective: MaskedCodesObjective, speech: Speech
) -> None:
    objective.watch.warmup_updates = 10
    terms, metrics = make_healthy(objective, speech)
    stuck = metrics | {"prediction_perplexity": 1.0, "loss_codes": metrics["target_entropy"]}
    problems = [objective.watch.observe(terms, stuck, update).problem for update in range(1, 311)]
    assert not any(problems[:309]) and "for 300 updates up to 310, one code is predicted" in problems[309]
    fresh = build(objective.module.config).watch
    fresh.warmup_updates = 10
    fresh.load_state(objective.watch.state())
    assert fresh.observe(terms, stuck, 311).problem
    assert not fresh.observe(terms, metrics | {"prediction_perplexity": 1.0, "loss_codes": 0.5}, 312).problem


def test_k_means_is_the_same_every_time_and_finds_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((5, 8))
    points = (centres[rng.integers(0, 5, 2000)] + 0.1 * rng.standard_normal((2000, 8))).astype(np.float32)
    first, again = fit_centroids(points, 5, 1), fit_centroids(points, 5, 1)
    assert (first == again).all()
    distances = np.linalg.norm(first[:, None] - centres[None], axis=-1)
    assert (distances.min(0) < 0.1).all()
    with pytest.raises(ConfigError, match="`objective.num_codes` must be at most the 2000 frames"):
        fit_centroids(points, 2001, 1)


def test_a_wrong_key_is_one_sentence(tiny_model_config: ModelConfig, teacher: Path) -> None:
    taught = {"targets": "kmeans", "teacher": str(teacher)}
    for keys, sentence in (
        ({"targets": "vq"}, "`objective.targets` must be one of random_projection, kmeans, but is 'vq'"),
        ({"num_codes": 1}, "`objective.num_codes` must be between 2 and 65536, or 0 for .*, but is 1"),
        ({"intermediate_layer": 2}, r"`objective.intermediate_layer` must be 0 \(none\) to 1, but is 2"),
        (taught | {"teacher": str(teacher / "missing")}, "`objective.teacher` must be a run folder .* does not exist"),
        (taught | {"teacher_layer": 3}, "`objective.teacher_layer` must be between 0"),
        ({"codes_per_frame": 3}, "`objective.codes_per_frame` must be 1 or 2, but is 3"),
        ({"name": "wav2vec2"}, "`objective.name` must be left to the choice"),
    ):
        with pytest.raises(SpeechSSLError, match=sentence):
            build(tiny_model_config, **keys)


def test_a_teacher_must_hear_what_the_student_hears(tiny_model_config: ModelConfig, teacher: Path) -> None:
    keys = {"targets": "kmeans", "teacher": str(teacher), "teacher_layer": 1}
    with pytest.raises(ConfigError, match="`objective.teacher` must be a model that takes normalised waveforms"):
        build(replace(tiny_model_config, normalize_waveform=True), **keys)
    with pytest.raises(ConfigError, match="`objective.codes_per_frame` must be 1, since a frame of the teacher"):
        build(tiny_model_config, **keys, codes_per_frame=2)


def test_the_teacher_changes_no_weight_of_the_student(tiny_model_config: ModelConfig, teacher: Path) -> None:
    plain = build(tiny_model_config, targets="kmeans").module.backbone.state_dict()
    taught = build(tiny_model_config, targets="kmeans", teacher=str(teacher), teacher_layer=1)
    assert all(torch.equal(plain[name], value) for name, value in taught.module.backbone.state_dict().items())
    assert not [name for name, _ in taught.module.named_parameters() if "pretraining" in name or "teacher" in name]


@pytest.fixture
def slow(tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A network with a frame every 40 ms, which is two frames of the others seen together: 45 ms."""
    monkeypatch.setattr("speechssl.model.wav2vec2.HOP_SAMPLES", ANY, raising=False)  # which refuses other frames
    names = ("conv_kernels", "conv_strides", "conv_channels")
    before = {name: getattr(tiny_model_config, name) for name in names}
    return replace(tiny_model_config, **{name: [*before[name], before[name][-1]] for name in names})


def test_two_codes_of_40_ms_are_those_of_20_ms(
    tiny_model_config: ModelConfig, slow: ModelConfig, speech: Speech
) -> None:
    """Whatever the length: one code after the other, and none missing at the end."""
    for keys in ({}, {"targets": "kmeans"}):
        fast = build(replace(tiny_model_config), **keys)
        if keys:
            x = targets.compute_mfcc(speech(3.0, 1), 149, targets.Grid(320, 400))
            set_codes(fast, fit_centroids(x.numpy(), 64, 1))
        pair = build(replace(slow), **keys, codes_per_frame=2)
        set_codes(pair, fast.module.objective.codes.numpy())
        for num_samples in (16_000, 16_080, 16_081, 16_300, 16_400):
            waveform = speech(2.0, 3)[:num_samples]
            num_frames = slow.count_frames(num_samples)
            every = np.ones(tiny_model_config.count_frames(num_samples), dtype=np.bool_)
            single = fast.make_collate().find_codes(waveform, every)[: 2 * num_frames, 0]
            double = pair.make_collate().find_codes(waveform, np.ones(num_frames, dtype=np.bool_))
            assert double.shape == (num_frames, 2)
            assert (double.ravel() == single).all()
            assert len(set(single)) > 3


def test_the_loss_of_two_codes_a_frame_is_the_mean_of_both(slow: ModelConfig, speech: Speech) -> None:
    objective = build(slow, codes_per_frame=2, unmasked_weight=0.5, intermediate_layer=1)
    batch = make_batch(objective, speech, (0,))
    terms = objective.compute(batch, 1)
    weights = {name: value.double() for name, value in objective.module.state_dict().items()}
    features = objective.module.backbone.encode(batch.waveforms, batch.num_samples)
    context, states = objective.module.backbone.contextualise(features, batch.inputs["mask"])
    total, count, right = 0.0, 0, 0
    for row, mask in enumerate(batch.inputs["mask"]):
        names = ("objective.projection", "objective.codes")
        codes = compute_codes(batch.waveforms[row].numpy(), *(weights[name].numpy() for name in names))
        for frame in range(len(mask)):
            count += int(mask[frame])
            for head, x in enumerate([context, states[1]] if mask[frame] else [context]):
                scores = weights[f"objective.heads.{head}.weight"] @ x[row, frame].double()
                halves = (scores + weights[f"objective.heads.{head}.bias"]).view(2, 64)
                for half in (0, 1):
                    nats = halves[half].logsumexp(0) - halves[half][codes[2 * frame + half]]
                    total += (1.0 if mask[frame] else 0.5) * float(nats.detach()) / 2
                    is_right = int(halves[half].argmax()) == codes[2 * frame + half]
                    right += bool(mask[frame]) and head == 0 and is_right
    assert int(terms.count) == count
    assert float(terms.sum.detach() - terms.stats["features"]) == pytest.approx(total, rel=1e-6)
    assert objective.summarise(terms.detach(), 1)["accuracy"] == pytest.approx(right / 2 / count)
    assert float(terms.stats["code_counts"].sum()) == 2 * count


def test_a_recogniser_of_any_frame_rate_is_a_teacher(
    tiny_model_config: ModelConfig, slow: ModelConfig, speech: Speech, tmp_path: Path
) -> None:
    """Its own frames, in time: one, every second one, both, or each twice; at the end none is missing."""
    # 40 ms apart, but each around the same 25 ms as every second one of the others.
    sparse = replace(slow, conv_kernels=[*slow.conv_kernels[:-1], 1])
    for name, config in (("fast", tiny_model_config), ("slow", slow), ("sparse", sparse)):
        torch.manual_seed(5)
        save_model(SpeechModel(config, Vocabulary(FAIRSEQ_SYMBOLS)), tmp_path / name)
    for student, teacher, per_frame, expected in (
        (tiny_model_config, "fast", 1, lambda k: k),
        (slow, "fast", 1, lambda k: 2 * k + 1),
        (slow, "fast", 2, lambda k: k),
        (slow, "slow", 1, lambda k: k),
        (tiny_model_config, "slow", 1, lambda k: k // 2),
        (sparse, "fast", 1, lambda k: 2 * k),
        (sparse, "fast", 2, lambda k: k),
        (tiny_model_config, "sparse", 1, lambda k: (k + 1) // 2),
    ):
        keys: dict[str, Any] = {"targets": "kmeans", "teacher": str(tmp_path / teacher), "teacher_layer": 1}
        objective = build(replace(student), **keys, num_codes=8, codes_per_frame=per_frame, unmasked_weight=1.0)
        batch = make_batch(objective, speech)
        assert objective.teacher is not None
        states = objective.teacher.describe(batch)
        set_codes(objective, fit_centroids(torch.cat(states).numpy(), 8, 1))
        mask = batch.inputs["mask"]
        every = torch.arange(mask.shape[1]).expand(len(mask), -1)
        told = objective._ask(objective.teacher, batch, every)
        for row, waveform in enumerate(targets.split_rows(batch)):
            own = find_nearest(states[row], objective.module.objective.codes).tolist()
            numbers = range(per_frame * student.count_frames(len(waveform)))
            wanted = [own[min(expected(k), len(own) - 1)] for k in numbers]
            assert told[row].flatten()[: len(numbers)].tolist() == wanted
        assert torch.isfinite(objective.compute(batch, 1).sum)
