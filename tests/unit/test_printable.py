from __future__ import annotations

import pytest

from speechssl.printable import make_printable


@pytest.mark.parametrize(
    ("text", "line"),
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
