from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechssl.report.probe import describe_probe, list_baselines, make_probe
from speechssl.report.run_folder import load_run


@pytest.mark.parametrize(("measure", "better"), [("accuracy", "higher is better"), ("eer", "lower is better")])
def test_layers_baselines_and_weights_are_drawn(
    make: SimpleNamespace, tmp_path: Path, measure: str, better: str
) -> None:
    run = load_run(make.probe(tmp_path / "probe", measure))
    summary, stats = describe_probe(run)
    assert better in summary
    assert stats[0].value == "78.1 %"
    assert list_baselines(run) == [("log-mel statistics", 49.5), ("untrained encoder", 41.0)]
    section = make_probe(run)
    assert section.count("<circle") == 5
    assert "Learned mix" in section
    assert "untrained encoder, 41.0 %" in section


def test_a_result_without_layers_still_has_its_figures(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.probe(tmp_path / "probe")
    (folder / "result.json").write_text('{"accuracy": 50.0, "baselines": {"log_mel": {"accuracy": 40.0}}}')
    run = load_run(folder)
    assert describe_probe(run)[1][0].value == "50.0 %"
    assert "By layer" not in make_probe(run)


def test_a_baseline_by_layers_is_drawn_beside_the_model(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.probe(tmp_path / "probe", "eer")
    layers = [{"layer": k, "eer": 40.0 - k} for k in range(5)]
    result = json.loads((folder / "result.json").read_text())
    result["baselines"] = {"log_mel": {"eer": 35.0}, "untrained": {"layers": layers}}
    (folder / "result.json").write_text(json.dumps(result))
    run = load_run(folder)
    assert list_baselines(run) == [("log-mel statistics", 35.0), ("untrained encoder", 36.0)]
    assert make_probe(run).count("<circle") == 10
