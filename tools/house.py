"""How the code is laid out, in figures: python -m tools.house [ROOT]

For the tree at ROOT (default: the one this file stands in): lines by room, the longest function and file, helpers that
are used once, the share of comments, imports from room to room, and how many tests there are.
"""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = "speechssl"
SHORT = 3
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Function = ast.FunctionDef | ast.AsyncFunctionDef


class File:
    """One file of the package, as text, tree and counts."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.text = path.relative_to(root), path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.name = ".".join(self.path.with_suffix("").parts[1:]).removesuffix(".__init__")
        self.room = self.path.parts[1] if len(self.path.parts) > 2 else "(loose)"
        self.lines = len(self.text.splitlines())
        tokens = list(tokenize.generate_tokens(io.StringIO(self.text).readline))
        self.comments = sum(token.type == tokenize.COMMENT for token in tokens)
        held = (range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in SILENT)
        self.code = len(set().union(*held) - set().union(*map(list_docstring, ast.walk(self.tree))))
        self.functions = [node for node in ast.walk(self.tree) if isinstance(node, Function)]
        # What a line of imports is from, without the package's own name: `from speechssl import audio` is from audio.
        self.imports: list[str] = []
        for node in ast.walk(self.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{PACKAGE}.{node.names[0].name}" if node.module == PACKAGE else str(node.module)]
            self.imports += [name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")]


def list_docstring(node: ast.AST) -> range:
    """List the lines of a node's docstring, if it has one."""
    if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
        return range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    return range(0)


def count_body(function: Function) -> int:
    """Count the lines of a body without its docstring."""
    docstring = list_docstring(function)
    return (function.body[-1].end_lineno or 0) - (docstring.stop or function.body[0].lineno) + 1


def read_layers(root: Path) -> dict[str, int]:
    """Read the layers from the test that keeps them: sets of rooms, or strings of them, from the ground up."""
    text = (root / "tests" / "architecture" / "test_imports.py").read_text(encoding="utf-8")
    layers = ast.literal_eval(text.partition("\nLAYERS = ")[2].partition("\n)\n")[0] + "\n)")
    return {room: at for at, each in enumerate(layers) for room in (each.split() if isinstance(each, str) else each)}


def find_layer(name: str, layers: dict[str, int]) -> int:
    """Find the layer of a file or of a name in one, by the longest part of it that has one; the face is above all."""
    while name and name not in layers:
        name = name.rpartition(".")[0]
    return layers.get(name, len(layers))


def count_tests(root: Path) -> str:
    """Count the tests as pytest does, slow ones included."""
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", "slow or not slow"]
    environment, command = {**os.environ, "PYTHONPATH": str(root)}, [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) tests? collected", done.stdout)
    return found[1] if found else f"unknown: {(done.stdout + done.stderr)[-300:].strip()}"


def describe(root: Path) -> list[str]:
    """Describe the tree at a place, a line a fact."""
    files = [File(path, root) for path in sorted((root / PACKAGE).rglob("*.py"))]
    facts = [f"{'room':14}{'files':>6}{'lines':>8}{'code':>8}"]
    for room in [*sorted({file.room for file in files}), "total"]:
        inside = [file for file in files if room in (file.room, "total")]
        lines, code = sum(file.lines for file in inside), sum(file.code for file in inside)
        facts.append(f"{room:14}{len(inside):6}{lines:8}{code:8}")
    longest = max(files, key=lambda file: file.lines)
    pairs = [(file, function) for file in files for function in file.functions]
    bodies = [(count_body(function), f"{file.path}:{function.lineno}", function.name) for file, function in pairs]
    uses = Counter(word for file in files for word in re.findall(r"\w+", file.text))
    private = [(body, name) for body, _, name in bodies if re.match(r"_[^_]", name)]
    # Where a name is defined it appears too.
    once = [body for body, name in private if uses[name] == 2]
    comments, layers = sum(file.comments for file in files), read_layers(root)
    # The version is no room.
    told = [(file.name, to) for file in files for to in file.imports if to != "__version__"]
    arrows = [(name, to) for name, to in told if name.split(".")[0] != to.split(".")[0]]
    rooms = {(name.split(".")[0], to.split(".")[0]) for name, to in arrows}
    up = [f"{name} → {to}" for name, to in arrows if find_layer(name, layers) < find_layer(to, layers)]
    return [
        *facts,
        f"longest file: {longest.path}, {longest.lines} lines",
        "longest function body: {1} {2}, {0} lines".format(*max(bodies)),
        f"private functions: {len(private)}, used once {len(once)}, "
        f"of which {SHORT} lines or fewer {sum(body <= SHORT for body in once)}",
        f"comment lines: {comments}, {100 * comments / sum(file.lines for file in files):.1f} % of all",
        f"arrows between rooms (a loose file is one): {len(rooms)}, in {len(arrows)} import lines",
        "; ".join([f"upward arrows: {len(up)}", *up]),
        f"tests: {count_tests(root)}",
    ]


if __name__ == "__main__":
    print("\n".join(describe(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())))
