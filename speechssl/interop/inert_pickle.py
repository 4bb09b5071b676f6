"""A pickle looked at without running it: every class is a name, every object what it would be built from.

fairseq's files hold objects of argparse, omegaconf and fairseq itself. torch's `weights_only` would need a class to
stand in for each of them, would build and call these, and bounds neither memory nor depth. Here nothing is imported and
nothing is called: a class becomes a `Global`, an object a `Placeholder` that keeps what the file gave it, a tensor a
`StoredTensor` that says where its numbers lie. The instructions come one by one from `pickletools`, which only takes
them apart.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

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


def unpickle(file: Any) -> Any:
    """Read one pickled value from where a file stands.

    Args:
        file: has `read` and `readline`, which give what is there, however much they are asked for.

    Raises:
        ValueError: it is damaged, has instructions that do more than describe data, or describes what cannot be.
    """
    machine = _Machine()
    for opcode, argument, _ in islice(pickletools.genops(file), MAX_STEPS):
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
        if name in _IGNORED or self._change(name, argument):
            return
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _FRESH:
            self._stack.append(_FRESH[name]())
        else:
            self._stack.append(self._make(name, argument))

    def pop(self) -> Any:
        """Take the value on top; never one below the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("its stack is empty")
        return self._stack.pop()

    def _pop_marked(self) -> list[Any]:
        if not self._marks:
            raise ValueError("it lacks a mark")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _make(self, name: str, argument: Any) -> Any:
        """Make the value that an instruction puts on the stack."""
        match name:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(reversed([self.pop() for _ in range(int(name[-1]))]))
            case "TUPLE":
                return tuple(self._pop_marked())
            case "LIST":
                return self._pop_marked()
            case "DICT":
                return _pair(self._pop_marked())
            case "FROZENSET":
                return frozenset(map(_check_key, self._pop_marked()))
            case "GET" | "BINGET" | "LONG_BINGET":
                return self._recall(argument)
            case "GLOBAL":
                return Global(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                of, module = self.pop(), self.pop()
                return _name(module, of)
            case "BINPERSID":
                return _make_storage(self.pop())
            case "REDUCE" | "NEWOBJ":
                args, function = self.pop(), self.pop()
                return _describe(function, args)
        raise ValueError(f"instruction {name}, which no such file has")

    def _change(self, name: str, argument: Any) -> bool:
        """Follow an instruction that changes what is there; False for one that makes a value."""
        match name:
            case "MARK":
                self._marks.append(len(self._stack))
            case "POP":
                self.pop()
            case "POP_MARK":
                self._pop_marked()
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = self._top()
            case "BUILD":
                state = self.pop()
                _set_state(self._top(), state)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                _get_items(self._top()).update(_pair([key, value]))
            case "SETITEMS":
                values = self._pop_marked()
                _get_items(self._top()).update(_pair(values))
            case "APPEND":
                value = self.pop()
                _get_elements(self._top()).append(value)
            case "APPENDS":
                values = self._pop_marked()
                _get_elements(self._top()).extend(values)
            case "ADDITEMS":
                values, target = self._pop_marked(), self._top()
                if type(target) is not set:
                    raise ValueError(f"elements for {type(target).__name__}")
                target.update(map(_check_key, values))
            case _:
                return False
        return True

    def _recall(self, index: int) -> Any:
        if index not in self._memo:
            raise ValueError(f"it recalls value {index}, which it never kept")
        return self._memo[index]

    def _top(self) -> Any:
        value = self.pop()
        self._stack.append(value)
        return value


_VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
))  # fmt: skip
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_IGNORED = frozenset(("PROTO", "FRAME"))


def _check_key(value: Any) -> Any:
    """Let through what may be a key: a hash of nested tuples takes time and depth without limit."""
    if value is not None and type(value) not in (str, int, float, bool, bytes, Global):
        raise ValueError(f"{type(value).__name__} as a key")
    return value


def _name(module: Any, name: Any) -> Global:
    if type(module) is not str or type(name) is not str:
        raise ValueError("a class without a name")
    return Global(module, name)


def _pair(values: list[Any]) -> dict[Any, Any]:
    """Make a mapping of keys and values that come in turn."""
    return dict(zip(map(_check_key, values[::2]), values[1::2], strict=True))


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


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Placeholder):
        target.state = state
    elif not isinstance(target, dict):
        raise ValueError(f"a state for {type(target).__name__}")


def _make_storage(description: Any) -> Storage:
    """Describe a run of numbers from torch's ("storage", class, key, device, count)."""
    _, kind, key, _, count, *view = description
    if not isinstance(kind, Global) or kind.module != "torch" or kind.name not in DTYPES or any(view):
        raise ValueError("numbers of a kind that no checkpoint has")
    if type(key) is not str or type(count) is not int:
        raise ValueError("a storage without a key and a length")
    return Storage(DTYPES[kind.name], key, count)


def _describe(function: Any, args: Any) -> Any:
    """Give what a call stands for, by exact names: a tensor, a mapping, else a description of an object."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise ValueError("something is called that is no name")
    match function.module, function.name:
        case "torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor":
            return _make_tensor(*args)
        case "torch._utils", "_rebuild_parameter":
            return args[0]
        case "collections", "OrderedDict":
            return {_check_key(name): value for name, value in (args[0] if args else ())}
        case "copyreg" | "copy_reg", "_reconstructor":
            if not isinstance(args[0], Global):
                raise ValueError("an object without a class")
            return Placeholder(args[0])
    return Placeholder(function, args)


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without storage, shape and strides")
    numbers = (offset, *shape, *strides)
    if len(shape) > MAX_DIMENSIONS or not all(type(number) is int and abs(number) < MAX_INDEX for number in numbers):
        raise ValueError("a tensor of a shape that cannot be")
    return StoredTensor(storage, offset, shape, strides)


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
