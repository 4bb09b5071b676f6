"""One job for each point of a sweep."""

from __future__ import annotations

from typing import Any

import pytest

from speechssl.cli import sweep
from speechssl.cli.words import Request, read_words
from speechssl.errors import ConfigError


def test_job_n_goes_to_out_n(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(request: Request) -> dict[str, Any]:
        seen.append(request.values["out"])
        return {"out": request.values["out"]}

    monkeypatch.setattr(sweep, "run_request", run)
    result = sweep.run_sweep(read_words("evaluate", ["x", "out=runs/s", "seed=1,2,3"]))
    assert seen == ["runs/s/0", "runs/s/1", "runs/s/2"]
    assert [job["values"] for job in result["jobs"]] == [{"seed": 1}, {"seed": 2}, {"seed": 3}]


def test_a_verb_without_out_has_nothing_to_sweep() -> None:
    with pytest.raises(ConfigError, match="`doctor` does not"):
        sweep.run_sweep([Request("doctor"), Request("doctor")])
