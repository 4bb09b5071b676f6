"""What the page of an evaluation says beyond its transcripts: kinds of errors, groups, errors by length and level."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from speechssl.config import ScoreConfig
from speechssl.report.evaluation import describe_evaluation, make_evaluation
from speechssl.report.figures import Chart, Table
from speechssl.report.live import Sounds
from speechssl.report.page import build_report, name_runs
from speechssl.report.run_folder import RunFolder, load_run
from speechssl.verbs import score


def find(run: RunFolder, title: str) -> Any:
    found = [figure.content for section in make_evaluation(run, Sounds()) for figure in section.figures]
    titles = [figure.title for section in make_evaluation(run, Sounds()) for figure in section.figures]
    return found[titles.index(title)] if title in titles else None


def test_errors_of_each_kind_are_shares_of_the_words() -> None:
    result = {
        "wer": 15.0,
        "num_words": 200,
        "substitutions": 20,
        "deletions": 9,
        "insertions": 1,
        "normaliser": "basic",
    }
    summary, stats = describe_evaluation(RunFolder(Path("e"), "evaluate", result=result))
    assert [(stat.value, stat.name, stat.comparison) for stat in stats[1:4]] == [
        ("10.0 %", "substitutions", "20 words written as another"),
        ("4.5 %", "deletions", "9 words left out"),
        ("0.5 %", "insertions", "1 word added"),
    ]
    assert summary.endswith("both texts through the normaliser basic.")


def test_groups_have_tables() -> None:
    interval = {"low": 1.0, "high": 3.0, "unit": "speaker", "count": 30, "reliable": True}
    group = {"column": "sex", "value": "F", "num_words": 9, "wer": 2.04, "cer": None, "wer_interval": interval}
    table = find(RunFolder(Path("e"), "evaluate", result={"groups": [group, {**group, "value": ""}]}), "By sex")
    assert isinstance(table, Table)
    assert table.rows == [
        ("F", 9, 2.0, "–", "1.0 to 3.0, over 30 speakers"), ("∅", 9, 2.0, "–", "1.0 to 3.0, over 30 speakers"),
    ]  # fmt: skip


def test_errors_are_drawn_against_length_and_level() -> None:
    """Errors rise with the length here, and not with the level, which one in ten has not."""
    rows = [
        {"id": str(k), "seconds": f"{k / 10}", "level_db": "-inf" if k % 10 == 0 else f"{-(k % 7)}",
         "word_errors": str(k // 20), "num_words": "10"}
        for k in range(100)
    ]  # fmt: skip
    run = RunFolder(Path("e"), "evaluate", utterances=rows)
    chart = find(run, "Errors by length")
    assert isinstance(chart, Chart)
    (series,) = chart.series
    assert len(series.x) == 8
    assert series.y[0] == 0
    assert series.y[-1] == 40
    assert sorted(series.y) == list(series.y)
    assert series.low is not None and series.high is not None
    assert (series.low <= series.y).all() and (series.y <= series.high).all()
    assert find(run, "Errors by level") is not None
    assert find(RunFolder(Path("e"), "evaluate", utterances=rows[:15]), "Errors by length") is None
    without = [{key: value for key, value in row.items() if key != "level_db"} for row in rows]
    assert find(RunFolder(Path("e"), "evaluate", utterances=without), "Errors by level") is None


def test_a_page_is_titled_by_its_test_set(make: SimpleNamespace, tmp_path: Path, manifest: Path) -> None:
    run = load_run(make.evaluate(tmp_path / "wer"))
    run.test_sets[:] = ["m/test-clean.tsv", "m/test-other.parquet"]
    assert name_runs([run]) == ["test-clean, test-other (wer)"]
    given = str(manifest)
    score(ScoreConfig(reference=given, hypothesis=given, out=str(tmp_path / "scored")))
    page = build_report([tmp_path / "scored"], tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"<title>{manifest.stem} (scored) · speechssl</title>" in page
    assert "<audio" in page, "the manifest that the references are of has the sound"
