"""`lm`: from texts to an ARPA file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import speechssl
from speechssl.config.model import ModelConfig
from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.errors import ConfigError, DataError
from speechssl.inference.decoding.ngram import load_arpa
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import Vocabulary
from tests.cases import each_case


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("The cat sat.\n\nA well-known cat\n", encoding="utf-8")
    (tmp_path / "1-2.trans.txt").write_text("1-2-0000 THE CAT RAN\n", encoding="utf-8")
    (tmp_path / "german.txt").write_text("Die grüne Tür, Nr. 7! It\u2019s well-known\n", encoding="utf-8")
    return tmp_path


def lm(*texts: str, **keys: Any) -> dict[str, Any]:
    return speechssl.lm(texts=list(texts), **{"out": "lm.arpa", "overwrite": True, **keys})


def test_texts_and_manifests_become_an_arpa_file(place: Path) -> None:
    texts = ("a dog", None)
    rows = [Utterance(f"u{k}", place / "0.wav", 16_000, 9, 0, None, text) for k, text in enumerate(texts)]
    save_manifest(build_manifest(rows, place), place / "m.tsv")
    with gzip.open("b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\ufeffcat nap\n")
    result = lm("a.txt", "1-2.trans.txt", "m.tsv", "b.txt.gz", order=3, test=["1-2.trans.txt", "m.tsv"])
    model = load_arpa("lm.arpa")
    assert sorted(model.words) == ["A", "CAT", "DOG", "KNOWN", "NAP", "RAN", "SAT", "THE", "WELL"]
    assert (result["order"], result["ngrams"], result["num_texts"]) == (3, model.counts, 5)
    assert (result["num_units"], result["test_units"], result["test_units_unknown"]) == (3 + 4 + 3 + 2 + 2, 5, 0)
    assert result["perplexity"] == pytest.approx(
        model.compute_perplexity(["THE CAT RAN", "A DOG"]).perplexity, rel=1e-4
    )


def test_a_folder_gets_the_result_too_and_is_not_replaced_unasked(place: Path) -> None:
    result = lm("a.txt", out="made", order=2, overwrite=False)
    assert result["lm"] == "made/lm.arpa"
    assert json.loads((place / "made" / "result.json").read_text()) == result
    for out in ("made", "made/lm.arpa"):
        with pytest.raises(ConfigError, match="`out` must be a new place"):
            lm("a.txt", out=out, overwrite=False)
    assert lm("a.txt", out="made", order=1)["ngrams"] == [len(load_arpa("made/lm.arpa").log_probs)]


def test_letters_outside_the_labels_are_listed_kept_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    expected = {
        (): {"DIE", "GRNE", "TR", "NR", "IT'S", "WELL", "KNOWN"},
        ("data",): {"DIE", "GRÜNE", "TÜR", "NR", "IT'S", "WELL", "KNOWN"},
        ("data", "lower"): {"die", "grüne", "tür", "nr", "it's", "well", "known"},
        ("data", "keep", "7-"): {"Die", "grüne", "Tür", "Nr", "7", "It's", "well-known"},
    }
    told = {}
    for values, words in expected.items():
        caplog.clear()
        names = ("text.vocabulary", "text.case", "text.keep")
        result = lm("german.txt", out="new/lm.arpa.gz", order=2, **dict(zip(names, values, strict=False)))
        assert set(load_arpa("new/lm.arpa.gz").words) == words
        told[values] = [line for line in caplog.messages if "left out of words" in line]
        assert bool(result["left_out"]) == bool(told[values])
    assert told[()][0].endswith("(text.keep makes labels of them): 'Ü' 2 ×, '7' 1 ×")
    assert "'7' 1 ×" in told[("data",)][0]
    assert not told[("data", "keep", "7-")]
    with pytest.raises(DataError, match="`texts` must be of the labels with text.unknown=refuse, but have"):
        lm("german.txt", out="refused.arpa", **{"text.unknown": "refuse"})
    assert not Path("refused.arpa").exists()


def test_a_recogniser_lends_its_labels(tiny_model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    symbols = ("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdehknorstw")
    speechssl.save(SpeechModel(tiny_model_config, Vocabulary(symbols, "lower")), "asr")
    lm("a.txt", "1-2.trans.txt", checkpoint="asr", order=2)
    assert set(load_arpa("lm.arpa").words) == {"the", "cat", "sat", "a", "we", "known", "ran"}
    with pytest.raises(ConfigError, match="`text` must be left out with `checkpoint`"):
        lm("a.txt", checkpoint="asr", **{"text.vocabulary": "data"})


def test_characters_are_letters_and_a_boundary(place: Path) -> None:
    result = lm("1-2.trans.txt", unit="character", order=5, test=["a.txt"])
    model = load_arpa("lm.arpa")
    assert set(model.words) == set("THECARN|")
    assert result["num_units"] == len("THE|CAT|RAN")
    assert result["test_units"] == len("THE|CAT|SATA|WELL|KNOWN|CAT")
    assert model.score_sentence("THE|CAT|RAN") > model.score_sentence("THE|CAT|NAR") + 2


def test_pruned_ngrams_are_gone_and_the_file_is_smaller() -> None:
    Path("c.txt").write_text("a b c\na b d\na b c\nb c\n")
    whole, pruned = (lm("c.txt", order=3, prune=prune) for prune in ([], [0, 0, 1]))
    assert whole["ngrams"][:2] == pruned["ngrams"][:2]
    assert whole["ngrams"][2] > pruned["ngrams"][2]
    model = load_arpa("lm.arpa")
    assert {name for name in model.log_probs if name.count(" ") == 2} == {"<s> A B", "A B C", "B C </s>"}


def test_what_cannot_be_read_leaves_nothing(place: Path) -> None:
    (place / "latin.txt").write_bytes("grün\n".encode("latin-1"))
    (place / "digits.txt").write_text("7 8\n", encoding="utf-8")
    (place / "cut.txt.gz").write_bytes(gzip.compress(b"A B\n" * 99)[:-9])
    (place / "long.txt").write_bytes(b"A " * 2**20)
    cases: tuple[tuple[tuple[str, ...], dict[str, Any], str], ...] = (
        ((), {}, "`texts` must be one or more text files or manifests"),
        (("gone.txt",), {}, "`texts` must be text files or manifests, but gone.txt does not exist"),
        ((".",), {}, "`texts` must be text files or manifests, but . is a folder"),
        (("latin.txt",), {}, "`texts` must be text in UTF-8, a sentence a line, but latin.txt is not"),
        (("cut.txt.gz",), {}, "`texts` must be text in UTF-8, a sentence a line, but cut.txt.gz is not"),
        (("long.txt",), {}, "but long.txt is not .line 1 has more than"),
        (("a.txt",), {"test": ["gone.txt"]}, "`test` must be text files or manifests, but gone.txt"),
        (("digits.txt",), {}, "a text must have words, but there are none"),
        (("digits.txt",), {"text.vocabulary": "data"}, "`texts` must have letters with text.vocabulary=data"),
        (("a.txt",), {"out": "a.txt/lm.arpa"}, "`out` must be a place that can be written, but "),
    )
    before = sorted(place.iterdir())
    for texts, keys, sentence in cases:
        with pytest.raises((ConfigError, DataError), match=sentence):
            lm(*texts, **keys)
    assert sorted(place.iterdir()) == before


@each_case(
    "keys, told",
    [
        ({"order": 0}, "`order` must be between 1 and 16, but is 0"),
        ({"unit": "syllable"}, "`unit` must be one of word, character"),
        ({"prune": [1]}, "`prune` must be 0 first, and never less than before"),
        ({"prune": [0, 2, 1]}, "`prune` must be 0 first, and never less than before"),
        ({"prune": [0] * 5}, "`prune` must be at most as many numbers as `order`, 4"),
        ({"text.case": "lower"}, "`text.case` must be upper with text.vocabulary=fairseq"),
        ({"text.vocabulary": "init"}, "`text.vocabulary` must be fairseq or data"),
    ],
)
def test_mistakes_are_one_sentence(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        lm("a.txt", **keys)
