"""Imports go down only, there is no cycle, and heavy or special libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.architecture.source import Module, list_imports, load_modules, resolve

LAYERS = (
    "advice config devices durable errors parsing printable processes progress seeds",
    "audio text evaluation.statistics evaluation.wer",
    "corpora data model",
    "checkpoints inference",
    "interop objectives",
    "checkpoints.header checkpoints.replacement checkpoints.rotation checkpoints.saver checkpoints.state "
    "checkpoints.store checkpoints.validity evaluation report training",
    "bench demo",
    "verbs",
    "cli",
    "__main__ api",
)
"""Rooms from the ground up; a file with a name of its own here stands apart from its room."""

UPWARD = {("speechssl.verbs.bench", "speechssl.cli.compose"), ("speechssl.verbs.demo", "speechssl.api")}
"""These two verbs compose the configurations of other verbs."""


def find_layer(name: str) -> int:
    levels = {room: level for level, rooms in enumerate(LAYERS) for room in rooms.split()}
    path = name.removeprefix("speechssl.")
    return levels.get(path, levels.get(path.partition(".")[0], -1)) if name != "speechssl" else len(LAYERS)


@pytest.mark.parametrize("name", load_modules())
def test_imports_go_down_only(name: str) -> None:
    modules = load_modules()
    upward = []
    for imported in list_imports(modules[name].tree):
        target = resolve(imported, modules)
        # The package itself holds __version__; to import it is to import nothing else.
        if target not in (None, "speechssl") and find_layer(target) > find_layer(name) and (name, target) not in UPWARD:
            upward.append(imported)
    assert not upward, f"{name} imports from above: {upward}"


def test_there_is_no_cycle() -> None:
    modules = load_modules()
    graph = {name: _list_neighbours(module, modules) for name, module in modules.items() if name != "speechssl"}
    done: set[str] = set()
    for name in graph:
        _visit(name, graph, (), done)


def _list_neighbours(module: Module, modules: dict[str, Module]) -> set[str]:
    found = {resolve(name, modules) for name in list_imports(module.tree)}
    return {name for name in found if name not in (None, "speechssl", module.name)}


def _visit(name: str, graph: dict[str, set[str]], trail: tuple[str, ...], done: set[str]) -> None:
    assert name not in trail, f"cycle: {' → '.join([*trail[trail.index(name) :], name])}"
    if name in done:
        return
    for neighbour in sorted(graph[name]):
        _visit(neighbour, graph, (*trail, name), done)
    done.add(name)


@pytest.mark.parametrize("name", load_modules())
def test_only_the_command_line_knows_hydra(name: str) -> None:
    roots = {imported.partition(".")[0] for imported in list_imports(load_modules()[name].tree)}
    assert name.startswith("speechssl.cli") or not roots & {"hydra", "omegaconf", "argparse"}


@pytest.mark.parametrize("name", load_modules())
def test_slow_libraries_are_imported_where_they_are_used(name: str) -> None:
    """librosa and torchaudio take seconds to import, or do not import at all; so never with a module."""
    top = [node for node in load_modules()[name].tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    roots = {imported.partition(".")[0] for node in top for imported in list_imports(node)}
    assert not roots & {"librosa", "torchaudio", "sklearn", "scipy", "transformers", "espeakng_loader", "tensorboard"}


def test_pretraining_loads_neither_librosa_nor_torchaudio() -> None:
    code = "import sys, speechssl.verbs.pretrain; print([m for m in ('librosa', 'torchaudio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_preparing_does_not_load_torch(tmp_path: Path) -> None:
    """It takes seconds, and longer than a corpus of some hours does."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, dtype=np.float32), 16_000)
    words = ["prepare", str(tmp_path), "corpus=folder", f"out={tmp_path / 'm'}"]
    code = f"import sys, speechssl.cli.main as m; m.main({words!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
