"""Torch's pickled files, in its zip container and in the old one: what they describe, and the weights' numbers.

`torch.load` is not used: what it would build is only described here (see `inert_pickle`), and only the numbers of the
weights are read, so that an optimizer state costs nothing.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoints.checks import reading
from speechssl.interop.inert_pickle import Placeholder, Storage, StoredTensor, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
"""First number in torch's old container, which was the only one before torch 1.6."""

MAX_PICKLE = 4 << 20
"""Most bytes of a description, the numbers apart. That of 2 billion parameters with their optimizer takes a tenth."""


class StoredFile:
    """What a file holds.

    Attributes:
        content: what was pickled: plain containers, `Placeholder` and `StoredTensor`.
        size: its bytes.
    """

    def __init__(self, path: Path, content: Any, places: dict[str, tuple[int, int]]) -> None:
        self.path, self.content, self._places = path, content, places
        self.size = path.stat().st_size

    def read(self, tensors: dict[str, StoredTensor], key: str) -> dict[str, Tensor]:
        """Read the numbers of some tensors, as float32.

        Args:
            tensors: found in `content`.

        Raises:
            CheckpointError: a tensor lies outside its storage, does not fill its part of it, or all are larger than
                the file.
        """
        with reading(self.path, key):
            # Aliases of one storage are small in the file and large once they are read.
            if sum(tensor.count * tensor.storage.dtype.itemsize for tensor in tensors.values()) > self.size:
                raise ValueError("its weights are larger than the file")
            with self.path.open("rb") as file:
                return {name: self._read_one(file, tensor) for name, tensor in tensors.items()}

    def _read_one(self, file: Any, tensor: StoredTensor) -> Tensor:
        dtype, (start, size) = tensor.storage.dtype, self._places[tensor.storage.key]
        if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or len(tensor.shape) != len(tensor.strides):
            raise ValueError(f"a tensor of {tensor.shape} and {tensor.strides}")
        if not tensor.count:
            return torch.zeros(tensor.shape)
        span = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.strides, strict=True))
        if span != tensor.count or (tensor.offset + span) * dtype.itemsize > size:
            raise ValueError(f"a tensor of {tensor.shape} and {tensor.strides} does not fill a part of its storage")
        file.seek(start + tensor.offset * dtype.itemsize)
        data = bytearray(file.read(span * dtype.itemsize))
        flat = torch.frombuffer(data, dtype=dtype, count=span)
        return flat.as_strided(tensor.shape, tensor.strides).float().clone(memory_format=torch.contiguous_format)


def look_into(path: Path, key: str = "checkpoint") -> StoredFile:
    """Look into a file that torch has pickled, of the zip container or the old one.

    Raises:
        CheckpointError: it is no such file, it is damaged, or it is not what torch and fairseq write (compressed, with
            other instructions than those that describe data).
    """
    with reading(path, key):
        if zipfile.is_zipfile(path):
            return _look_into_zip(path)
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK":
            raise ValueError("it is cut off")
        if start[:1] != b"\x80":
            raise ValueError("it does not begin as torch's files do")
        return _look_into_old(path)


def _look_into_zip(path: Path) -> StoredFile:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch's files never are")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries are larger than the file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        places = {entry.filename: (_find_data(view, entry), entry.file_size) for entry in entries}
        described = [name for name in places if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(described) != 1 or places[described[0]][1] > MAX_PICKLE:
            raise ValueError("it must have one data.pkl of at most 4 MB")
        folder = described[0].removesuffix("data.pkl")
        order, size = places.get(f"{folder}byteorder", (0, -1))
        if size >= 0 and view[order : order + min(size, 16)] != b"little":
            raise ValueError("its numbers are big-endian")
        start, size = places[described[0]]
        view.seek(start)
        content = unpickle(_Window(view, start + size))
    prefix = f"{folder}data/"
    storages = {name.removeprefix(prefix): place for name, place in places.items() if name.startswith(prefix)}
    return StoredFile(path, content, storages)


def _find_data(view: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """Find where an entry's bytes begin: after its local header, whose length is not in the directory."""
    name_size, extra_size = struct.unpack_from("<HH", view, entry.header_offset + 26)
    return int(entry.header_offset + 30 + name_size + extra_size)


def _look_into_old(path: Path) -> StoredFile:
    """Read torch's old container: five pickled values, then each storage with its length before it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        window = _Window(view, min(len(view), MAX_PICKLE))
        if unpickle(window) != MAGIC:
            raise ValueError("it does not begin as torch's files do")
        unpickle(window)
        machine = unpickle(window)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError("its numbers are big-endian")
        content, names = unpickle(window), unpickle(window)
        sizes = _list_item_sizes(content)
        places = {}
        for name in names:
            if type(name) is not str:
                raise ValueError("a storage without a name")
            (count,) = struct.unpack("<q", view.read(8))
            # A storage that no tensor of the file uses has no kind: then nothing behind it can be found.
            size = count * sizes[name]
            if count < 0 or view.tell() + size > len(view):
                raise ValueError(f"storage {name} is cut off")
            places[name] = (view.tell(), size)
            view.seek(size, 1)
    return StoredFile(path, content, places)


def _list_item_sizes(content: Any) -> dict[str, int]:
    """List the bytes of an element of each storage that any tensor in a file has."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        value = value.storage if isinstance(value, StoredTensor) else value
        if isinstance(value, Storage):
            sizes[value.key] = value.dtype.itemsize
        if not isinstance(value, (dict, list, tuple, set, frozenset, Placeholder)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Placeholder):
            waiting += [value.args, value.state, value.items, value.elements]
        else:
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return sizes


class _Window:
    """A file up to some byte: whatever length it is asked for, it gives what is there."""

    def __init__(self, view: mmap.mmap, end: int) -> None:
        self._view, self._end = view, end

    def read(self, size: int) -> bytes:
        """Read so many bytes, or fewer at the end."""
        return self._view.read(max(0, min(size, self._end - self._view.tell())))

    def readline(self) -> bytes:
        """Read a line; names and numbers are short."""
        start = self._view.tell()
        end = self._view.find(b"\n", start, min(self._end, start + 4096))
        if end < 0:
            raise ValueError("a line without an end")
        return self._view.read(end + 1 - start)
