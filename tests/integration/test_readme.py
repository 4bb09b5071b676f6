"""Every command and the Python block of the README run, at tiny size."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from speechssl.cli.main import main

README = Path(__file__).parents[2] / "README.md"
SMALLER = {
    "~/recordings": "recordings",
    "model=small": "model=tiny",
    "layer=3": "layer=1",
    "[10m,1h]": "[5s,10s]",
    "100-1h.tsv": "100-10s.tsv",
}
TRAINING = ["training.max_updates=2", "data.num_workers=0", "device=cpu"]


def read_commands() -> list[str]:
    return [
        line.strip() for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("    speechssl ")
    ]


def read_python() -> str:
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "the README has a block of Python"
    return found[1]


@pytest.fixture
def workplace(librispeech_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's user has: recordings, a LibriSpeech tree, clips."""
    names = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
    for here, there in names.items():
        shutil.copytree(librispeech_tree / here, tmp_path / "LibriSpeech" / there)
    for number, path in enumerate(sorted(librispeech_tree.rglob("*.flac"))):
        folder = tmp_path / "recordings" / f"speaker{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    (tmp_path / "clips").mkdir()
    for path in sorted((librispeech_tree / "dev").rglob("*.flac")):
        shutil.copy(path, tmp_path / "clips")
    shutil.copy(next((tmp_path / "clips").iterdir()), tmp_path / "a.flac")
    shutil.copy(tmp_path / "a.flac", tmp_path / "b.mp3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shrink(command: str) -> list[str]:
    for given, smaller in SMALLER.items():
        command = command.replace(given, smaller)
    words = shlex.split(command)[1:]
    return words + TRAINING if words[0] in ("pretrain", "finetune") else words


def test_commands_and_python(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = read_commands()
    verbs = {command.split()[1] for command in commands}
    assert {"prepare", "pretrain", "finetune", "evaluate", "transcribe", "embed"} <= verbs
    for command in commands:
        code = main(shrink(command))
        captured = capsys.readouterr()
        assert code == 0, f"{command}: {captured.err}"
        assert isinstance(json.loads(captured.out.splitlines()[-1]), dict)
    assert (workplace / "clips.parquet").exists()
    scope: dict[str, object] = {}
    exec(compile(read_python().replace("layer=3", "layer=1"), "README.md", "exec"), scope)
    assert scope["table"].num_rows == len(list((workplace / "clips").iterdir()))  # type: ignore[attr-defined]


def test_models_table_has_the_real_sizes() -> None:
    """The README's parameter counts are those of the presets."""
    import torch

    from speechssl.cli.compose import compose
    from speechssl.model.pretraining import PretrainingModel

    for name, count in re.findall(r"\| `(\w+)` \|[^|]*\| ([\d,]+) \|", README.read_text(encoding="utf-8")):
        with torch.device("meta"):
            model = PretrainingModel(compose("pretrain", [f"model={name}", "out=x"]).model)
        assert sum(p.numel() for p in model.parameters()) == int(count.replace(",", "")), name
