"""The study of recipes/librispeech_mini, from data to table, on synthetic speech with `tiny` and three updates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import speechssl
from recipes.librispeech_mini.study import main as study
from recipes.librispeech_mini.study.cells import ALL, FEW, REHEARSAL, Cell
from recipes.librispeech_mini.study.plan import Places
from recipes.librispeech_mini.study.records import read_record, write_record
from recipes.librispeech_mini.study.runner import Settings, run_cell
from speechssl.errors import ConfigError, DataError, StoppedOnRequest
from speechssl.model.speech_model import SpeechModel
from speechssl.training.run import seed_weights
from tests.conftest import write_librispeech

CHAIN = Cell("wav2vec2-1", "wav2vec2", 1, (ALL,))
STEPS = ["pretrain", "finetune-all", "evaluate-all", "verification", "digits"]
SETTINGS = Settings(device="cpu", precision="float32", num_workers=0)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """Give a folder with `LibriSpeech` in the study's splits, and `FSDD` with two digits of two speakers."""
    folder = tmp_path_factory.mktemp("study")
    root = folder / "LibriSpeech"
    for split, speakers, count in (("train", (1, 5), 3), ("unlabelled", (11, 13), 1), ("dev", (5, 7), 2)):
        write_librispeech(root, split, range(*speakers), count)
    for split, speakers in (("test", (7, 9)), ("test-other", (9, 11))):
        write_librispeech(root, split, range(*speakers), 2)
    lines = ["; ID | SEX | SUBSET | MINUTES | NAME", *(f"{n} | F | train | 1.0 | Speaker {n}" for n in range(1, 13))]
    (root / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n")
    (folder / "FSDD").mkdir()
    rows = ["utterance\tspeaker\ttext\tpath"]
    for number, (speaker, digit) in enumerate((s, d) for s in "ab" for d in ("ONE", "TWO") for _ in range(3)):
        soundfile.write(folder / "FSDD" / f"{number}.flac", speech(0.6, number), 16_000)
        rows.append(f"{number}\t{speaker}\t{digit}\t{number}.flac")
    (folder / "FSDD" / "utterances.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def places(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Give the places of a study of which one cell, `CHAIN`, is done."""
    out = tmp_path_factory.mktemp("out")
    places = Places(corpora / "LibriSpeech", corpora / "FSDD", None, out, out / "results")
    assert run_cell(CHAIN, places, REHEARSAL, SETTINGS)["done"] == STEPS
    return places


def read(places: Places, cell: str, step: str) -> dict[str, object]:
    record = read_record(places.results / cell / f"{step}.json")
    assert record is not None, f"{cell} has no {step}"
    return record


def test_a_chain_from_data_to_table(places: Places, tmp_path: Path) -> None:
    records = [read(places, "wav2vec2-1", step) for step in STEPS]
    assert all(record["status"] == "done" and record["wall_s"] > 0 and record["seed"] == 1 for record in records)
    pretraining, tuning, evaluation, verification, digits = records
    assert (pretraining["updates"], pretraining["precision"]) == (3, "float32")
    # Sub-batches of 8 s hold at most that much.
    assert 0 < pretraining["hours_seen"] <= 3 * 8 / 3600
    assert 0 < pretraining["updates_s"] < pretraining["wall_s"]
    assert pretraining["flop"] > 0 and tuning["hours_seen"] > 0
    assert set(evaluation["metrics"]) == {"dev/greedy", "test/greedy", "test-other/greedy"}
    assert [item["speaker"] for item in evaluation["metrics"]["test/greedy"]["speakers"]] == ["7", "8"]
    assert len(verification["metrics"]["verification"]["layers"]) == len(digits["metrics"]["digits"]["layers"]) == 3
    assert set(digits["metrics"]["digits"]["speakers"]) == {"a", "b"}
    assert len(digits["metrics"]["digits"]["untrained"]["layers"]) == 3
    # Nothing that is kept names a folder of this machine.
    text = "".join(path.read_text() for path in places.results.rglob("*.json"))
    assert str(places.out) not in text and str(places.data) not in text
    assert study.main(["table", f"results={shutil.copytree(places.results, tmp_path / 'results')}"]) == 0
    assert "| wav2vec2-1 | all |" in (tmp_path / "results" / "tables.md").read_text()


def test_a_finished_cell_is_not_run_again_and_a_changed_one_is_refused(places: Places) -> None:
    before = {path: path.read_text() for path in places.results.rglob("*.json")}
    run_cell(CHAIN, places, REHEARSAL, SETTINGS)
    assert {path: path.read_text() for path in places.results.rglob("*.json")} == before
    path = places.results / "wav2vec2-1" / "pretrain.json"
    record = json.loads(before[path])
    write_record(path, record | {"commands": [record["commands"][0].replace("seed=1", "seed=2")]})
    with pytest.raises(ConfigError, match="but they have changed since"):
        run_cell(CHAIN, places, REHEARSAL, SETTINGS)
    path.write_text(before[path])


def test_a_trial_rebuilds_the_pretraining_that_another_session_made(places: Places) -> None:
    before = (places.results / "wav2vec2-1" / "pretrain.json").read_text()
    weights = places.out / "wav2vec2-1" / "pretrain" / "checkpoints" / "last" / "model.safetensors"
    first = load_file(weights)
    shutil.rmtree(places.out / "wav2vec2-1")
    trial = Cell("trial-wav2vec2-slow", "wav2vec2", 1, (FEW,), "trial", "slow")
    run_cell(trial, places, REHEARSAL, SETTINGS)
    again = load_file(weights)
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert (places.results / "wav2vec2-1" / "pretrain.json").read_text() == before
    assert set(read(places, trial.name, "evaluate-1h")["metrics"]) == {"dev/greedy"}


def test_a_frozen_random_encoder_stays_as_drawn(places: Places) -> None:
    run_cell(Cell("random_frozen-1", "random_frozen", 1, (ALL,)), places, REHEARSAL, SETTINGS)
    tuned = speechssl.load(places.out / "random_frozen-1" / "finetune-all" / "checkpoints" / "last")
    seed_weights(1)
    drawn = SpeechModel(tuned.config, tuned.vocabulary).state_dict()
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, drawn[name])}
    assert changed == {"head.linear.weight", "head.linear.bias"}


def test_a_failure_is_kept_with_its_sentence_and_tried_again(places: Places) -> None:
    results = places.out / "failing"
    broken = Places(places.data, None, None, places.out / "broken", results)
    cell = Cell("trial-scratch-log_mel", "scratch", 1, (FEW,), "trial", "log_mel")
    shutil.copytree(places.out / "m", broken.out / "m")
    (broken.out / "m" / "train-1h.tsv").write_text("nothing\n")
    with pytest.raises(DataError):
        run_cell(cell, broken, REHEARSAL, SETTINGS)
    record = read(broken, cell.name, "finetune-1h")
    assert record["status"] == "failed" and "OUT/m/train-1h.tsv" in record["error"]
    shutil.copy(places.out / "m" / "train-1h.tsv", broken.out / "m" / "train-1h.tsv")
    run_cell(cell, broken, REHEARSAL, SETTINGS)
    assert (read(broken, cell.name, "finetune-1h")["tries"]) == 2


def test_a_training_that_was_stopped_goes_on(places: Places) -> None:
    stopped = Places(places.data, None, None, places.out / "stopped", places.out / "stopped" / "results")
    shutil.copytree(places.out / "m", stopped.out / "m")
    cell = Cell("trial-scratch-log_mel", "scratch", 2, (FEW,), "trial", "log_mel")
    with pytest.raises(StoppedOnRequest):
        run_cell(cell, stopped, REHEARSAL, Settings("cpu", "float32", 0, max_hours=1e-9))
    assert read(stopped, cell.name, "finetune-1h")["status"] == "stopped"
    run_cell(cell, stopped, REHEARSAL, SETTINGS)
    assert read(stopped, cell.name, "finetune-1h")["status"] == "done"


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["cell=wav2vec2-1"]) == 2
    assert "`data` must be the LibriSpeech folder" in capsys.readouterr().err
    assert study.main(["table", "cell=a"]) == 2
    assert "words must be results with = and a value" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "gpu"])
def test_the_scripts_start_from_any_folder(name: str, tmp_path: Path) -> None:
    script = Path(study.__file__).parent / name
    done = subprocess.run(
        [sys.executable, script, "nonsense"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "study: words must be" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kmeans-1", "random_projection-1", "trial-scratch-log_mel_speed", "long-scratch-1"])
def test_every_kind_of_cell_is_rehearsed(name: str, corpora: Path, tmp_path: Path) -> None:
    words = [f"cell={name}", f"data={corpora / 'LibriSpeech'}", f"out={tmp_path}"]
    assert study.main([*words, "rehearse=true", "workers=0", "device=cpu"]) == 0


@pytest.mark.slow
def test_the_gpu_chain_is_rehearsed_in_parts(corpora: Path, tmp_path: Path) -> None:
    from recipes.librispeech_mini.study import gpu

    words = [f"data={corpora / 'LibriSpeech'}", f"out={tmp_path}", "rehearse=true", "workers=0", "device=cpu"]
    assert gpu.main([*words, "scales=12x512"]) == 0
    record = read_record(tmp_path / "results" / "gpu-12x512-scratch-1" / "finetune-1h.json")
    assert record is not None and record["status"] == "done" and record["tries"] == 2


@pytest.mark.slow
def test_cells_share_a_gpu_in_processes_of_their_own(corpora: Path, tmp_path: Path) -> None:
    from recipes.librispeech_mini.study import gpu

    words = [f"data={corpora / 'LibriSpeech'}", f"out={tmp_path}", "rehearse=true", "workers=0", "device=cpu"]
    words += ["scales=12x512", "processes=2"]
    assert gpu.main([*words, "minutes=0.05"]) == 75
    assert gpu.main(words) == 0
    for cell in ("scratch", "kmeans", "wav2vec2"):
        record = read_record(tmp_path / "results" / f"gpu-12x512-{cell}-1" / "verification.json")
        assert record is not None and record["status"] == "done"
        assert (tmp_path / f"gpu-12x512-{cell}-1-1h.log").stat().st_size > 0
    assert gpu.main([*words, "cell=gpu-12x512-hubert-1"]) == 2
