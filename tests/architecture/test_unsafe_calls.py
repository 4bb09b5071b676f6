"""Nothing in the package runs what a file says (target S2 of the reliability notes). There is no list of exceptions."""

from __future__ import annotations

import ast

from tests.architecture.source import ROOT

BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FUNCTIONS = {
    "torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
    "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
METHODS = {"instantiate", "extractall", "extract"}
KEYWORDS = {"weights_only": False, "shell": True, "allow_pickle": True}


def find_unsafe(source: str) -> list[str]:
    """List what a file has that could run what it reads: `line: what`."""
    tree = ast.parse(source)
    names = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            for alias in node.names:
                full = f"{module}.{alias.name}" if module else alias.name
                names[alias.asname or (alias.name if module else alias.name.partition(".")[0])] = (
                    full if module or alias.asname else alias.name.partition(".")[0]
                )
                if full.partition(".")[0] in MODULES or full.startswith("torch.hub"):
                    found.append((node.lineno, full))
    found += [(node.lineno, what) for node in ast.walk(tree) if (what := judge(node, names))]
    return [f"{line}: {what}" for line, what in sorted(found)]


def judge(node: ast.AST, names: dict[str, str]) -> str:
    """Say what is unsafe about one call; nothing where it is safe."""
    if not isinstance(node, ast.Call):
        return ""
    for keyword in node.keywords:
        value = keyword.value
        if keyword.arg in KEYWORDS and not (
            isinstance(value, ast.Constant) and value.value is not KEYWORDS[keyword.arg]
        ):
            return f"{keyword.arg}={ast.unparse(value)}"
    dotted = ast.unparse(node.func)
    first, _, rest = dotted.partition(".")
    full = ".".join(part for part in (names.get(first, first), rest) if part)
    if full in BUILTINS | FUNCTIONS or full.startswith("torch.hub."):
        return full
    last = full.rpartition(".")[2]
    is_filtered = last.startswith("extract") and any(
        keyword.arg == "filter" and isinstance(keyword.value, ast.Constant) and keyword.value.value == "data"
        for keyword in node.keywords
    )
    return full if last in METHODS and not is_filtered else ""


def test_nothing_runs_what_a_file_says() -> None:
    files = [path for folder in ("speechssl", "tools", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {path: find_unsafe(path.read_text(encoding="utf-8")) for path in files}
    assert not [f"{path.relative_to(ROOT)}:{what}" for path, unsafe in found.items() for what in unsafe]


UNSAFE = [
    "eval(text)",
    "exec(text)",
    "compile(text, '', 'exec')",
    "__import__(name)",
    "import pickle",
    "from pickle import Unpickler",
    "import _pickle as quick",
    "import joblib",
    "import marshal",
    "import torch.hub",
    "from torch import hub",
    "import torch\ntorch.hub.load('a', 'b')",
    "import torch\ntorch.load('a.pt', weights_only=True)",
    "from torch import load as read\nread('a.pt')",
    "import torch as t\nt.load('a.pt')",
    "f(weights_only=False)",
    "f(weights_only=flag)",
    "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
    "import yaml\nyaml.load(text, Loader=Loader)",
    "from hydra.utils import instantiate\ninstantiate(config)",
    "hydra.utils.instantiate(config)",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import os\nos.system('ls')",
    "archive.extractall(folder)",
    "archive.extractall(folder, filter='fully_trusted')",
    "archive.extract(member, folder)",
]
SAFE = [
    "model.eval()",
    "import re\nre.compile('a')",
    "import torch\ntorch.compile(model)",
    "import pickletools\npickletools.genops(file)",
    "import yaml\nyaml.safe_load(text)",
    "archive.extractall(folder, filter='data')",
    "f(weights_only=True)",
    "subprocess.run(['ls'], shell=False)",
]


def test_the_rule_tells_unsafe_from_safe() -> None:
    assert not [source for source in UNSAFE if not find_unsafe(source)]
    assert not [source for source in SAFE if find_unsafe(source)]
