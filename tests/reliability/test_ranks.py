"""Several processes make the updates that one makes, and end well or badly together (targets R5 to R7, D1 to D5)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import speechssl
from speechssl.errors import StoppedOnRequest
from speechssl.interop.load import load_model
from speechssl.training.stop import StopFlag
from tests.conftest import write_librispeech
from tests.integration.test_training import read_split
from tests.reliability.ranks import (
    TIMEOUT_S,
    count_differences,
    count_updates,
    find_children,
    freeze,
    hit,
    kill,
    launch,
    make_words,
    read_state,
    read_trace,
    run_through_kills,
    wait_until_gone,
)

OFF = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "feature_dropout": 0.0, "layer_drop_prob": 0.0}
"""No stochastic layers: then a forward may be cut anywhere."""


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifests(tmp_path_factory.mktemp("ranks"))


def write_manifests(folder: Path) -> Path:
    from speechssl.data.manifest import save_manifest

    root = folder / "LibriSpeech"
    write_librispeech(root, "train", range(1, 5))
    write_librispeech(root, "dev", range(5, 7), num_utterances=2)
    for split in ("train", "dev"):
        save_manifest(read_split(root / split), folder / f"{split}.tsv")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have: sums over two threads have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_keys(manifests: Path, out: Path, **keys: Any) -> dict[str, Any]:
    """Make the keys of a small run, everything random on, two sub-batches an update and a forward each."""
    return {
        "model": "tiny",
        "out": str(out),
        "data.train": [str(manifests / "train.tsv")],
        "data.valid": [str(manifests / "dev.tsv")],
        "data.num_workers": 0,
        "device": "cpu",
        "precision": "float32",
        "model.layer_drop_prob": 0.3,
        "training.ema_decay": 0.9,
        "training.validate_ema": True,
        "training.update_s": 16,
        "training.sub_batch_s": 8,
        "training.forward_s": 8,
        "training.max_updates": 6,
        "training.checkpoint_every": 3,
        "training.validate_every": 3,
        "training.digest_every": 1,
    } | {key.replace("__", "."): value for key, value in keys.items()}


def run_on_ranks(cases: list[dict[str, Any]], folder: Path, num_ranks: int = 2) -> None:
    """Run trainings one after another in the same processes."""
    path = folder / f"cases-{len(list(folder.glob('cases-*.json')))}.json"
    path.write_text(json.dumps([{"verb": "pretrain"} | case for case in cases]), encoding="utf-8")
    with launch([str(path)], folder / path.stem, num_ranks, script="tests/reliability/worker.py") as job:
        assert job.wait(200.0) == 0, job.read_end()


def read_ends(out: Path, num_ranks: int = 2) -> set[str]:
    """Read how a training ended on each rank."""
    return {Path(f"{out}.rank{rank}").read_text(encoding="utf-8") for rank in range(num_ranks)}


def assert_close(a: Path, b: Path, tolerance: float) -> None:
    """Weights, moments and metrics of two runs differ by at most `tolerance`, relative or absolute."""
    one, two = read_state(a), read_state(b)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith("optimizer/exp_avg_sq") or name.endswith("key.bias"):
            continue  # a key's bias has no gradient but rounding, which AdamW scales up
        torch.testing.assert_close(two[name], value, rtol=tolerance, atol=tolerance, msg=name)
    for first, second in zip(read_trace(a), read_trace(b), strict=True):
        assert first.keys() == second.keys()
        for name, figure in first.items():
            # An update of which nothing could be read has no values.
            is_number = not isinstance(figure, str) and figure is not None and figure != [None] * 2
            expected = pytest.approx(figure, rel=10 * tolerance, abs=tolerance) if is_number else figure
            assert second[name] == expected, name


def stop_here_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    calls = iter(range(1, 10_000))
    answer = lambda self: ("stopped by the test", 75) if next(calls) == updates else None  # noqa: E731
    monkeypatch.setattr(StopFlag, "check", answer)


def test_two_processes_make_the_updates_of_one(manifests: Path, tmp_path: Path) -> None:
    """One launch: R6 with diversity, validation and log lines; frozen blocks; FSDP2; a lost bit (D4)."""

    def keys(name: str, **more: Any) -> dict[str, Any]:
        return make_keys(manifests, tmp_path / name, training__max_updates=4, **more)

    tuning = {"init": str(tmp_path / "one"), "training__freeze_share": 0.25, "model__feature_gradient_scale": 0.0}
    tuning |= {"freeze_layers": 1, "training__unfreeze_share": 0.5, "training__layer_lr_decay": 0.5}
    tuning |= {"intermediate_weight": 0.3, "model__self_conditioning": 1, "consistency_weight": 0.2}
    spread = {"training__sharding": "full", "training__clip_norm": 1.0}
    speechssl.pretrain(**keys("one"))
    speechssl.finetune(**drop_model(keys("tuned-one", training__clip_norm=1.0, **tuning)))
    run_on_ranks(
        [
            {"keys": keys("two")},
            {"verb": "finetune", "keys": drop_model(keys("tuned-two", training__clip_norm=1.0, **tuning))},
            {"keys": keys("sharded", training__sharding="full", training__activation_checkpointing=True)},
            {"verb": "finetune", "keys": drop_model(keys("tuned-sharded", **spread, **tuning))},
            {"keys": keys("desync", training__digest_every=2), "desync_at": 3},
        ],
        tmp_path,
    )
    assert count_differences(tmp_path / "one", tmp_path / "two") == 0
    assert count_differences(tmp_path / "tuned-one", tmp_path / "tuned-two") == 0
    assert_close(tmp_path / "two", tmp_path / "sharded", 1e-5)
    assert_close(tmp_path / "tuned-two", tmp_path / "tuned-sharded", 1e-5)
    assert load_model(str(tmp_path / "sharded")).pretraining is not None
    (end,) = read_ends(tmp_path / "desync")
    assert "after update 4 those of rank 0 and 1 differ, first in " in end
    assert count_updates(tmp_path / "desync") == 4
    assert not (tmp_path / "desync" / "checkpoints" / "update-0000004").exists()


@pytest.mark.slow
def test_two_processes_leave_out_what_one_does(tmp_path: Path) -> None:
    """Three files cannot be read; with an utterance a forward, one rank then has nothing while the other has."""
    made = write_manifests(tmp_path / "data")
    for path in (made / "LibriSpeech" / "train").rglob("*-0001.flac"):
        if path.name[0] in "123":
            path.write_bytes(bytes(path.stat().st_size))
    sizes = {"update_s": 8, "sub_batch_s": 4, "forward_s": 4}

    def keys(name: str, **more: Any) -> dict[str, Any]:
        small = {f"training__{name}": size for name, size in sizes.items()}
        return make_keys(made, tmp_path / name, **small, data__max_s=4, data__min_s=0.5, **more)

    speechssl.pretrain(**keys("one"))
    run_on_ranks(
        [
            {"keys": keys("two")},
            {"keys": keys("sharded", training__sharding="full")},
            {"keys": keys("parts"), "stop_after": 4},
            {"keys": keys("parts")},
        ],
        tmp_path,
    )
    assert read_ends(tmp_path / "two") == read_ends(tmp_path / "parts") == {"finished"}
    tables = {(tmp_path / name / "left_out.tsv").read_text() for name in ("one", "two", "sharded", "parts")}
    assert len(tables) == 1
    assert len(tables.pop().splitlines()) == 1 + 3
    assert count_differences(tmp_path / "one", tmp_path / "two") == 0
    assert count_differences(tmp_path / "two", tmp_path / "parts") == 0
    assert_close(tmp_path / "two", tmp_path / "sharded", 1e-5)


@pytest.mark.slow
def test_two_processes_predict_the_codes_of_one(manifests: Path, tmp_path: Path) -> None:
    """The other objective: k-means is fitted on one rank for all, to the same audio, and FSDP2 has its buffers too."""
    task = {"objective": "masked_codes", "objective__targets": "kmeans", "objective__num_codes": 20}

    def keys(name: str, **more: Any) -> dict[str, Any]:
        return make_keys(manifests, tmp_path / name, training__max_updates=3, objective__fit_s=30.0, **task, **more)

    speechssl.pretrain(**keys("one"))
    cases = [{"keys": keys("two")}, {"keys": keys("sharded", training__sharding="full")}]
    run_on_ranks(cases, tmp_path)
    assert count_differences(tmp_path / "one", tmp_path / "two") == 0
    assert_close(tmp_path / "two", tmp_path / "sharded", 1e-5)


@pytest.mark.slow
def test_forwards_may_be_cut_anywhere_and_processes_come_and_go(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without stochastic layers a forward of two sub-batches, two forwards and two processes give the same update.

    And with them: a run of one process goes on in two, whole or sharded, and again in one.
    """

    def keys(name: str, **more: Any) -> dict[str, Any]:
        return make_keys(manifests, tmp_path / name, **more)

    off = {f"model__{key}": value for key, value in OFF.items()}
    speechssl.pretrain(**keys("one"))
    speechssl.pretrain(**keys("stacked", training__forward_s=16, **off))
    speechssl.pretrain(**keys("halves", **off))
    for name in ("elastic", "spread"):
        given = keys(name)
        with monkeypatch.context() as patch:
            stop_here_after(patch, 2)
            with pytest.raises(StoppedOnRequest):
                speechssl.pretrain(**given)
    run_on_ranks(
        [
            {"keys": keys("two-off", **off)},
            {"keys": keys("elastic"), "stop_after": 2},
            {"keys": keys("spread", training__sharding="full"), "stop_after": 2},
        ],
        tmp_path,
    )
    for name in ("elastic", "spread"):
        (end,) = read_ends(tmp_path / name)
        assert end.startswith("StoppedOnRequest: stopped by the test after update 4;")
        speechssl.pretrain(**keys(name))
    assert count_differences(tmp_path / "halves", tmp_path / "two-off") == 0
    assert_close(tmp_path / "stacked", tmp_path / "two-off", 1e-6)
    assert count_differences(tmp_path / "one", tmp_path / "elastic") == 0
    assert_close(tmp_path / "one", tmp_path / "spread", 1e-5)


def drop_model(keys: dict[str, Any]) -> dict[str, Any]:
    """With `init` the network is the checkpoint's."""
    return {key: value for key, value in keys.items() if key != "model"}


@pytest.mark.slow
def test_a_killed_rank_takes_the_job_down_and_a_fresh_launch_goes_on(manifests: Path, tmp_path: Path) -> None:
    """D1 and D2 at their smallest: kill -9 one of two, see it named, launch again; nothing differs."""
    words = make_words(str(manifests / "train.tsv"), updates=10, **{"data.num_workers": 1})
    speechssl.pretrain(**dict(word.split("=", 1) for word in words[1:]), out=str(tmp_path / "whole"))
    readers: list[int] = []

    def kill_and_look_for_readers(pid: int) -> None:
        readers.extend(find_children(pid))
        kill(pid)
        assert wait_until_gone(readers, 4.0) < 4.0, "a reader holds the sockets of its rank open"

    with launch(words, tmp_path / "parts") as job:
        fault = hit(job, kill_and_look_for_readers, rank=1, update=5)
    assert readers
    # On idle cores it is gone within 4 s; the tests share theirs.
    assert fault.gone_s < TIMEOUT_S + 5.0
    assert fault.exit_code != 0
    assert len(fault.causes) == 1
    assert "lost contact with other ranks: rank 1 (" in fault.causes[0]
    with launch(words, tmp_path / "parts") as job:
        assert job.wait() == 0, job.read_end()
    assert count_differences(tmp_path / "whole", tmp_path / "parts") == 0
    assert json.loads(job.read_log().splitlines()[-1])["updates"] == 10


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_at_the_same_update(manifests: Path, tmp_path: Path) -> None:
    """R5: whichever rank hears it."""
    words = make_words(str(manifests / "train.tsv"), updates=1000)
    with launch(words, tmp_path / "run") as job:
        ended = hit(job, lambda pid: os.kill(pid, signal.SIGTERM), rank=1, update=2)
    assert ended.gone_s < 10.0
    done = count_updates(tmp_path / "run")
    assert f"stopped on the request of another rank after update {done}" in ended.causes[0]
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == f"update-{done:07d}"


@pytest.mark.slow
def test_layer_drop_checkpointing_and_accumulation_in_every_combination(manifests: Path, tmp_path: Path) -> None:
    """D5: 20 updates each; digests after every update hold the ranks equal, and one process makes the same."""
    cases = []
    for drop, recompute, update_s in product((0.0, 0.5), (False, True), (16, 32)):
        keys = make_keys(
            manifests,
            tmp_path / f"two-{drop}-{recompute}-{update_s}",
            data__valid=[],
            model__layer_drop_prob=drop,
            training__activation_checkpointing=recompute,
            training__update_s=update_s,
            training__max_updates=20,
        )
        cases.append({"keys": keys})
    run_on_ranks(cases, tmp_path)
    for case in cases:
        two = Path(case["keys"]["out"])
        one = two.with_name(two.name.replace("two", "one"))
        speechssl.pretrain(**(case["keys"] | {"out": str(one)}))
        assert read_ends(two) == {"finished"}
        if two.name.endswith("16"):
            assert count_differences(one, two) == 0
        else:
            # Adam's first steps turn the order of four sums into differences of the size of its epsilon.
            assert_close(one, two, 1e-4)


@pytest.mark.slow
def test_three_processes_sum_and_one_of_them_has_nothing_to_validate(manifests: Path, tmp_path: Path) -> None:
    """The sum of three, not a mean; two validation sub-batches on three ranks; DDP and FSDP2."""
    keys = make_keys(manifests, tmp_path / "one", training__update_s=24, **{f"model__{k}": v for k, v in OFF.items()})
    speechssl.pretrain(**keys)
    runs = [
        keys | {"out": str(tmp_path / "three")},
        keys | {"out": str(tmp_path / "full"), "training.sharding": "full"},
    ]
    run_on_ranks([{"keys": run} for run in runs], tmp_path, num_ranks=3)
    assert_close(tmp_path / "one", tmp_path / "three", 1e-6)
    assert_close(tmp_path / "one", tmp_path / "full", 1e-5)


@pytest.mark.slow
def test_the_number_of_processes_may_change_from_launch_to_launch(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: 2 → 1 → 2 processes, loader workers 0 → 2 → 1; the run is the one that never stopped."""
    keys = make_keys(manifests, tmp_path / "parts")
    run_on_ranks([{"keys": make_keys(manifests, tmp_path / "whole")}, {"keys": keys, "stop_after": 2}], tmp_path)
    with monkeypatch.context() as patch:
        stop_here_after(patch, 2)
        with pytest.raises(StoppedOnRequest):
            speechssl.pretrain(**(keys | {"data.num_workers": 2}))
    run_on_ranks([{"keys": keys | {"data.num_workers": 1}}], tmp_path)
    assert count_differences(tmp_path / "whole", tmp_path / "parts") == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_saves_and_stops(manifests: Path, tmp_path: Path, number: int) -> None:
    """R5 for two processes."""
    words = make_words(str(manifests / "train.tsv"), updates=1000)
    with launch(words, tmp_path / "run") as job:
        job.wait_for_update(4)
        workers = job.find_workers()
        os.kill(job.launcher.pid, number)
        assert wait_until_gone([job.launcher.pid, *workers.values()], 10.0) < 10.0
    done = count_updates(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == f"update-{done:07d}"
    assert f"stopped by {signal.Signals(number).name} after update {done}" in job.read_log()


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_killed(manifests: Path, tmp_path: Path) -> None:
    """D1: a stopped process hears nothing, so the others end it."""
    with launch(make_words(str(manifests / "train.tsv"), updates=1000), tmp_path / "run") as job:
        fault = hit(job, freeze, rank=1, update=3)
    # On idle cores within the timeout + 5 s (docs/distributed.md); by itself torchrun waits 30 s more.
    assert TIMEOUT_S - 1.0 < fault.gone_s < TIMEOUT_S + 15.0
    assert fault.exit_code != 0
    assert len(fault.causes) == 1
    assert "rank 1 (" in fault.causes[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_on_one_rank_is_said_once_with_rank_and_file(tmp_path: Path, workers: int) -> None:
    """D1: ranks meet damaged files, one of them first."""
    folder = write_manifests(tmp_path)
    files = list((folder / "LibriSpeech" / "train").rglob("*.flac"))
    words = make_words(str(folder / "train.tsv"), updates=1000, **{"data.num_workers": workers})
    with launch(words, tmp_path / "run") as job:
        fault = hit(job, lambda pid: [path.write_bytes(b"fLaC") for path in files], rank=1, update=3)
    assert fault.gone_s < 10.0
    assert fault.exit_code != 0
    assert len(fault.causes) == 1
    assert fault.causes[0].startswith(("speechssl: rank 0: ", "speechssl: rank 1: "))
    assert "`data.train` must hold audio that can be read" in fault.causes[0]
    assert any(f"{path} must be audio" in fault.causes[0] for path in files)


@pytest.mark.slow
def test_random_kills_leave_no_trace(manifests: Path, tmp_path: Path) -> None:
    """D2 at CI size."""
    words = make_words(str(manifests / "train.tsv"), updates=24)
    with launch(words, tmp_path / "whole") as job:
        assert job.wait() == 0, job.read_end()
    run_through_kills(words, tmp_path / "parts", num_kills=3, updates=24, seed=7)
    assert count_differences(tmp_path / "whole", tmp_path / "parts") == 0


@pytest.mark.slow
def test_a_wrong_number_of_processes_is_refused_once(manifests: Path, tmp_path: Path) -> None:
    words = make_words(str(manifests / "train.tsv"), updates=4)
    with launch(words, tmp_path / "run", num_ranks=3) as job:
        assert job.wait() != 0
    causes = [line for line in job.read_log().splitlines() if line.startswith("speechssl: ")]
    assert len(causes) == 1
    assert "must divide the 2 sub-batches of an update" in causes[0]
    assert "so be one of 1, 2, but is 3" in causes[0]
    assert not (tmp_path / "run" / "config.yaml").exists(), "no run was begun"
