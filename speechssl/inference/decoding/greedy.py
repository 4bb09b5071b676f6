"""From CTC logits to text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from jaxtyping import Float, Int
from torch import Tensor

from speechssl.text.vocabulary import BLANK, Vocabulary


def merge_path(ids: Sequence[int]) -> list[int]:
    """Apply the CTC map to a path: merge repeats, then drop blanks (Graves et al. 2006, §3.1).

    Args:
        ids: the symbol of each frame.

    Returns:
        Labels; a letter comes twice only where a blank stood between its frames.
    """
    return [symbol for symbol, _ in groupby(ids) if symbol != BLANK]


def greedy_decode(logits: Float[Tensor, "B T V"], num_frames: Int[Tensor, " B"], vocabulary: Vocabulary) -> list[str]:
    """Read off each row's best path: argmax of each frame, repeats merged, blanks dropped.

    Args:
        logits: (B, T, V) scores of each symbol; any scale, since only the largest counts.
        num_frames: (B,) int64 valid frames of each row; frames beyond are not read.
        vocabulary: V symbols.

    Returns:
        B texts; empty where a row is all blank.

    Source: fairseq's `viterbi` decoder, without lexicon or language model (wav2vec 2.0 §4.4, rows "None").
    """
    assert logits.shape[-1] == len(vocabulary), f"{logits.shape[-1]} logits for {len(vocabulary)} symbols"
    paths = logits.argmax(dim=-1).tolist()
    rows = zip(paths, num_frames.tolist(), strict=True)
    return [vocabulary.decode(merge_path(path[:length])) for path, length in rows]
