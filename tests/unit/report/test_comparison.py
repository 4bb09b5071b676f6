from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from speechssl.report.comparison import find_config_differences, make_comparison
from speechssl.report.run_folder import load_run


def test_runs_of_one_kind_share_their_charts(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [
        load_run(make.finetune(tmp_path / "a", pace=5.0)),
        load_run(make.finetune(tmp_path / "b", init="", pace=1.0)),
        load_run(make.pretrain(tmp_path / "c")),
    ]
    page = make_comparison(runs, ["ours", "scratch", "base"], ["<a>1</a>", "<a>2</a>", "<a>3</a>"])
    assert page.count("<svg") == 3
    assert page.count("The best value is that of ours.") == 3
    assert page.count("<li>") == 3
    assert "Pretraining, side by side" not in page
    assert "<td>init</td><td>runs/base</td><td>–</td>" in page
    assert "<td>seed</td>" not in page
    assert '<tr><td>ours</td><td class="num">200</td>' in page
    assert "skipped updates" not in page


def test_what_differs_is_told_and_nothing_else(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [load_run(make.pretrain(tmp_path / name)) for name in "ab"]
    assert find_config_differences(runs) == []
    assert "Their configurations are the same." in make_comparison(runs, ["a", "b"], ["", ""])
    runs[1].config["training"]["lr"] = 0.002
    del runs[1].config["seed"]
    assert find_config_differences(runs) == [("seed", [1, None]), ("training.lr", [5e-4, 0.002])]
    page = make_comparison(runs, ["a", "b"], ["", ""])
    assert "<td>training.lr</td><td>0.0005</td><td>0.002</td>" in page


def test_hours_are_drawn_where_updates_are_not_alike(make: SimpleNamespace, tmp_path: Path) -> None:
    folders = [make.pretrain(tmp_path / name) for name in "ab"]
    runs = [load_run(folder) for folder in folders]
    assert "by hours heard" not in make_comparison(runs, ["a", "b"], ["", ""])
    for row in runs[1].metrics:
        row["hours_seen"] = row["hours_seen"] * 3
    page = make_comparison(runs, ["a", "b"], ["", ""])
    assert "Pretraining, by hours heard" in page
    by_hours, learning_curve = page.split("<h3>Learning curve</h3>")
    assert (
        by_hours.count("&quot;name&quot;:&quot;hours&quot;")
        == by_hours.count("&quot;name&quot;:&quot;update&quot;")
        == 2
    )
    assert learning_curve.count("&quot;name&quot;:&quot;hours&quot;") == 1


def test_training_curves_stand_in_for_a_validation_that_is_not_there(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [load_run(make.finetune(tmp_path / name)) for name in "ab"]
    for run in runs:
        run.metrics[:] = [row for row in run.metrics if row["split"] == "train"]
    page = make_comparison(runs, ["a", "b"], ["", ""])
    assert "CTC loss, training" in page
    assert "Word error rate" not in page


def test_six_runs_have_six_kinds_of_line(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [load_run(make.pretrain(tmp_path / name)) for name in "abcdef"]
    page = make_comparison(runs, list("abcdef"), [""] * 6)
    assert '<span class="key c1 soft">f</span>' in page


def test_runs_with_nothing_in_common_have_only_their_cards(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [load_run(make.evaluate(tmp_path / "a")), load_run(make.probe(tmp_path / "b"))]
    page = make_comparison(runs, ["a", "b"], ["", ""])
    assert "<svg" not in page
    assert "Side by side" not in page


def test_accuracies_of_two_tasks_are_not_compared(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [load_run(make.pretrain(tmp_path / name)) for name in "abc"]
    runs[2].config["objective"]["name"] = "masked_codes"
    page = make_comparison(runs, ["a", "b", "codes"], ["", "", ""])
    chart = page.split("<figcaption>Accuracy, held out")[1].split("</figure>")[0]
    assert "&quot;label&quot;:&quot;b&quot;" in chart and "&quot;label&quot;:&quot;codes&quot;" not in chart
    assert "Accuracy of codes, held out" not in page, "one run is no comparison"
    row = page.split("<tr><td>codes</td>")[1].split("</tr>")[0]
    assert row.count(">–<") == 1


def test_the_best_value_is_not_that_of_the_state_before_training(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [load_run(make.finetune(tmp_path / name, pace=pace)) for name, pace in (("a", 5.0), ("b", 1.0))]
    runs[1].metrics.insert(0, {"update": 0, "split": "valid", "wer": 1.0, "cer": 1.0, "loss": 1.0, "hours_seen": 0.0})
    page = make_comparison(runs, ["ours", "gone on"], ["", ""])
    assert page.count("The best value is that of ours.") == 3 and "that of gone on" not in page
