"""fairseq's Python in text: every known spelling is read, anything else is refused at once and never run."""

from __future__ import annotations

import time

import pytest

from speechssl.interop.fairseq.literals import read_conv_layers, read_temperature
from tests.cases import each_case

STANDARD = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]


@each_case(
    "text",
    [
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2",
        " [(512,10,5)]+4*[(512,3,2)]+2*[(512,2,2)]\n",
        str(STANDARD),
        "[[512, 10, 5]] + [[512, 3, 2]] * 4 + [[512, 2, 2]] * 2",
    ],
)
def test_every_spelling_of_the_standard_layers(text: str) -> None:
    assert read_conv_layers(text) == STANDARD


@each_case(
    "text",
    [
        "",
        "[]",
        "[(1,1,1)]*10**9",
        "[(1,1,1)] * 65",
        "[(1,1,1)] * 0",
        "[(1,1,1)] * True",
        "[(1,1,1)] * 64 * 64",
        "([(1,1,1)] * 60 + [(1,1,1)] * 60)",
        "[(1, 1)]",
        "[(1, 1, 1, 1)]",
        "[(1.0, 1, 1)]",
        "[(True, 1, 1)]",
        "[(0, 1, 1)]",
        "[(-1, 1, 1)]",
        "[(70000, 1, 1)]",
        "[(x, 1, 1)]",
        "[(1, 1, 1) for _ in range(3)]",
        "[*[(1, 1, 1)]]",
        "__import__('os').system('true')",
        "[(1, 1, 1)] + print('x')",
        "[(1, 1, 1)] if 1 else []",
        "[(1, 1, 1)][0:1]",
        "(lambda: [(1, 1, 1)])()",
        "[(1, 1, 1)]; 2",
        "[(1,1,1)",
        "[" * 500 + "]" * 500,
        "9" * 1999,
        "[(1,1,1)]" + " " * 2000,
        "\0",
    ],
)
def test_anything_else_is_refused_at_once(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="it |a layer "):
        read_conv_layers(text)
    assert time.perf_counter() - start < 1


@each_case("value", ["(2,0.5,0.999995)", "[2.0, 0.5, 0.999995]", [2, 0.5, 0.999995], (2, 0.5, 0.999995)])
def test_temperatures(value: object) -> None:
    assert read_temperature(value) == (2.0, 0.5, 0.999995)


@each_case(
    "value", ["", "2", "(2, 0.5)", "(2, 0.5, 'x')", "(2, 0.5, True)", "exit()", "(" * 900, None, 2.0, [1, 2], {"a": 1}]
)
def test_other_temperatures_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="it is no list of"):
        read_temperature(value)
