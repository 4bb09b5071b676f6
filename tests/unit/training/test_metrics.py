"""The log holds each line once, however a run was cut."""

from __future__ import annotations

from pathlib import Path

from speechssl.training.metrics import JsonLinesWriter, find_last_metrics, read_metrics


def write(folder: Path, *records: tuple[int, str]) -> None:
    writer = JsonLinesWriter(folder, 10**9)
    for update, split in records:
        writer.write({"update": update, "split": split, "loss": float(update)})
    writer.close()


def read(folder: Path) -> list[tuple[int, str]]:
    return [(record["update"], record["split"]) for record in read_metrics(folder)]


def test_it_is_cut_back_to_where_the_run_goes_on(tmp_path: Path) -> None:
    write(tmp_path, (0, "valid"), (1, "train"), (2, "train"), (2, "valid"), (3, "train"))
    JsonLinesWriter(tmp_path, 2).close()
    assert read(tmp_path) == [(0, "valid"), (1, "train"), (2, "train"), (2, "valid")]
    # Stopped inside the validation of update 2, which is made again.
    JsonLinesWriter(tmp_path, 2, validated_update=0).close()
    assert read(tmp_path) == [(0, "valid"), (1, "train"), (2, "train")]
    # Killed before the first checkpoint: everything is made again.
    JsonLinesWriter(tmp_path, 0, validated_update=-1).close()
    assert read(tmp_path) == []


def test_the_last_metrics_of_a_split_are_found(tmp_path: Path) -> None:
    write(tmp_path, (1, "train"), (2, "valid"), (2, "train"))
    assert find_last_metrics(tmp_path, "train") == {"loss": 2.0}
    assert find_last_metrics(tmp_path, "test") is None
