"""`compare`: the paired difference of two evaluations, the sentence about it, and what it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from speechssl.cli.main import main
from speechssl.config import CompareConfig, ScoreConfig
from speechssl.errors import ConfigError, DataError
from speechssl.evaluation.statistics import Difference, MatchedPairs
from speechssl.verbs import compare, score
from speechssl.verbs.compare import write_sentence

RATES = {"worse": 0.2, "better": 0.1, "other": 0.12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Score three recognisers on 25 speakers."""
    folder, rng = tmp_path_factory.mktemp("scored"), random.Random(5)
    said = {f"s{k % 25}-{k}": rng.choices("abcdefgh", k=rng.randint(3, 20)) for k in range(100)}
    rows = ["id\tspeaker\ttext", *(f"{name}\t{name.split('-')[0]}\t{' '.join(words)}" for name, words in said.items())]
    (folder / "ref.tsv").write_text("\n".join(rows), encoding="utf-8")
    for system, rate in RATES.items():
        heard = {name: ["x" if rng.random() < rate else word for word in words] for name, words in said.items()}
        lines = [f"{name}\t{' '.join(words)}" for name, words in sorted(heard.items())]
        (folder / f"{system}.tsv").write_text("\n".join(lines), encoding="utf-8")
        score(ScoreConfig(
            reference=str(folder / "ref.tsv"), hypothesis=str(folder / f"{system}.tsv"), out=str(folder / system)
        ))  # fmt: skip
    return folder


def run(folder: Path, out: Path, a: list[str], b: list[str]) -> dict[str, object]:
    return compare(CompareConfig(a=[str(folder / x) for x in a], b=[str(folder / x) for x in b], out=str(out)))


def test_a_difference_that_is_there_is_found(folders: Path, tmp_path: Path) -> None:
    found = compare(CompareConfig(a=[str(folders / "worse")], b=[str(folders / "better")], out=str(tmp_path)))
    rates = [json.loads((folders / name / "result.json").read_text())["wer"] for name in ("worse", "better")]
    assert [found["wer_a"], found["wer_b"]] == pytest.approx(rates)
    difference = found["wer_difference"]
    assert difference["value"] == pytest.approx(rates[1] - rates[0])
    assert difference["low"] < difference["value"] < difference["high"] < 0
    assert (difference["unit"], difference["count"], difference["reliable"]) == ("speaker", 25, True)
    assert max(difference["p"], found["matched_pairs"]["p"]) < 0.001
    assert found["matched_pairs"]["mean"] > 0
    assert found["sentence"].startswith(f"B makes {rates[0] - rates[1]:.1f} points fewer errors in words than A, ")
    assert json.loads((tmp_path / "result.json").read_text()) == found
    rows = [line.split("\t") for line in (tmp_path / "differences.tsv").read_text().splitlines()]
    assert rows[0][:5] == ["id", "speaker", "num_words", "word_errors_a", "word_errors_b"]
    gaps = [abs(int(row[3]) - int(row[4])) for row in rows[1:]]
    assert gaps == sorted(gaps, reverse=True)
    assert sum(int(row[4]) - int(row[3]) for row in rows[1:]) == round(difference["value"] * found["num_words"] / 100)


def test_one_that_is_not_there_is_not(folders: Path, tmp_path: Path) -> None:
    same = compare(CompareConfig(a=[str(folders / "better")], b=[str(folders / "better")], out=str(tmp_path / "1")))
    assert (same["wer_difference"]["value"], same["wer_difference"]["p"], same["matched_pairs"]["p"]) == (0, 1, None)
    near = compare(CompareConfig(a=[str(folders / "better")], b=[str(folders / "other")], out=str(tmp_path / "2")))
    assert near["wer_difference"]["low"] < 0 < near["wer_difference"]["high"]
    assert near["sentence"].startswith("B and A cannot be told apart: B makes ")


def test_seeds_are_pooled_and_have_no_matched_pairs(folders: Path, tmp_path: Path) -> None:
    found = run(folders, tmp_path, ["worse", "worse"], ["better", "other"])
    assert (found["num_seeds"], found["matched_pairs"]) == (2, None)
    rates = [json.loads((folders / name / "result.json").read_text())["wer"] for name in ("better", "other")]
    assert found["wer_b"] == pytest.approx(sum(rates) / 2)


def test_the_sentence() -> None:
    clear = Difference(-3.1, -4.2, -2.0, 0.0004, "speaker", 40, True)
    assert write_sentence(15.1, 12.0, clear, MatchedPairs(412, 0.3, 3.4, 0.0123, True)) == (
        "B makes 3.1 points fewer errors in words than A, 12.0 % against 15.1 % (95 % interval 2.0 to 4.2; paired "
        "bootstrap over 40 speakers p < 0.001, MAPSSWE over 412 segments p = 0.012)."
    )
    unclear = Difference(0.4, -0.5, 1.3, 0.41, "utterance", 9, False)
    assert write_sentence(12.0, 12.4, unclear, None) == (
        "B and A cannot be told apart: B makes 0.4 points more errors in words here, 12.4 % against 12.0 % (95 % "
        "interval 0.5 fewer to 1.3 more; paired bootstrap over 9 utterances p = 0.41). 9 utterances are too few to "
        "rely on the interval."
    )
    one = Difference(0.4, None, None, None, "speaker", 1, False)
    assert (
        write_sentence(12.0, 12.4, one, None) == "12.4 % against 12.0 %; 1 speaker cannot tell whether B and A differ."
    )


def test_mistakes_are_sentences(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (folders / "ref.tsv").read_text().splitlines()
    for name, kept in (("few", lines[:-2]), ("changed", [*lines[:-1], lines[-1] + " i"])):
        (tmp_path / f"{name}.tsv").write_text("\n".join(kept), encoding="utf-8")
        given = str(tmp_path / f"{name}.tsv")
        score(ScoreConfig(reference=given, hypothesis=given, out=str(tmp_path / name)))
    for name, error in (
        ("few", "`b` must have a text for each id of the first folder of `a`, but lacks s2[34]-9[89], s2[34]-9[89]$"),
        ("changed", "`b` must be scored against the same references .* that of s24-99 is another one"),
        ("nowhere", "`b` must be a folder of `evaluate` or `score`, but .*nowhere has no utterances.tsv"),
    ):
        with pytest.raises(DataError, match=error):
            compare(CompareConfig(a=[str(folders / "better")], b=[str(tmp_path / name)], out=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="`b` must be as many folders as `a`"):
        CompareConfig(a=["x"], b=["y", "z"])
    assert main(["compare"]) == 2
    assert "`a` must be given (folder of `evaluate` or `score`)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
