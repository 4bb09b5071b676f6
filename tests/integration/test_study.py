"""The study of recipes/librispeech_mini: its commands, its sums, and one arm from speech to table with `tiny`."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from recipes.librispeech_mini import study
from recipes.librispeech_mini.study import ARMS, LABELS, Study, format_table, measure_cost
from speechssl.cli.compose import build_config
from speechssl.cli.words import read_words
from tests.cases import each_case
from tests.conftest import write_librispeech

FOLDER = Path(study.__file__).parent
WHOLE = [(arm, labels) for arm in ARMS for labels in LABELS]


@pytest.fixture
def one(tmp_path: Path) -> Study:
    (tmp_path / "m" / "more").mkdir(parents=True)
    (tmp_path / "m" / "more" / "other.tsv").touch()
    return Study(tmp_path / "m", tmp_path / "out")


@each_case("path", [FOLDER / "prepare"])
def test_bash_understands_it(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@each_case("arm,labels", WHOLE)
def test_every_step_is_a_command_that_speechssl_takes(arm: str, labels: str, one: Study) -> None:
    steps = one.list_steps(arm, labels)
    assert len({name for name, _ in steps}) == len(steps)
    for _, (verb, *words) in steps:
        (request,) = read_words(verb, words)
        init = next((word for word in words if word.startswith("init=")), None)
        # The network of `init` is not there yet.
        build_config(request) if init is None else None
    assert any("more/other.tsv" in word for _, words in steps for word in words) == (arm in ("contrastive", "codes"))


def test_words_of_ones_own_win_and_no_key_is_given_twice(one: Study) -> None:
    mine = replace(one, more=("model=tiny", "training.max_updates=3", "data.num_workers=2"))
    for name, words in mine.list_steps("self", "1h"):
        keys = [word.partition("=")[0] for word in words if "=" in word]
        assert len(set(keys)) == len(keys), name
        if words[0] in ("pretrain", "finetune"):
            assert "training.max_updates=3" in words
            assert ("model=tiny" in words) != any(word.startswith("init=") for word in words)


def test_cost_is_of_all_steps_and_the_curve_goes_on_where_the_last_step_ended(tmp_path: Path) -> None:
    lines = [{"name": "codes", "cpu_s": 60.0}, {"name": "codes-1h", "cpu_s": 30.0}, {"name": "codes-1h", "cpu_s": 10.0}]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, cers in (("codes", []), ("codes-1h", [99.0, 60.0, 40.0])):
        (tmp_path / name).mkdir()
        records = [{"update": k, "split": "train", "hours_seen": k / 4} for k in (1, 2, 3, 4)]
        records += [{"update": 2 * k, "split": "valid", "cer": cer, "hours_seen": k / 2} for k, cer in enumerate(cers)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    cost = measure_cost(tmp_path, ["codes", "codes-1h"])
    assert (cost["cpu_s"], cost["hours_heard"]) == (100, 2.0)
    assert cost["curve"] == [(80, 60.0), (100, 40.0)]


def test_the_table_has_a_row_for_each_result_in_order() -> None:
    rates = {"cer": 50.0, "wer": 80.0, "speakers": []}
    sets = {name: {"greedy": rates, "lm": {**rates, "wer": 60.0}} for name in study.SETS}
    results = [
        {"arm": arm, "labels": labels, "seed": 1, "cpu_s": 600, "hours_heard": 3.2, "sets": sets}
        for arm, labels in reversed(WHOLE)
    ]
    rows = format_table(results).splitlines()[2:]
    assert [tuple(row.split(" | ")[:2]) for row in rows] == [(f"| {labels}", arm) for labels in LABELS for arm in ARMS]
    assert rows[0].split(" | ")[2:] == ["1", "10", "3.2", "50.0", "50.0", "50.0", "80.0", "60.0", "60.0", "60.0 |"]


@pytest.mark.slow
def test_an_arm_from_speech_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three updates of each training; a second call trains nothing again."""
    corpora = tmp_path / "corpora"
    parts = {"train": (1, 5), "unlabelled": (11, 13), "dev": (5, 7), "test": (7, 9), "test-other": (9, 11)}
    for split, speakers in parts.items():
        write_librispeech(corpora / "LibriSpeech", split, range(*speakers), 3)
    words = ["ONE", "TWO", "THREE", "FOUR", "FIVE"]
    with gzip.open(corpora / "books.txt.gz", "wt") as file:
        file.writelines(f"{' '.join(line)}\n" for line in product(words, repeat=3))
    monkeypatch.setenv("SUBSETS", "[10s]")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run([FOLDER / "prepare", corpora, tmp_path / "m"], check=True)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    sizes = [f"training.{name}=8" for name in ("update_s", "sub_batch_s", "forward_s")]
    given = [str(tmp_path / "m"), str(tmp_path / "out"), "contrastive", "all", "2", "training.max_updates=3", *sizes]
    assert study.main(given) == 0
    stored = json.loads((tmp_path / "results" / "contrastive-all-2.json").read_text())
    assert list(stored["steps"]) == ["contrastive", "contrastive-all"] and min(stored["steps"].values()) > 0
    assert 0 < stored["hours_heard"] <= 6 * 8 / 3600 and stored["curve"][-1][0] == stored["cpu_s"]
    before = (tmp_path / "out" / "steps.jsonl").read_text()
    assert study.main(given) == 0 and (tmp_path / "out" / "steps.jsonl").read_text() == before
    assert "| all | contrastive | 2 |" in format_table([stored])
