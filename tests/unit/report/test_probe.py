from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechssl.report.probe import describe_probe, judge_probe, list_baselines, make_probe
from speechssl.report.run_folder import RunFolder, load_run


@pytest.mark.parametrize(("measure", "better", "level"), [("accuracy", "higher", "good"), ("eer", "lower", "doubt")])
def test_layers_baselines_and_weights_are_drawn(
    make: SimpleNamespace, tmp_path: Path, measure: str, better: str, level: str
) -> None:
    run = load_run(make.probe(tmp_path / "probe", measure))
    summary, stats = describe_probe(run)
    assert f"{better} is better" in summary
    assert stats[0].value == "78.1 %"
    assert list_baselines(run) == [("log-mel statistics", 49.5), ("untrained encoder", 41.0)]
    assert judge_probe(run).level == level
    by_layer, mix, table = make_probe(run)[0].figures
    own, *levels = by_layer.content.series
    assert own.x.tolist() == [0, 1, 2, 3, 4] and own.low[0] == 57
    assert [each.label for each in levels] == ["log-mel statistics", "untrained encoder", "learned mix"]
    assert mix.content.series[0].y.tolist() == pytest.approx([15, 35, 25, 15, 10])
    assert len(table.content.rows) == 7


def test_a_result_without_layers_still_has_its_figures() -> None:
    run = RunFolder(Path("p"), "probe", result={"accuracy": 50.0, "baselines": {"log_mel": {"accuracy": 99.5}}})
    assert describe_probe(run)[1][0].value == "50.0 %"
    assert [figure.title for figure in make_probe(run)[0].figures] == ["In figures"]
    assert "a baseline solves" in judge_probe(run).text
    assert judge_probe(RunFolder(Path("p"), "probe", result={"layers": [], "baselines": []})).level == "open"


def test_a_baseline_by_layers_is_drawn_beside_the_model(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.probe(tmp_path / "probe", "eer")
    result = json.loads((folder / "result.json").read_text())
    layers = [{"layer": k, "eer": 40.0 - k} for k in range(5)]
    result["baselines"] = {"log_mel": {"eer": 35.0}, "untrained": {"layers": layers}}
    (folder / "result.json").write_text(json.dumps(result))
    run = load_run(folder)
    assert list_baselines(run) == [("log-mel statistics", 35.0), ("untrained encoder", 36.0)]
    labels = [series.label for series in make_probe(run)[0].figures[0].content.series]
    assert labels == ["pretrained", "untrained encoder", "log-mel statistics", "learned mix"]
