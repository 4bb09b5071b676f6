"""The rules of the house that can be counted. A number here may only become stricter."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.source import Module, list_functions, load_modules

MAX_BODY_LINES = 60
SHORT_BODY_LINES = 25
SHORT_SHARE = 0.9
MAX_NESTING = 3
MAX_FILE_LINES = 400

BROAD = {"speechssl.parsing", "speechssl.data.workers"}
"""What reads foreign bytes cannot know what a parser raises, and a thread hands all that it meets to the main one."""

_BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def count_body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a body, its docstring apart."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def measure_nesting(node: ast.AST, depth: int = 0) -> int:
    """Measure how deep blocks stand in each other; `elif` is not deeper than its `if`."""
    deepest = depth
    for name, children in ast.iter_fields(node):
        is_elif = name == "orelse" and isinstance(node, ast.If) and len(node.orelse) == 1
        for child in children if isinstance(children, list) else [children]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
                continue
            deeper = isinstance(child, _BLOCKS) and not (is_elif and isinstance(child, ast.If))
            deepest = max(deepest, measure_nesting(child, depth + deeper))
    return deepest


@pytest.mark.parametrize("module", load_modules().values(), ids=lambda module: module.name)
def test_files_and_functions_are_short_and_flat(module: Module) -> None:
    assert module.num_lines <= MAX_FILE_LINES
    for function in list_functions(module):
        assert count_body_lines(function) <= MAX_BODY_LINES, function.name
        assert measure_nesting(function) <= MAX_NESTING, function.name


def test_nine_functions_of_ten_are_within_25_lines() -> None:
    lengths = [count_body_lines(function) for module in load_modules().values() for function in list_functions(module)]
    assert sum(length <= SHORT_BODY_LINES for length in lengths) / len(lengths) >= SHORT_SHARE


@pytest.mark.parametrize("module", load_modules().values(), ids=lambda module: module.name)
def test_no_broad_except_and_no_todo(module: Module) -> None:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            names = (
                {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"Exception"}
            )
            assert module.name in BROAD or not names & {"Exception", "BaseException"}, f"line {node.lineno}"
    words = ("TO" + "DO", "FIX" + "ME", "XXX")
    assert not [word for word in words if word in module.path.read_text(encoding="utf-8")]


def test_nesting_is_measured_as_a_reader_would() -> None:
    tree = ast.parse("for a in b:\n if a:\n  pass\n elif b:\n  with c:\n   pass\n else:\n  pass")
    assert measure_nesting(tree) == 3
