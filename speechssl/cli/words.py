"""What a user typed, or passed to a Python function, as one `Request`: choices from groups, and values by key."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

from speechssl.advice import CONDITION, escape_interpolations, spell
from speechssl.cli.verbs import VERBS, map_keys
from speechssl.config.knobs import Key
from speechssl.errors import ConfigError
from speechssl.parsing import parsing
from speechssl.printable import abbreviate, is_storable

CONF_FOLDERS = (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
"""Where `conf/` is: inside the package in a wheel, beside it in a checkout."""

MAX_JOBS = 1000
"""Most jobs of a sweep: more is a slip of the keyboard, and a range of a billion would take all memory."""

MAX_WORD = 10_000
"""Longest `key=value` in characters: the grammar takes seconds for more. A list of files may be one file with paths."""

SEARCHPATH = "hydra.searchpath"
"""The one key of hydra's own that means something here: folders with more presets."""

_ASSIGNMENT = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^\W\d]\w*(\.\w+)*)=(?P<value>.*)", re.DOTALL)
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
        is_section = key in _list_sections(self.verb)
        if is_section and key in find_groups(self.verb) and isinstance(value, str):
            self._check_preset(key, value)
            self.choices[key] = value
        elif is_section and isinstance(value, Mapping):
            for name, inner in value.items():
                self.add(f"{key}.{name}", inner)
        else:
            self.values[key] = _fit_value(find_key(self.verb, key), key, value)

    def add_once(self, key: str, value: Any) -> None:
        """Add what must not be given twice.

        Raises:
            ConfigError: it was given before.
        """
        if key in self.values or key in self.choices:
            before = self.values.get(key, self.choices.get(key))
            raise ConfigError(f"`{key}` must be given once, but is given as {before!r} and as {value!r}")
        self.add(key, value)

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

    Bare words are literal and come first; `key=value` is hydra's override grammar.

    Raises:
        ConfigError: a word cannot be read, or a key does not exist.
    """
    first = next((index for index, word in enumerate(words) if is_assignment(word)), len(words))
    for word in words[first:]:
        if not is_assignment(word):
            raise ConfigError(
                f"a main input must stand before the first key=value, but {word!r} comes after {words[first]!r}"
            )
    for word in words[:first]:
        if word.startswith("-") and word != "-":
            raise ConfigError(f"options must be key=value (or --help, --cfg, --json, -m), but one is {word!r}")
    parsed = [_parse(verb, word) for word in words[first:]]
    num_jobs = math.prod(len(values) for values in parsed)
    if num_jobs > MAX_JOBS:
        raise ConfigError(f"a sweep must have at most {MAX_JOBS} jobs, but has {num_jobs}")
    requests = []
    for point in product(*parsed):
        request = Request(verb)
        for key, value in point:
            if key == SEARCHPATH:
                request.hydra.append(value)
            else:
                request.add_once(key, value)
        for key, value in _assign_inputs(verb, words[:first]).items():
            request.add_once(key, escape(value))
        requests.append(request)
    return requests


def is_assignment(word: str) -> bool:
    """Say whether a word is `key=value`: whether an identifier path stands before the first `=`."""
    return _ASSIGNMENT.fullmatch(word) is not None


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


def find_conf_folder() -> Path:
    """Return the folder that holds the configuration files."""
    return next(folder for folder in CONF_FOLDERS if folder.is_dir())


@cache
def find_groups(verb: str) -> dict[str, list[str]]:
    """Map each group of `conf/` to the names that a verb can choose from it; presets of other verbs are left out."""
    folders = sorted(folder for folder in find_conf_folder().iterdir() if folder.is_dir())
    names = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    names["training"] = [name for name in names["training"] if name.startswith(f"{verb}_")]
    return {group: found for group, found in names.items() if found}


def find_key(verb: str, key: str) -> Key:
    """Return the declaration of `key`.

    Raises:
        ConfigError: the verb has no such key; the message names the nearest one.
    """
    keys = map_keys(verb)
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
        f"`{key}` must be a key of `speechssl {verb}`, but is none{hint} (speechssl {verb} --help all lists them)"
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


def describe_type(key: Key) -> str:
    """Name the type of a key's values in words."""
    if key.type_name == "list":
        items = {"int": " of whole numbers", "float": " of numbers", "str": " of texts"}
        return f"a list{items.get(key.item_type_name, '')}"
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return "a mapping of texts to texts" if key.type_name == "dict" else names.get(key.type_name, "a value")


@cache
def _list_sections(verb: str) -> set[str]:
    """List the keys of a verb that hold other keys, such as `data` and `model.mask`."""
    parts = [path.split(".") for path in map_keys(verb)]
    return {".".join(names[:depth]) for names in parts for depth in range(1, len(names))}


def _parse(verb: str, word: str) -> list[tuple[str, Any]]:
    """Parse `key=value`; a sweep (`seed=1,2`) gives one pair for each of its values."""
    match = _ASSIGNMENT.fullmatch(word)
    assert match is not None, word
    key = match["key"]
    if key.split(".")[0] == "hydra":
        return [(SEARCHPATH, _check_searchpath(key, word))]
    override = parse_override(word)
    if override.is_sweep_override():
        return [(key, parse_override(f"{key}={text}").value()) for text in _list_sweep(override)]
    value = override.value()
    # The grammar would make 20240105 of `out=2024_01_05`: where a key takes text, it stays as it was typed.
    declared = map_keys(verb).get(key)
    takes_text = declared is not None and "str" in (declared.type_name, declared.item_type_name)
    if takes_text and isinstance(value, (bool, int, float)):
        value = str(override.input_line).partition("=")[2].strip()
    return [(key, value)]


def parse_override(word: str) -> Any:
    """Parse `key=value` as hydra's `Override`.

    Raises:
        ConfigError: it cannot be parsed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    match = _ASSIGNMENT.fullmatch(word)
    assert match is not None, word
    key, value = match["key"], match["value"]
    if len(word) > MAX_WORD:
        raise ConfigError(f"`{abbreviate(key)}` must be at most {MAX_WORD} characters in all, but is {len(word)}")
    if not is_storable(value):
        raise ConfigError(f"`{key}` must be text in UTF-8 without NUL, but is {abbreviate(repr(value))}")
    if match["prefix"] == "~":
        raise ConfigError(f"`{key}` must be given a value, but {word!r} takes it away")
    # A value such as `speaker=19` or `größe`, of which the grammar would refuse the `=` or the letters.
    is_plain = CONDITION.fullmatch(value) or re.fullmatch(r"(?=.*[^\0-\x7f])[\w./-]+", value)
    quoted = f"'{value}'" if is_plain else value
    with parsing(f"`{key}`", "a value of hydra's grammar", ConfigError):
        try:
            return OverridesParser.create().parse_override(f"{key}={quoted}")
        except HydraException as error:
            raise ConfigError(_explain_unparsable(key, value)) from error


def _explain_unparsable(key: str, value: str) -> str:
    shown = abbreviate(value)
    if value.startswith("~"):
        return f"`{key}` must be a path without ~, which no shell replaces behind a =, but is {shown} (write $HOME)"
    advice = spell(key, value) if shown == value else f"'{key}=\"…\"'"
    return f"`{key}` must be a value of hydra's grammar, but is {shown}; if it is meant as text, type it as {advice}"


def _check_searchpath(key: str, word: str) -> str:
    """Check `hydra.searchpath=[…]`, and return it as it was.

    Raises:
        ConfigError: it is another key of hydra's own, or no list of folders that are there.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if key != SEARCHPATH:
        raise ConfigError(f"`{key}` must be {SEARCHPATH}, the only key of hydra's own that is taken here, but is not")
    must = "a list of folders with presets, such as [file:///home/me/conf]"
    with parsing(f"`{SEARCHPATH}`", must, ConfigError):
        places = OverridesParser.create().parse_override(word).value()
    for place in places if isinstance(places, list) else [places]:
        folder = str(place).removeprefix("file://")
        if not isinstance(places, list) or not folder or not Path(folder).is_dir():
            raise ConfigError(f"`{SEARCHPATH}` must be {must}, but is {abbreviate(str(place))}")
    return word


def _list_sweep(override: Any) -> list[str]:
    """List the values of a sweep as they would be typed, at most `MAX_JOBS`.

    Raises:
        ConfigError: it has none or too many, or cannot be listed.
    """
    from hydra.core.override_parser.types import ValueType

    key, word = override.key_or_group, abbreviate(override.input_line)
    must = "a list or a range of values, such as 1,2,3 or range(1,4)"
    is_listed = not override.is_interval_sweep() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP
    if not is_listed or getattr(override.value(), "shuffle", False):
        raise ConfigError(f"`{key}` must be {must}, in an order that stays (job n goes to out/n), but is {word!r}")
    with parsing(f"`{key}`", must, ConfigError):
        values = list(islice(override.sweep_string_iterator(), MAX_JOBS + 1))
    if not 1 <= len(values) <= MAX_JOBS:
        number = f"more than {MAX_JOBS}" if values else "none"
        raise ConfigError(f"`{key}` must be 1 to {MAX_JOBS} values, but {word} has {number}")
    return values


def _assign_inputs(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Give the bare words to the verb's main inputs, in order; a last one that is a list takes all that are left."""
    inputs, keys = VERBS[verb].inputs, map_keys(verb)
    is_open = bool(inputs) and inputs[-1] in keys and keys[inputs[-1]].type_name == "list"
    num_single = len(inputs) - is_open
    given: dict[str, Any] = dict(zip(inputs[:num_single], words, strict=False))
    left = list(words[num_single:])
    if left and is_open:
        given[inputs[-1]] = left
    elif left:
        takes = f"at most {len(inputs)} main inputs ({', '.join(inputs)})" if inputs else "no main input"
        raise ConfigError(f"`speechssl {verb}` must be given {takes}, but {left[0]!r} is one more")
    return given


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
