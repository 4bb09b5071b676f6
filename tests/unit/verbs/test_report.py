from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechssl.config.verbs import ReportConfig
from speechssl.errors import ConfigError
from speechssl.verbs import report as run


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"accuracy": 50.0, "layers": [{"layer": 0, "accuracy": 40.0}]}))
    return folder


def test_the_page_lies_in_the_first_folder_unless_told(probe: Path, tmp_path: Path) -> None:
    result = run(ReportConfig(run=[str(probe)]))
    assert Path(result["out"]) == probe / "report.html"
    other = run(ReportConfig(run=[str(probe), str(probe)], out=str(tmp_path / "new" / "page.html")))
    assert Path(other["out"]).read_text().count("<article") == 2


def test_a_page_is_kept_where_overwriting_is_off(probe: Path) -> None:
    run(ReportConfig(run=[str(probe)]))
    with pytest.raises(ConfigError, match="`out` must be a new place"):
        run(ReportConfig(run=[str(probe)], overwrite=False))


def test_mistakes_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`run` must be one or more run folders"):
        run(ReportConfig())
    with pytest.raises(ConfigError, match="`run` must be a run folder"):
        run(ReportConfig(run=[str(tmp_path / "none")]))
