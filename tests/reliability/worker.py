"""What torchrun runs in the tests: one training after another in the same processes, to start them only once.

`worker.py cases.json out=<folder>`; a case has a `verb`, its `keys`, and may ask for trouble:
`stop_after`: stop on request after so many updates of this attempt; `desync_at`: change one bit of one weight of rank 1
after that update. What a case raises is written beside its run, by each rank.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import speechssl
from speechssl.errors import RanksError, SpeechSSLError, StoppedOnRequest
from speechssl.training.stop import StopFlag
from speechssl.training.trainer import Trainer

_check, _make_update = StopFlag.check, Trainer._make_update


def run_case(case: dict[str, Any]) -> None:
    """Run one training and note how it ended."""
    calls = iter(range(1, 10**6))
    if "stop_after" in case:
        StopFlag.check = lambda self: ("stopped by the test", 75) if next(calls) == case["stop_after"] else None
    if "desync_at" in case:
        Trainer._make_update = lambda self, update, batches: desync(self, update, batches, case["desync_at"])
    verb = {"pretrain": speechssl.pretrain, "finetune": speechssl.finetune}[case["verb"]]
    end = "finished"
    try:
        verb(**case["keys"])
    except (SpeechSSLError, RanksError, StoppedOnRequest) as error:
        end = f"{type(error).__name__}: {error}"
    StopFlag.check, Trainer._make_update = _check, _make_update
    Path(f"{case['keys']['out']}.rank{os.environ['RANK']}").write_text(end, encoding="utf-8")


def desync(trainer: Trainer, update: int, batches: Any, at: int) -> Any:
    """Make an update, and then what a bad memory chip does."""
    made = _make_update(trainer, update, batches)
    if update == at and os.environ["RANK"] == "1":
        weight = list(trainer.objective.module.parameters())[5]
        with torch.no_grad():
            weight.view(torch.int32).view(-1)[3] ^= 1
    return made


if __name__ == "__main__":
    for item in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run_case(item)
