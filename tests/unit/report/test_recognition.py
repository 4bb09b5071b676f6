from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from speechssl.report.recognition import _find_best
from speechssl.report.run_folder import RunFolder


def row(update: int, wer: float, cer: float, loss: float = 1.0) -> dict[str, Any]:
    return {"update": update, "split": "valid", "wer": wer, "cer": cer, "loss": loss}


def test_the_page_is_about_the_checkpoint_that_the_trainer_keeps() -> None:
    rows = [row(1, 100.0, 100.0), row(2, 100.0, 82.0), row(3, 101.0, 60.0), row(4, 99.0, 50.0, math.nan)]
    run = RunFolder(Path("run"), "finetune", config={}, metrics=rows)
    assert (_find_best(run, "wer"), _find_best(run, "cer")) == (100.0, 82.0)
    assert _find_best(RunFolder(Path("run"), "finetune", config={}, metrics=[]), "cer") is None


def test_the_state_before_the_first_update_is_no_checkpoint() -> None:
    """A recogniser that goes on is validated as it came; and null is a number that was not finite."""
    unknown = {**row(3, 20.0, 8.0), "loss": None}
    run = RunFolder(Path("run"), "finetune", config={}, metrics=[row(0, 10.0, 4.0), row(2, 30.0, 9.0), unknown])
    assert (_find_best(run, "wer"), _find_best(run, "cer")) == (30.0, 9.0)
    assert _find_best(RunFolder(Path("run"), "finetune", metrics=[row(0, 10.0, 4.0)]), "wer") is None
