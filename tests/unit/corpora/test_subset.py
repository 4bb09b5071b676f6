import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speechssl.corpora.subset import describe, hold_out, parse_length, take_subsets
from speechssl.data.manifest import Manifest, Utterance, build_manifest, load_manifests, save_manifest
from speechssl.errors import ConfigError, DataError
from tests.cases import each_case

ROOT = Path("/corpus")


def make_manifest(num_rows: int, num_speakers: int, has_text: bool = True, parts: int = 1) -> Manifest:
    """Make rows of 5 to 15 s; `parts` rows share a file. No speakers where `num_speakers` is 0."""
    rng = np.random.default_rng(num_rows)
    rows = [
        Utterance(
            f"u{n}",
            ROOT / f"{n // parts}.wav",
            16_000,
            int(rng.integers(80_000, 240_000)),
            n % parts,
            f"s{n % num_speakers}" if num_speakers else None,
            "A" if has_text else None,
        )
        for n in range(num_rows)
    ]
    return build_manifest(rows, ROOT)


@each_case("name, seconds", [("10m", 600), ("1h", 3600), ("90s", 90), ("0.5h", 1800)])
def test_lengths_are_read(name: str, seconds: float) -> None:
    assert parse_length(name) == seconds


@each_case("name", ["", "10", "m", "10min", "-1h", "0m", "1h30m"])
def test_what_is_no_length_gets_a_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match="`subset` must be lengths such as 10m, 1h or 90s, but one is"):
        parse_length(name)


def test_subsets_are_nested_and_only_of_splits_that_are_longer() -> None:
    subsets = take_subsets({"train": make_manifest(500, 5), "dev": make_manifest(100, 5)}, ["10m", "0.5h"], 1)
    assert list(subsets) == ["train-10m", "train-0.5h", "dev-10m"]
    assert set(subsets["train-10m"].column("id")) < set(subsets["train-0.5h"].column("id"))
    with pytest.raises(
        ConfigError, match=r"`subset` must be shorter than a split, but 10h is not \(train 1[0-9.]+ min"
    ):
        take_subsets({"train": make_manifest(60, 5)}, ["10h"], 1)


def test_a_split_that_is_called_like_a_subset_is_not_lost() -> None:
    splits = {"train": make_manifest(60, 5), "train-20s": make_manifest(9, 5)}
    with pytest.raises(ConfigError, match="`subset` must make names that no split has, but train-20s is a split"):
        take_subsets(splits, ["30s", "20s"], 1)
    assert list(take_subsets(splits, ["200s"], 1)) == ["train-200s"]


def test_a_subset_has_transcribed_rows_alone_where_there_are_any() -> None:
    both = build_manifest(
        [Utterance(str(n), ROOT / "a.wav", 16_000, 16_000, 0, "s", "A" if n % 2 else None) for n in range(99)], ROOT
    )
    assert take_subsets({"all": both}, ["20s"], 1)["all-20s"].column("text") == ["A"] * 20


def test_whole_speakers_are_held_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "speechssl")
    manifest = make_manifest(1000, 50)
    held_out = hold_out({"all": manifest}, 0.1, 1)
    train, valid = held_out.manifests["train"], held_out.manifests["valid"]
    assert held_out.unit == "speaker"
    assert not set(train.column("speaker")) & set(valid.column("speaker"))
    assert len(train) + len(valid) == 1000
    assert 0.07 < valid.total_s / manifest.total_s <= 0.1
    assert f"held out {len(set(valid.column('speaker')))} speakers" in caplog.text
    assert hold_out({"all": manifest}, 0.1, 1).manifests["valid"].table.equals(valid.table)
    assert not hold_out({"all": manifest}, 0.1, 2).manifests["valid"].table.equals(valid.table)


@each_case("num_speakers", [0, 1])
def test_whole_files_are_held_out_where_speakers_are_unknown(num_speakers: int) -> None:
    held_out = hold_out({"all": make_manifest(400, num_speakers, parts=4)}, 0.1, 1)
    assert held_out.unit == "file"
    files = [set(held_out.manifests[name].column("path")) for name in ("train", "valid")]
    assert not files[0] & files[1]
    assert len(files[1]) in range(7, 12)


def test_a_share_smaller_than_any_speaker_holds_out_the_one_who_says_least() -> None:
    valid = hold_out({"all": make_manifest(10, 2)}, 0.001, 1).manifests["valid"]
    assert len(set(valid.column("speaker"))) == 1


def test_splits_for_testing_are_left_alone() -> None:
    splits = {"train-a": make_manifest(100, 10), "train-b": make_manifest(90, 9), "test": make_manifest(20, 2)}
    manifests = hold_out(splits, 0.2, 1).manifests
    assert manifests["test"] is splits["test"]
    assert set(manifests) == {"train-a", "train-b", "test", "valid"}
    assert sum(len(manifests[name]) for name in ("train-a", "train-b", "valid")) == 190


def test_ids_that_restart_in_every_split_are_told_apart_in_valid(tmp_path: Path) -> None:
    splits = {"train_a": make_manifest(20, 0), "train_b": make_manifest(20, 0), "dev": make_manifest(3, 0)}
    splits["train_b"] = build_manifest(
        [replace(row, path=ROOT / "b" / row.path.name) for row in splits["train_b"]], ROOT
    )
    manifests = hold_out(splits, 0.9, 1).manifests
    ids = {split: manifest.column("id") for split, manifest in manifests.items()}
    assert len(set(ids["valid"])) == len(ids["valid"]) > 20
    kept = {f"{split}/{name}" for split in ("train_a", "train_b") for name in ids[split]}
    every = {f"{split}/u{n}" for split in ("train_a", "train_b") for n in range(20)}
    assert set(ids["valid"]) == every - kept
    few = hold_out(splits, 0.04, 1).manifests["valid"]
    assert set(few.column("id")) <= {f"u{n}" for n in range(20)}, "ids that are unique stay as they are"
    save_manifest(manifests["valid"], tmp_path / "valid.tsv")
    assert len(load_manifests([str(tmp_path / "valid.tsv")], "data.valid")) == len(ids["valid"])


def test_all_does_not_take_the_place_of_train() -> None:
    splits = {"all": make_manifest(100, 10), "train": make_manifest(90, 9)}
    with pytest.raises(DataError, match="`valid_share` must be 0 where .* but the splits are all, train"):
        hold_out(splits, 0.3, 1)
    manifests = hold_out({"all": splits["all"], "other": splits["train"]}, 0.3, 1).manifests
    assert sum(map(len, manifests.values())) == 190


def test_nothing_to_hold_out_gets_a_sentence() -> None:
    with pytest.raises(
        DataError, match="`valid_share` must be 0 where nothing can be held out, but the splits are dev"
    ):
        hold_out({"dev": make_manifest(10, 2)}, 0.1, 1)
    with pytest.raises(DataError, match="`valid_share` must leave something to learn from, but there is only one file"):
        hold_out({"all": make_manifest(10, 1, parts=10)}, 0.1, 1)


def test_a_manifest_is_described() -> None:
    manifest = make_manifest(30, 3, has_text=False)
    hours = pytest.approx(manifest.total_s / 3600, abs=1e-4)
    assert describe(manifest) == {"num_utterances": 30, "hours": hours, "num_speakers": 3, "num_transcribed": 0}
