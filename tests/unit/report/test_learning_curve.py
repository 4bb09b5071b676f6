"""The learning curve: a logarithmic axis of hours, published BASE as marks, probes where their checkpoints stand."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechssl.report.learning_curve import find_probed_hours, gather_probes, make_learning_curve
from speechssl.report.page import build_report
from speechssl.report.run_folder import load_run


def read_charts(page: str) -> list[dict[str, Any]]:
    return [json.loads(html.unescape(found)) for found in re.findall(r'data-chart="([^"]*)"', page)]


def make_probed(make: SimpleNamespace, folder: Path, run: Path, update: int | None, score: float) -> Path:
    made: Path = make.probe(folder)
    result = json.loads((made / "result.json").read_text(encoding="utf-8"))
    result |= {"checkpoint": str(run), "update": update, "accuracy": score}
    (made / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return made


def make_base_task(run: Any) -> None:
    run.config["model"]["quantizer"]["num_codes"] = 320


def test_the_curve_is_of_validation_over_hours_and_starts_after_zero(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.pretrain(tmp_path / "a"))
    page = make_learning_curve([(run, "a")], [])
    (chart,) = read_charts(page)
    assert chart["log"] is True
    assert chart["name"] == "hours"
    (curve,) = chart["curves"]
    wanted = [row for row in run.select("valid") if row["hours_seen"] > 0]
    assert curve["x"] == pytest.approx([row["hours_seen"] for row in wanted], rel=1e-4)
    assert curve["y"] == pytest.approx([row["accuracy"] for row in wanted], rel=1e-3)
    assert 0 < chart["x"][0] < curve["x"][0]
    assert chart["x"][1] > 640_000


def test_the_published_points_stand_at_their_hours(make: SimpleNamespace, tmp_path: Path) -> None:
    page = make_learning_curve([(load_run(make.pretrain(tmp_path / "a")), "a")], [])
    (chart,) = read_charts(page)
    places = [float(x) for x in re.findall(r'class="mark ref"[^>]*translate\(([\d.]+) ', page)]
    left, _, right, _ = chart["plot"]
    low, high = chart["x"]
    hours = [low * (high / low) ** ((x - left) / (right - left)) for x in places]
    assert hours == pytest.approx([80_000, 160_000, 320_000, 640_000], rel=0.01)
    for said in ("50k: 49\u202f% at 80\u202f000", "400k: 63\u202f% at 640\u202f000"):
        assert said in page


def test_a_run_with_another_task_is_said_not_to_be_comparable(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.pretrain(tmp_path / "a"))
    page = make_learning_curve([(run, "a")], [])
    assert "not comparable with them: model.quantizer.num_codes=12 (BASE 320)." in page
    assert "have been heard, 0.01" in page
    make_base_task(run)
    page = make_learning_curve([(run, "a")], [])
    assert "This run has the codebook, mask and K of BASE." in page
    assert "is not comparable" not in page


def test_a_run_without_validation_shows_its_training_and_says_so(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.pretrain(tmp_path / "a"))
    run.metrics[:] = [row for row in run.metrics if row["split"] == "train"]
    (chart,) = read_charts(make_learning_curve([(run, "a")], []))
    assert [curve["label"] for curve in chart["curves"]] == ["a, training"]
    run.metrics.clear()
    assert make_learning_curve([(run, "a")], []) == ""


def test_probes_stand_at_the_hours_of_their_checkpoints(make: SimpleNamespace, tmp_path: Path) -> None:
    folder, other = make.pretrain(tmp_path / "a"), make.pretrain(tmp_path / "b")
    probes = [
        make_probed(make, tmp_path / "p2", folder, 300, 78.0),
        make_probed(make, tmp_path / "p1", folder / "checkpoints" / "update-0000150", 150, 70.0),
        make_probed(make, tmp_path / "p3", other, 300, 60.0),
    ]
    (folder / "checkpoints" / "update-0000150").mkdir(parents=True)
    run = load_run(folder)
    page = make_learning_curve([(run, "a")], [load_run(probe) for probe in probes])
    _, chart = read_charts(page)
    (curve,) = chart["curves"]
    assert curve["x"] == pytest.approx([150 * 96 / 3600, 300 * 96 / 3600])
    assert curve["y"] == [70.0, 78.0]
    assert "log-mel statistics, 49.5 %" in page
    both = make_learning_curve([(run, "a"), (load_run(other), "b")], [load_run(probe) for probe in probes])
    assert [curve["label"] for curve in read_charts(both)[1]["curves"]] == ["a", "b"]


def test_a_probe_of_no_known_update_is_not_guessed(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "a")
    run = load_run(folder)
    unknown = load_run(make_probed(make, tmp_path / "p", folder, None, 50.0))
    del unknown.result["update"]
    assert find_probed_hours(run, unknown) is None
    named = folder / "checkpoints" / "update-0000100"
    named.mkdir(parents=True)
    unknown.result["checkpoint"] = str(named)
    assert find_probed_hours(run, unknown) == pytest.approx(100 * 96 / 3600)
    unknown.result["checkpoint"] = str(tmp_path / "gone")
    assert find_probed_hours(run, unknown) is None


def test_baselines_that_differ_are_no_line(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "a")
    probes = [load_run(make_probed(make, tmp_path / f"p{k}", folder, 100 * k, 60.0 + k)) for k in (1, 2)]
    probes[1].result["baselines"]["log_mel"]["accuracy"] = 44.0
    page = make_learning_curve([(load_run(folder), "a")], probes)
    assert "log-mel statistics" not in page
    assert "untrained encoder, 41 %" in page


def test_probes_inside_a_run_are_found_once(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "a")
    inside = make_probed(make, folder / "probe-300", folder, 300, 71.0)
    make.evaluate(folder / "evaluation")
    assert [probe.path.name for probe in gather_probes([load_run(folder)])] == ["probe-300"]
    assert len(gather_probes([load_run(folder), load_run(inside)])) == 1
    page = build_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Speaker identification" in page


def test_several_runs_share_the_chart_of_the_page(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [make.pretrain(tmp_path / name) for name in "ab"]
    page = build_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    overview = page.split('<article id="run-1">')[0]
    charts = [chart for chart in read_charts(overview) if chart.get("log")]
    assert [[curve["label"] for curve in chart["curves"]] for chart in charts] == [["a", "b"]]


def test_published_points_stand_beside_runs_of_their_task_alone(make: SimpleNamespace, tmp_path: Path) -> None:
    """Naming codes is another task than choosing among frames, and its accuracy another figure."""
    runs = [(load_run(make.pretrain(tmp_path / name)), name) for name in "ab"]
    runs[1][0].config["objective"]["name"] = "masked_codes"
    alone = make_learning_curve([runs[1]], [])
    assert "BASE" not in alone and "mark ref" not in alone
    assert "Accuracy of codes" in alone and "Contrastive accuracy" not in alone
    contrastive, codes = read_charts(make_learning_curve(runs, []))
    assert [curve["label"] for curve in contrastive["curves"]] == ["a"]
    assert [curve["label"] for curve in codes["curves"]] == ["b"]
    assert contrastive["x"][1] > 640_000 > codes["x"][1]
