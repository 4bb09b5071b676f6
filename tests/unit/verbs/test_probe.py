"""The probe end to end at tiny size: figures for the model and both baselines, right where the answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import speechssl
from speechssl.checkpoints.model_folder import save_model
from speechssl.config.model import ModelConfig
from speechssl.data.manifest import Manifest, Utterance, build_manifest, load_manifest, save_manifest
from speechssl.errors import DataError
from speechssl.evaluation.probe_features import split_stratified, standardise
from speechssl.evaluation.probe_training import train_probe
from speechssl.model.speech_model import SpeechModel

Speech = Callable[..., np.ndarray]


@pytest.fixture
def workplace(tmp_path: Path, speech: Speech, tiny_model_config: ModelConfig) -> Path:
    """Six speakers of very different pitch, four utterances each."""
    rows = []
    for speaker in range(6):
        for number in range(4):
            path = tmp_path / f"{speaker}-{number}.flac"
            soundfile.write(path, speech(1.2, 10 * speaker + number, pitch_hz=80.0 + 40 * speaker), 16_000)
            rows.append(Utterance(path.stem, path, 16_000, 19_200, 0, str(speaker), None))
    save_manifest(build_manifest(rows, tmp_path), tmp_path / "all.tsv")
    save_model(SpeechModel(tiny_model_config, pretraining=True), tmp_path / "model", update=70)
    return tmp_path


def probe(workplace: Path, **keys: object) -> dict[str, object]:
    given = {
        "checkpoint": str(workplace / "model"),
        "data.train": [str(workplace / "all.tsv")],
        "out": str(workplace / "probe"),
        "updates": 60,
        "lr": 0.02,
        "num_resamples": 50,
        "device": "cpu",
    }
    return speechssl.probe(**(given | keys))


def test_identification(workplace: Path) -> None:
    result = probe(workplace)
    assert result["baselines"]["log_mel"]["accuracy"] > 60.0
    assert [row["layer"] for row in result["layers"]] == [0, 1, 2]
    assert sum(result["layer_weights"]) == pytest.approx(1.0, abs=1e-5)
    assert len(result["baselines"]["untrained"]["layers"]) == 3
    assert result["accuracy_interval"]["unit"] == "speaker"
    assert not result["accuracy_interval"]["reliable"]
    assert result["update"] == 70
    assert set(result["speakers"]) == set("012345")
    assert json.loads((workplace / "probe" / "result.json").read_text()) == result


def divide(workplace: Path) -> dict[str, object]:
    """Write manifests of four speakers to learn from and of two others."""
    manifest, keys = load_manifest(workplace / "all.tsv"), {}
    for name, rows in (("train", range(16)), ("test", range(16, 24))):
        save_manifest(manifest.select(rows), workplace / f"{name}.tsv")
        keys[f"data.{name}"] = [str(workplace / f"{name}.tsv")]
    return keys


def test_verification(workplace: Path) -> None:
    keys = {"updates": 5, "num_untrained": 2, "backend": "plda-asnorm", "calibrate": True}
    result = probe(workplace, task="verification", **keys, **divide(workplace))
    for value in (result["eer"], result["baselines"]["log_mel"]["eer"], result["baselines"]["untrained"]["eer"]):
        assert 0.0 <= value <= 60.0
    assert set(result["backends"]) == {"cosine", "cosine-asnorm", "plda", "plda-asnorm"}
    assert result["backends"]["plda-asnorm"]["eer"] == pytest.approx(result["eer"])
    assert [cost["p_target"] for cost in result["min_dcf"]] == [0.01, 0.05]
    assert np.isfinite(result["calibration"]["cllr"])
    assert result["num_backend_speakers"] == 2, "two of four calibrate"
    assert len(result["baselines"]["untrained"]["seeds"]) == 2
    trials = (workplace / "probe" / "trials.txt").read_text().splitlines()
    scores = (workplace / "probe" / "scores.txt").read_text().splitlines()
    assert [line.split()[1:] for line in trials] == [line.split()[:2] for line in scores]
    # Trials that are read are those that were drawn, and what is scored is the same.
    keys |= {"data.trials": str(workplace / "probe" / "trials.txt"), "out": str(workplace / "again")}
    again = probe(workplace, task="verification", **keys, **divide(workplace))
    assert again["eer"] == pytest.approx(result["eer"])


def test_a_speaker_of_the_trials_teaches_no_back_end(workplace: Path) -> None:
    keys = {"data.test": [str(workplace / "all.tsv")], "task": "verification"}
    with pytest.raises(DataError, match=r"`data\.train` must have two speakers or more who are in no trial, but has 0"):
        probe(workplace, **keys)


def test_a_number_is_told_of_speakers_who_are_left_out(workplace: Path) -> None:
    manifest = load_manifest(workplace / "all.tsv")
    ages = pa.array([10 + 5 * (k // 4) + 0.5 * (k % 2) for k in range(24)])
    save_manifest(Manifest(manifest.table.append_column("age", ages), manifest.root, "m"), workplace / "aged.parquet")
    keys = {"data.train": [str(workplace / "aged.parquet")], "label": "age", "updates": 5, "hidden": 3}
    result = probe(workplace, **keys)
    assert result["confound"] == "", "only of names"
    assert (result["task"], result["num_folds"], result["num_test_utterances"]) == ("regression", 6, 24)
    assert (result["r2_interval"]["unit"], result["r2_interval"]["count"]) == ("speaker", 6)
    assert result["mean_error_of_mean"] == pytest.approx(9.0, abs=0.5)
    with pytest.raises(DataError, match=r"`data\.test` must have no speaker of data\.train, but has 6"):
        probe(workplace, **keys | {"data.test": keys["data.train"]})
    with pytest.raises(DataError, match=r"`data\.train` must have a column height"):
        probe(workplace, label="height")


def test_verification_counts_the_speakers_of_its_trials(workplace: Path) -> None:
    (workplace / "trials").write_text("".join(f"1 {s}-0 {s}-1\n0 {s}-0 {(s + 1) % 3}-2\n" for s in range(3)))
    keys = {"data.test": [str(workplace / "all.tsv")], "data.trials": str(workplace / "trials")}
    result = probe(workplace, task="verification", **keys)
    assert result["num_speakers"] == result["eer_interval"]["count"] == 3
    assert set(result["speakers"]) == set("012")


def test_an_utterance_that_is_too_short_is_of_its_own_key(workplace: Path) -> None:
    rows = [Utterance(f"{s}-{n}", workplace / f"{s}-{n}.flac", 16_000, 300 + n, 0, s) for s in "01" for n in range(4)]
    save_manifest(build_manifest(rows, workplace), workplace / "short.tsv")
    with pytest.raises(DataError, match=r"`data\.test` must be at least 400 samples"):
        probe(workplace, **{"data.test": [str(workplace / "short.tsv")]})


@pytest.mark.parametrize("task", ["identification", "verification"])
def test_audio_that_cannot_be_used_is_left_out_as_if_it_were_in_no_manifest(
    workplace: Path, task: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys: dict[str, object] = {"task": task}
    if task == "verification":
        lines = [f"1 {s}-0.flac {s}-1.flac\n0 {s}-1 {3 + (s + 1) % 3}-2\n" for s in (3, 4, 5)]
        (workplace / "trials").write_text("".join(lines))
        keys |= {"data.test": [str(workplace / "all.tsv")], "data.trials": str(workplace / "trials")}
    (workplace / "3-1.flac").write_bytes(b"no audio")
    (workplace / "4-3.flac").unlink()
    result = probe(workplace, **keys)
    assert result["num_left_out"] == 2
    assert int(result["num_train_utterances"]) + int(result["num_test_utterances"]) in (22, 44)  # type: ignore[call-overload]
    table = (workplace / "probe" / "left_out.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in table] == ["id", "3-1", "4-3"]
    assert "left out: 2 that cannot be used" in caplog.text
    assert ("2 of 6 trials name an utterance that is left out" in caplog.text) == (task == "verification")


def test_a_speaker_without_audio_that_can_be_used_is_missed(workplace: Path) -> None:
    for number in range(3):
        (workplace / f"5-{number}.flac").unlink()
    with pytest.raises(DataError, match="must have two utterances of each speaker to be split, but has one of 5"):
        probe(workplace)
    for path in workplace.glob("*.flac"):
        path.unlink()
    with pytest.raises(DataError, match=r"`data\.train` must have some that can be used, but none of 24 can be"):
        probe(workplace)


def test_a_probe_learns_separable_classes_and_the_mix_finds_the_state_that_holds_them() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    features = rng.normal(size=(200, 3, 8)).astype(np.float32)
    features[np.arange(200), 1, labels] += 4.0
    trained = train_probe(features, labels, 4, 150, 0.05, 1)
    import torch

    guesses = trained(torch.from_numpy(features)).argmax(-1)[:, 0].numpy()
    assert (guesses == labels).mean() > 0.97
    assert int(trained.weights.argmax()) == 1


def test_split_and_standardise() -> None:
    train, test = split_stratified(["a"] * 10 + ["b"] * 2, 0.2, 1)
    assert len(test) == 3
    assert set(train) | set(test) == set(range(12))
    assert sum(row >= 10 for row in test) == 1
    first, second = standardise(
        np.random.default_rng(0).normal(3, 2, (50, 1, 4)).astype(np.float32), np.zeros((2, 1, 4))
    )
    assert abs(float(first.mean())) < 1e-5
    assert float(second.mean()) < -1.0
