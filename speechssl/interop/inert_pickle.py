"""A pickle looked at without running it: every class is a name, every object what it would be built from.

fairseq's files hold objects of argparse, omegaconf and fairseq itself, which torch's restricted unpickler refuses.
Here nothing is imported and nothing is called: a class becomes a `Global`, an object a `Placeholder` that keeps what
the file gave it, a tensor a `StoredTensor` that says where its numbers lie.

The one module that takes an unpickler from `pickle`: tests/architecture/test_unsafe_calls.py knows it by name.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

MAX_DEPTH, MAX_NODES = 32, 100_000
"""How deep and how large a configuration may be; published ones are 6 deep and have some hundreds of values."""

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_NAMED_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
    GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ BINPERSID GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
"""
_OPCODES = {getattr(pickle, name)[0] for name in _NAMED_OPCODES.split()}


@dataclass(frozen=True)
class Global:
    """The name of a class or function. It cannot be called."""

    module: str
    name: str


@dataclass
class Placeholder:
    """An object that was not built: its class by name, and what the file would have built it from."""

    of: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """A run of numbers somewhere in the file."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers have not been read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


class Readable(Protocol):
    """A file that gives what is there, however much it is asked for."""

    def read(self, size: int, /) -> bytes:
        """Read so many bytes, or fewer at the end."""

    def readline(self) -> bytes:
        """Read a line with its end."""


def unpickle(file: Readable) -> Any:
    """Read one pickled value from where a file stands.

    Raises:
        ValueError: it has instructions that do more than describe data, or describe what cannot be.
        pickle.UnpicklingError: it is damaged.
    """
    try:
        return _InertUnpickler(file, encoding="utf-8").load()
    except KeyError as error:
        raise ValueError(f"instruction {error}, which no such file has") from error


def simplify(value: Any) -> Any:
    """Turn a configuration into plain values, whatever classes it was made of.

    Args:
        value: with placeholders: a namespace is its attributes, a container of omegaconf its content, a node its
            value, an enumeration its value.

    Returns:
        dict, list, numbers, text and None; what has no plain value is None.

    Raises:
        ValueError: it is deeper or larger than any configuration, or holds itself.
    """
    return _simplify(value, MAX_DEPTH, [MAX_NODES])


class _InertUnpickler(pickle._Unpickler):
    """Reads the instructions that describe data, calls nothing, imports nothing.

    Python's own loop, with the few instructions replaced that would touch classes; the fast one in C reserves memory
    for whatever index a file asks for.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: run for code, run in pickle._Unpickler.dispatch.items() if code in _OPCODES
    }

    def find_class(self, module: str, name: str) -> Global:
        """Give the name."""
        return Global(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        """Give the place of a run of numbers."""
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, Global) or kind.module != "torch" or kind.name not in DTYPES or any(view):
            raise ValueError(f"numbers of the kind {kind}")
        if type(key) is not str or type(count) is not int:
            raise ValueError("a storage without a key and a length")
        return Storage(DTYPES[kind.name], key, count)

    def _pop_values(self) -> list[Any]:
        values: list[Any] = self.pop_mark()  # type: ignore[attr-defined]
        return values

    def _load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_make(function, args))

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Placeholder):
            target.state = state
        elif not isinstance(target, dict):
            raise ValueError(f"a state for {type(target).__name__}")

    def _load_setitems(self) -> None:
        values = self._pop_values()
        _get_items(self.stack[-1]).update(zip(values[::2], values[1::2], strict=True))

    def _load_setitem(self) -> None:
        value, name = self.stack.pop(), self.stack.pop()
        _get_items(self.stack[-1])[name] = value

    def _load_appends(self) -> None:
        values = self._pop_values()
        _get_elements(self.stack[-1]).extend(values)

    def _load_append(self) -> None:
        value = self.stack.pop()
        _get_elements(self.stack[-1]).append(value)

    def _load_additems(self) -> None:
        values, target = self._pop_values(), self.stack[-1]
        if type(target) is not set:
            raise ValueError(f"elements for {type(target).__name__}")
        target.update(values)

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _load_reduce
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.SETITEMS[0]], dispatch[pickle.SETITEM[0]] = _load_setitems, _load_setitem
    dispatch[pickle.APPENDS[0]], dispatch[pickle.APPEND[0]] = _load_appends, _load_append
    dispatch[pickle.ADDITEMS[0]] = _load_additems


def _make(function: Any, args: Any) -> Any:
    """Make what an object's description stands for, by exact names."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise ValueError("something is called that is no name")
    maker = _MAKERS.get((function.module, function.name))
    return maker(*args) if maker else Placeholder(function, args)


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(number) is int for number in numbers):
        raise ValueError("a tensor without storage, shape and strides")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _make_parameter(data: Any, *_: Any) -> Any:
    return data


def _make_mapping(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return {name: value for name, value in pairs}


def _make_plain(of: Any, *_: Any) -> Placeholder:
    if not isinstance(of, Global):
        raise ValueError("an object without a class")
    return Placeholder(of)


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    ("torch._utils", "_rebuild_tensor"): _make_tensor,
    ("torch._utils", "_rebuild_parameter"): _make_parameter,
    ("collections", "OrderedDict"): _make_mapping,
    ("copyreg", "_reconstructor"): _make_plain,
    ("copy_reg", "_reconstructor"): _make_plain,
}


def _get_items(target: Any) -> dict[Any, Any]:
    items = target.items if isinstance(target, Placeholder) else target
    if type(items) is not dict:
        raise ValueError(f"items for {type(target).__name__}")
    return items


def _get_elements(target: Any) -> list[Any]:
    elements = target.elements if isinstance(target, Placeholder) else target
    if type(elements) is not list:
        raise ValueError(f"elements for {type(target).__name__}")
    return elements


def _simplify(value: Any, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if depth < 0 or budget[0] < 0:
        raise ValueError("a configuration deeper or larger than any that is known")
    if isinstance(value, Placeholder):
        return _simplify(_unwrap(value), depth - 1, budget)
    if isinstance(value, dict):
        return {name: _simplify(part, depth - 1, budget) for name, part in value.items() if isinstance(name, str)}
    if isinstance(value, (list, tuple)):
        return [_simplify(part, depth - 1, budget) for part in value]
    return value if isinstance(value, (str, int, float)) else None


def _unwrap(value: Placeholder) -> Any:
    """Give what an object of a configuration stands for; one that holds itself is stopped by the budget."""
    state = value.state
    if isinstance(state, dict):
        return state["_content"] if "_content" in state else state.get("_val", state)
    if value.items or value.elements:
        return value.items or value.elements
    return value.args[0] if len(value.args) == 1 else None
