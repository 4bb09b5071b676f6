"""The figures of the layout, of a house of three rooms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import house

FILES = {
    "tests/architecture/test_imports.py": '"""Layers."""\nLAYERS = (\n    "errors",\n    "model",\n    "cli",\n)\n',
    "speechssl/__init__.py": '"""A house."""\n',
    "speechssl/errors.py": '"""Errors."""\n\nfrom speechssl import model\n',
    "speechssl/model/__init__.py": "",
    "speechssl/model/norm.py": '''"""Norms."""

from speechssl import errors


def scale(x: int) -> int:
    """Scale.

    Twice.
    """
    # Once is not enough.
    x = _double(x)

    return _double(x)


def _double(x: int) -> int:
    return _add(x)


def _add(x: int) -> int:
    return x + x
''',
    "speechssl/cli/main.py": "import speechssl.model.norm\nfrom speechssl import __version__\n",
}


def test_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "count_tests", lambda root: "7")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = house.describe(tmp_path)
    assert [line.split() for line in facts[1:5]] == [
        ["(loose)", "2", "4", "1"],
        ["cli", "1", "2", "2"],
        ["model", "2", "22", "8"],
        ["total", "5", "28", "11"],
    ]
    assert facts[5:] == [
        "longest file: speechssl/model/norm.py, 22 lines",
        "longest function body: speechssl/model/norm.py:6 scale, 4 lines",
        "private functions: 2, used once 1, of which 3 lines or fewer 1",
        "comment lines: 1, 3.6 % of all",
        "arrows between rooms (a loose file is one): 3, in 3 import lines",
        "upward arrows: 1; errors → model",
        "tests: 7",
    ]
