"""Sentences for the demo: about 160 short, common words in a handful of patterns, written for this package.

A small vocabulary lets CTC leave its blank plateau within minutes; a grammar gives enough distinct sentences that
those of the test split are never those of the training split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from speechssl.errors import ConfigError

WORDS: dict[str, tuple[str, ...]] = {
    "person": (
        "farmer", "sailor", "teacher", "doctor", "painter", "baker", "miller", "sister", "brother", "mother", "father",
        "man", "woman", "king", "queen", "girl", "boy", "dancer",
    ),
    "kind": ("old", "young", "tall", "small", "quiet", "happy", "tired", "brave", "clever", "gentle"),
    "animal": ("dog", "cat", "horse", "bird", "goat", "fox", "rabbit", "lamb"),
    "many": ("horses", "birds", "boats", "sheep", "apples", "stones", "books", "letters", "lamps", "rings"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "many"),
    "look": ("red", "green", "blue", "white", "black", "golden", "heavy", "broken", "new", "little"),
    "thing": (
        "lamp", "book", "letter", "basket", "box", "hat", "map", "bell", "drum", "ring", "cup", "stone", "rope", "key",
        "coin", "apple", "flag", "ladder",
    ),
    "did": (
        "carried", "found", "dropped", "painted", "sold", "wanted", "lost", "kept", "took", "saw", "left", "made",
        "moved", "gave",
    ),
    "rested": ("slept", "waited", "sang", "walked", "danced", "stood", "worked", "played", "rested", "laughed"),
    "where": (
        "by the river", "on the hill", "in the garden", "near the bridge", "at the market", "under the table",
        "behind the house", "in the forest", "along the road", "beside the lake", "in the harbour", "on the beach",
        "in the kitchen", "at the door", "over the wall", "across the field",
    ),
    "when": (
        "in the morning", "after dinner", "before winter", "on monday", "last night", "every summer", "at noon",
        "in the evening", "on sunday", "today",
    ),
}  # fmt: skip
"""Word classes; a name in braces in `PATTERNS` stands for any entry of the class."""

PATTERNS: tuple[str, ...] = (
    "the {kind} {person} {did} a {look} {thing} {where}",
    "{when} the {person} {did} the {look} {thing}",
    "{number} {many} were {where} {when}",
    "the {person} and the {kind} {animal} {rested} {where}",
    "we saw {number} {many} {where}",
    "the {person} said that the {animal} {rested} {where}",
    "a {kind} {animal} {rested} {where} {when}",
    "please bring the {look} {thing} to the {person}",
    "there is a {look} {thing} {where}",
    "where is the {look} {thing} of the {kind} {person}",
    "my {person} {did} {number} {many} {when}",
    "the {animal} {rested} and the {person} {did} the {thing}",
)


def make_sentences(num_sentences: int, seed: int) -> list[str]:
    """Make distinct sentences, in lower case and without punctuation.

    Args:
        num_sentences: how many; at most 50,000, far below what the patterns can make.
        seed: the same seed gives the same sentences in the same order.

    Raises:
        ConfigError: more are asked for.
    """
    if num_sentences > 50_000:
        raise ConfigError(f"`num_sentences` must be at most 50000, but is {num_sentences}")
    draw = random.Random(f"demo sentences {seed}")
    sentences: dict[str, None] = {}
    while len(sentences) < num_sentences:
        sentences[_fill(draw.choice(PATTERNS), draw)] = None
    return list(sentences)


def list_words(sentences: Sequence[str]) -> list[str]:
    """List the distinct words of sentences, sorted."""
    return sorted({word for sentence in sentences for word in sentence.split()})


def _fill(pattern: str, draw: random.Random) -> str:
    """Replace every class name of a pattern by one of its entries."""
    return pattern.format_map({name: draw.choice(entries) for name, entries in WORDS.items()})
