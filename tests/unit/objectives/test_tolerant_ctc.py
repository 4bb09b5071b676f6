"""The loss that tolerates wrong transcripts, against the sum over everything that could be said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise, product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.config.data import TextConfig
from speechssl.objectives.ctc import find_word_ends
from speechssl.objectives.losses import compute_ctc_loss
from speechssl.objectives.tolerant_ctc import compute_tolerant_ctc_loss
from speechssl.text.vocabulary import build_vocabulary

STAR, BOUNDARY = "*", 1
INF = math.inf


def count_replaced(words: Sequence[Sequence[int]], said: tuple[int | str, ...]) -> Iterator[int]:
    """Count the words that stars replace, once for each way in which `said` is a reading of the words."""
    if said and said[0] == STAR:
        yield from count_replaced(words, said[1:])
        if words:
            yield from (1 + count for count in count_replaced(words[1:], said[1:]))
    if words and said[: len(words[0])] == tuple(words[0]):
        yield from count_replaced(words[1:], said[len(words[0]) :])
    if not words and not said:
        yield 0


def list_all(log_probs: Tensor, words: Sequence[Sequence[int]]) -> list[tuple[float, int, int]]:
    """List all paths of a row (T, V) that read the words: log-probability, frames with stars, words replaced."""
    frames, width = log_probs.shape
    stars, found = log_probs[:, 1:].logsumexp(1).tolist(), []
    rows = [dict(enumerate(row)) | {STAR: star} for row, star in zip(log_probs.tolist(), stars, strict=True)]
    for path in product([*range(width), STAR], repeat=frames):
        said = tuple(symbol for symbol, _ in groupby(path) if symbol != 0)
        for count in count_replaced(words, said):
            found.append((sum(row[symbol] for row, symbol in zip(rows, path, strict=True)), path.count(STAR), count))
    return found


def sum_all(paths: Sequence[tuple[float, int, int]], star: float, word: float) -> float:
    """Sum their probabilities at these prices, in nats; 0 where there is none, as the loss has it."""
    total = sum(
        math.exp(chance - (frames and frames * star) - (count and count * word)) for chance, frames, count in paths
    )
    return -math.log(total) if total else 0.0


def draw(rows: Sequence[Sequence[Sequence[int]]], frames: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(rows), frames, width, generator=generator, dtype=torch.float64)
    flat = [[label for word in words for label in word] for words in rows]
    labels = torch.full((len(rows), max(map(len, flat))), 99)
    for row, spelt in zip(labels, flat, strict=True):
        row[: len(spelt)] = torch.tensor(spelt)
    return logits, labels, torch.tensor([len(spelt) for spelt in flat])


def test_it_is_the_sum_over_all_that_could_be_said() -> None:
    """One word, two, doubled letters across and inside words, too few frames, rows of other lengths, free stars."""
    rows = ([[2, 1]], [[2, 2, 1]], [[2, 1], [3, 1]], [[1], [1]], [[3, 1], [2, 1]])
    num_frames = torch.tensor([4, 5, 5, 4, 3])
    logits, labels, num_labels = draw(rows, 5, 4, seed=1)
    paths = [list_all(logits[k, :n].log_softmax(-1), rows[k]) for k, n in enumerate(num_frames)]
    for star, word in ((1.0, 2.0), (0.0, 0.0), (3.0, 9.0), (INF, 1.0), (1.0, INF)):
        expected = [sum_all(each, star, word) for each in paths]
        for k, value in enumerate(expected):
            one = logits[k : k + 1], num_frames[k : k + 1], labels[k : k + 1], num_labels[k : k + 1]
            found = float(compute_tolerant_ctc_loss(*one, one[2] == BOUNDARY, star, word))
            assert found == pytest.approx(value, rel=1e-9), (rows[k], star, word)
        whole = logits, num_frames, labels, num_labels, labels == BOUNDARY, star, word
        assert float(compute_tolerant_ctc_loss(*whole)) == pytest.approx(sum(expected), rel=1e-9)


def test_its_gradient_is_right() -> None:
    rows = ([[2, 1], [3, 1]], [[2, 2, 1]], [[3, 1]])
    logits, labels, num_labels = draw(rows, 6, 4, seed=2)
    num_frames = torch.tensor([6, 5, 0])
    inputs = num_frames, labels, num_labels, labels == BOUNDARY

    def compute(logits: Tensor) -> Tensor:
        return compute_tolerant_ctc_loss(logits, *inputs, 0.5, 1.5)

    assert torch.autograd.gradcheck(compute, logits.requires_grad_())
    (gradient,) = torch.autograd.grad(compute(logits), logits)
    assert not gradient[1, 5:].any() and not gradient[2].any(), "frames that are none have no say"


def test_where_no_star_may_come_it_is_ctc() -> None:
    rows = ([[2, 3, 3, 1], [4, 1]], [[2, 1]] * 4, [[3, 3, 3, 1]])
    logits, labels, num_labels = draw(rows, 12, 6, seed=3)
    num_frames, found = torch.tensor([12, 9, 5]), []
    logits = logits.float().requires_grad_()
    for loss in (
        compute_ctc_loss(logits, num_frames, labels.clamp(max=5), num_labels),
        compute_tolerant_ctc_loss(logits, num_frames, labels, num_labels, labels == BOUNDARY, INF, INF),
    ):
        found.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert found[1][1][2].abs().sum() == 0, "five frames are too few for three times the same letter and a boundary"


def test_a_network_that_is_sure_is_not_told_otherwise() -> None:
    """By a wrong word, a missing one, an extra one, and a missing one at the beginning or end."""
    said = [2, 3, 1, 4, 5, 1, 3, 2, 1]
    logits = 20.0 * F.one_hot(torch.tensor([label for label in said for _ in range(3)]), 6).float()[None]
    num_frames = torch.tensor([logits.shape[1]])
    first, other, middle, last = [2, 3, 1], [5, 2, 1], [4, 5, 1], [3, 2, 1]
    for words in ((first, other, last), (first, last), (first, other, middle, last), (middle, last), (first, middle)):
        labels = torch.tensor([[label for word in words for label in word]])
        inputs = num_frames, labels, torch.tensor([labels.shape[1]])
        assert float(compute_ctc_loss(logits, *inputs)) >= 40
        one = logits.clone().requires_grad_()
        loss = compute_tolerant_ctc_loss(one, *inputs, labels == BOUNDARY, 0.5, 4.0)
        loss.backward()  # type: ignore[no-untyped-call]
        assert float(loss.detach()) < 4 + 9 * 0.5, words
        assert one.grad is not None and float(one.grad.abs().max()) < 0.01, words


def test_words_end_at_their_boundary_or_before_the_next_piece_with_a_mark_or_at_each_label() -> None:
    texts = ["see the sea", "see me", "the sea"]
    for config in (TextConfig(), TextConfig(vocabulary="bpe", num_pieces=12)):
        vocabulary = build_vocabulary(config, texts)
        labels = torch.tensor([vocabulary.encode("see the sea")])
        ends = find_word_ends(labels, vocabulary)[0]
        ends[-1] = True
        cuts = [0, *(ends.nonzero()[:, 0] + 1).tolist()]
        words = [vocabulary.decode(labels[0, a:b].tolist()) for a, b in pairwise(cuts)]
        assert [word.strip().lower() for word in words] == ["see", "the", "sea"]
    chinese = build_vocabulary(TextConfig(vocabulary="data"), ["你好", "好"])
    assert not chinese.has_words
    assert find_word_ends(torch.tensor([chinese.encode("你好")]), chinese).all()
