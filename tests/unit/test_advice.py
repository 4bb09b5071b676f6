"""Advice is tried as a user would: typed into a shell, and read by the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf

import speechssl
from speechssl.advice import quote_for_shell, spell
from speechssl.cli.compose import compose_request
from speechssl.cli.words import parse_override, read_words
from speechssl.config.verbs import PrepareConfig
from speechssl.corpora.folder import read_folder
from speechssl.errors import CheckpointError, ConfigError
from speechssl.verbs.prepare import guess_corpus
from tests.cases import each_case

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


@each_case("shell", ["bash", "zsh"])
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


@each_case(
    "key, value",
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


@each_case(
    "value, spelt",
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


def follow(verb: str, advice: str) -> dict[str, Any]:
    """Type what a sentence says into bash, and read it as the command line does."""
    (word,) = type_into("bash", [advice])
    (request,) = read_words(verb, [word])
    return {key: OmegaConf.create({"value": value})["value"] for key, value in request.values.items()}


@each_case("value", ["a(b", "Füße (1)", "it's (1)", 'say "a"', "a\u200cb(", "a\\((", '(\\d+)"', "${x", "x=y=z"])
def test_a_value_that_cannot_be_parsed_is_told_how_to_be_typed(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(f"out={value}")
    assert follow("evaluate", str(caught.value).partition(" type it as ")[2]) == {"out": value}


def test_a_folder_with_a_table_is_told_how_the_table_is_given(tmp_path: Path) -> None:
    table = tmp_path / "it's (mine) $x.csv"
    table.touch()
    with pytest.raises(ConfigError) as caught:
        guess_corpus(PrepareConfig(root=str(tmp_path)))
    assert follow("prepare", str(caught.value).partition(" or table ")[2].partition(" or ")[2]) == {"table": str(table)}


def test_a_file_of_a_folder_is_told_how_the_folder_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "my model, v2"
    folder.mkdir()
    (folder / "config.json").touch()
    safetensors.torch.save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        speechssl.load(folder / "model.safetensors")
    assert follow("embed", str(caught.value).partition("the file: ")[2]) == {"checkpoint": str(folder)}


def test_a_pattern_is_shown_as_it_is_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_folder(tmp_path, r"\d")
    advice = str(caught.value).partition("as in ")[2].partition(", but ")
    assert follow("prepare", advice[0]) == {"speaker_pattern": r"(\d+)_"}
    assert advice[2] == r"\d has 0"
