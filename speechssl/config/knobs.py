"""How a key of the configuration is declared, checked and listed."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


def list_keys(config: Any, with_alternatives: bool = False) -> list[Key]:
    """List every leaf key below a configuration, in the order in which they are declared.

    Args:
        config: a dataclass, whose keys have their defaults, or an instance of it, whose keys have its values.
        with_alternatives: take the keys of every dataclass that a section may be, not only of the one that it is.
    """
    return list(_walk_keys(config() if isinstance(config, type) else config, with_alternatives))


def _walk_keys(config: Any, with_alternatives: bool, prefix: str = "") -> Iterator[Key]:
    hints = get_type_hints(type(config))
    for item in fields(config):
        path, value, hint, meta = f"{prefix}{item.name}", getattr(config, item.name), hints[item.name], item.metadata
        if is_dataclass(value):
            others = [schema() for schema in get_args(hint) if with_alternatives and schema is not type(value)]
            rows: dict[str, Key] = {}
            for row in (row for section in (value, *others) for row in _walk_keys(section, with_alternatives, f"{path}.")):
                rows.setdefault(row.path, row)
            yield from rows.values()
            continue
        kind = str(getattr(hint, "__name__", hint))
        inner = str(getattr(get_args(hint)[0], "__name__", "")) if kind == "list" and get_args(hint) else ""
        yield Key(path, kind, value, meta["meaning"], meta["unit"], meta["source"], inner)
