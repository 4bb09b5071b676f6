"""A pickle looked at without running it: every class is a name, every object what it would be built from.

fairseq's files hold objects of argparse, omegaconf and fairseq itself, which torch's restricted unpickler refuses.
Here nothing is imported and nothing is called: a class becomes a `Global`, an object a `Placeholder` that keeps what
the file gave it, a tensor a `StoredTensor` that says where its numbers lie. The instructions come one by one from
`pickletools`, which only takes them apart.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, Protocol, cast

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

MAX_DIMENSIONS, MAX_INDEX = 16, 2**62
"""Most dimensions of a tensor, and the largest offset, length or stride."""

MAX_STEPS = 500_000
"""Most instructions of a description: one byte may make a set of 216. 2 billion parameters with their optimizer take a
fifth."""


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
        ValueError: it is damaged, has instructions that do more than describe data, or describes what cannot be.
    """
    machine = _Machine()
    # genops reads and reads lines, and asks for nothing else of a file.
    for opcode, argument, _ in islice(pickletools.genops(cast(IO[bytes], file)), MAX_STEPS):
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise ValueError(f"it has no end within {MAX_STEPS} instructions")


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


class _Machine:
    """The stack on which instructions put values together; those that build or call leave a description instead."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self._stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _IGNORED:
            raise ValueError(f"instruction {name}, which no such file has")

    def pop(self) -> Any:
        """Take the value on top; never one below the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("its stack is empty")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self.pop()
        self._stack.append(value)
        return value

    def _pop_marked(self) -> list[Any]:
        if not self._marks:
            raise ValueError("it lacks a mark")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _drop(self, _: Any) -> None:
        self.pop()

    def _drop_marked(self, _: Any) -> None:
        self._pop_marked()

    def _remember(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"it recalls value {index}, which it never kept")
        self._stack.append(self._memo[index])

    def _name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Global(module, name))

    def _name_from_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if type(module) is not str or type(name) is not str:
            raise ValueError("a class without a name")
        self._stack.append(Global(module, name))

    def _describe_storage(self, _: Any) -> None:
        self._stack.append(_make_storage(self.pop()))

    def _describe_object(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        self._stack.append(_make(function, args))

    def _set_state(self, _: Any) -> None:
        state, target = self.pop(), self._top()
        if isinstance(target, Placeholder):
            target.state = state
        elif not isinstance(target, dict):
            raise ValueError(f"a state for {type(target).__name__}")

    def _add_item(self, _: Any) -> None:
        value, name = self.pop(), self.pop()
        _set_items(self._top(), [name, value])

    def _add_items(self, _: Any) -> None:
        values = self._pop_marked()
        _set_items(self._top(), values)

    def _append(self, _: Any) -> None:
        value = self.pop()
        _get_elements(self._top()).append(value)

    def _append_all(self, _: Any) -> None:
        values = self._pop_marked()
        _get_elements(self._top()).extend(values)

    def _make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_marked()))

    def _make_list(self, _: Any) -> None:
        self._stack.append(self._pop_marked())

    def _make_dict(self, _: Any) -> None:
        values = self._pop_marked()
        self._stack.append({})
        _set_items(self._top(), values)

    def _make_frozen_set(self, _: Any) -> None:
        self._stack.append(frozenset(_check_key(value) for value in self._pop_marked()))

    def _add_elements(self, _: Any) -> None:
        values, target = self._pop_marked(), self._top()
        if type(target) is not set:
            raise ValueError(f"elements for {type(target).__name__}")
        target.update(_check_key(value) for value in values)


_VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
))  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset(("PROTO", "FRAME"))
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._drop_marked,
    "PUT": _Machine._remember,
    "BINPUT": _Machine._remember,
    "LONG_BINPUT": _Machine._remember,
    "MEMOIZE": _Machine._remember,
    "GET": _Machine._recall,
    "BINGET": _Machine._recall,
    "LONG_BINGET": _Machine._recall,
    "GLOBAL": _Machine._name,
    "STACK_GLOBAL": _Machine._name_from_stack,
    "BINPERSID": _Machine._describe_storage,
    "REDUCE": _Machine._describe_object,
    "NEWOBJ": _Machine._describe_object,
    "BUILD": _Machine._set_state,
    "SETITEM": _Machine._add_item,
    "SETITEMS": _Machine._add_items,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._append_all,
    "TUPLE": _Machine._make_tuple,
    "LIST": _Machine._make_list,
    "DICT": _Machine._make_dict,
    "FROZENSET": _Machine._make_frozen_set,
    "ADDITEMS": _Machine._add_elements,
}


def _check_key(value: Any) -> Any:
    """Let through what may be a key: a hash of nested tuples takes time and depth without limit."""
    if value is not None and type(value) not in (str, int, float, bool, bytes, Global):
        raise ValueError(f"{type(value).__name__} as a key")
    return value


def _set_items(target: Any, values: list[Any]) -> None:
    items = target.items if isinstance(target, Placeholder) else target
    if type(items) is not dict:
        raise ValueError(f"items for {type(target).__name__}")
    items.update(zip(map(_check_key, values[::2]), values[1::2], strict=True))


def _make_storage(description: Any) -> Storage:
    """Describe a run of numbers from torch's ("storage", class, key, device, count)."""
    _, kind, key, _, count, *view = description
    if not isinstance(kind, Global) or kind.module != "torch" or kind.name not in DTYPES or any(view):
        raise ValueError("numbers of a kind that no checkpoint has")
    if type(key) is not str or type(count) is not int:
        raise ValueError("a storage without a key and a length")
    return Storage(DTYPES[kind.name], key, count)


def _make(function: Any, args: Any) -> Any:
    """Make what an object's description stands for, by exact names."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise ValueError("something is called that is no name")
    maker = _MAKERS.get((function.module, function.name))
    return maker(*args) if maker else Placeholder(function, args)


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without storage, shape and strides")
    numbers = (offset, *shape, *strides)
    if len(shape) > MAX_DIMENSIONS or not all(type(number) is int and abs(number) < MAX_INDEX for number in numbers):
        raise ValueError("a tensor of a shape that cannot be")
    return StoredTensor(storage, offset, shape, strides)


def _make_parameter(data: Any, *_: Any) -> Any:
    return data


def _make_mapping(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return {_check_key(name): value for name, value in pairs}


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
