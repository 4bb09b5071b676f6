"""The wheel: one top-level package, all of conf/, and a command that is not fooled by a foreign conf/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.source import PACKAGE, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tree, without network and without touching the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("speechssl", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE", *([read_project()["readme"]] if "readme" in read_project() else [])):
        shutil.copy(ROOT / name, folder / name)
    run_pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder))
    (built,) = (folder / "dist").glob("*.whl")
    return built


def read_project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


def run_pip(command: str, *options: str) -> None:
    flags = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([sys.executable, "-m", "pip", command, *flags, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_has_one_top_level_package_and_all_of_conf(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"speechssl"}
    yamls = {f"speechssl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert {name for name in names if name.endswith(".yaml")} == yamls
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert modules <= set(names)
    data = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert {name for name in data if "__pycache__" not in name} <= set(names)


def test_the_installed_wheel_composes_its_own_conf(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    run_pip("install", "--target", str(site), str(wheel))
    decoy = empty / "conf"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("", encoding="utf-8")
    (decoy / "pretrain.yaml").write_text("seed: 666\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": ""}
    shown = run_python(empty, environment, "-c", "import speechssl; print(speechssl.__file__)")
    assert Path(shown.strip()).is_relative_to(site)
    config = run_python(empty, environment, "-m", "speechssl", "pretrain", "tiny", "m.tsv", "out=x", "--cfg")
    assert "seed: 1\n" in config
    assert "model_dim: 32\n" in config


def run_python(folder: Path, environment: Mapping[str, str], *words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_listed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == found | {"speechssl.conf"}


def test_the_command_says_the_version_of_the_distribution() -> None:
    import speechssl

    assert read_project()["version"] == speechssl.__version__
