"""The table from records: all cells, the failed ones too, with differences paired by seed and by speaker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.librispeech_mini.study.figures import list_rows
from recipes.librispeech_mini.study.records import read_all, read_record, write_record
from recipes.librispeech_mini.study.summary import build_summary
from recipes.librispeech_mini.study.table import EMPTY, build_table, write_tables

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
    def make(split: str, cer: float, deletions: int) -> dict[str, Any]:
        speakers = SPEAKERS.get(split, ("5",))
        each = [{"speaker": name, "num_words": 100, "wer": cer + 30, "cer": cer} for name in speakers]
        counts = {"num_words": 100 * len(speakers), "num_letters": 500 * len(speakers)}
        return {"cer": cer, "wer": cer + 30, "speakers": each, "deletions": deletions * len(speakers), **counts}

    # On `test-other` three more of a hundred are wrong, with the 4-gram five more.
    found = {}
    for split in splits:
        harder = 3 if split == "test-other" else 0
        found[f"{split}/greedy"] = make(split, cer + harder, 8)
        found[f"{split}/beam"] = make(split, cer + harder + 5, 60)
    return found


def write_training(results: Path, cell: str, step: str, hours: float, **values: Any) -> None:
    record = make_record(cell, step, hours_seen=hours, flop=hours * 5e12, updates=2000, precision="bf16", **values)
    write_record(results / cell / f"{step}.json", record)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Give the results of two arms with two seeds, of a cell that failed, one that was killed, and a trial."""
    folder = tmp_path / "results"
    for seed, scratch, pretrained in ((1, 50.0, 40.0), (2, 52.0, 44.0)):
        for arm, cer in (("scratch", scratch), ("scratch_short", scratch + 4), ("wav2vec2", pretrained)):
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
    interval = {"low": 15.0, "high": 27.5, "unit": "speaker", "count": 12, "reliable": False}
    probe = {"eer": 21.0, "eer_interval": interval, "layers": layers, "baselines": baselines, "num_speakers": 12}
    probe["speakers"] = {"367": 9.0, "61": 22.0}
    record = make_record("wav2vec2-1", "verification", metrics={"verification": probe})
    write_record(folder / "wav2vec2-1" / "verification.json", record)
    write_record(
        folder / "wav2vec2-1" / "digits.json", make_record("wav2vec2-1", "digits", status="failed", error="No digits.")
    )
    return folder


def list_lines(results: Path, start: str) -> list[str]:
    """List the lines of the tables that begin so."""
    return [line for line in build_table(read_all(results)).splitlines() if line.startswith(start)]


def test_every_cell_has_a_line_with_its_cost_and_figures(results: Path) -> None:
    (line,) = list_lines(results, "| wav2vec2-1 | 1h")
    assert line == (
        "| wav2vec2-1 | 1h | 98.0 | 490 | 1.00 | 40.0 | 70.0 | 45.0 | 75.0 | 43.0 | 73.0 | 48.0 | 78.0 |  |"
    )
    assert list_lines(results, "| scratch-2 | 1h | 18.0 | 90 | 0.50 | 52.0 | 82.0 |")


def test_costs_that_are_not_known_are_blank_and_known_parts_are_bounds(results: Path) -> None:
    # Killed before it said anything; then pretrained, and stopped in fine-tuning before costs of that were kept.
    assert list_lines(results, "| random_frozen-1 | 1h |  |  | ≥ 0.50 |")
    write_training(results, "kmeans-2", "pretrain-1", 52.8)
    stopped = make_record("kmeans-2", "finetune-1h", status="stopped", labels="1h")
    write_record(results / "kmeans-2" / "finetune-1h.json", stopped)
    assert list_lines(results, "| kmeans-2 | 1h | ≥ 52.8 | ≥ 264 | 1.00 |")
    write_training(results, "kmeans-2", "finetune-1h", 6.0, status="stopped", labels="1h")
    assert list_lines(results, "| kmeans-2 | 1h | 58.8 | 294 | 1.00 |")


def test_what_an_evaluation_had_measured_when_it_was_stopped_is_shown_with_its_note_and_compared(results: Path) -> None:
    record = make_record("kmeans-2", "evaluate-1h", status="stopped", labels="1h", tries=2)
    record["metrics"] = make_evaluation(48.0, ("dev", "test"))
    write_training(results, "kmeans-2", "finetune-1h", 6.0, labels="1h")
    write_record(results / "kmeans-2" / "evaluate-1h.json", record)
    (line,) = list_lines(results, "| kmeans-2 | 1h")
    shown = "| 48.0 | 78.0 | 53.0 | 83.0 |  |  |  |  | evaluate-1h is stopped; evaluate-1h: 2 tries |"
    assert line.endswith(shown)
    assert len(list_lines(results, "| k-means codes, two iterations | CER | test | 1 | 48.0 | -4.0, -7.7 %")) == 1
    assert not list_lines(results, "| k-means codes, two iterations | CER | both |"), "test-other was not measured"
    assert list_lines(results, "| k-means codes, two iterations | 48.0 | 48.0 |  |")


def test_a_seed_that_lacks_a_rate_in_one_arm_is_in_neither_comparison(results: Path) -> None:
    """Seed 2 of k-means has no figures of test-other: by seed and by speaker, seed 1 alone is compared there."""
    for cell, cer in (("scratch-1", 50.0), ("scratch-2", 40.0), ("kmeans-1", 55.0), ("kmeans-2", 48.0)):
        splits = ("dev", "test") if cell == "kmeans-2" else ("dev", "test", "test-other")
        record = make_record(cell, "evaluate-1h", status="stopped" if cell == "kmeans-2" else "done", labels="1h")
        record["metrics"] = make_evaluation(cer, splits)
        write_training(results, cell, "finetune-1h", 6.0, labels="1h")
        write_record(results / cell / "evaluate-1h.json", record)
    (line,) = list_lines(results, "| k-means codes, two iterations | CER | test-other |")
    assert "| +5.0, " in line and "| +5.0 (no interval from 1 speaker)" in line
    (line,) = list_lines(results, "| k-means codes, two iterations | CER | test |")
    assert "| +6.5, " in line and "| +6.5 (+6.5 to +6.5, " in line


def test_cells_of_the_study_come_first_and_those_on_a_gpu_last(results: Path) -> None:
    for cell, kind in (("a", "gpu small"), ("long-scratch-1", "long")):
        record = make_record("scratch-1", "finetune-all", labels="all") | {"cell": cell, "kind": kind}
        write_record(results / cell / "finetune-all.json", record)
    text = build_table(read_all(results))
    places = [text.index(f"\n| {name} |") for name in ("wav2vec2-2", "long-scratch-1", "a")]
    assert places == sorted(places)


def test_the_share_that_the_4_gram_deletes_is_said(results: Path) -> None:
    (line,) = list_lines(results, "The 4-gram's weights are fairseq's")
    assert "60 to 60 % of the words of both test sets, where greedy decoding deletes 8 to 8 %" in line
    assert "`wav2vec2` 60 (8)" in line


def test_what_failed_or_was_killed_is_there_with_its_sentence(results: Path) -> None:
    text = build_table(read_all(results))
    assert "failed in pretrain-1: Pretraining has collapsed / at update 7." in text
    assert "finetune-1h is started" in text
    assert "- wav2vec2-1: failed in digits: No digits." in text


def test_differences_are_paired_by_seed_and_by_speaker_with_both_baselines(results: Path) -> None:
    (line,) = list_lines(results, "| wav2vec 2.0 | CER | test |")
    # Differences -10 and -8, and four more; t(0.975, 1) = 12.706, deviation sqrt(2).
    assert "| 2 | 42.0 | -9.0, -17.6 % (-21.7 to +3.7, 2 seeds) | -9.0 (-9.0 to -9.0, 2 speakers, unreliable) |" in line
    assert line.endswith("| -13.0, -23.6 % (-25.7 to -0.3, 2 seeds) | -13.0 (-13.0 to -13.0, 2 speakers, unreliable) |")
    (line,) = list_lines(results, "| from scratch, same total compute | CER | test |")
    assert line.startswith("| from scratch, same total compute | CER | test | 2 | 51.0 |  |  | -4.0, -7.3 %")


def test_speakers_are_those_of_the_rows_own_split_and_both_are_one_set(results: Path) -> None:
    for split, mean, speakers in (("test", "42.0", "2"), ("test-other", "45.0", "1"), ("both", "43.0", "3")):
        (line,) = list_lines(results, f"| wav2vec 2.0 | CER | {split} |")
        assert f"| 2 | {mean} |" in line
        assert f"{speakers} speaker" in line.split("|")[7]
    assert list_lines(results, "| wav2vec 2.0 | WER, 4-gram | both | 2 | 78.0 |")


def test_a_difference_is_blank_where_its_baseline_has_not_been_run(results: Path) -> None:
    for seed in (1, 2):
        (results / f"scratch-{seed}" / "evaluate-1h.json").unlink()
    (line,) = list_lines(results, "| wav2vec 2.0 | CER | test |")
    assert line.startswith("| wav2vec 2.0 | CER | test | 2 | 42.0 |  |  | -13.0,")


def test_what_cost_too_few_operations_is_a_cell_but_compared_with_nothing(results: Path) -> None:
    for step, values in (("finetune-1h", {}), ("evaluate-1h", {"metrics": make_evaluation(50.0)})):
        record = make_record("scratch_less-1", step, labels="1h", **values)
        write_record(results / "scratch_less-1" / f"{step}.json", record)
    assert list_lines(results, "| scratch_less-1 | 1h |")
    assert not [line for line in list_lines(results, "| from scratch, 4.3 times") if "| CER |" in line]


def test_speakers_stand_under_their_split_with_their_words(results: Path) -> None:
    text = build_table(read_all(results))
    assert "| arm | test: 61 (100 words) | test: 121 (100 words) | test-other: 367 (100 words) |" in text
    assert "| from scratch, same total compute | 51.0 | 51.0 | 54.0 |" in text
    assert "| from scratch, same total compute | 81.0 | 81.0 | 84.0 |" in text


def test_probes_have_intervals_and_speakers(results: Path) -> None:
    text = build_table(read_all(results))
    assert "| wav2vec2-1 | 30.0 | 20.5 | 21.0 (15.0 to 27.5, unreliable) | 12.0 | 31.0 |" in text
    assert "| cell | test: 61 | test-other: 367 |\n| --- | --- | --- |\n| wav2vec2-1 | 22.0 | 9.0 |" in text


def test_digits_of_old_and_new_records_stand_side_by_side(results: Path) -> None:
    old = {"accuracy": 62.8, "layers": [{"layer": 0, "accuracy": 62.8}], "speakers": {"theo": 61.0, "lucas": 64.6}}
    old |= {"log_mel": 53.0, "num_speakers": 6}
    new = old | {"untrained": {"accuracy": 40.0, "speakers": {"theo": 41.0, "lucas": 39.0}}}
    new |= {"log_mel_speakers": {"theo": 50.0, "lucas": 56.0}}
    for cell, result in (("kmeans-1", old), ("wav2vec2-1", new)):
        write_record(results / cell / "digits.json", make_record(cell, "digits", metrics={"digits": result}))
    text = build_table(read_all(results))
    assert "| best layer (chosen on these recordings) |" in text
    assert "| kmeans-1 | 62.8 | 62.8 | 53.0 |  |" in text and "| wav2vec2-1 | 62.8 | 62.8 | 53.0 | 40.0 |" in text
    assert "| wav2vec2-1, log-mel | 56.0 | 50.0 |" in text and "| wav2vec2-1, untrained | 39.0 | 41.0 |" in text
    assert "| kmeans-1 | 64.6 | 61.0 |" in text and "| kmeans-1, log-mel |" not in text


def test_a_trial_that_was_run_after_test_was_read_is_marked(results: Path) -> None:
    (line,) = list_lines(results, "| scratch | log_mel |")
    assert line == "| scratch | log_mel | 2,000 | 9.0 | 45 | bf16 | 60.0 | 90.0 | run after `test` was first read |"
    assert "`scratch` 1 of 4, `wav2vec2` 0 of 4" in build_table(read_all(results))


def test_another_try_of_an_evaluation_does_not_move_the_first_reading_of_test(results: Path) -> None:
    for path in results.glob("[!t]*/*.json"):
        record = read_record(path)
        assert record is not None
        write_record(path, record | {"date": "2026-11-28T10:00:00Z", "first_date": record["date"]})
    (line,) = list_lines(results, "| scratch | log_mel |")
    assert "run after `test` was first read" in line


def test_a_pretrained_trial_costs_the_pretraining_of_its_main_cell_too(results: Path) -> None:
    write_training(results, "trial-wav2vec2-slow", "finetune-1h", 9.0, labels="1h")
    (line,) = list_lines(results, "| wav2vec2 | slow |")
    assert line == "| wav2vec2 | slow | 2,000 | 89.0 | 445 | bf16 |  |  | not evaluated yet |"


def test_a_trial_is_no_cell_of_the_comparison(results: Path) -> None:
    rows = list_rows(read_all(results))
    assert sum(row.kind == "trial" for row in rows) == 1
    assert "| trial-scratch-log_mel |" not in build_table(read_all(results))


def test_the_tables_stand_beside_their_results(results: Path, tmp_path: Path) -> None:
    page = write_tables(results)
    text = page.read_text()
    assert page.parent == results and write_tables(results).read_text() == text
    assert build_summary(read_all(results)) in text and build_table(read_all(results)) in text
    empty = write_tables(tmp_path / "none").read_text()
    assert EMPTY in empty and "Kaldi" in empty


def test_the_summary_says_what_an_hour_of_labels_gives_and_which_arms_have_no_figures(results: Path) -> None:
    text = build_summary(read_all(results))
    assert "| wav2vec 2.0 | 2 | 98.0 | 490 | 1.00 | 42.0 / 45.0 | 47.0 / 50.0 | 77.0 / 80.0 |" in text
    assert text.endswith(
        "Without figures for it yet: random encoder, frozen; random-projection codes; k-means codes, two iterations.\n"
    )
