"""Greedy CTC decoding."""

from __future__ import annotations

import torch

from speechssl.inference.decoding.greedy import greedy_decode, merge_path
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary
from tests.cases import each_case

VOCABULARY = Vocabulary(FAIRSEQ_SYMBOLS)


@each_case(
    "path, labels",
    [([], []), ([0, 0], []), ([5, 5, 5], [5]), ([5, 0, 5], [5, 5]), ([0, 7, 7, 0, 7, 8, 8, 0], [7, 7, 8])],
)
def test_merging_comes_before_blanks_are_dropped(path: list[int], labels: list[int]) -> None:
    assert merge_path(path) == labels


def test_greedy_decode_reads_only_valid_frames() -> None:
    paths = torch.tensor([VOCABULARY.encode("IT'S TEA"), [0] * 9])
    logits = torch.nn.functional.one_hot(paths, 32).float()
    assert greedy_decode(logits, torch.tensor([9, 9]), VOCABULARY) == ["IT'S TEA", ""]
    assert greedy_decode(logits, torch.tensor([4, 0]), VOCABULARY) == ["IT'S", ""]


def test_a_double_letter_needs_a_blank_between() -> None:
    a, l = VOCABULARY.symbols.index("A"), VOCABULARY.symbols.index("L")  # noqa: E741
    logits = torch.nn.functional.one_hot(torch.tensor([[a, l, l, 0], [a, l, 0, l]]), 32).float()
    assert greedy_decode(logits, torch.tensor([4, 4]), VOCABULARY) == ["AL", "ALL"]


def test_every_text_survives_one_frame_a_label_with_blanks_between() -> None:
    for text in ("HELLO", "ALL'S WELL", "'TIS"):
        path = [k for label in VOCABULARY.encode(text) for k in (label, 0)]
        assert VOCABULARY.decode(merge_path(path)) == text
