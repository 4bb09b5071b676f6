"""Named streams draw what they always drew, and the table names all of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import speechssl
from speechssl.seeds import STREAMS, make_rng, make_torch_seed


def test_draws_are_those_of_every_run_so_far() -> None:
    name = int.from_bytes(b"mask", "little")
    expected = {("mask", 5): [7, name, 5], ("order", 3): [7, 0x0DE2, 3], ("crop", 1, 2): [7, 0xC209, 1, 2]}
    for (stream, *numbers), entropy in expected.items():
        assert make_rng(7, stream, *numbers).random() == np.random.default_rng(entropy).random(), stream
    assert make_rng(7, "bootstrap").random() == np.random.default_rng(7).random()
    assert make_torch_seed(1, "weights") == 2401221948230673880


def test_the_table_holds_the_streams_that_are_used_and_no_others() -> None:
    text = "".join(path.read_text() for path in Path(speechssl.__file__).parent.rglob("*.py"))
    used = set(re.findall(r'make_(?:rng|torch_seed)\([\w.]+, "([^"]+)"', text))
    assert used == STREAMS.keys()
