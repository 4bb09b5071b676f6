"""Every command and the Python block of the README run, at tiny size."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from speechssl.cli.compose import build_config
from speechssl.cli.main import main
from speechssl.cli.words import read_words
from speechssl.errors import SpeechSSLError

README = Path(__file__).parents[2] / "README.md"
SMALLER = {"~/recordings": "recordings", "model=small": "model=tiny", "layer=3": "layer=1", "layer=9": "layer=1"}
PUBLISHED = {"torchaudio:WAV2VEC2_ASR_BASE_960H": "runs/asr", "torchaudio:WAV2VEC2_BASE": "hf/asr"}
"""Models that a user downloads, with what earlier commands of the README made, which stands in for them."""

TRAINING = ["training.max_updates=2", "data.num_workers=0", "device=cpu"]
FEWER = {"pretrain": TRAINING, "finetune": TRAINING, "probe": ["updates=5"]}


def read_commands() -> list[str]:
    """List the README's commands, those that need the network last."""
    lines = README.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    commands = [line.strip() for line in lines if line.startswith("    speechssl ")]
    return sorted(commands, key=lambda command: any(name in command for name in PUBLISHED))


def read_python() -> str:
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "the README has a block of Python"
    return found[1]


@pytest.fixture
def workplace(librispeech_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's user has: recordings with transcripts beside them, and clips."""
    for path in sorted(librispeech_tree.rglob("*.trans.txt")):
        folder = tmp_path / "recordings" / path.parts[-3]
        folder.mkdir(parents=True)
        for line in path.read_text().splitlines():
            name, _, text = line.partition(" ")
            shutil.copy(path.parent / f"{name}.flac", folder)
            (folder / f"{name}.txt").write_text(text)
    (tmp_path / "clips").mkdir()
    for path in sorted((librispeech_tree / "dev").rglob("*.flac")):
        shutil.copy(path, tmp_path / "clips")
    shutil.copy(next((tmp_path / "clips").iterdir()), tmp_path / "a.flac")
    shutil.copy(tmp_path / "a.flac", tmp_path / "b.mp3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shrink(command: str) -> list[str]:
    for given, smaller in (SMALLER | PUBLISHED).items():
        command = command.replace(given, smaller)
    words = shlex.split(command)[1:]
    return words + FEWER.get(words[0], [])


def test_commands_and_python(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = read_commands()
    verbs = {command.split()[1] for command in commands}
    assert verbs == {"prepare", "pretrain", "finetune", "evaluate", "transcribe", "embed", "probe", "convert"}
    for command in commands:
        code = main(shrink(command))
        captured = capsys.readouterr()
        assert code == 0, f"{command}: {captured.err}"
        if "transcribe" not in command:
            assert isinstance(json.loads(captured.out.splitlines()[-1]), dict)
    assert {"clips.parquet", "vectors.parquet", "texts.tsv"} <= {path.name for path in workplace.iterdir()}
    scope: dict[str, object] = {}
    exec(compile(read_python().replace("layer=3", "layer=1"), "README.md", "exec"), scope)
    assert scope["table"].num_rows == len(list((workplace / "clips").iterdir()))  # type: ignore[attr-defined]


def test_trainings_from_scratch_are_configurations_as_they_stand() -> None:
    """The commands run with `tiny` above: what a user types has another network, and keys that must fit it."""
    refused, count = [], 0
    pages = [page for page in README.parent.glob("docs/*.md") if page.name != "adding_an_objective.md"]  # invents one
    for page in (README, *pages):
        text = page.read_text(encoding="utf-8").replace("\\\n", "")
        for line in re.findall(r"^    speechssl ((?:pretrain|finetune) [^<…\n]*)$", text, re.MULTILINE):
            verb, *words = shlex.split(line)
            if any(word.startswith("init=") or "=" not in word for word in words):
                continue
            count += 1
            given = words + ([] if any(word.startswith("out=") for word in words) else ["out=x"])
            try:
                build_config(read_words(verb, given)[0])
            except SpeechSSLError as error:
                refused.append(f"{page.name}: {line}: {error}")
    assert count > 5
    assert refused == []


def test_commands_can_be_pasted_into_any_shell() -> None:
    """Nothing outside of quotes is a glob (but those of clips) or a comment, which zsh would trip over."""
    root = README.parent
    odd, count = [], 0
    for page in (README, *root.glob("docs/*.md"), *root.glob("recipes/*/README.md")):
        for line in re.findall(
            r"^    (?:speechssl|torchrun|git|pip|tools/|recipes/|python) ?.*", page.read_text(), re.MULTILINE
        ):
            count += 1
            bare = re.sub(r"'[^']*'|\"[^\"]*\"|clips/\*\.flac|<[^>]*>| > [\w./]+$", "", line)
            if re.search(r"[][*?{}#<>]", bare):
                odd.append(f"{page.name}: {line.strip()}")
    assert count > 50
    assert odd == []


def test_models_table_has_the_real_sizes() -> None:
    """The README's parameter counts are those of the presets."""
    import torch

    from speechssl.cli.compose import compose
    from speechssl.model.pretraining import PretrainingModel

    for name, count in re.findall(r"\| `(\w+)` \|[^|]*\| ([\d,]+) \|", README.read_text(encoding="utf-8")):
        with torch.device("meta"):
            model = PretrainingModel(compose("pretrain", [f"model={name}", "out=x"]).model)
        assert sum(p.numel() for p in model.parameters()) == int(count.replace(",", "")), name
