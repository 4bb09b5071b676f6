"""N-gram models: ARPA files, scores by back-off, and their estimation from text."""

from __future__ import annotations

import gzip
import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from speechssl.errors import DataError
from speechssl.inference.decoding.ngram import END, UNKNOWN, Ngram, load_arpa, save_arpa
from speechssl.inference.decoding.ngram_training import FALLBACK, estimate_discounts, train_ngram
from tests.cases import each_case

ARPA = """
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.30
-0.6\t</s>
-0.5\tA\t-0.20
-0.7\tB\t-0.10

\\2-grams:
-0.2\t<s> A\t-0.05
-0.4\tA B
-0.3\tB </s>

\\3-grams:
-0.1\t<s> A B

\\end\\
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "lm.arpa"
    path.write_text(text, encoding="utf-8")
    return path


def make_texts(num: int, seed: int) -> list[str]:
    """Sentences of a Markov chain over 30 words, so that contexts tell much."""
    rng = np.random.default_rng(seed)
    chain = np.random.default_rng(7).dirichlet(np.full(30, 0.1), 30)
    texts = []
    for _ in range(num):
        word, words = int(rng.integers(30)), []
        for _ in range(int(rng.integers(1, 12))):
            word = int(rng.choice(30, p=chain[word]))
            words.append(f"W{word}")
        texts.append(" ".join(words))
    return texts


def test_scores_are_the_files_and_back_off(tmp_path: Path) -> None:
    model = load_arpa(write(tmp_path, ARPA))
    assert (model.order, model.counts, model.words) == (3, [5, 3, 1], ["A", "B"])
    assert model.score("<s> A", "B") == pytest.approx(-0.1)
    assert model.score("<s> A", "A") == pytest.approx(-0.05 - 0.20 - 0.5)
    assert model.score("A B", END) == pytest.approx(-0.3)
    assert model.score("B", "C") == pytest.approx(-0.1 - 1.0)
    assert model.score("<s>", "B") == pytest.approx(-0.3 - 0.7)
    assert model.score_sentence(["A", "B"]) == pytest.approx(-0.2 - 0.1 - 0.3)
    assert model.advance("<s> A", "B") == "A B"
    assert model.advance("A", "C") == f"A {UNKNOWN}"


def test_a_model_without_unknown_words_gives_them_its_rarest(tmp_path: Path) -> None:
    model = load_arpa(write(tmp_path, ARPA.replace("-1.0\t<unk>\n", "").replace("1=5", "1=4")))
    assert model.score("A", "C") == pytest.approx(-0.7)


def test_unknown_words_may_be_spelt_in_capitals(tmp_path: Path) -> None:
    text = ARPA.replace("A B\n-0.3\tB </s>", "A <unk>\n-0.3\tB </s>").replace("-0.1\t<s> A B", "-0.1\t<s> A <unk>")
    small, large = load_arpa(write(tmp_path, text)), load_arpa(write(tmp_path, text.replace("<unk>", "<UNK>")))
    assert large.unknown == small.unknown == -1.0
    assert large.words == small.words == ["A", "B"]
    assert large.score("<s> A", "ZEBRA") == small.score("<s> A", "ZEBRA") == -0.1


def test_compressed_files_and_files_with_spaces_read_alike(tmp_path: Path) -> None:
    plain = load_arpa(write(tmp_path, ARPA))
    with gzip.open(tmp_path / "lm.arpa.gz", "wt", encoding="utf-8") as file:
        file.write(ARPA.replace("\t", " "))
    assert load_arpa(tmp_path / "lm.arpa.gz") == plain


@each_case(
    "change, told",
    [
        (("\\data\\", "data"), "it has no line \\data\\"),
        (("ngram 2=3", "ngram two=3"), "line 4 of its head is 'ngram two=3'"),
        (("ngram 2=3", "ngram 2=4"), "its head announces 4 2-grams, and it has 3"),
        (("-0.4\tA B", "-0.4\tA"), "line 16 is no 2-gram: '-0.4\\tA'"),
        (("-0.4\tA B", "x\tA B"), "line 16 has no number where one must be: 'x A B'"),
        (("-0.4\tA B", "0.4\tA B"), "line 16 has a probability above 1"),
        (("\\end\\", ""), "it ends in its 3-grams, without \\end\\"),
        (("ngram 2=3", "ngram 2=2"), "its head announces 2 2-grams, and it has more"),
        (("ngram 3=1\n", ""), "line 18 must be \\end\\, and is '\\\\3-grams:'"),
        (("-0.3\tB </s>", "-0.3\tB </s>\tinf"), "line 17 has a probability above 1"),
        (("-0.3\tB </s>", "-0.3\tB " + 20_000 * "x"), "it has a line of more than 16384 bytes"),
    ],
)
def test_a_damaged_file_is_told_in_one_sentence(change: tuple[str, str], told: str, tmp_path: Path) -> None:
    path = write(tmp_path, ARPA.replace(*change, 1))
    with pytest.raises(DataError) as caught:
        load_arpa(path)
    assert str(caught.value).startswith(f"`decoding.lm` ({path}) must be an ARPA file, but is not (")
    assert told in str(caught.value)


def test_what_is_no_file_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be an ARPA file, but .*gone.arpa does not exist"):
        load_arpa(tmp_path / "gone.arpa")
    with pytest.raises(DataError, match="is a folder"):
        load_arpa(tmp_path)
    (tmp_path / "lm.gz").write_bytes(b"\\data\\")
    (tmp_path / "lm.bin").write_bytes(bytes(range(256)))
    (tmp_path / "lm.txt").write_text(ARPA, encoding="utf-16")
    (tmp_path / "lm.mmap").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(range(256)))
    for name, told in (
        ("lm.gz", "it ends in its head"),
        ("lm.bin", r"it has no line \\data\\"),
        ("lm.txt", "it is in UTF-16, not in UTF-8"),
        ("lm.mmap", r"lm.mmap is a binary of KenLM: give the ARPA file that it was built from"),
    ):
        with pytest.raises(DataError, match=told):
            load_arpa(tmp_path / name)


def test_what_other_toolkits_leave_in_a_file_is_read(tmp_path: Path) -> None:
    plain = load_arpa(write(tmp_path, ARPA))
    recipe = ARPA.replace("-99\t<s>\t-0.30\n", "-99\t<s>\t-0.30\n0\t</s>\t-0.30\n").replace("1=5", "1=6")
    for name, text in (
        ("the recipe of Hugging Face, a second end", recipe),
        ("a byte-order mark", "\ufeff" + ARPA.lstrip()),
        ("spaces in the head", ARPA.replace("ngram 1=5", "ngram  1 =        5")),
        ("Windows", ARPA.replace("\n", "\r\n")),
        ("comments", "made by hand\n" + ARPA + "\nand so on\n"),
    ):
        read = load_arpa(write(tmp_path, text))
        assert (read.log_probs, read.backoffs) == (plain.log_probs, plain.backoffs), name


@each_case("space", ["\u00a0", "\u3000", "\u2003", "\u2028", "\x85", "\x1c"])
def test_words_end_at_plain_spaces_only(space: str, tmp_path: Path) -> None:
    model = load_arpa(write(tmp_path, ARPA.replace("\tA\t", f"\tNEW{space}YORK\t").replace("A B", f"NEW{space}YORK B")))
    assert model.words == [f"NEW{space}YORK", "B"]
    assert model.log_probs[f"NEW{space}YORK B"] == -0.4


def test_words_are_spelt_otherwise_when_they_are_read(tmp_path: Path) -> None:
    text = (
        ARPA.replace("1=5", "1=7")
        .replace("2=3", "2=5")
        .replace("-0.7\tB", "-0.4\ta\t-0.6\n-0.9\tb\n-0.7\tB")
        .replace("-0.4\tA B", "-0.4\tA B\n-0.1\ta b\n-0.6\ta B")
    )
    model = load_arpa(write(tmp_path, text), spell=str.upper)
    assert model.words == ["A", "B"]
    assert (model.log_probs["A"], model.backoffs["A"]) == (-0.4, -0.6), "the likeliest, with its own back-off"
    assert model.log_probs["B"] == -0.7
    assert model.log_probs["A B"] == -0.1
    assert END in model.log_probs, "signs are not spelt"
    assert model.counts == [7, 5, 1], "as the file has it"


@each_case(
    "lines, told",
    [
        (["\\data\\\n", "ngram 1=1\n\n", "\\1-grams:\n-1\t", *["A" * 10**6] * 60], "a line of more than"),
        (["\\data\\\n", "ngram 1=1\n\n", "\\1-grams:\n", *["\n" * 10**6] * 60], "more than 1000 empty lines"),
        (["\n" * 10**6] * 60, "more than 1000 lines before"),
        (["\\data\\\nngram 1=9999999999\n\\1-grams:\n", *["-1\tA\n" * 10**5] * 100], "n-grams that stand twice"),
        (["\\data\\\n", *[f"ngram {n}=1\n" for n in range(1, 20)]], "line 18 of its head is 'ngram 17=1'"),
        (
            ["\\data\\\nngram 1=7000\n\\1-grams:\n", *[f"-1\t{'A' * 9000}{n}\n" for n in range(7000)]],
            "more than 30 times its size comes out of it",
        ),
    ],
)
def test_a_small_file_never_takes_much(lines: list[str], told: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa.gz"
    with gzip.open(path, "wt", compresslevel=9) as file:
        file.writelines(lines)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(DataError, match=told):
        load_arpa(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 5
    assert peak < 60e6


@each_case("name", ["lm.arpa", "lm.arpa.gz"])
def test_damage_is_told_and_never_a_traceback(name: str, tmp_path: Path) -> None:
    model = train_ngram(make_texts(20, 1), 2)
    save_arpa(model, tmp_path / name)
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(1)
    for _ in range(400):
        damaged = bytearray(whole)
        place, kind = int(rng.integers(len(whole))), int(rng.integers(3))
        if kind == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del damaged[place:]
        else:
            damaged[place : place + int(rng.integers(9))] = rng.bytes(int(rng.integers(9)))
        (tmp_path / name).write_bytes(damaged)
        with suppress(DataError):
            read = load_arpa(tmp_path / name)
            assert name == "lm.arpa" or read.log_probs.keys() == model.log_probs.keys(), "gzip has a checksum"


@each_case("order", [1, 2, 3, 4])
def test_the_probabilities_of_every_context_sum_to_one(order: int) -> None:
    model = train_ngram(make_texts(60, 1), order)
    followers = [*model.words, END, UNKNOWN]
    contexts = {"", model.start(), *model.backoffs, "W1 W2 W3", "UNHEARD", "W1 UNHEARD"}
    assert len(contexts) > (1 if order == 1 else 25)
    for context in contexts:
        assert sum(10 ** model.score(context, word) for word in followers) == pytest.approx(1.0, abs=1e-9), context


def test_a_bigram_is_the_formula_of_kneser_and_ney() -> None:
    model = train_ngram(["A B", "A C", "B C"], order=2)
    # Too few to estimate discounts: 0.5, 1, 1.5. After A: B and C once each, so half of the mass is freed.
    kinds = {"A": 1, "B": 2, "C": 2, END: 2}  # words that each was seen after
    freed = 0.5 + 1 + 1 + 1
    unigram = {w: (k - (0.5 if k == 1 else 1)) / 7 + freed / 7 / 5 for w, k in kinds.items()}
    assert 10 ** model.score("", "A") == pytest.approx(unigram["A"])
    assert 10 ** model.score("", "X") == pytest.approx(freed / 7 / 5)
    assert 10 ** model.score("A", "B") == pytest.approx((1 - 0.5) / 2 + 1 / 2 * unigram["B"])
    assert 10 ** model.score("A", END) == pytest.approx(1 / 2 * unigram[END])
    assert 10 ** model.score("<s>", "A") == pytest.approx((2 - 1) / 3 + 1.5 / 3 * unigram["A"])


def count_in_dicts(
    texts: list[str], order: int, prune: Sequence[int] = (0,)
) -> tuple[dict[str, float], dict[str, float]]:
    """Estimate as the formulas read, with a dict of tuples for everything: slow, and large.

    An n-gram that is pruned gives all of its adjusted count to the back-off of its context, as KenLM's
    `InitialProbabilities` sums it ("Collect unused probability mass from pruning").
    """
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    for text in texts:
        padded = ("<s>", *text.split(), END)
        for n, grams in enumerate(counts, 1):
            grams.update(padded[k : k + n] for k in range(len(padded) - n + 1))
    del counts[0][("<s>",)]
    log_probs, backoffs, lower = {UNKNOWN: 0.0, "<s>": -99.0}, {}, {(): 1 / (len(counts[0]) + 1)}
    for n, (grams, longer) in enumerate(zip(counts, [*counts[1:], None], strict=True)):
        kept = {gram for gram, c in grams.items() if not n or c > prune[min(n, len(prune) - 1)]}
        kinds = Counter(gram[1:] for gram in longer or {})
        adjusted = {gram: c if longer is None or gram[0] == "<s>" else kinds[gram] for gram, c in grams.items()}
        cuts = dict(enumerate(estimate_discounts(np.array([*adjusted.values()])), 1))
        total, freed = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
        for gram, count in adjusted.items():
            total[gram[:-1]] += count
            freed[gram[:-1]] += cuts[min(count, 3)] if gram in kept else count
        share = {context: freed[context] / total[context] for context in total}
        probs = {
            gram: (count - cuts[min(count, 3)]) / total[gram[:-1]] + share[gram[:-1]] * lower[gram[1:]]
            for gram, count in adjusted.items()
            if gram in kept
        }
        if grams is counts[0]:
            log_probs[UNKNOWN] = math.log10(share[()] * lower[()])
        log_probs |= {" ".join(gram): math.log10(prob) for gram, prob in probs.items()}
        backoffs |= {" ".join(c): math.log10(found) for c, found in share.items() if c and " ".join(c) in log_probs}
        lower = probs
    return log_probs, backoffs


def test_pruned_models_are_the_formulas_too_and_sum_to_one() -> None:
    texts = make_texts(400, 1)
    for order, prune in ((3, (0, 0, 1)), (4, (0, 1)), (2, (0, 100)), (3, (0, 1, 3))):
        model, (log_probs, backoffs) = train_ngram(texts, order, prune), count_in_dicts(texts, order, prune)
        assert dict(model.log_probs) == log_probs
        assert dict(model.backoffs) == backoffs
        assert model.counts[-1] < train_ngram(texts, order).counts[-1]
        followers = [*model.words, END, UNKNOWN]
        for context in ("", model.start(), *[*model.backoffs][::7], "W1 UNHEARD"):
            assert sum(10 ** model.score(context, word) for word in followers) == pytest.approx(1.0, abs=1e-9), context


def test_kenlm_reads_what_is_written_and_scores_it_alike(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed (it builds from source)")
    for prune in ((), (0, 0, 1)):
        model = train_ngram(make_texts(400, 1), 3, prune)
        save_arpa(model, tmp_path / "lm.arpa")
        other = kenlm.Model(str(tmp_path / "lm.arpa"))
        assert other.order == 3
        for text in [*make_texts(50, 2), "W1 UNHEARD W2", ""]:
            assert other.score(text) == pytest.approx(model.score_sentence(text.split()), abs=1e-4, rel=1e-5)


def test_numbers_in_arrays_give_what_dicts_of_words_give() -> None:
    """To the last bit, and in the same order: so the files are the same too."""
    for texts, orders in ((make_texts(400, 1), (1, 2, 3, 4)), (["A B A B", "A", "B"], (3,))):
        for order in orders:
            model, (log_probs, backoffs) = train_ngram(texts, order), count_in_dicts(texts, order)
            assert list(model.log_probs.items()) == list(log_probs.items())
            assert dict(model.backoffs) == backoffs
            plain = Ngram(order, log_probs, backoffs, model.counts)
            pairs = zip(plain.sections(), model.sections(), strict=True)
            assert all((n, list(rows)) == (m, list(others)) for (n, rows), (m, others) in pairs)
            assert model.words == plain.words
            assert len(model.log_probs) == len(log_probs) == sum(model.counts)
    assert train_ngram(["A"], 5).counts == [4, 2, 1, 0, 0], "no text is as long"


def test_many_words_take_little_memory() -> None:
    """300,000 words at random: hardly a 3-gram twice. Dicts of them take ten times as much."""
    rng = np.random.default_rng(1)
    texts = [" ".join(row) for row in rng.integers(5000, size=(15_000, 20)).astype(str).tolist()]
    tracemalloc.start()
    model = train_ngram(texts, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(model.counts) > 500_000
    assert peak < 50e6


def test_discounts_are_estimated_from_counts_of_counts() -> None:
    numbers = {1: 40, 2: 16, 3: 8, 4: 5}
    counts = np.repeat(list(numbers), list(numbers.values()))
    y = 40 / (40 + 2 * 16)
    assert estimate_discounts(counts) == pytest.approx((1 - 2 * y * 16 / 40, 2 - 3 * y * 8 / 16, 3 - 4 * y * 5 / 8))
    assert estimate_discounts(np.array([1])) == FALLBACK


def test_held_out_text_is_predicted_better_than_by_single_words() -> None:
    held_out = make_texts(300, 2)
    models = {order: train_ngram(make_texts(2000, 1), order) for order in (1, 2, 3)}
    figures = {order: model.compute_perplexity(held_out) for order, model in models.items()}
    assert figures[2].perplexity < 0.6 * figures[1].perplexity
    # The texts are a chain of first order: a longer context tells no more, and must not cost much.
    assert figures[3].perplexity < 1.15 * figures[2].perplexity
    assert figures[1].num_words == sum(len(text.split()) for text in held_out)


def test_perplexity_counts_ends_and_unknown_words() -> None:
    model = train_ngram(["A B", "B A"], 1)
    found = model.compute_perplexity(["A X"])
    total = model.score("", "A") + model.score("", "X") + model.score("", END)
    assert found.perplexity == pytest.approx(10 ** (-total / 3))
    assert (found.num_words, found.num_unknown) == (2, 1)


def test_a_written_model_reads_back_with_equal_scores(tmp_path: Path) -> None:
    model = train_ngram(make_texts(200, 1), 4)
    save_arpa(model, tmp_path / "lm.arpa")
    read = load_arpa(tmp_path / "lm.arpa")
    assert (read.order, read.counts) == (model.order, model.counts)
    assert read.log_probs.keys() == model.log_probs.keys()
    for text in [*make_texts(50, 3), "W1 NEVER W2", ""]:
        assert read.score_sentence(text.split()) == pytest.approx(model.score_sentence(text.split()), abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["lm.arpa"]


def test_a_name_that_ends_in_gz_is_compressed(tmp_path: Path) -> None:
    model = train_ngram(make_texts(20, 1), 2)
    for name in ("lm.arpa", "lm.arpa.gz"):
        save_arpa(model, tmp_path / name)
    with gzip.open(tmp_path / "lm.arpa.gz", "rb") as file:
        assert file.read() == (tmp_path / "lm.arpa").read_bytes()
    assert load_arpa(tmp_path / "lm.arpa.gz") == load_arpa(tmp_path / "lm.arpa")


def test_texts_without_words_or_with_signs_are_refused() -> None:
    with pytest.raises(DataError, match="must have words"):
        train_ngram(["", "  "])
    with pytest.raises(DataError, match=r"has the sign <s>"):
        train_ngram(["A <s> B"])


def test_an_empty_context_is_that_of_a_unigram() -> None:
    model = Ngram(1, {"A": math.log10(0.5), END: math.log10(0.5)}, {}, [2])
    assert model.start() == ""
    assert model.score_sentence(["A"]) == pytest.approx(math.log10(0.25))


def test_a_perplexity_that_no_number_holds_is_infinite() -> None:
    model = Ngram(1, {"<s>": -99.0, "</s>": -400.0, "A": -400.0}, {}, [3])
    assert model.compute_perplexity(["A A"]).perplexity == math.inf
