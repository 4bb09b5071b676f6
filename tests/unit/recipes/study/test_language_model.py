"""The language model's text shares no passage with what is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.librispeech_mini.study.language_model import leave_out_evaluated, read_transcripts
from speechssl.errors import DataError

PASSAGE = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT"


def test_lines_of_evaluated_passages_are_left_out() -> None:
    lines = ["GO ON", f"AND {PASSAGE} THEN", "ONE TWO THREE FOUR FIVE SIX SEVEN", "A NEW LINE"]
    kept, left_out = leave_out_evaluated(lines, [f"ZERO {PASSAGE} NINE", "GO ON"])
    assert left_out == ["GO ON", f"AND {PASSAGE} THEN"]
    assert kept == ["ONE TWO THREE FOUR FIVE SIX SEVEN", "A NEW LINE"]


def test_transcripts_lose_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.trans.txt").write_text("1-2-0000 LAST\n")
    (tmp_path / "a.trans.txt").write_text("1-1-0000 GO DO\n\n1-1-0001 YOU\n")
    assert read_transcripts(tmp_path) == ["GO DO", "YOU", "LAST"]
    with pytest.raises(DataError, match="`text` must be a folder with"):
        read_transcripts(tmp_path / "none")
