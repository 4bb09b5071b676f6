"""The table from records: all cells, the failed ones too, with differences paired by seed and by speaker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.librispeech_mini.study.figures import list_rows
from recipes.librispeech_mini.study.records import read_all, write_record
from recipes.librispeech_mini.study.table import BEGIN, EMPTY, END, build_table, update_page
from speechssl.errors import DataError

SPEAKERS = {"test": ("61", "121"), "test-other": ("367",)}


def make_record(cell: str, step: str, **values: Any) -> dict[str, Any]:
    kind = cell.partition("-")[0] if cell.startswith(("trial", "long")) else "main"
    arm = cell.split("-")[1] if kind != "main" else cell.partition("-")[0]
    base = {"cell": cell, "step": step, "status": "done", "arm": arm, "kind": kind, "commands": [f"speechssl {step}"]}
    base |= {"seed": 1 if kind == "trial" else int(cell[-1]), "trial": cell.split("-")[-1] if kind == "trial" else ""}
    base |= {"wall_s": 1800.0, "tries": 1, "machine": {"name": "A processor", "cores": 2, "threads": 2}}
    base |= {"packages": {"torch": "2.14"}, "revision": "abc", "date": "2026-11-26T10:00:00Z", "metrics": {}}
    return base | values


def make_evaluation(cer: float, splits: tuple[str, ...] = ("dev", "test", "test-other")) -> dict[str, Any]:
    def make(split: str) -> dict[str, Any]:
        each = [{"speaker": s, "num_words": 100, "wer": cer + 30, "cer": cer} for s in SPEAKERS.get(split, ("5",))]
        return {"cer": cer, "wer": cer + 30, "speakers": each}

    return {f"{split}/greedy": make(split) for split in splits} | {"test/beam": {"cer": cer - 1, "wer": cer + 11}}


def write_training(results: Path, cell: str, step: str, hours: float, **values: Any) -> None:
    record = make_record(cell, step, hours_seen=hours, flop=hours * 5e12, updates=2000, precision="bf16", **values)
    write_record(results / cell / f"{step}.json", record)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Give the results of two arms with two seeds, of a cell that failed, one that was killed, and a trial."""
    folder = tmp_path / "results"
    for seed, scratch, pretrained in ((1, 50.0, 40.0), (2, 52.0, 44.0)):
        for arm, cer in (("scratch", scratch), ("wav2vec2", pretrained)):
            cell = f"{arm}-{seed}"
            if arm == "wav2vec2":
                write_training(folder, cell, "pretrain", 80.0)
            write_training(folder, cell, "finetune-1h", 18.0, labels="1h")
            evaluation = make_record(cell, "evaluate-1h", labels="1h", metrics=make_evaluation(cer))
            write_record(folder / cell / "evaluate-1h.json", evaluation)
    failed = make_record("kmeans-1", "pretrain-1", status="failed", error="Pretraining has collapsed | at update 7.")
    write_record(folder / "kmeans-1" / "pretrain-1.json", failed)
    killed = make_record("random_frozen-1", "finetune-1h", status="started", labels="1h")
    write_record(folder / "random_frozen-1" / "finetune-1h.json", killed)
    write_training(folder, "trial-scratch-log_mel", "finetune-1h", 9.0, labels="1h")
    trial = make_record("trial-scratch-log_mel", "evaluate-1h", labels="1h", metrics=make_evaluation(60.0, ("dev",)))
    write_record(folder / "trial-scratch-log_mel" / "evaluate-1h.json", trial | {"date": "2026-11-27T10:00:00Z"})
    layers = [{"layer": 0, "eer": 30.0}, {"layer": 1, "eer": 20.5}]
    baselines = {name: {"eer": eer} for name, eer in (("log_mel", 12.0), ("untrained", 31.0))}
    probe = {"eer": 21.0, "layers": layers, "baselines": baselines, "num_speakers": 12}
    record = make_record("wav2vec2-1", "verification", metrics={"verification": probe})
    write_record(folder / "wav2vec2-1" / "verification.json", record)
    write_record(
        folder / "wav2vec2-1" / "digits.json", make_record("wav2vec2-1", "digits", status="failed", error="No digits.")
    )
    return folder


def test_every_cell_has_a_line_with_its_cost_and_figures(results: Path) -> None:
    text = build_table(read_all(results))
    assert "| wav2vec2-1 | 1h | 98.0 | 0.5 | 1.00 | 40.0 | 70.0 | 51.0 | 40.0 | 70.0 |  |  |" in text
    assert "| scratch-2 | 1h | 18.0 | 0.1 | 0.50 | 52.0 | 82.0 | 63.0 | 52.0 | 82.0 |  |  |" in text
    assert "| wav2vec2-1 | 30.0 | 20.5 | 21.0 | 12.0 | 31.0 |" in text


def test_what_failed_or_was_killed_is_there_with_its_sentence(results: Path) -> None:
    text = build_table(read_all(results))
    assert "failed in pretrain-1: Pretraining has collapsed / at update 7." in text
    assert "finetune-1h is started" in text
    assert "- wav2vec2-1: failed in digits: No digits." in text


def test_differences_are_paired_by_seed_and_by_speaker(results: Path) -> None:
    text = build_table(read_all(results))
    line = next(row for row in text.splitlines() if row.startswith("| wav2vec 2.0 | 1h | test | CER"))
    # Differences -10 and -8; t(0.975, 1) = 12.706, deviation sqrt(2).
    assert "| 2 | 42.0 | -9.0 (-21.7 to +3.7, 2 seeds) | -18 % |" in line
    assert "-9.0 (-9.0 to -9.0, 3 speakers, unreliable)" in line
    assert "| from scratch, same total compute | 51.0 | 51.0 | 51.0 |" in text


def test_a_trial_that_was_run_after_test_was_read_is_marked(results: Path) -> None:
    assert "| scratch | log_mel | 2,000 | 60.0 | 90.0 | run after `test` was first read |" in build_table(
        read_all(results)
    )


def test_a_trial_is_no_cell_of_the_comparison(results: Path) -> None:
    rows = list_rows(read_all(results))
    assert sum(row.kind == "trial" for row in rows) == 1
    assert "| trial-scratch-log_mel |" not in build_table(read_all(results))


def test_the_page_is_changed_between_its_lines_alone(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\n\nold\n{END}\n\nafter\n")
    update_page(page, results)
    first = page.read_text()
    assert first.startswith(f"before\n\n{BEGIN}\n") and first.endswith(f"{END}\n\nafter\n") and "old" not in first
    update_page(page, results)
    assert page.read_text() == first


def test_without_cells_the_page_says_so_and_keeps_the_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    update_page(page, tmp_path / "none")
    assert EMPTY in page.read_text() and "Kaldi" in page.read_text()


def test_a_page_without_the_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(DataError, match="`page` must have the lines"):
        update_page(tmp_path / "page.md", tmp_path)
