"""What is missing, and how to get it."""

from __future__ import annotations

import logging
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from speechssl.config.verbs import DoctorConfig
from speechssl.verbs import doctor
from speechssl.verbs.doctor import Need

module = import_module("speechssl.verbs.doctor")


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    torch = next(need for need in module.NEEDS if need.distribution == "torch")
    absent = Need("no-such-distribution", "no_such_module", "nothing", extra="demo")
    monkeypatch.setattr(module, "NEEDS", (torch, absent))
    with caplog.at_level(logging.INFO, "speechssl"):
        result = doctor(DoctorConfig())
    assert [item["package"] for item in result["missing"]] == ["no-such-distribution"]
    assert "to get no-such-distribution: pip install 'speechssl[demo]'" in caplog.text


def test_every_package_that_is_asked_for_is_looked_at() -> None:
    """The dependencies and the extras of pyproject.toml, those of development apart."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        name: asked for name, asked in project["optional-dependencies"].items() if name not in ("test", "dev", "docs")
    }
    asked = {"": project["dependencies"], **extras}
    expected = {(re.split(r"[><=]", line)[0], extra) for extra, lines in asked.items() for line in lines}
    assert {(need.distribution, need.extra) for need in module.NEEDS} == expected


def test_a_package_that_does_not_load_is_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise OSError("undefined symbol: x\nmore")

    monkeypatch.setattr(module, "import_module", fail)
    need = Need("torch", "torch", "everything")
    assert module._examine(need)["problem"] == "installed, but does not load: undefined symbol: x"


def test_the_machine_is_described_without_torch() -> None:
    machine = module._describe_machine(has_torch=False)
    assert machine["cpu_cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["gpus"] == []
    assert "device" not in machine
