"""The facts of a run as tables: what differs from the defaults, where it ran, the last figures, every key."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from speechssl.config.knobs import list_keys
from speechssl.report.content import Table, format_value
from speechssl.report.run_folder import SCHEMAS, RunFolder


def make_facts(run: RunFolder) -> list[tuple[str, Table]]:
    """Give the tables of a run with their titles; those with nothing to tell are left out."""
    changed = [(path, format_value(value), "must be given" if default == "???" else format_value(default), unit)
               for path, value, default, unit in find_differences(run)]  # fmt: skip
    splits = [run.select(name)[-1] for name in ("train", "valid") if run.select(name)]
    names = dict.fromkeys(key for row in splits for key in row if key != "split")
    head = ["metric", *({"train": "training", "valid": "held out"}[row["split"]] for row in splits)]
    last = [[name, *(format_value(row[name]) if name in row else "" for row in splits)] for name in names]
    tables = {
        "Final figures": Table(head, last),
        "Result": _tabulate(run.result),
        "Configuration that differs from the published BASE": Table(("key", "here", "default", "unit"), changed),
        "Environment": _tabulate(run.environment),
        "Whole configuration": _tabulate(run.config),
    }
    return [(title, table) for title, table in tables.items() if table.rows]


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


def _tabulate(values: Mapping[str, Any]) -> Table:
    """Tabulate plain values; tables inside (lists of mappings) have pictures of their own and are left to the file."""
    plain = {k: v for k, v in flatten(values).items() if not (isinstance(v, list) and v and isinstance(v[0], Mapping))}
    return Table(("key", "value"), [(key, format_value(value)) for key, value in plain.items()])
