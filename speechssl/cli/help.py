"""The text of `speechssl --help` and `speechssl <verb> --help`, without torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from speechssl.cli.verbs import VERBS, map_keys
from speechssl.cli.words import find_groups, read_words
from speechssl.config.knobs import Key

_WIDTH = 100
_INDENT = 34

_SECTIONS = {
    "": "what goes in and out",
    "data": "data",
    "text": "labels",
    "lora": "Differences of low rank (adapt=lora)",
    "model": "network",
    "objective": "what is learned",
    "training": "optimizer and schedule",
    "decoding": "from frames to text",
    "logging": "where metrics go",
}
"""Headings of `--help all`."""


def format_help() -> str:
    """Write the overview: how a command looks, and the verbs with one line each."""
    lines = [
        "usage: speechssl <verb> [inputs …] key=value …",
        "",
        "Self-supervised speech representations: pretrain, fine-tune, measure, embed.",
        "",
        *(f"  {name:<11} {verb.summary}" for name, verb in VERBS.items()),
        "",
        "speechssl <verb> --help   the keys of a verb; --help all lists every one of them",
        "speechssl --version       the version",
        "",
        "The words before the first key=value are a verb's main inputs; values follow Hydra's grammar.",
        "Progress goes to stderr. Where stdout is no terminal, or with --json, its last line is one JSON object.",
        "--cfg prints the configuration and stops; -m runs one job for each of several values, such as seed=1,2,3.",
    ]
    return "\n".join(lines)


def format_verb_help(name: str, words: Sequence[str], show_all: bool) -> str:
    """Write the help of one verb, with the values that its keys have under the presets that the words choose.

    Args:
        name: of the verb.
        words: main inputs and key=value, as typed.
        show_all: whether to list every key, by section, rather than those that a user meets first.

    Raises:
        ConfigError: a word cannot be read, or names no preset.
    """
    verb, keys = VERBS[name], map_keys(name)
    values = _read_values(name, words)
    is_open = bool(verb.inputs) and verb.inputs[-1] in keys and keys[verb.inputs[-1]].type_name == "list"
    inputs = [f"[{key}{' …' if is_open and key == verb.inputs[-1] else ''}]" for key in verb.inputs]
    lines = [" ".join(["usage: speechssl", name, *inputs, *(["key=value …"] if keys else [])]), ""]
    lines += [f"{verb.summary[0].upper()}{verb.summary[1:]}.", ""]
    first = [*verb.inputs, *verb.first]
    if show_all:
        lines += _list_all(name, first, values)
    elif keys:
        lines += [*(_format_key(name, key, values) for key in first), ""]
    number = len(verb.examples) if show_all else 1
    lines += [f"example{'s' if number > 1 else ''}:", *(f"  speechssl {example}" for example in verb.examples[:number])]
    if keys.keys() - set(first) and not show_all:
        chosen = "".join(f"{word} " for word in words)
        lines += ["", f"every key: speechssl {name} {chosen}--help all"]
    return "\n".join(lines)


def _read_values(name: str, words: Sequence[str]) -> Mapping[str, Any]:
    """Compose the configuration that the words ask for; what must still be given is `???`."""
    from omegaconf import OmegaConf

    from speechssl.cli.compose import build_tree

    request = read_words(name, words)[0]
    tree = build_tree(request)[0]
    values: Any = OmegaConf.to_container(tree, resolve=True)
    chosen = {group: _find(values, f"{group}.name") for group in find_groups(name)}
    preset = f"{name}_{chosen.get('model')}"
    is_stored = bool(values.get("init")) and preset not in find_groups(name).get("training", ())
    training = request.choices.get("training", f"{name}_base" if is_stored else preset)
    return {**values, "choices": chosen | {"training": training}}


def _list_all(name: str, first: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """List the groups and every key, a section at a time; within the first one the main inputs come first."""
    lines = []
    for section, heading in _SECTIONS.items():
        own = [path for path in map_keys(name) if (path.partition(".")[0] if "." in path else "") == section]
        # The keys of an objective that was not chosen are none, and its name is set by the choice alone.
        own = [path for path in own if _find(values, path) is not None and path != "objective.name"]
        own.sort(key=lambda path: first.index(path) if path in first else len(first))
        own = [section, *own] if own and section in find_groups(name) else own
        if own:
            lines += [heading, *(_format_key(name, path, values) for path in own), ""]
    return lines


def _format_key(name: str, path: str, values: Mapping[str, Any]) -> str:
    """Write the line of one key, or of a group of presets."""
    if path in find_groups(name) and path not in map_keys(name):
        return _format_row(f"  {path}={values['choices'][path]}", f"one of {', '.join(find_groups(name)[path])}")
    key: Key = map_keys(name)[path]
    value = _find(values, path)
    unit = f" [{key.unit}]" if key.unit else ""
    required = "; must be given" if value == "???" else ""
    shown = "…" if value == "???" else _format_value(value)
    return _format_row(f"  {path}={shown}", f"{key.meaning}{unit}{required}")


def _find(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found[part] if isinstance(found, Mapping) and part in found else None
    return found


def _format_value(value: Any) -> str:
    """Write a value as a user would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_format_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{item}' for name, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def _format_row(left: str, right: str) -> str:
    """Set two columns; a left part that is too long stands on a line of its own."""
    wrapped = textwrap.wrap(right, _WIDTH - _INDENT, break_on_hyphens=False) or [""]
    padding = "\n" + " " * _INDENT
    first = left.ljust(_INDENT) if len(left) < _INDENT - 1 else left + padding
    return (first + padding.join(wrapped)).rstrip()
