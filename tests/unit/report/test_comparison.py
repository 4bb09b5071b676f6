"""Runs side by side, and the learning curve: hours on a logarithmic axis, published BASE, probes at their hours."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechssl.report.comparison import (
    find_config_differences,
    find_probed_hours,
    gather_probes,
    make_comparison,
    make_learning_curve,
)
from speechssl.report.figures import Chart, Figure, Table
from speechssl.report.page import build_report
from speechssl.report.run_folder import RunFolder, load_run

Named = list[tuple[RunFolder, str]]


def list_figures(sections: Any) -> list[Figure]:
    return [figure for section in sections for figure in section.figures]


def find_charts(sections: Any) -> dict[str, Chart]:
    return {figure.title: figure.content for figure in list_figures(sections) if isinstance(figure.content, Chart)}


def name_runs(make: SimpleNamespace, tmp_path: Path, names: str) -> Named:
    return [(load_run(make.pretrain(tmp_path / name)), name) for name in names]


def make_probed(make: SimpleNamespace, folder: Path, run: Path, update: int | None, score: float) -> RunFolder:
    made: Path = make.probe(folder)
    result = json.loads((made / "result.json").read_text(encoding="utf-8"))
    result |= {"checkpoint": str(run), "update": update, "accuracy": score}
    (made / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return load_run(made)


def test_runs_of_one_kind_share_their_charts(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [
        (load_run(make.finetune(tmp_path / "a", pace=5.0)), "ours"),
        (load_run(make.finetune(tmp_path / "b", init="", pace=1.0)), "scratch"),
        (load_run(make.pretrain(tmp_path / "c")), "base"),
    ]
    # A recogniser that goes on is validated as it came: that is no result of this run.
    runs[1][0].metrics.insert(
        0, {"update": 0, "split": "valid", "wer": 1.0, "cer": 1.0, "loss": 1.0, "hours_seen": 0.0}
    )
    (section,) = make_comparison(runs)
    assert section.title == "Fine-tuning, side by side"
    figures, differences, *charts = section.figures
    assert [chart.note for chart in charts] == ["The best value is that of ours."] * 3
    assert figures.content.rows[0][:2] == ["ours", 200] and "skipped updates" not in figures.content.head
    assert differences.content.rows == [["init", "runs/base", ""]]


def test_what_differs_is_told_and_nothing_else(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = name_runs(make, tmp_path, "ab")
    assert find_config_differences([run for run, _ in runs]) == []
    captions = [f.content.caption for f in list_figures(make_comparison(runs)) if isinstance(f.content, Table)]
    assert "Their configurations are the same." in captions
    runs[1][0].config["training"]["lr"] = 0.002
    del runs[1][0].config["seed"]
    assert find_config_differences([run for run, _ in runs]) == [("seed", [1, None]), ("training.lr", [5e-4, 0.002])]


def test_hours_are_the_axis_where_updates_are_not_alike(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = name_runs(make, tmp_path, "ab")
    assert find_charts(make_comparison(runs))["Accuracy, held out"].x_label == "update"
    for row in runs[1][0].metrics:
        row["hours_seen"] = row["hours_seen"] * 3
    assert find_charts(make_comparison(runs))["Accuracy, held out"].x_label == "hours of speech heard"


def test_training_curves_stand_in_for_a_validation_that_is_not_there(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [(load_run(make.finetune(tmp_path / name)), name) for name in "ab"]
    pretraining = name_runs(make, tmp_path, "cd")
    for run, _ in runs + pretraining:
        run.metrics[:] = [row for row in run.metrics if row["split"] == "train"]
    assert list(find_charts(make_comparison(runs))) == ["CTC loss, training"]
    assert "Contrastive accuracy, training" in find_charts(make_learning_curve(pretraining, []))
    pretraining[0][0].metrics.clear()
    assert make_learning_curve(pretraining[:1], []) == []


def test_six_runs_have_six_kinds_of_line(make: SimpleNamespace, tmp_path: Path) -> None:
    chart = find_charts(make_comparison(name_runs(make, tmp_path, "abcdef")))["Accuracy, held out"]
    assert len({(series.style, series.kind) for series in chart.series}) == 6


def test_tasks_are_not_mixed_and_published_points_are_of_contrastive_accuracy_alone(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    runs = [*name_runs(make, tmp_path, "abc"), (load_run(make.evaluate(tmp_path / "e")), "e")]
    for row in runs[2][0].metrics:
        row["loss_codes"] = row.pop("loss_contrastive")
    sections = make_comparison(runs)
    charts = find_charts(sections)
    assert [series.label for series in charts["Accuracy, held out"].series] == ["a", "b"]
    assert "Accuracy of codes, held out" in charts and "Code loss, held out" not in charts, "one run is no comparison"
    assert list_figures(sections)[0].content.rows[2].count(None) == 2
    labels = {title: [series.label for series in charts[title].series] for title in charts if charts[title].log_x}
    published = "BASE, replicated on LibriSpeech 960 h"
    assert labels == {
        "Contrastive accuracy, held out": ["a", "b", published],
        "Accuracy of codes, held out": ["c"],
    }


def test_the_learning_curve_is_of_validation_over_hours_and_starts_after_zero(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    ((run, _),) = runs = name_runs(make, tmp_path, "a")
    (figure,) = list_figures(make_learning_curve(runs, []))
    own, published = figure.content.series
    wanted = [row for row in run.select("valid") if row["hours_seen"] > 0]
    assert own.x == pytest.approx([row["hours_seen"] for row in wanted])
    assert own.y == pytest.approx([100 * row["accuracy"] for row in wanted])
    assert published.x == pytest.approx([80_000, 160_000, 320_000, 640_000])
    assert not published.is_shown, "a run of hours would be a dot beside them"
    assert "a is not comparable with them: model.quantizer.num_codes=12 (BASE 320)." in figure.note
    run.config["model"]["quantizer"]["num_codes"] = 320
    for row in run.metrics:
        row["hours_seen"] = row["hours_seen"] * 1000
    (figure,) = list_figures(make_learning_curve(runs, []))
    assert figure.content.series[1].is_shown and "not comparable" not in figure.note


def test_probes_stand_at_the_hours_of_their_checkpoints(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = name_runs(make, tmp_path, "ab")
    inside = tmp_path / "a" / "checkpoints" / "update-0000150"
    inside.mkdir(parents=True)
    probes = [
        make_probed(make, tmp_path / "p2", tmp_path / "a", 300, 78.0),
        make_probed(make, tmp_path / "p1", inside, 150, 70.0),
        make_probed(make, tmp_path / "p3", tmp_path / "b", 300, 60.0),
    ]
    a, b, *levels = find_charts(make_learning_curve(runs, probes))["Speaker identification"].series
    assert a.x == pytest.approx([150 * 96 / 3600, 300 * 96 / 3600]) and a.y.tolist() == [70.0, 78.0]
    assert b.y.tolist() == [60.0]
    assert [level.label for level in levels] == ["log-mel statistics", "untrained encoder"]
    probes[1].result["baselines"]["log_mel"]["accuracy"] = 44.0
    *_, level = find_charts(make_learning_curve(runs, probes))["Speaker identification"].series
    assert level.label == "untrained encoder", "baselines that differ are no line"


def test_a_probe_of_no_known_update_is_not_guessed(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.pretrain(tmp_path / "a"))
    unknown = make_probed(make, tmp_path / "p", tmp_path / "a", None, 50.0)
    del unknown.result["update"]
    assert find_probed_hours(run, unknown) is None
    named = tmp_path / "a" / "checkpoints" / "update-0000100"
    named.mkdir(parents=True)
    unknown.result["checkpoint"] = str(named)
    assert find_probed_hours(run, unknown) == pytest.approx(100 * 96 / 3600)
    unknown.result["checkpoint"] = str(tmp_path / "gone")
    assert find_probed_hours(run, unknown) is None


def test_probes_inside_a_run_are_found_once(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "a")
    inside = make_probed(make, folder / "probe-300", folder, 300, 71.0)
    make.evaluate(folder / "evaluation")
    (folder / "broken").mkdir()
    (folder / "broken" / "result.json").write_text("{")
    assert [probe.path.name for probe in gather_probes([load_run(folder)])] == ["probe-300"]
    assert len(gather_probes([load_run(folder), inside])) == 1
    page = build_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Speaker identification" in page
