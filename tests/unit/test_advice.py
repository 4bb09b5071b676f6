"""Advice is tried as a user would: typed into a shell, and read by the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from speechssl.advice import quote_for_shell, spell
from speechssl.cli.compose import compose_request
from speechssl.cli.words import read_words

TEXTS = [
    "plain", "runs/base", "a b", " a", "it's", 'say "no"', "both ' and \"", "back\\slash", "end\\", 'end\\"',
    "\\'", "a,b", "[a]", "{a:b}", "a=b", "speaker=19", "speaker=St. Ives", "=", "a=b=c", "$(touch x)", "`x`",
    "${HOME}", "\\${x}", "$HOME", "!!", "~", "~/x", "#x", "a;b", "null", "True", "1e5", "0123", "nan", "0x10",
    "((", "*", "?", "glob(*)", "é", "ß日", "سلام", "\u200c", "a\u200cb", "\u202e", "٣", "line\nbreak", "tab\t",
    "\x1b[31m", "\xa0", "e\u0301", "'\u200c", "\\\u200c", "-", "--help", "a&b|c", "(\\d+)_", "%", "@", "😀",
    "",
]  # fmt: skip
"""What a sentence may have to tell the user to type."""


def type_into(shell: str, words: list[str]) -> list[str]:
    """Type words into a shell in a locale that is not in UTF-8, and see what a command gets."""
    show = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
    flags = ["-f"] if shell == "zsh" else ["--norc"]
    done = subprocess.run(
        [shell, *flags, "-c", f"{show} {' '.join(words)}"], capture_output=True, text=True, check=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"},
    )  # fmt: skip
    typed: list[str] = json.loads(done.stdout)
    return typed


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_what_is_pasted_into_a_shell_is_read_as_that_value(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    advised = [spell("out", text) for text in TEXTS]
    assert all(word.isprintable() for word in advised)
    typed = type_into(shell, advised)
    assert len(typed) == len(TEXTS)
    for word, text in zip(typed, TEXTS, strict=True):
        (request,) = read_words("evaluate", [word])
        assert OmegaConf.create(request.values)["out"] == text, word


def test_quoting_alone_gives_back_the_word() -> None:
    assert type_into("bash", [quote_for_shell(text) for text in TEXTS]) == TEXTS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.train", ["m/a.tsv", "m/b c.tsv", "it's", "1e5", "null"]),
        ("data.limit_s", 600.0),
        ("data.limit_s", 1e-5),
        ("overwrite", True),
        ("data.num_workers", 3),
        ("data.speed_perturbation", [0.9, 1.1]),
    ],
)
def test_other_values_are_spelt_too(key: str, value: Any) -> None:
    (word,) = type_into("bash", [spell(key, value)])
    (request,) = read_words("pretrain", ["model=tiny", "out=x", word])
    config: Any = compose_request(request)
    for name in key.split("."):
        config = getattr(config, name)
    assert config == value


def test_mappings_are_spelt() -> None:
    columns = {"path": "the file", "text": "sentence", "speaker": "client_id"}
    (word,) = type_into("bash", [spell("columns", columns)])
    (request,) = read_words("prepare", ["x.tsv", word])
    assert compose_request(request).columns == columns


@pytest.mark.parametrize(
    ("value", "spelt"),
    [
        ("runs/base", "key=runs/base"),
        ("speaker=19", "key=speaker=19"),
        ("٣", "'key=\"٣\"'"),
        ("\u200c", "$'key=\"\\xe2\\x80\\x8c\"'"),
        (["a", "b"], "'key=[a,b]'"),
    ],
)
def test_no_more_quotes_than_are_needed(value: Any, spelt: str) -> None:
    assert spell("key", value) == spelt
