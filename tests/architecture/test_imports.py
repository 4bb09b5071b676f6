"""Imports go down only, there is no cycle, and heavy or special libraries stay where they belong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from tests.architecture.source import Module, list_imports, load_modules, resolve

LAYERS = (
    "advice config devices durable errors parsing printable processes progress seeds",
    "audio text evaluation.statistics evaluation.wer",
    "corpora data model",
    "checkpoints inference",
    "interop objectives",
    "evaluation report training",
    "bench demo",
    "verbs",
    "cli",
    "__main__ api",
)
"""Rooms from the ground up; a file with a name of its own here stands apart from its room."""


def find_layer(name: str) -> int:
    levels = {room: level for level, rooms in enumerate(LAYERS) for room in rooms.split()}
    path = name.removeprefix("speechssl.")
    return levels.get(path, levels.get(path.partition(".")[0], -1)) if name != "speechssl" else len(LAYERS)


def test_every_room_has_its_layer() -> None:
    assert not [name for name in load_modules() if find_layer(name) < 0]


def test_imports_go_down_only() -> None:
    modules = load_modules()
    upward = []
    for module in modules.values():
        for node, imported in list_imports(module.tree):
            target = resolve(imported, modules)
            # The package itself holds __version__; to import it is to import nothing else.
            if target in (None, "speechssl"):
                continue
            if find_layer(target) > find_layer(module.name):
                upward.append(module.say(node, imported))
    assert not upward


def test_there_is_no_cycle() -> None:
    modules = load_modules()
    graph = {name: _list_neighbours(module, modules) for name, module in modules.items() if name != "speechssl"}
    done: set[str] = set()
    for name in graph:
        _visit(name, graph, (), done)


def _list_neighbours(module: Module, modules: dict[str, Module]) -> set[str]:
    found = {resolve(name, modules) for _, name in list_imports(module.tree)}
    return {name for name in found if name not in (None, "speechssl", module.name)}


def _visit(name: str, graph: dict[str, set[str]], trail: tuple[str, ...], done: set[str]) -> None:
    assert name not in trail, f"cycle: {' → '.join([*trail[trail.index(name) :], name])}"
    if name in done:
        return
    for neighbour in sorted(graph[name]):
        _visit(neighbour, graph, (*trail, name), done)
    done.add(name)


def test_only_the_command_line_knows_hydra() -> None:
    assert not [
        module.say(node, name)
        for module in load_modules().values()
        for node, name in list_imports(module.tree)
        if name.partition(".")[0] in {"hydra", "omegaconf", "argparse"} and not module.name.startswith("speechssl.cli")
    ]


def test_slow_libraries_are_imported_where_they_are_used() -> None:
    """librosa and torchaudio take seconds to import, or do not import at all; so never with a module."""
    slow = {"librosa", "torchaudio", "sklearn", "scipy", "transformers", "espeakng_loader", "tensorboard"}
    assert not [
        module.say(node, name)
        for module in load_modules().values()
        for node, name in list_imports(module.tree)
        if node in module.tree.body and name.partition(".")[0] in slow
    ]


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
