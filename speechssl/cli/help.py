"""The text of `speechssl --help` and `speechssl <verb> --help`, from the schema, without torch or hydra."""

from __future__ import annotations

import textwrap
from dataclasses import fields
from typing import Any

from speechssl.cli.verbs import VERBS, Verb
from speechssl.cli.words import find_groups
from speechssl.config.knobs import Key, list_keys
from speechssl.config.verbs import CommonConfig

_WIDTH = 100
_INDENT = 38


def format_help() -> str:
    """Write the overview: how a command looks, and the verbs with one line each."""
    lines = [
        "usage: speechssl <verb> [inputs …] key=value …",
        "       speechssl --help | speechssl <verb> --help | speechssl --version",
        "",
        "Self-supervised speech representations: pretrain, fine-tune, measure, embed.",
        "",
    ]
    lines += [f"  {name:<11} {verb.summary}" for name, verb in VERBS.items()]
    lines += [
        "",
        "Bare words are a verb's main inputs; everything else is key=value in hydra's grammar.",
        "-m runs one job for each point of a sweep such as seed=1,2,3, with hydra/launcher=joblib several at a time;",
        "--cfg prints the configuration and stops.",
        "Progress goes to stderr; the last line of stdout is one JSON object.",
    ]
    return "\n".join(lines)


def format_verb_help(name: str) -> str:
    """Write the help of one verb: usage, every key with its default, unit and meaning, and two examples."""
    verb = VERBS[name]
    lines = [f"usage: {_format_usage(name, verb)}", "", f"{verb.summary[0].upper()}{verb.summary[1:]}.", ""]
    keys = _sort_keys(verb)
    groups = _find_own_groups(name, keys)
    if groups:
        lines += ["presets (values in conf/<group>/<name>.yaml; they change the defaults below)"]
        lines += [_format_row(f"  {group}=", f"one of {', '.join(names)}") for group, names in groups.items()]
        lines += [""]
    if keys:
        lines += ["keys (default, meaning [unit]; ??? must be given)"]
        lines += [_format_key(key) for key in keys]
        lines += [""]
    lines += ["examples", *(f"  speechssl {example}" for example in verb.examples)]
    return "\n".join(lines)


def _format_usage(name: str, verb: Verb) -> str:
    kinds = {key.path: key.type_name for key in list_keys(verb.schema)}
    words = []
    for index, key in enumerate(verb.inputs):
        is_rest = index == len(verb.inputs) - 1 and kinds.get(key) == "list"
        words.append(f"[{key}{' …' if is_rest else ''}]")
    keys = ["key=value …"] if kinds else []
    return " ".join(["speechssl", name, *words, *keys])


def _sort_keys(verb: Verb) -> list[Key]:
    """Sort the keys: main inputs, `out`, the verb's own, and last what many verbs share."""
    first = [*verb.inputs, "out"]
    shared = [item.name for item in fields(CommonConfig)]
    keys = list_keys(verb.schema)
    order = {key.path: len(first) + index for index, key in enumerate(keys)}
    order |= {path: index for index, path in enumerate(first)}
    order |= {path: len(first) + len(keys) + index for index, path in enumerate(shared)}
    return sorted(keys, key=lambda key: order[key.path])


def _find_own_groups(verb: str, keys: list[Key]) -> dict[str, list[str]]:
    """Find the groups of `conf/` that set keys of this verb."""
    sections = {key.path.partition(".")[0] for key in keys if "." in key.path}
    is_training = "training" in sections
    return {
        group: names
        for group, names in find_groups(verb).items()
        if group in sections and (is_training or group != "data")
    }


def _format_key(key: Key) -> str:
    unit = f" [{key.unit}]" if key.unit else ""
    return _format_row(f"  {key.path}={_format_default(key.default)}", f"{key.meaning}{unit}")


def _format_default(value: Any) -> str:
    """Write a default as a user would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_format_default(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{item}' for name, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def _format_row(left: str, right: str) -> str:
    """Set two columns; a left part that is too long stands on a line of its own."""
    wrapped = textwrap.wrap(right, _WIDTH - _INDENT, break_on_hyphens=False) or [""]
    padding = "\n" + " " * _INDENT
    first = left.ljust(_INDENT) if len(left) < _INDENT else left + padding
    return (first + padding.join(wrapped)).rstrip()
