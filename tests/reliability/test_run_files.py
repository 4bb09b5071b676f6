"""Files of a run beside its checkpoints: a disk that fills while updates are made, damage, and a folder that goes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cases import each_case
from tests.reliability.harness import ForkServer, Run, find_differences, list_unreadable, read_outcome

KEYS = {"data.num_workers": 0, "training.max_updates": 8, "training.checkpoint_every": 5, "training.validate_every": 8}


@pytest.fixture(scope="module")
def whole(server: ForkServer, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give the outcome of a run that nobody disturbed."""
    run = Run(server, manifests, tmp_path_factory.mktemp("whole") / "run", KEYS)
    assert run.finish() == 0, run.log.read_text()
    return read_outcome(run)


def check_sentence(run: Run, part: str) -> None:
    """Check that a run ended with one sentence, and that its log holds whole lines."""
    text = run.log.read_text()
    assert "Traceback" not in text
    assert part in text.splitlines()[-1] and text.splitlines()[-1].startswith("speechssl: `out` must ")
    log = run.out / "metrics.jsonl"
    assert not log.exists() or log.read_bytes()[-1:] in (b"", b"\n")


@pytest.mark.slow
def test_a_limit_on_file_sizes_stops_the_log_with_one_sentence(
    server: ForkServer, manifests: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    run = Run(server, manifests, tmp_path / "run", KEYS)
    assert run.finish(SPEECHSSL_CRASH_AT="end:1") == -9
    log = (run.out / "metrics.jsonl").stat().st_size
    assert run.finish(file_bytes=log + 100) == 2
    check_sentence(run, "metrics.jsonl could not be (File too large)")
    assert run.finish() == 0
    assert (run.find_resumed(), find_differences(whole, read_outcome(run))) == (5, [])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a filesystem of 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a filesystem cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("pages", [0, 3, 5])
def test_a_disk_that_is_full_is_one_sentence_and_with_room_the_run_is_the_same(
    server: ForkServer, manifests: Path, tmp_path: Path, disk: Path, whole: dict[str, Any], pages: int
) -> None:
    """Each file takes a page: so the lock, the configuration, TensorBoard and the log are refused in turn."""
    run = Run(server, manifests, disk, KEYS)
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - 4096 * pages))
    assert run.finish() == 2
    check_sentence(run, "No space left on device")
    filler.unlink()
    assert run.finish() == 0
    assert find_differences(whole, read_outcome(run)) == [] and not list_unreadable(run)
    assert (run.out / "report.html").exists()


def test_a_folder_that_is_deleted_meanwhile_does_not_come_back_by_half(
    server: ForkServer, manifests: Path, tmp_path: Path
) -> None:
    run = Run(
        server, manifests, tmp_path / "run", {**KEYS, "training.max_updates": 500, "training.checkpoint_every": 99}
    )
    pid = run.start()
    assert run.wait_for_update(pid, 2)
    (run.out).rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    assert run.wait(pid) == 2, run.log.read_text()
    check_sentence(run, "it was deleted meanwhile")
    assert not run.out.exists()


@pytest.fixture(scope="module")
def begun(server: ForkServer, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a run that was killed after its first checkpoint."""
    run = Run(server, manifests, tmp_path_factory.mktemp("begun") / "run", KEYS)
    assert run.finish(SPEECHSSL_CRASH_AT="end:1") == -9
    (run.out / "result.json").write_text('{"updates": 5}')
    return run.out


@pytest.mark.slow
@each_case("name", ["metrics.jsonl", "metrics.crc32", "config.yaml", "environment.json", "result.json"])
def test_a_flipped_bit_is_told_and_changes_no_logged_number(
    server: ForkServer, manifests: Path, tmp_path: Path, whole: dict[str, Any], begun: Path, name: str
) -> None:
    rng = random.Random(name)
    for number in range(2):
        run = Run(server, manifests, tmp_path / f"run-{number}", KEYS)
        shutil.copytree(begun, run.out, symlinks=True)
        content = bytearray((run.out / name).read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (run.out / name).write_bytes(content)
        code = run.finish()
        if name == "config.yaml":
            assert code == 2 and "Traceback" not in run.log.read_text()
            continue
        assert code == 0, run.log.read_text()
        outcome = read_outcome(run)
        lost = find_differences(whole, outcome)
        assert not [key for key in lost if key in outcome], "what is logged is what was"
        assert not lost or (name.startswith("metrics") and "it is cut there" in run.log.read_text())


def test_links_in_a_run_folder_are_not_followed(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    run = Run(server, manifests, tmp_path / "run", {**KEYS, "training.max_updates": 2})
    run.out.mkdir()
    names = ("metrics.jsonl", "metrics.crc32", "skipped.jsonl", "environment.json", "report.html", ".result.json.part")
    for name in names:
        os.symlink(victim, run.out / name)
    assert run.finish() == 0, run.log.read_text()
    assert victim.read_text() == "precious\n"
    os.unlink(run.out / ".lock")
    os.symlink(victim, run.out / ".lock")
    assert run.finish() == 2
    check_sentence(run, ".lock could not be")
    assert victim.read_text() == "precious\n"
