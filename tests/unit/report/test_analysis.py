from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from speechssl.report.analysis import Heat, describe_analysis, judge_analysis, make_analysis
from speechssl.report.figures import Chart
from speechssl.report.page import build_report
from speechssl.report.run_folder import RunFolder, load_run


def test_layers_are_lines_and_likeness_is_a_map(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.analyse(tmp_path / "layers")
    run = load_run(folder)
    summary, stats = describe_analysis(run)
    assert "900 frames of 30 utterances" in summary
    assert [(stat.value, stat.comparison) for stat in stats] == [
        ("40", "layer 0, dimensions"), ("0.500", "layer 0"), ("72.0 %", "layer 2"),
    ]  # fmt: skip
    sections = {section.title: section.figures for section in make_analysis(run)}
    assert list(sections) == ["Layers", "Classes: <speaker>", "Units and labels of segments", "Likeness", "In figures"]
    rank = sections["Layers"][0].content
    assert isinstance(rank, Chart) and [series.y.tolist() for series in rank.series] == [
        [40.0, 31.0, 22.0],
        [40.0, 31.0],
    ]
    cca = sections["Layers"][-1].content
    assert isinstance(cca, Chart) and [series.label for series in cca.series][-1] == "frames shuffled"
    accuracy = sections["Classes: <speaker>"][0].content
    assert isinstance(accuracy, Chart) and accuracy.series[0].low is not None
    assert [series.label for series in accuracy.series][2:] == ["log-mel", "most frequent class"]
    own, against = (figure.content for figure in sections["Likeness"])
    assert isinstance(own, Heat) and own.rows[0] == [1.0, 0.75, 0.0]
    assert isinstance(against, Heat) and against.rows == [[0.9, None], [0.5, 0.8], [0.4, 0.7]]
    page = build_report([folder], tmp_path / "page.html").read_text()
    assert page.count("<rect") == 9 + 5 and "<title>1, 2: 0.5</title>" in page
    assert "Against runs/&lt;other&gt;" in page and "&lt;speaker&gt;" in page and "<speaker>" not in page


def test_a_collapse_is_the_verdict() -> None:
    def judge(rows: Any) -> str:
        return judge_analysis(RunFolder(Path("a"), "analyse", result={"layers": rows})).title

    row = {"layer": 1, "rank": 1.2, "collapsed": False}
    assert judge([row]) == "No layer has collapsed"
    assert judge([row, {"layer": 2, "collapsed": True}, {"layer": 3, "collapsed": True}]) == "Collapsed: layer 2, 3"
    assert judge([3, {"layer": "x"}]) == judge(None) == "Nothing to look at"


def test_a_result_of_something_else_has_a_page_without_pictures() -> None:
    several: tuple[Any, ...] = (3, [], [[]], [[1.0], [1.0, 2.0]], [[0.0] * 200])
    for cka in several:
        run = RunFolder(Path("a"), "analyse", result={"layers": [{"layer": 1, "rank": "x"}], "cka": cka, "label": 3})
        assert make_analysis(run) == [] and describe_analysis(run)[1] == []
