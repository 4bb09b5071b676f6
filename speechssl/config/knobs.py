"""How a key of the configuration is declared, checked and listed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from speechssl.errors import ConfigError
from speechssl.parsing import show

MISSING = "???"
"""Marks a key that the user must give (the marker that OmegaConf uses)."""


DAY_S = 86_400.0
"""Most audio that one forward, sub-batch or crop may be: a day of it takes terabytes in any network."""

MAX_WORKERS = 256
"""Most processes that read audio: more than any machine has cores to spare, and fewer than it lets one user start."""


def knob(default: Any, meaning: str, unit: str = "", source: str = "") -> Any:
    """Declare one key of the configuration.

    Args:
        default: the value when nothing else is said; `MISSING` where the user must say.
        meaning: one line for `--help`.
        unit: the unit of the value, if it has one.
        source: paper section or code that the default comes from.
    """
    metadata = {"meaning": meaning, "unit": unit, "source": source}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def check(condition: bool, key: str, must_be: str, value: object) -> None:
    """Raise the `ConfigError` for `key` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"`{key}` must be {must_be}, but is {show(value)}")


def check_finite(key: str, value: float) -> None:
    """Raise a `ConfigError` for `key` if its value is infinite or not a number."""
    check(math.isfinite(value), key, "a finite number", value)


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a `ConfigError` that names the choices unless `value` is one of them."""
    check(value in choices, key, f"one of {', '.join(choice for choice in choices if choice)}", value)


@dataclass(frozen=True)
class Key:
    """One row of `--help`; `item_type_name` is the type of a list's items, empty where any will do."""

    path: str
    type_name: str
    default: Any
    meaning: str
    unit: str
    source: str
    item_type_name: str = ""


def list_keys(schema: type, prefix: str = "") -> list[Key]:
    """List every leaf key below a configuration dataclass, in the order in which they are declared."""
    rows: list[Key] = []
    hints = get_type_hints(schema)
    instance = schema()
    for item in fields(schema):
        path = f"{prefix}{item.name}"
        if is_dataclass(hints[item.name]):
            rows += list_keys(hints[item.name], f"{path}.")
            continue
        hint, meta = hints[item.name], item.metadata
        kind = str(getattr(hint, "__name__", hint))
        inner = str(getattr(get_args(hint)[0], "__name__", "")) if kind == "list" and get_args(hint) else ""
        row = Key(path, kind, getattr(instance, item.name), meta["meaning"], meta["unit"], meta["source"], inner)
        rows.append(row)
    return rows
