"""The package's source as syntax trees, for the tests of this folder."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "speechssl"
WRITTEN = {PACKAGE / "interop" / "huggingface" / "modeling_speechssl.py"}


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def num_lines(self) -> int:
        return len(self.path.read_text(encoding="utf-8").splitlines())

    def say(self, node: ast.AST | None, what: object) -> str:
        """Say what is wrong at a node of this file, or in the whole file, as an editor can jump to it."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {what}"


@cache
def load_modules() -> dict[str, Module]:
    """Parse every file of the package, by dotted name; code that is only written into folders of others is no part."""
    modules = {}
    for path in sorted(set(PACKAGE.rglob("*.py")) - WRITTEN):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def list_imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    """List the dotted names that a tree imports with the statements that do, those inside functions included."""
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def resolve(name: str, modules: dict[str, Module]) -> str | None:
    """Find the module of the package that an imported name is, or lives in."""
    while name:
        if name in modules:
            return name
        name = name.rpartition(".")[0]
    return None


def list_functions(module: Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """List all functions and methods of a module, nested ones too."""
    return [node for node in ast.walk(module.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
