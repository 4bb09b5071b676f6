"""The log holds each line once, however a run was cut; figures of the machine beside it."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speechssl.checkpoints.layout import METRICS
from speechssl.errors import ConfigError
from speechssl.training import metrics as telemetry
from speechssl.training.metrics import (
    MEASURED,
    JsonLinesWriter,
    find_last_metrics,
    measure_system,
    read_metrics,
    read_resident_bytes,
)
from speechssl.training.records import read_log
from speechssl.training.trackers import TensorBoardWriter


def write(folder: Path, *records: tuple[int, str]) -> None:
    writer = JsonLinesWriter(folder, 10**9)
    for update, split in records:
        writer.write({"update": update, "split": split, "loss": float(update)})
    writer.close()


def read(folder: Path) -> list[tuple[int, str]]:
    return [(record["update"], record["split"]) for record in read_metrics(folder)]


def test_it_is_cut_back_to_where_the_run_goes_on(tmp_path: Path) -> None:
    write(tmp_path, (0, "valid"), (1, "train"), (2, "train"), (2, "valid"), (3, "train"))
    JsonLinesWriter(tmp_path, 2).close()
    assert read(tmp_path) == [(0, "valid"), (1, "train"), (2, "train"), (2, "valid")]
    # Stopped inside the validation of update 2, which is made again.
    JsonLinesWriter(tmp_path, 2, validated_update=0).close()
    assert read(tmp_path) == [(0, "valid"), (1, "train"), (2, "train")]
    # Killed before the first checkpoint: everything is made again.
    JsonLinesWriter(tmp_path, 0, validated_update=-1).close()
    assert read(tmp_path) == []


def test_the_last_metrics_of_a_split_are_found(tmp_path: Path) -> None:
    write(tmp_path, (1, "train"), (2, "valid"), (2, "train"))
    assert find_last_metrics(tmp_path, "train") == {"loss": 2.0}
    assert find_last_metrics(tmp_path, "test") is None


def test_a_damaged_log_is_cut_there_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, *((update, "train") for update in range(1, 7)))
    before = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(before.replace(b"4.0", b"9.0"))
    writer = JsonLinesWriter(tmp_path, 6)
    assert "line 4 is not what was written (its CRC-32 differs); it is cut there" in caplog.text
    assert "has no line of the updates 4 to 6" in caplog.text
    writer.write({"update": 7, "split": "train", "loss": 7.0})
    writer.close()
    assert [update for update, _ in read(tmp_path)] == [1, 2, 3, 7]
    assert (tmp_path / "damaged-metrics.jsonl").read_bytes() == before.replace(b"4.0", b"9.0")
    assert read_log(tmp_path / METRICS).problem == ""


def test_a_log_that_is_gone_is_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, *((update, "train") for update in range(1, 4)))
    (tmp_path / METRICS).unlink()
    JsonLinesWriter(tmp_path, 2).close()
    assert "has no line of the updates 1 to 2: they are lost" in caplog.text
    write(tmp_path, (3, "train"))
    assert read_log(tmp_path / METRICS).problem == ""


def test_a_kill_between_the_two_files_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Either may be the older one, when the log was cut back and when it grew."""
    for cut in (METRICS, "metrics.crc32"):
        run = tmp_path / f"cut {cut}"
        run.mkdir()
        write(run, *((update, "train") for update in range(1, 6)))
        lines = (run / cut).read_bytes().splitlines(keepends=True)
        (run / cut).write_bytes(b"".join(lines[:3]))
        JsonLinesWriter(run, 2).close()
        write(run, (3, "train"))
        assert [update for update, _ in read(run)] == [1, 2, 3]
        assert "damaged" not in caplog.text and read_log(run / METRICS).problem == ""


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    for name in (METRICS, "metrics.crc32", ".metrics.jsonl.part"):
        run = tmp_path / f"run {name}"
        run.mkdir()
        (run / name).symlink_to(victim)
        write(run, (1, "train"))
        assert [update for update, _ in read(run)] == [1]
    assert victim.read_text() == "precious\n"


def test_tensorboard_reads_the_curves_and_hides_what_was_made_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for update, last in ((0, 5), (3, 6)):
        writer = TensorBoardWriter(tmp_path, update)
        for made in range(update + 1, last + 1):
            writer.write({"update": made, "split": "train", "loss": made + last / 10, "hard_perplexity": [2.0, 3.0]})
        writer.close()
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    points = [(point.step, round(point.value, 3)) for point in curves.Scalars("train/loss")]
    assert points == [(1, 1.5), (2, 2.5), (3, 3.5), (4, 4.6), (5, 5.6), (6, 6.6)]
    assert "train/hard_perplexity_1" in curves.Tags()["scalars"]


def test_a_tensorboard_folder_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to("elsewhere")
    with pytest.raises(ConfigError, match=r"tensorboard could not be \(it is a link\)"):
        TensorBoardWriter(tmp_path, 0)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_memory_grows_with_what_is_held() -> None:
    before = read_resident_bytes()
    # Straight from the system: torch may be given memory that the process has had before.
    with mmap.mmap(-1, 64 * 2**20) as held:
        held.write(b"x" * len(held))
        assert 40 * 2**20 < read_resident_bytes() - before < 200 * 2**20
    found = measure_system(torch.device("cpu"))
    assert found.keys() == {"memory_mib"}
    assert 50 < found["memory_mib"] < 100_000  # type: ignore[operator]


def test_without_proc_the_peak_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = read_resident_bytes()
    monkeypatch.setattr(telemetry, "_STATM", Path("/nowhere"))
    assert read_resident_bytes() >= 0.9 * resident


class NVMLError(Exception):
    """As the driver's package has it."""


def test_a_gpu_says_its_memory_and_its_use_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> int:
        raise NVMLError("not supported")

    driver = SimpleNamespace(NVMLError=NVMLError)
    for package, use, expected in ((driver, lambda _: 73, 0.73), (driver, refuse, None), (None, refuse, None)):
        monkeypatch.setitem(sys.modules, "pynvml", package)  # type: ignore[arg-type]
        monkeypatch.setattr(torch, "cuda", SimpleNamespace(max_memory_allocated=lambda d: 3 * 2**20, utilization=use))
        found = measure_system(torch.device("cuda"))
        assert (found["gpu_memory_mib"], found.get("gpu_use")) == (3.0, expected)
        assert found.keys() <= MEASURED
