"""What a page says of a run's health."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import yaml

from speechssl.report.health import find_stretches, make_health
from speechssl.report.page import build_report
from speechssl.report.run_folder import load_run


def test_a_healthy_run_has_nothing_to_say(make: SimpleNamespace, tmp_path: Path) -> None:
    assert make_health(load_run(make.pretrain(tmp_path / "run"))) == ""


def test_skipped_updates_warnings_and_the_average_are_told(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "run")
    ids = ["<a>", "b", "c", "d", "e"]
    lines = [{"update": update, "reason": "loss is nan", "ids": ids} for update in range(1, 24)]
    (folder / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["collapse_warning"] = int(100 <= row["update"] < 150)
    make.lines(folder, rows)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"] |= {"ema_decay": 0.999, "validate_ema": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    page = build_report([folder], tmp_path / "page.html").read_text()
    assert "23 updates were skipped" in page
    assert page.count("<td>loss is nan</td>") == 20
    assert "&lt;a&gt;, b, c and 2 more" in page
    assert "in the updates from 100 to 149:" in page
    assert "decay 0.999" in page
    assert "Validation used it" in page


def test_system_figures_are_drawn_where_they_are(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.finetune(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["update"] % 10 == 0 and row["split"] == "train":
            row |= {"memory_mib": 500.0 + row["update"], "loader_wait": 0.02}
    make.lines(folder, rows)
    page = build_report([folder], tmp_path / "page.html").read_text()
    assert "Waiting for audio" in page
    assert "MiB, this process" in page
    assert "GPU memory" not in page


def test_stretches() -> None:
    rows = [{"update": k, "w": w} for k, w in enumerate([0, 1, 1, 0, None, 1], 1)]
    assert find_stretches(rows, "w") == [(2, 3), (6, 6)]
    assert find_stretches([], "w") == []
