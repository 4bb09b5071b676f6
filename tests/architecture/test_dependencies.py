"""What pyproject.toml asks for, and what the constraints file pins (target S8 of the reliability notes)."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.architecture.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    if not line.startswith("speechssl[")
]


def read_pins() -> dict[str, Version]:
    """Read the constraints file: canonical name to version."""
    lines = (ROOT / "tools" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_each_has_a_floor_and_a_tested_version_above_it() -> None:
    floorless = [str(item) for item in REQUIREMENTS if all(part.operator != ">=" for part in item.specifier)]
    assert not floorless, "no lower bound"
    pins = read_pins()
    untested = [str(item) for item in REQUIREMENTS if pins.get(canonicalize_name(item.name), "") not in item.specifier]
    assert not untested, "no version of tools/constraints.txt fits"


def test_torch_has_no_known_hole_in_its_readers() -> None:
    """Before 2.10 a crafted file could corrupt memory even with `weights_only=True` (CVE-2026-24747)."""
    torch = next(requirement for requirement in REQUIREMENTS if requirement.name == "torch")
    floor = next(Version(part.version) for part in torch.specifier if part.operator == ">=")
    assert floor >= Version("2.10")


def test_no_file_names_an_index_to_install_from() -> None:
    for name in ("pyproject.toml", "tools/constraints.txt", "tools/setup"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"index-url|https?://[^\s\"]*(simple|pypi|whl)|file://", text), name
