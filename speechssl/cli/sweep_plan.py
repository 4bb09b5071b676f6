"""Who runs the jobs of a sweep and who chooses their values: `hydra/launcher`, `hydra/sweeper`, and their keys."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from speechssl.errors import ConfigError
from speechssl.parsing import parsing

_WORD = re.compile(r"hydra[/.](?P<part>launcher|sweeper)(\.(?P<key>[\w.]+))?=(?P<value>.*)", re.DOTALL)


@dataclass
class Plan:
    """What the words about a sweep itself say.

    Attributes:
        choices: `launcher` and `sweeper` → the one that was chosen.
        keys: of each, as plain values.
        words: the words, as typed.
    """

    choices: dict[str, str] = field(default_factory=lambda: {"launcher": "basic", "sweeper": "basic"})
    keys: dict[str, dict[str, Any]] = field(default_factory=lambda: {"launcher": {}, "sweeper": {}})
    words: list[str] = field(default_factory=list)


def take_plan(words: list[str]) -> Plan:
    """Take `hydra/launcher=…`, `hydra.launcher.n_jobs=…` and the like out of the words after a verb.

    Raises:
        ConfigError: a value that is no YAML.
    """
    plan = Plan()
    for word in list(words):
        match = _WORD.fullmatch(word)
        if match is None:
            continue
        words.remove(word)
        plan.words.append(word)
        if match["key"] is None:
            plan.choices[match["part"]] = match["value"]
        else:
            plan.keys[match["part"]][match["key"]] = _read_value(word, match["value"])
    return plan


def _read_value(word: str, text: str) -> Any:
    with parsing(f"`{word.partition('=')[0]}`", "a plain value", ConfigError):
        return yaml.safe_load(text)
