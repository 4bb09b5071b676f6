from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from speechssl.report.page import build_report
from speechssl.report.run_folder import RunFolder, load_run
from speechssl.report.tuning import describe_tuning, judge_tuning, make_tuning


def test_the_best_sets_of_weights_are_a_table(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.tune(tmp_path / "tuned")
    run = load_run(folder)
    summary, stats = describe_tuning(run)
    assert "<books>.arpa" in summary
    assert [stat.value for stat in stats] == ["31.2 %", "17.5 %", "42.0 %", "20.0 %"]
    assert (judge_tuning(run).level, judge_tuning(run).text[:4]) == ("good", "31.2")
    (figure,) = make_tuning(run)[0].figures
    assert figure.content.rows[0] == ["kept", 0.5, 0.0, 1.0, -9.0, 50, 31.25, 17.5]
    assert len(figure.content.rows) == 3
    page = build_report([folder], tmp_path / "page.html").read_text()
    assert "The best sets of weights" in page and "&lt;books&gt;.arpa" in page


def test_a_result_without_figures_still_has_a_page() -> None:
    run = RunFolder(Path("t"), "tune", result={"points": [3, {"wer": 1.0}], "greedy": [], "wer": 50.0, "cer": None})
    assert [stat.value for stat in describe_tuning(run)[1]] == ["50.0 %"]
    assert judge_tuning(run).level == "open"
    assert make_tuning(run) == []
    no_better = RunFolder(Path("t"), "tune", result={"wer": 50.0, "greedy": {"wer": 49.0}})
    assert judge_tuning(no_better).level == "doubt"
