"""The two fields of fairseq's configurations that are Python in text: read here as data, never run."""

from __future__ import annotations

import ast
from typing import Any

MAX_TEXT, MAX_LAYERS, MAX_VALUE, MAX_NUMBER = 2000, 64, 65536, 1e300
"""Most characters of a text, convolutions of a network, channels or samples of one, and the largest temperature."""


def read_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """Read fairseq's `conv_feature_layers`, which fairseq itself runs as Python.

    Args:
        text: lists of (channels, kernel, stride) with `+` between lists and `*` between a list and a number, such as
            `[(512, 10, 5)] + [(512, 3, 2)] * 4`.

    Returns:
        The layers.

    Raises:
        ValueError: it is anything else, longer than 2000 characters, or has more than 64 layers.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it is longer than {MAX_TEXT} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        layers = _read_layers(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is no such list ({type(error).__name__})") from error
    if not layers:
        raise ValueError("it has no layer")
    return layers


def read_temperature(value: Any) -> tuple[float, float, float]:
    """Read fairseq's `latent_temp`: (start, end, factor) as a list, or as text.

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        try:
            value = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
            raise ValueError("it is no list of numbers") from error
    is_list = isinstance(value, (list, tuple)) and len(value) == 3
    if not is_list or not all(type(number) in (int, float) for number in value):
        raise ValueError("it is no list of three numbers")
    if not all(abs(number) < MAX_NUMBER for number in value):
        raise ValueError("its numbers are not finite")
    start, end, factor = (float(number) for number in value)
    return start, end, factor


def _read_layers(node: ast.expr) -> list[tuple[int, int, int]]:
    """Read a list of layers, a sum of such lists, or one so many times."""
    match node:
        case ast.List():
            layers = [_read_layer(element) for element in node.elts]
        case ast.BinOp(op=ast.Add()):
            layers = _read_layers(node.left) + _read_layers(node.right)
        case ast.BinOp(op=ast.Mult(), left=ast.Constant() as times, right=inner):
            layers = _repeat(_read_layers(inner), times)
        case ast.BinOp(op=ast.Mult(), left=inner, right=ast.Constant() as times):
            layers = _repeat(_read_layers(inner), times)
        case _:
            raise ValueError(f"it has {type(node).__name__}")
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"it has more than {MAX_LAYERS} layers")
    return layers


def _repeat(layers: list[tuple[int, int, int]], times: ast.Constant) -> list[tuple[int, int, int]]:
    count = times.value
    if type(count) is not int or not 0 < count <= MAX_LAYERS:
        raise ValueError(f"it repeats {count!r} times")
    return layers * count


def _read_layer(node: ast.expr) -> tuple[int, int, int]:
    elements = node.elts if isinstance(node, (ast.Tuple, ast.List)) else []
    values = [element.value if isinstance(element, ast.Constant) else None for element in elements]
    numbers = [value for value in values if type(value) is int and 0 < value <= MAX_VALUE]
    if len(values) != 3 or len(numbers) != 3:
        raise ValueError("a layer is no (channels, kernel, stride)")
    return numbers[0], numbers[1], numbers[2]
