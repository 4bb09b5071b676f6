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


def test_curves_and_back_ends_of_trials_are_drawn(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.probe(tmp_path / "probe", "eer")
    result = json.loads((folder / "result.json").read_text())
    result |= {"label": "speaker", "confound": "each speaker has one chapter"}
    result["backends"] = {"plda": {"eer": 9.5, "min_dcf_0.01": 0.8, "min_dcf_0.05": 0.6}, "bad": {"eer": "x"}}
    (folder / "result.json").write_text(json.dumps(result))
    det = {"model": {"misses": [50.0, 2.275], "alarms": [0.135, 15.866]}, "untrained": {"misses": ["x"], "alarms": []}}
    (folder / "det.json").write_text(json.dumps(det))
    run = load_run(folder)
    assert describe_probe(run)[0].endswith("Beware: each speaker has one chapter.")
    curve, table = make_probe(run)[1].figures
    (series,) = curve.content.series
    # Both rates on the scale of a normal distribution: 0 is 50 %, -1 is 15.866 %, -2 is 2.275 %, -3 is 0.135 %.
    assert series.x.tolist() == pytest.approx([-3, -1], abs=1e-3)
    assert series.y.tolist() == pytest.approx([0, -2], abs=1e-3)
    assert table.content.rows == [("plda", 9.5, 0.8, 0.6)]


def test_a_number_that_is_told_has_r2(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.probe(tmp_path / "probe", "r2"))
    assert "0 % is what their mean gets" in describe_probe(run)[0]
    assert judge_probe(run).level == "good"
    assert make_probe(run)[0].figures[0].title == "R² by layer"
