"""`score`: figures, files and transcripts of two texts, and what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import speechssl
from speechssl.cli.main import main
from speechssl.config import ScoreConfig
from speechssl.errors import ConfigError, DataError
from speechssl.evaluation.wer import Scores
from speechssl.verbs import score

SAID = "id\tspeaker\taccent\ttext\n" + "".join(
    f"u{k}\ts{k % 4}\t{'north' if k % 2 else ''}\t{text}\n"
    for k, text in enumerate(["The cat sat.", "a dog", "", "it's tea", "one two"])
)
HEARD = "u4\tone two\nu0\tthe cat sad\nu1\tdog\nu2\tum\nu3\tit's hot tea\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("ref.tsv").write_text(SAID, encoding="utf-8")
    Path("hyp.tsv").write_text(HEARD, encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("files")
def test_figures_and_files(caplog: pytest.LogCaptureFixture) -> None:
    config = ScoreConfig(
        reference="ref.tsv", hypothesis="hyp.tsv", out="out", by=["accent", "speaker"], trn=True, normaliser="basic"
    )
    with caplog.at_level(logging.INFO, "speechssl"):
        result = score(config)
    assert result["wer"] == pytest.approx(100 * 4 / 9)
    assert result["cer"] == pytest.approx(100 * (1 + 2 + 2 + 4) / (11 + 5 + 8 + 7))
    assert (result["substitutions"], result["deletions"], result["insertions"]) == (1, 1, 2)
    assert (result["num_silent"], result["num_empty"], result["num_wrong_utterances"]) == (1, 0, 4)
    assert result["sclite"] == {"wer": result["wer"], "substitutions": 1, "deletions": 1, "insertions": 2}
    assert (result["wer_interval"]["unit"], result["wer_interval"]["count"]) == ("speaker", 4)
    assert [(row["column"], row["value"]) for row in result["groups"]][:3] == [
        ("accent", ""), ("accent", "north"), ("speaker", "s0"),
    ]  # fmt: skip
    assert result["groups"][1]["wer"] == pytest.approx(100 * 2 / 4)
    # One who said nothing has no rate.
    assert [row["wer"] for row in result["groups"] if row["value"] == "s2"] == [None]
    assert json.loads(Path("out/result.json").read_text(encoding="utf-8")) == result
    assert "1 of 5 references are empty" in caplog.text
    assert "accent   north" in caplog.text
    assert Path("out/reference.trn").read_text(encoding="utf-8").splitlines()[:3] == [
        "the cat sat (u0)", "a dog (u1)", " (u2)",
    ]  # fmt: skip
    assert Path("out/utterances.tsv").read_text(encoding="utf-8").splitlines()[0].endswith("\thypothesis\taccent")
    again = score(ScoreConfig(reference="out/utterances.tsv", hypothesis="out/utterances.tsv", out="again"))
    assert again["wer"] == result["wer"]
    trn = ScoreConfig(reference="out/reference.trn", hypothesis="out/hypothesis.trn", out="out", overwrite=True)
    assert score(trn)["wer"] == result["wer"]
    assert not Path("out/groups.tsv").exists(), "a table of an earlier result stays"


@pytest.mark.usefixtures("files")
def test_without_out_figures_go_to_stdout_and_the_json_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "ref.tsv", "hyp.tsv"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("WER         55.56 % (95 %: ")
    assert "words       9: 2 substitutions, 1 deletions, 2 insertions" in out
    assert "worst utterances:" in out
    assert json.loads(err.splitlines()[-1])["out"] == "stdout"
    assert sorted(path.name for path in Path().iterdir()) == ["hyp.tsv", "ref.tsv"]


@pytest.mark.usefixtures("files")
def test_python_scores_lists_or_runs_the_verb() -> None:
    found = speechssl.score(["a b"], ["a c"])
    assert isinstance(found, Scores)
    assert found.wer == 50
    assert speechssl.score(reference="ref.tsv", hypothesis="hyp.tsv", normaliser="basic")["substitutions"] == 1


@pytest.mark.usefixtures("files")
def test_mistakes_are_sentences() -> None:
    Path("few.tsv").write_text("u0\tx\n", encoding="utf-8")
    with pytest.raises(DataError, match="`hypothesis` must have a text for each id .* lacks u1, u2, u3, u4$"):
        score(ScoreConfig(reference="ref.tsv", hypothesis="few.tsv"))
    with pytest.raises(DataError, match="`by` must name columns of `reference`, but is sex, and ref.tsv has speaker"):
        score(ScoreConfig(reference="ref.tsv", hypothesis="hyp.tsv", by=["sex"]))
    Path("silent.tsv").write_text("u0\t\n", encoding="utf-8")
    with pytest.raises(DataError, match="`reference` must have words to score against"):
        score(ScoreConfig(reference="silent.tsv", hypothesis="few.tsv"))
    with pytest.raises(ConfigError, match="`trn` must be false without `out`"):
        ScoreConfig(reference="a", hypothesis="b", trn=True)
    with pytest.raises(ConfigError, match="`normaliser` must be one of none, basic, english, but is ''"):
        ScoreConfig(reference="a", hypothesis="b", normaliser="")
    assert main(["score", "ref.tsv"]) == 2
