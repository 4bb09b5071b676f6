"""The facts of a run as tables: what differs from the defaults, where it ran, the last figures, every key."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from speechssl.config.knobs import list_keys
from speechssl.report.html import escape, format_value, make_table
from speechssl.report.run_folder import SCHEMAS, RunFolder


def make_facts(run: RunFolder) -> str:
    """Lay the tables out, each in a fold that opens on a click; '' where there is nothing to tell."""
    folds = [
        _make_fold("Final figures", _tabulate_metrics(run)),
        _make_fold("Result", _tabulate(run.result, ("key", "value"))),
        _make_fold("Configuration that differs from the published BASE", _tabulate_differences(run)),
        _make_fold("Environment", _tabulate(run.environment, ("what", "value"))),
        _make_fold("Whole configuration", _tabulate(run.config, ("key", "value"))),
    ]
    content = "".join(folds)
    return f'<section class="facts"><h3>Facts</h3>{content}</section>' if content else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif key == "command" and isinstance(value, list):
            flat[f"{prefix}{key}"] = shlex.join(map(str, value))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def find_differences(run: RunFolder) -> list[tuple[str, Any, Any, str]]:
    """List the keys whose value is not the default: key, value, default, unit."""
    schema = SCHEMAS.get(run.kind)
    if schema is None:
        return []
    values = flatten(run.config)
    return [
        (key.path, values[key.path], key.default, key.unit)
        for key in list_keys(schema, with_alternatives=True)
        if key.path in values and values[key.path] != key.default
    ]


def _tabulate_differences(run: RunFolder) -> str:
    rows = [
        (path, format_value(value), "must be given" if default == "???" else format_value(default), unit)
        for path, value, default, unit in find_differences(run)
    ]
    return make_table(("key", "here", "default", "unit"), rows) if rows else ""


def _tabulate_metrics(run: RunFolder) -> str:
    """Put the last line of each split side by side."""
    splits = [(name, run.select(name)[-1]) for name in ("train", "valid") if run.select(name)]
    names = list(dict.fromkeys(key for _, row in splits for key in row if key != "split"))
    if not names:
        return ""
    head = ["metric", *("training" if name == "train" else "held out" for name, _ in splits)]
    rows = [[name, *(format_value(row[name]) if name in row else "" for _, row in splits)] for name in names]
    return make_table(head, rows, numeric=range(1, len(head)))


def _tabulate(values: Mapping[str, Any], head: tuple[str, str]) -> str:
    """Tabulate plain values; tables inside (lists of mappings) have pictures of their own and are left to the file."""
    plain = {k: v for k, v in flatten(values).items() if not (isinstance(v, list) and v and isinstance(v[0], Mapping))}
    return make_table(head, [(key, format_value(value)) for key, value in plain.items()]) if plain else ""


def _make_fold(title: str, table: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{table}</details>" if table else ""
