"""What a pickle would do, read from its instructions without carrying out one of them.

A pickle is a program for a small stack machine. Here the machine runs on names alone: a call becomes a note of who
would be called with what, so nothing is imported and nothing is built.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from math import prod
from typing import Any, Final

_MOST_INSTRUCTIONS: Final = 1_000_000
_MARK: Final = object()
_OTHER: Final = object()

_TENSOR_MAKERS: Final = frozenset({"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"})
_WRAPPERS: Final = frozenset({"torch._utils._rebuild_parameter"})
_MAPPINGS: Final = frozenset({"collections.OrderedDict"})
_STORAGES: Final = {
    "torch.BFloat16Storage": "bfloat16",
    "torch.BoolStorage": "bool",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ComplexFloatStorage": "complex64",
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.ShortStorage": "int16",
    "torch.storage.UntypedStorage": "unknown",  # the tensor's own type follows later
}
_ELEMENT_BYTES: Final = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
}
_DTYPES: Final = frozenset(f"torch.{name}" for name in _ELEMENT_BYTES)

# All that a mapping of names to tensors needs; torch itself allows more.
PLAIN_GLOBALS: Final = _TENSOR_MAKERS | _WRAPPERS | _MAPPINGS | _STORAGES.keys() | _DTYPES

_NUMBERS: Final = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_BYTES: Final = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_TEXTS: Final = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_PUSHED_AS_READ: Final = frozenset(_NUMBERS | _BYTES | _TEXTS)
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED: Final = frozenset({"PROTO", "FRAME", "STOP", "READONLY_BUFFER"})
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleRefusedError(Exception):
    """Why a pickle is not described, worded as the rest of a sentence that begins with the file's name."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor that a pickle would build: the name it would have and what it would be."""

    name: str
    dtype: str  # as torch calls it; "unknown" where the pickle does not say
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements, if each had one of its own; at least one byte an element where the type is unknown."""
        return prod(self.shape) * _ELEMENT_BYTES.get(self.dtype, 1)


@dataclass(frozen=True, slots=True)
class PickleDescription:
    """What a pickle would import and build; ``tensors`` are those directly in its outermost mapping."""

    globals: tuple[str, ...]  # sorted
    tensors: tuple[PickledTensor, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Call:
    function: Any
    arguments: Any


@dataclass(frozen=True, slots=True)
class _Storage:
    key: Any


def describe_instructions(raw: bytes) -> PickleDescription:
    r"""List what the pickle `raw` would import and which tensors it would build.

    Raises
    ------
    PickleRefusedError
        not a pickle, or one of more than a million instructions.

    Examples
    --------
    >>> import pickle
    >>> describe_instructions(pickle.dumps(print)).globals
    ('builtins.print',)
    """
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(raw)):
            if count > _MOST_INSTRUCTIONS:
                raise PickleRefusedError(f"has a pickle of more than {_MOST_INSTRUCTIONS} instructions")
            machine.step(instruction.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        raise PickleRefusedError("holds a damaged pickle: its instructions make no sense") from None
    return PickleDescription(tuple(sorted(machine.globals)), tuple(machine.tensors()))


class _Machine:
    """The stack, the memo, and the names met so far."""

    def __init__(self) -> None:
        self.globals: set[str] = set()
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def tensors(self) -> list[PickledTensor]:
        """Tensors of the mapping that was built last."""
        top = self._stack[-1] if self._stack else None
        found = [] if not isinstance(top, dict) else [_tensor(name, value) for name, value in top.items()]
        return [tensor for tensor in found if tensor is not None]

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self._stack
        if name in _PUSHED_AS_READ:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple(self._pop() for _ in range(_TUPLES[name]))[::-1])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("POP", "BUILD"):
            self._pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in _IGNORED and not self._remember(name, argument) and not self._collect(name):
            self._call(name, argument)

    def _remember(self, name: str, argument: Any) -> bool:
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        else:
            return False
        return True

    def _collect(self, name: str) -> bool:
        stack = self._stack
        if name == "EMPTY_DICT":
            stack.append({})
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("LIST", "FROZENSET"):
            stack.append(self._pop_to_mark())
        elif name == "DICT":
            stack.append({})
            self._set_items(self._pop_to_mark(below=1))
        elif name == "SETITEMS":
            self._set_items(self._pop_to_mark())
        elif name == "SETITEM":
            value, key = self._pop(), self._pop()
            self._set_items([key, value])
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            # What a list holds is of no interest, only that a call inside it was seen.
            self._pop() if name == "APPEND" else self._pop_to_mark()
        else:
            return False
        return True

    def _call(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "GLOBAL":
            stack.append(self._global(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            stack.append(self._global(str(module), str(attribute)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self._pop(), self._pop()
            stack.append(_result(function, arguments))
        elif name == "NEWOBJ_EX":
            _, arguments, function = self._pop(), self._pop(), self._pop()
            stack.append(_result(function, arguments))
        elif name == "INST":
            self._pop_to_mark()
            stack.append(_Call(self._global(*str(argument).split(" ", 1)), ()))
        elif name == "OBJ":
            function, *arguments = self._pop_to_mark()
            stack.append(_Call(function, tuple(arguments)))
        elif name == "BINPERSID":
            stack.append(_Storage(self._pop()))
        elif name == "PERSID":
            stack.append(_Storage(argument))
        elif name in ("EXT1", "EXT2", "EXT4"):
            stack.append(self._global("copyreg", f"extension {argument}"))
        else:
            stack.append(_OTHER)

    def _global(self, module: str, attribute: str) -> _Global:
        name = f"{module}.{attribute}"
        self.globals.add(name)
        return _Global(name)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError
        return value

    def _pop_to_mark(self, *, below: int = 0) -> list[Any]:
        """Take everything above the last mark, which goes too; `below` entries on top of it stay."""
        stack = self._stack
        kept = [stack.pop() for _ in range(below)]
        taken = []
        while (value := stack.pop()) is not _MARK:
            taken.append(value)
        stack.extend(reversed(kept))
        return taken[::-1]

    def _set_items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(
                {key: value for key, value in zip(flat[::2], flat[1::2], strict=True) if isinstance(key, str)}
            )


def _result(function: Any, arguments: Any) -> Any:
    if isinstance(function, _Global) and function.name in _MAPPINGS:
        return {}
    return _Call(function, arguments)


def _tensor(name: str, value: Any) -> PickledTensor | None:
    """The tensor that a noted call would build; None when it is another call."""
    if (
        not isinstance(value, _Call)
        or not isinstance(value.function, _Global)
        or not isinstance(value.arguments, tuple)
    ):
        return None
    if value.function.name in _WRAPPERS and value.arguments:
        return _tensor(name, value.arguments[0])
    if value.function.name not in _TENSOR_MAKERS or len(value.arguments) < 3:
        return None
    storage, _, shape = value.arguments[:3]
    is_whole = isinstance(storage, _Storage) and isinstance(storage.key, tuple) and len(storage.key) > 1
    if not is_whole or not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        return None
    # _rebuild_tensor_v3 gives the type itself, as its seventh argument; otherwise the storage's type is the tensor's.
    kinds = [value.arguments[6] if len(value.arguments) > 6 else None, storage.key[1]]
    names = [kind.name for kind in kinds if isinstance(kind, _Global)]
    dtype = next((_STORAGES.get(name, name.removeprefix("torch.")) for name in names), "unknown")
    return PickledTensor(name, dtype, shape)
