from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from speechssl.report.comparison import make_comparison
from speechssl.report.run_folder import load_run


def test_runs_of_one_kind_share_their_charts(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [
        load_run(make.finetune(tmp_path / "a", pace=5.0)),
        load_run(make.finetune(tmp_path / "b", init="", pace=1.0)),
        load_run(make.pretrain(tmp_path / "c")),
    ]
    page = make_comparison(runs, ["ours", "scratch", "base"], ["<a>1</a>", "<a>2</a>", "<a>3</a>"])
    assert page.count("<svg") == 2
    assert page.count("The best value is that of ours.") == 2
    assert page.count("<li>") == 3


def test_runs_with_nothing_in_common_have_only_their_cards(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [load_run(make.evaluate(tmp_path / "a")), load_run(make.probe(tmp_path / "b"))]
    page = make_comparison(runs, ["a", "b"], ["", ""])
    assert "<svg" not in page
    assert "Side by side" not in page
