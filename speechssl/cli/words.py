"""What a user typed, or passed to a Python function, as one `Request`: choices from groups, and values by key."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from speechssl.advice import escape_interpolations
from speechssl.cli.overrides import MAX_JOBS, is_assignment, list_sweep, parse_override, read_searchpath
from speechssl.cli.verbs import VERBS
from speechssl.config.knobs import Key, list_keys
from speechssl.errors import ConfigError
from speechssl.printable import abbreviate

CONF_FOLDERS = (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
"""Where `conf/` is: inside the package in a wheel, beside it in a checkout."""

_PRESET = re.compile(r"\w[\w.-]*", re.ASCII)
"""Name of a file in a group of `conf/`, without its suffix."""


@dataclass
class Request:
    """One command, before it meets the schema.

    Args:
        verb: name of the verb.
        choices: group → file chosen from it (`model` → `small`).
        values: key → value, in the order in which they were given.
        hydra: overrides of hydra's own keys, passed on as they are.
    """

    verb: str
    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    hydra: list[str] = field(default_factory=list)

    def add(self, key: str, value: Any) -> None:
        """Add a choice or a value; a mapping for a section is taken apart into its keys.

        Text may hold interpolations such as `${model.name}`; see `escape` for text that must stay as it is.
        """
        if key in find_groups(self.verb) and isinstance(value, str) and key in _list_sections(self.verb):
            self._check_preset(key, value)
            self.choices[key] = value
        elif isinstance(value, Mapping) and key in _list_sections(self.verb):
            for name, inner in value.items():
                self.add(f"{key}.{name}", inner)
        else:
            self.values[key] = _fit_value(find_key(self.verb, key), key, value)

    def _check_preset(self, group: str, name: str) -> None:
        """Refuse what no file can be called, and training presets of another verb, whose keys this one lacks."""
        options = ", ".join(find_groups(self.verb)[group])
        if _PRESET.fullmatch(name) is None:
            raise ConfigError(f"`{group}` must be one of {options}, but is {abbreviate(repr(name))}")
        owner = next((verb for verb in VERBS if name.startswith(f"{verb}_")), self.verb)
        if owner != self.verb:
            raise ConfigError(f"`{group}` must be one of {options}, but {name!r} is one of `speechssl {owner}`")


def read_words(verb: str, words: Sequence[str]) -> list[Request]:
    """Turn the words after the verb into requests: one, or one for each point of a sweep.

    Bare words are literal; `key=value` is hydra's override grammar.

    Raises:
        ConfigError: a word cannot be read, or a key does not exist.
    """
    bare, assignments = split_words(words)
    parsed = [_parse_assignment(verb, word) for word in assignments]
    num_jobs = math.prod(len(values) for values in parsed)
    if num_jobs > MAX_JOBS:
        raise ConfigError(f"a sweep must have at most {MAX_JOBS} jobs, but has {num_jobs}")
    requests = []
    for combination in product(*parsed):
        request = Request(verb)
        for key, value in combination:
            _add_assignment(request, key, value)
        _add_bare_words(request, bare)
        requests.append(request)
    return requests


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into the bare ones, which come first, and the `key=value` ones."""
    first = next((index for index, word in enumerate(words) if is_assignment(word)), len(words))
    bare, rest = list(words[:first]), list(words[first:])
    for word in rest:
        if not is_assignment(word):
            raise ConfigError(
                f"a main input must stand before the first key=value, but {word!r} comes after {rest[0]!r}"
            )
    for word in bare:
        if word.startswith("-") and word != "-":
            raise ConfigError(f"options must be key=value (or --help, --cfg, -m), but one is {word!r}")
    return bare, rest


def find_conf_folder() -> Path:
    """Return the folder that holds the configuration files."""
    return next(folder for folder in CONF_FOLDERS if folder.is_dir())


def find_groups(verb: str) -> dict[str, list[str]]:
    """Map each group of `conf/` to the names that a verb can choose from it; presets of other verbs are left out."""
    folders = sorted(folder for folder in find_conf_folder().iterdir() if folder.is_dir())
    names = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    names["training"] = [name for name in names["training"] if name.startswith(f"{verb}_")]
    return {group: found for group, found in names.items() if found}


def find_key(verb: str, key: str) -> Key:
    """Return the declaration of `key`; of a key of any objective, since the one that is chosen is known later.

    Raises:
        ConfigError: the verb has no such key; the message names the nearest one.
    """
    keys = {row.path: row for row in list_keys(VERBS[verb].schema, with_alternatives=True)}
    if key in keys:
        return keys[key]
    parent = key.rpartition(".")[0]
    if parent in keys and keys[parent].type_name == "dict":
        return Key(key, "str", "", keys[parent].meaning, "", "")
    if key in _list_sections(verb):
        inside = next(path for path in keys if path.startswith(f"{key}."))
        raise ConfigError(f"`{key}` must be set key by key, such as {inside}=…, but was given one value")
    near = find_nearest(key, list(keys))
    hint = f"; the nearest one is `{near}`" if near else ""
    raise ConfigError(
        f"`{key}` must be a key of `speechssl {verb}`, but is none{hint} (speechssl {verb} --help lists all)"
    )


def find_nearest(key: str, keys: Sequence[str]) -> str:
    """Return the key that a user most likely meant, or an empty string.

    A key typed without its section (`lr`, `max_updates`) finds the one that ends like it.
    """
    by_last = {path.rpartition(".")[2]: path for path in reversed(keys)}
    last = key.rpartition(".")[2]
    if last in by_last:
        return by_last[last]
    near = get_close_matches(key, keys, n=1, cutoff=0.7)
    if near:
        return near[0]
    near = get_close_matches(last, by_last, n=1, cutoff=0.7)
    return by_last[near[0]] if near else ""


def _list_sections(verb: str) -> set[str]:
    """List the keys of a verb that hold other keys, such as `data` and `model.mask`."""
    parts = [row.path.split(".") for row in list_keys(VERBS[verb].schema)]
    return {".".join(names[:depth]) for names in parts for depth in range(1, len(names))}


def _parse_assignment(verb: str, word: str) -> list[tuple[str, Any]]:
    """Parse `key=value`; a sweep (`seed=1,2`) gives one pair for each of its values."""
    override = parse_override(word)
    if override is None:
        return [("hydra", read_searchpath(word))]
    key = str(override.key_or_group)
    if not override.is_sweep_override():
        return [(key, _read_value(verb, key, override))]
    return [(key, parse_override(f"{key}={text}").value()) for text in list_sweep(override)]


def _read_value(verb: str, key: str, override: Any) -> Any:
    """Read a value; one that looks like a number or a truth stays as it was typed where the key takes text.

    The grammar would make 20240105 of `out=2024_01_05`.
    """
    value = override.value()
    takes_text = any(
        row.path == key and "str" in (row.type_name, row.item_type_name)
        for row in list_keys(VERBS[verb].schema, with_alternatives=True)
    )
    if isinstance(value, (bool, int, float)) and takes_text:
        return str(override.input_line).partition("=")[2].strip()
    return value


def _add_assignment(request: Request, key: str, value: Any) -> None:
    if key == "hydra":
        request.hydra.append(value)
    elif key in request.values or key in request.choices:
        raise ConfigError(f"`{key}` must be given once, but is given twice")
    else:
        request.add(key, value)


def _add_bare_words(request: Request, words: Sequence[str]) -> None:
    """Give the bare words to the verb's main inputs, in order."""
    inputs = VERBS[request.verb].inputs
    given = _assign_inputs(request.verb, inputs, words)
    for key, value in given.items():
        if key in request.values or key in request.choices:
            raise ConfigError(f"`{key}` must be given once, but is given as {value!r} and as {key}=…")
        request.add(key, escape(value))


def _assign_inputs(verb: str, inputs: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    left = list(words)
    for index, key in enumerate(inputs):
        if not left:
            break
        if index == len(inputs) - 1 and _has_type(verb, key, "list"):
            given[key], left = left, []
        else:
            given[key] = left.pop(0)
    if left:
        takes = f"at most {len(inputs)} main inputs ({', '.join(inputs)})" if inputs else "no main input"
        raise ConfigError(f"`speechssl {verb}` must be given {takes}, but {left[0]!r} is one more")
    return given


def escape(value: Any) -> Any:
    """Escape `${` in text that is literal: main inputs, and what Python functions are given."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return escape_interpolations(value)
    if isinstance(value, (list, tuple)):
        return [escape(item) for item in value]
    if isinstance(value, Mapping):
        return {name: escape(item) for name, item in value.items()}
    return value


def _has_type(verb: str, key: str, type_name: str) -> bool:
    return any(row.path == key and row.type_name == type_name for row in list_keys(VERBS[verb].schema))


def _fit_value(key: Key, name: str, value: Any) -> Any:
    """Fit a value to its key: a bare value for a list becomes a list, 1e5 a whole number."""
    if key.type_name == "list" and isinstance(value, (str, int, float)):
        return [value]
    if key.type_name == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    is_odd = isinstance(value, (list, dict)) and key.type_name not in ("list", "dict", "Any")
    # A list of texts would take 7 for the 007 that was typed, which only a single value keeps.
    is_mixed = isinstance(value, list) and key.item_type_name == "str" and not all(isinstance(v, str) for v in value)
    if is_odd or is_mixed:
        quoted = ' (quote what is text: "007")' if is_mixed else ""
        raise ConfigError(f"`{name}` must be {describe_type(key)}{quoted}, but is {abbreviate(repr(value))}")
    return value


def describe_type(key: Key) -> str:
    """Name the type of a key's values in words."""
    if key.type_name == "list":
        items = {"int": " of whole numbers", "float": " of numbers", "str": " of texts"}
        return f"a list{items.get(key.item_type_name, '')}"
    if key.type_name == "dict":
        return "a mapping of texts to texts"
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return names.get(key.type_name, "a value")
