"""One seeded way to damage any file: as a disk would, and as somebody with a text editor."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from typing import Any

import yaml

ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\n",
    b"\r",
    b"\t",
    b'"',
    b"\\",
    b"{",
    b"[[[[",
    b"-",
    b"9" * 30,
    b"# ",
    b"\xe2\x80\xa8",
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 10**6, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.1, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "1",
        "nan",
        "\0",
        "\ud800",
        "x" * 5000,
        [],
        {},
        [[]],
        [0],
        ["a", 1],
        {"": None},
    ),
)
TOKEN = re.compile(rb"-?\d+\.?\d*(?:[eE][+-]?\d+)?|\w+")
"""What an editor would change in a text: a number or a word."""

TEXTS = (".json", ".jsonl", ".yaml", ".tsv", ".csv", ".arpa", ".txt")


def mutate(content: bytes, name: str, rng: random.Random) -> bytes:
    """Damage the content of a file once, or a few times.

    Args:
        content: of a file that is whole.
        name: its name, whose suffix says what else than bytes can be changed.
        rng: decides everything.

    Returns:
        Another content; now and then the same one.
    """
    ways: list[Callable[[bytes, random.Random], bytes]] = [_mutate_bytes]
    suffix = name[name.rfind(".") :] if "." in name else ""
    if suffix in TEXTS:
        ways.append(_change_token)
    if suffix in INSIDE:
        ways += [INSIDE[suffix]] * 2
    way = rng.choice(ways)
    try:
        return way(content, rng)
    except (ValueError, OSError, RecursionError, yaml.YAMLError, zipfile.BadZipFile):
        # What is no JSON, no archive, or cannot be written as one; bytes always can.
        return _mutate_bytes(content, rng)


def _mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        content = rng.choice(BYTE_WAYS)(content, rng)
    return content


def _slice(content: bytes, rng: random.Random) -> tuple[int, int]:
    """Choose a stretch, near the head as often as anywhere."""
    length = len(content) if rng.random() < 0.5 else min(len(content), 256)
    start = rng.randrange(length + 1)
    return start, min(len(content), start + rng.choice((1, 2, 4, 16, 64, 512, 4096)))


def _flip_bit(content: bytes, rng: random.Random) -> bytes:
    start, _ = _slice(content, rng)
    if start >= len(content):
        return content
    return content[:start] + bytes([content[start] ^ 1 << rng.randrange(8)]) + content[start + 1 :]


def _set_bytes(content: bytes, rng: random.Random) -> bytes:
    start, _ = _slice(content, rng)
    value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * rng.choice((1, 2, 4, 8))
    return content[:start] + value + content[start + len(value) :]


def _cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _take_out(content: bytes, rng: random.Random) -> bytes:
    start, end = _slice(content, rng)
    return content[:start] + content[end:]


def _make_zero(content: bytes, rng: random.Random) -> bytes:
    start, end = _slice(content, rng)
    return content[:start] + bytes(end - start) + content[end:]


def _duplicate(content: bytes, rng: random.Random) -> bytes:
    start, end = _slice(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 1, 2, 50)) + content[end:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    start, end = _slice(content, rng)
    place, _ = _slice(content, rng)
    return content[:place] + content[start:end] + content[place + end - start :]


def _insert_odd(content: bytes, rng: random.Random) -> bytes:
    start, _ = _slice(content, rng)
    return content[:start] + rng.choice(ODD_BYTES) + content[start:]


BYTE_WAYS = (_flip_bit, _flip_bit, _set_bytes, _cut_off, _take_out, _make_zero, _duplicate, _splice, _insert_odd)


def _change_token(content: bytes, rng: random.Random) -> bytes:
    tokens = list(TOKEN.finditer(content))
    if not tokens:
        return _insert_odd(content, rng)
    token = rng.choice(tokens)
    value = str(rng.choice(ODD_VALUES)).encode("utf-8", "surrogateescape" if rng.random() < 0.5 else "replace")
    return content[: token.start()] + value + content[token.end() :]


def _change_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(change_value(json.loads(content), rng)).encode("utf-8")


def _change_yaml(content: bytes, rng: random.Random) -> bytes:
    return yaml.safe_dump(change_value(yaml.safe_load(content), rng), allow_unicode=True).encode("utf-8")


def _change_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = _change_json(lines[place], rng) + b"\n"
    return b"".join(lines)


def change_value(value: Any, rng: random.Random) -> Any:
    """Change one value somewhere in a tree into one of any type, or take it away, or double it."""
    places = list(_list_places(value))
    if not places:
        return rng.choice(ODD_VALUES)
    parent, key = rng.choice(places)
    what = rng.random()
    if what < 0.1:
        del parent[key]
    elif what < 0.2 and isinstance(parent, dict):
        parent[rng.choice(("x", "", "name", "version", "__class__"))] = parent[key]
    elif what < 0.3:
        parent[key] = rng.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))
    else:
        parent[key] = rng.choice(ODD_VALUES)
    return value


def _list_places(value: Any) -> Any:
    """Yield each container with each of its keys, the outer ones first."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _list_places(value[key])


def _change_unpacked(content: bytes, rng: random.Random) -> bytes:
    return gzip.compress(rng.choice((_mutate_bytes, _change_token))(gzip.decompress(content), rng), 1, mtime=0)


def _change_header(content: bytes, rng: random.Random) -> bytes:
    """Change the head of safetensors and keep its length true."""
    length = int.from_bytes(content[:8], "little")
    header = _change_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _change_entry(content: bytes, rng: random.Random) -> bytes:
    """Change one file of an archive, most often what describes the others, and keep its checksum true."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(written, "w") as target:
        names = source.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.8 else names)
        for name in names:
            entry = source.read(name)
            target.writestr(name, _mutate_bytes(entry, rng) if name == chosen else entry)
    return written.getvalue()


INSIDE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _change_json,
    ".jsonl": _change_line,
    ".yaml": _change_yaml,
    ".gz": _change_unpacked,
    ".safetensors": _change_header,
    ".pt": _change_entry,
    ".bin": _change_entry,
}
