"""The recipes' scripts say what bash, torchrun and speechssl understand; Slurm's commands are played by stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from speechssl.cli.compose import build_config
from speechssl.cli.words import read_words
from speechssl.config.verbs import PretrainConfig
from tests.cases import each_case

FOLDER = Path(__file__).parents[2] / "recipes" / "distributed"
OFFLINE = FOLDER.parent / "offline"
NOTE = '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done > "$0.words"\n'


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put commands on the path that note the words they get; srun runs what it is given."""
    scontrol = NOTE.replace('"$0.words"', '"$0.$1"') + '[ "$1" = requeue ] || printf "n1\\nn2\\n"\n'
    commands = {"torchrun": NOTE, "srun": '#!/bin/sh\nshift\nexec "$@"\n', "scontrol": scontrol}
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "8", "SLURM_JOB_ID": "77"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def read_launch(folder: Path) -> tuple[dict[str, str], PretrainConfig]:
    """Read what torchrun was asked for, by its own parser, and the configuration of what it would start."""
    given = get_args_parser().parse_args((folder / "torchrun.words").read_text().splitlines())
    assert (given.module, given.training_script) == (True, "speechssl")
    assert "SIGUSR1" in given.signals_to_handle
    (request,) = read_words("pretrain", given.training_script_args[1:])
    return vars(given), build_config(request)


@each_case("path", [FOLDER / "one_node", FOLDER / "nodes.sbatch", OFFLINE / "pack", OFFLINE / "there"])
def test_bash_understands_it(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@each_case("gpus", [1, 8])
def test_one_node_shares_the_papers_batch_out(gpus: int, stand_ins: Path) -> None:
    subprocess.run([FOLDER / "one_node", str(gpus), "m/train.tsv", "m/valid.tsv", "runs/a b"], check=True)
    asked, config = read_launch(stand_ins)
    assert (asked["standalone"], asked["nproc_per_node"]) == (True, str(gpus))
    assert config.training.sub_batches_per_update % gpus == 0
    assert (config.training.update_s, config.out) == (5600.0, "runs/a b")


def test_several_nodes_meet_at_the_first(stand_ins: Path) -> None:
    subprocess.run(["bash", FOLDER / "nodes.sbatch", "m/train.tsv", "m/valid.tsv", "runs/a"], check=True)
    asked, config = read_launch(stand_ins)
    assert (asked["nnodes"], asked["nproc_per_node"], asked["max_restarts"]) == ("8", "8", 0)
    assert (asked["rdzv_endpoint"], asked["rdzv_id"]) == ("n1:29500", "77")
    assert config.training.sub_batches_per_update == 64
    assert not (stand_ins / "scontrol.requeue").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm")
def test_a_job_whose_time_is_up_stops_and_goes_back_into_the_queue(stand_ins: Path) -> None:
    stopped = stand_ins / "stopped"
    (stand_ins / "torchrun").write_text(
        f'#!/bin/bash\ntrap "sleep 0.3; touch {stopped}; exit 1" USR1\ntouch {stand_ins}/started\n'
        "while true; do sleep 0.05; done\n"
    )
    job = subprocess.Popen(["bash", FOLDER / "nodes.sbatch", "m/train.tsv", "m/valid.tsv", "runs/a"])
    deadline = time.monotonic() + 10.0
    while not (stand_ins / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(10.0) == 0
    assert stopped.exists(), "it did not wait for the workers to save"
    assert (stand_ins / "scontrol.requeue").read_text().split() == ["requeue", "77"]


def test_a_failed_job_stays_out_of_the_queue(stand_ins: Path) -> None:
    (stand_ins / "torchrun").write_text("#!/bin/sh\nexit 3\n")
    done = subprocess.run(["bash", FOLDER / "nodes.sbatch", "a.tsv", "b.tsv", "runs/a"], check=False)
    assert done.returncode == 3
    assert not (stand_ins / "scontrol.requeue").exists()


def test_what_an_offline_machine_needs_is_packed(stand_ins: Path, tmp_path: Path) -> None:
    """Texts and tables as they are, audio as .ogg in the same tree, one wheel a name."""
    encode = '#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\necho opus > "$1"\n'
    (stand_ins / "ffmpeg").write_text(f"{encode}exit 1\n")
    (stand_ins / "python3").write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\necho "$1" >> "$0.pins"\n')
    for name in ("ffmpeg", "python3"):
        (stand_ins / name).chmod(0o755)
    chapter, digits = tmp_path / "corpora" / "LibriSpeech" / "train" / "19" / "198", tmp_path / "corpora" / "FSDD"
    for folder in (chapter, digits):
        folder.mkdir(parents=True)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 YES\n")
    (chapter / "19-198-0000.flac").write_bytes(b"")
    (digits / "a.flac").write_bytes(b"digit")
    (digits / "utterances.tsv").write_text("path\na.flac\n")
    packed = tmp_path / "packed"
    command = [OFFLINE / "pack", packed, tmp_path / "corpora"]
    assert subprocess.run(command, check=False).returncode == 1
    assert not list(packed.rglob("*.ogg")), "what was cut off is no audio"
    (stand_ins / "ffmpeg").write_text(encode)
    subprocess.run(command, check=True)
    files = {str(path.relative_to(packed / "corpora")) for path in packed.rglob("*") if path.is_file()}
    inside = "LibriSpeech/train/19/198/19-198"
    assert files == {f"{inside}.trans.txt", f"{inside}-0000.ogg", "FSDD/a.flac", "FSDD/utterances.tsv"}
    pins = (stand_ins / "python3.pins").read_text().split()
    assert "soundfile==0.14.0" in pins and {"pooch", "cffi"} <= {pin.partition("=")[0] for pin in pins}


def test_what_an_offline_machine_made_comes_back_without_weights(stand_ins: Path, tmp_path: Path) -> None:
    """Time that is up, and tests that fail, do not stop it."""
    scratch = tmp_path / "scratch"
    run = scratch / "study" / "codes"
    python = stand_ins / "stand-in"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> "$0.words"\ncase "$*" in *librispeech_mini/run*) mkdir -p {run}\n'
        f"touch {run}/metrics.jsonl {run}/model.safetensors\nexit 75;;\n*test_gpu*) exit 1;;\nesac\n"
    )
    python.chmod(0o755)
    packed = tmp_path / "packed"
    for name in ("wheels", "corpora/LibriSpeech"):
        (packed / name).mkdir(parents=True)
    env = {**os.environ, "PYTHON": str(python), "SCRATCH": str(scratch), "STUDY": "model=tiny"}
    subprocess.run([OFFLINE / "there", packed, tmp_path / "results", "1", "5"], env=env, check=True)
    with tarfile.open(tmp_path / "results" / "there.tgz") as archive:
        names = archive.getnames()
    assert "./study/codes/metrics.jsonl" in names
    assert not any("safetensors" in name for name in names)
    asked = (stand_ins / "stand-in.words").read_text()
    assert f"librispeech_mini/run {scratch}/m {scratch}/study codes 1h model=tiny\n" in asked
    assert f"-m speechssl prepare {packed}/corpora/LibriSpeech" in asked
