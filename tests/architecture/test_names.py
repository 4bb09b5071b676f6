"""Public names have a docstring and full annotations, and the Python face offers what it promises."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

import speechssl
from speechssl.cli.verbs import VERBS
from tests.architecture.source import Module, list_functions, load_modules

PUBLIC = ("load", "save", "embed", "transcribe", "pretraining_forward", "losses", "Vocabulary", "score", *VERBS)


def list_public(module: Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Yield the public functions and classes of a module, and the public methods of those classes."""
    for node in module.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                yield from ((f"{node.name}.{item.name}", item) for item in methods if not item.name.startswith("_"))


def test_modules_and_public_names_have_docstrings() -> None:
    silent = []
    for module in load_modules().values():
        if not ast.get_docstring(module.tree):
            silent.append(module.say(None, module.name))
        for name, node in list_public(module):
            overload = any(isinstance(item, ast.Name) and item.id == "overload" for item in node.decorator_list)
            if not ast.get_docstring(node) and not overload:
                silent.append(module.say(node, name))
    assert not silent


def test_annotations_are_complete() -> None:
    bare = []
    for module in load_modules().values():
        for function in list_functions(module):
            every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            names = {argument.arg for argument in every if argument.annotation is None} - {"self", "cls"}
            bare += [module.say(function, f"{function.name}({name})") for name in sorted(names)]
            if function.returns is None:
                bare.append(module.say(function, f"{function.name} returns"))
    assert not bare


def test_the_python_face_is_complete() -> None:
    assert set(PUBLIC) <= set(speechssl.__all__)
    assert set(PUBLIC) <= set(dir(speechssl))
    assert not [name for name in PUBLIC if name != "losses" and not callable(getattr(speechssl, name))]


def test_the_room_report_can_be_called_however_it_was_imported() -> None:
    from speechssl.report.page import build_report

    assert callable(build_report)
    with pytest.raises(speechssl.ConfigError, match="`rum` must be a key of `speechssl report`"):
        speechssl.report(rum="x")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trainn'"):
        speechssl.trainn  # noqa: B018
