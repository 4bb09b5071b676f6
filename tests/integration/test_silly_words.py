"""Command lines that nobody means: each ends with 2 and one sentence, at once, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from speechssl import progress
from speechssl.cli.compose import compose
from speechssl.cli.main import main
from speechssl.cli.words import MAX_JOBS
from speechssl.errors import ConfigError
from speechssl.printable import make_printable
from tests.cases import each_case

TRAIN = ("pretrain", "model=tiny", "device=cpu", "data.train=x.tsv", "out=r")
BARE = ("pretrain", "model=tiny", "device=cpu")

SILLY: list[tuple[tuple[str, ...], str]] = [
    # keys and groups that are not known
    ((*TRAIN, "experiment="), "`experiment` must be a key of"),
    ((*TRAIN, "experiment=foo"), "`experiment` must be a key of"),
    ((*TRAIN, "+experiment=foo"), "`experiment` must be a key of"),
    ((*TRAIN, "+x=1"), "`x` must be a key of"),
    ((*TRAIN, "++x=1"), "`x` must be a key of"),
    ((*TRAIN, "defaults=[a]"), "`defaults` must be a key of"),
    ((*TRAIN, "_target_=os.system"), "`_target_` must be a key of"),
    ((*TRAIN, "decoding=beam"), "`decoding` must be a key of"),
    ((*TRAIN, "hydra.run.dir=x"), "`hydra.run.dir` must be hydra.searchpath"),
    ((*TRAIN, "hydra.verbose=true"), "`hydra.verbose` must be hydra.searchpath"),
    ((*TRAIN, "+hydra.x=1"), "`hydra.x` must be hydra.searchpath"),
    ((*TRAIN, "hydra=1"), "`hydra` must be hydra.searchpath"),
    ((*TRAIN, "hydra.searchpath="), "`hydra.searchpath` must be a list of folders"),
    ((*TRAIN, "hydra.searchpath=[pkg://os]"), "but is pkg://os"),
    ((*TRAIN, "hydra.searchpath=[nowhere]"), "but is nowhere"),
    ((*TRAIN, "hydra.searchpath=[a"), "`hydra.searchpath` must be a list of folders"),
    (("doctor", "model=tiny"), "`model` must be a key of"),
    # choices
    (("pretrain", "model="), "`model` must be one of"),
    (("pretrain", "model='tiny '"), "`model` must be one of"),
    (("pretrain", "model=../model/tiny"), "`model` must be one of"),
    (("pretrain", "model=/etc/passwd"), "`model` must be one of"),
    (("pretrain", "model=${seed}"), "`model` must be one of"),
    ((*TRAIN, "training="), "`training` must be one of"),
    ((*TRAIN, "~model=tiny"), "`model` must be given a value"),
    # texts that are empty, or that nothing can hold
    ((*BARE, "out="), "`out` must be given (run folder to write)"),
    ((*BARE, "out=' '"), "`out` must be text, not only spaces"),
    ((*BARE, "out=", "seed=1,2", "-m"), "`out` must be given with -m"),
    ((*BARE, "out=~/x"), "`out` must be a path without ~"),
    ((*BARE, "out=r", "data.train="), "`data.train` must be a list of texts, none of them empty"),
    ((*BARE, "out=r", "data.train=['']"), "`data.train` must be a list of texts, none of them empty"),
    ((*BARE, "out=r", "data.train=[[a]]"), "`data.train` must be a list of texts"),
    ((*BARE, "out=r", "data.train=[true]"), "`data.train` must be a list of texts"),
    ((*TRAIN, "data.valid=[007,1e3]"), "`data.valid` must be a list of texts (quote what is text"),
    ((*TRAIN, "data.cache_dir=' '"), "`data.cache_dir` must be text, not only spaces"),
    ((*TRAIN, "init=a\0b"), "`init` must be text in UTF-8 without NUL"),
    ((*TRAIN, "init=a\udcff"), "`init` must be text in UTF-8 without NUL"),
    (("embed", "a\0", "x"), "`checkpoint` must be text in UTF-8 without NUL"),
    (("embed", "", "x"), "`checkpoint` must be given"),
    (("embed", "x", ""), "`audio` must be a list of texts, none of them empty"),
    (("embed", "x", "a", "layer="), "`layer` must be a layer"),
    (("report", ""), "`run` must be a list of texts, none of them empty"),
    (("demo", "out="), "`out` must be the folder of the demo"),
    # numbers
    ((*TRAIN, "seed=-1"), "`seed` must be between 0"),
    ((*TRAIN, "training.lr=nan"), "`training.lr` must be a finite number"),
    (("demo", "minutes=1e308"), "`minutes` must be at least 0.2 and at most 1440"),
    (("demo", "seed=-1"), "`seed` must be between 0"),
    (("demo", "device=gpu"), "`device` must be auto"),
    (("prepare", "corpus=demo", "seed=-1", "out=m"), "`seed` must be between 0"),
    # values that the grammar reads as more than they seem
    ((*TRAIN, "training.lr=glob(*)"), "`training.lr` must be a list or a range"),
    ((*TRAIN, "seed=glob(*)", "-m"), "`seed` must be a list or a range"),
    ((*TRAIN, "seed=range(1,1000000000)"), f"`seed` must be 1 to {MAX_JOBS} values"),
    ((*TRAIN, "seed=range(1,1000000000)", "-m"), f"`seed` must be 1 to {MAX_JOBS} values"),
    ((*TRAIN, "training.lr=range(0,1,1e-12)", "-m"), f"`training.lr` must be 1 to {MAX_JOBS} values"),
    ((*TRAIN, "training.lr=range(1,inf)", "-m"), f"`training.lr` must be 1 to {MAX_JOBS} values"),
    ((*TRAIN, "training.lr=range(nan,1)"), "`training.lr` must be a list or a range"),
    ((*TRAIN, "training.lr=range(0,1,0)"), "`training.lr` must be a list or a range"),
    ((*TRAIN, "training.lr=range(1,5,-1)", "-m"), "has none"),
    ((*TRAIN, "seed=shuffle(range(1,1000000000))", "-m"), "in an order that stays"),
    ((*TRAIN, "seed=range(0,100)", "training.max_updates=range(0,100)", "-m"), "a sweep must have at most"),
    ((*TRAIN, "training.lr=" + "[" * 500 + "]" * 500), "it is nested too deeply"),
    ((*TRAIN, "training.lr=" + "int(" * 500 + "1" + ")" * 500), "it is nested too deeply"),
    ((*TRAIN, "training.lr=" + "[" * 500), "`training.lr` must be a value of hydra's grammar"),
    ((*TRAIN, "seed=" + "9" * 5000), "`seed` must be a value of hydra's grammar"),
    ((*TRAIN, "seed=" + "9" * 100_000), "`seed` must be at most 10000 characters"),
    ((*TRAIN, "a" * 100_000 + "=1"), "must be at most 10000 characters"),
    ((*TRAIN, "training.lr=" + "a," * 50_000 + "a"), "`training.lr` must be at most 10000 characters"),
    ((*TRAIN, "init=${foo}"), "Interpolation key 'foo' not found"),
    ((*TRAIN, "init=${init}"), "the configuration must be one that its schema fits"),
    ((*TRAIN, "init=${nosuch:1}"), "the configuration must be one that its schema fits"),
    ((*TRAIN, "init=${model}"), "the configuration must be one that its schema fits"),
    ((*TRAIN, "init=${oc.decode:'[1]'}"), "must be"),
    ((*TRAIN, "init=${hydra:runtime.cwd}"), "the configuration must be one that its schema fits"),
    # names that would forge a line of ours, and names that are too long
    ((*TRAIN, "init='a\nspeechssl: all is well'"), "a\\nspeechssl: all is well does not exist"),
    (("\x1b[2J",), "\\x1b[2J"),
    (("embed", "x\x1b[31m\u202e", "a"), "x\\x1b[31m\\u202e does not exist"),
    (("embed", "a" * 300, "x"), "cannot be read (File name too long)"),
    ((*BARE, "data.train=x.tsv", "out=" + "a" * 300), "`out` must be a place that can be written"),
    (("prepare", "nowhere", "corpus=folder"), "`root` must be the folder"),
]


@each_case("words, sentence", SILLY)
def test_silly_words_get_one_sentence_and_leave_nothing(
    words: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    *before, last = err.split("\n")[:-1]
    assert out == ""
    assert last.startswith("speechssl: ")
    assert not any(line.startswith("speechssl: ") for line in before)
    assert sentence in last
    assert len(last) < 2100
    assert make_printable(last) == last
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_user_stays_though_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert main(["prepare", "nowhere", "corpus=folder", "out=mine"]) == 2
    assert main(["prepare", "nowhere", "corpus=folder", "out=mine/a/b"]) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_checkpoint_of_a_stranger_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    stored = {"name": "${oc.env:SECRET}", "model_dim": 48, "num_heads": 3}
    assert compose("finetune", ["init=a", "out=b"], stored_model=stored).model.name == "${oc.env:SECRET}"


def test_a_message_is_one_line_for_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("speechssl")
    with caplog.at_level(logging.INFO, "speechssl"):
        logger.info("left out %s", "a\nspeechssl: all is well\x1b[31m 100 %s")
    assert caplog.messages == ["left out a\\nspeechssl: all is well\\x1b[31m 100 %s"]


def test_an_error_is_one_line_for_python_too() -> None:
    assert str(ConfigError("a\nb\u202e")) == "a\\nb\\u202e"


class _Terminal:
    """A terminal, as far as rich asks."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.skipif(os.environ.get("TERM") == "dumb", reason="rich draws no bar there")
def test_a_bar_shows_a_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.track([1], "[red]x\x1b]0;owned\x07[/red]")) == [1]
    assert "[red]x" in terminal.text
    assert "\x1b]0;" not in terminal.text
