"""One test that runs many cases of one rule, and lists those that break it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest


def each_case(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for every case, as `pytest.mark.parametrize` does, but as one test.

    All cases run; the failures are raised together, each with its case. Every case has a `tmp_path` and a `monkeypatch`
    of its own and sees only what it printed and logged itself; other fixtures are shared by all.
    """
    keys = [name.strip() for name in names.split(",")]
    rows = [dict(zip(keys, case if len(keys) > 1 else (case,), strict=True)) for case in cases]

    def wrap(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(**fixtures: Any) -> None:
            failures = []
            for number, row in enumerate(rows):
                try:
                    with _refresh(fixtures, number) as fresh:
                        test(**row, **fresh)
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # told below, with its case
                    error.add_note(f"case: {row}")
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(rows)} cases fail", failures)

        signature = inspect.signature(test)
        rest = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        return run

    return wrap


@contextmanager
def _refresh(fixtures: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """Give a case what it may change as if no other had been there."""
    fresh = dict(fixtures)
    if "tmp_path" in fresh:
        fresh["tmp_path"] = fresh["tmp_path"] / str(number)
        fresh["tmp_path"].mkdir()
    if "capsys" in fresh:
        fresh["capsys"].readouterr()
    if "caplog" in fresh:
        fresh["caplog"].clear()
    with pytest.MonkeyPatch.context() as monkeypatch:
        if "monkeypatch" in fresh:
            fresh["monkeypatch"] = monkeypatch
        yield fresh
