"""Public names have a docstring and full annotations, and the Python face offers what it promises."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

import speechssl
from speechssl.cli.verbs import VERBS
from tests.architecture.source import Module, list_functions, load_modules

PUBLIC = ("load", "save", "embed", "transcribe", "pretraining_forward", "losses", "Vocabulary", "score", *VERBS)


def list_public(module: Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield the public functions and classes of a module, and the public methods of those classes."""
    for node in module.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                yield from ((f"{node.name}.{item.name}", item) for item in methods if not item.name.startswith("_"))


@pytest.mark.parametrize("module", load_modules().values(), ids=lambda module: module.name)
def test_public_names_have_docstrings(module: Module) -> None:
    assert ast.get_docstring(module.tree), "the module says nothing"
    silent = [
        name
        for name, node in list_public(module)
        if not ast.get_docstring(node) and not _is_overload(node)  # type: ignore[arg-type]
    ]
    assert not silent


def _is_overload(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(isinstance(item, ast.Name) and item.id == "overload" for item in decorators)


@pytest.mark.parametrize("module", load_modules().values(), ids=lambda module: module.name)
def test_annotations_are_complete(module: Module) -> None:
    for function in list_functions(module):
        assert function.returns is not None, function.name
        every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [argument.arg for argument in every if argument.annotation is None]
        assert not set(bare) - {"self", "cls"}, function.name


@pytest.mark.parametrize("name", PUBLIC)
def test_the_python_face_is_complete(name: str) -> None:
    assert name in speechssl.__all__
    assert name in dir(speechssl)
    value = getattr(speechssl, name)
    assert name == "losses" or callable(value)


def test_the_room_report_can_be_called_however_it_was_imported() -> None:
    from speechssl.report.page import build_report

    assert callable(build_report)
    with pytest.raises(speechssl.ConfigError, match="`rum` must be a key of `speechssl report`"):
        speechssl.report(rum="x")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trainn'"):
        speechssl.trainn  # noqa: B018
