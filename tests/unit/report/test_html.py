from __future__ import annotations

import math

import pytest

from speechssl.report.html import escape, format_hours, format_number, format_percent, format_value, make_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (4.9234, "4.92"), (64, "64"), (64.04, "64.0"), (0.0312, "0.0312"), (5e-4, "5×10⁻⁴"),
        (2.5e-6, "2.5×10⁻⁶"), (-1.5, "−1.50"), (400_000, "400\u202f000"), (math.nan, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert format_number(value) == text


def test_rounding_up_to_the_next_power_of_ten() -> None:
    assert format_number(9.996e-4) == "0.00100"
    assert format_number(9.96e-6) == "1×10⁻⁵"
    assert format_number(9.996) == "10.0"
    assert format_number(999.96) == "1\u202f000"


def test_shares_durations_and_values() -> None:
    assert format_percent(0.2512) == "25.1\u202f%"
    assert format_hours(11.72) == "11.7 hours"
    assert format_hours(0.5) == "30 minutes"
    assert format_value([512, 512]) == "512, 512"
    assert format_value(True) == "true"
    assert format_value(None) == "–"
    assert format_value("") == "–"


def test_cells_and_attributes_are_escaped() -> None:
    assert "<b>" not in make_table(("key",), [["<b>"]])
    assert escape("\"'<&>") == "&quot;&#x27;&lt;&amp;&gt;"
