"""The rules of the house that can be counted. A number here may only become stricter."""

from __future__ import annotations

import ast

from tests.architecture.source import list_functions, load_modules

MAX_BODY_LINES = 60
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


def test_files_are_short() -> None:
    modules = load_modules().values()
    assert not [item.say(None, f"{item.num_lines} lines") for item in modules if item.num_lines > MAX_FILE_LINES]


def test_functions_are_short_and_flat() -> None:
    offenders = []
    for module in load_modules().values():
        for function in list_functions(module):
            lines, depth = count_body_lines(function), measure_nesting(function)
            if lines > MAX_BODY_LINES or depth > MAX_NESTING:
                offenders.append(module.say(function, f"{function.name}: {lines} lines, {depth} deep"))
    assert not offenders


def test_no_except_is_broad() -> None:
    offenders = []
    for module in load_modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and module.name not in BROAD:
                names = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else set()
                if not node.type or names & {"Exception", "BaseException"}:
                    offenders.append(module.say(node, "broad except"))
    assert not offenders


def test_nothing_is_left_to_do() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "XXX")
    texts = [(module, module.path.read_text(encoding="utf-8")) for module in load_modules().values()]
    assert not [module.say(None, word) for module, text in texts for word in words if word in text]


def test_nesting_is_measured_as_a_reader_would() -> None:
    tree = ast.parse("for a in b:\n if a:\n  pass\n elif b:\n  with c:\n   pass\n else:\n  pass")
    assert measure_nesting(tree) == 3
