from __future__ import annotations

import json

from speechssl.evaluation.breakdown import format_table, format_worst
from speechssl.evaluation.wer import score
from speechssl.printable import format_columns, make_printable
from speechssl.verbs.output import format_line
from tests.cases import each_case

NASTY = 'a\nspeechssl: all is well\x1b[2J\x9b\u202e\u2028\x7f\udcff é 日 "\\'
"""What a file name, an id or a transcript may hold."""


@each_case(
    "text, line",
    [
        ("plain", "plain"),
        ("grün 日 é", "grün 日 é"),
        ("a\nspeechssl: all is well", "a\\nspeechssl: all is well"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("tab\there", "tab\\there"),
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
        ("broken\udcff", "broken\\udcff"),
        ("line\u2028separator", "line\\u2028separator"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_could_leave_the_line_is_escaped(text: str, line: str) -> None:
    assert make_printable(text) == line
    assert make_printable(line) == line


def test_json_is_printable_readable_and_says_the_same() -> None:
    line = format_line({"text": NASTY, "list": [NASTY]})
    assert make_printable(line) == line
    assert "é 日" in line
    assert json.loads(line) == {"text": NASTY, "list": [NASTY]}


def test_tables_keep_their_lines() -> None:
    assert len(format_table(("speaker", "words"), [(NASTY, "1"), ("b", "2")]).split("\n")) == 3
    table = format_worst(score([NASTY, "two"], ["one", "two"], ids=[NASTY, "b"]))
    assert len(table.split("\n")) == 3
    assert all(make_printable(line) == line for line in table.split("\n"))


def test_columns_are_as_wide_as_what_is_printed() -> None:
    assert format_columns([("a\x1b[2J", "1"), ("b", "10")], right={1}) == "a\\x1b[2J   1\nb         10"
