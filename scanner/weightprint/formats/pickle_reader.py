"""The pickles of PyTorch files, read without unpickling: nothing is imported, nothing is called.

``pickletools.genops`` takes the stream apart; a small stack machine puts together the few kinds of value that a
state dict needs. The globals that ``torch.load(weights_only=True)`` admits stand in a table, each with an inert
stand-in; any other global is refused by name. Size, keys and opcodes are bounded, so that a stream can cost no more
than reading it. What is given up: objects of other classes, which weights_only refuses too.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightprint.errors import CheckpointError
from weightprint.formats.opened import OpenedFile

MAX_PICKLE = 64 * 2**20
FIRST_WINDOW = 2**20

STORAGE_DTYPES: dict[str, str] = {
    "FloatStorage": "f32",
    "HalfStorage": "f16",
    "BFloat16Storage": "bf16",
    "DoubleStorage": "f64",
    "CharStorage": "i8",
    "ByteStorage": "u8",
    "ShortStorage": "i16",
    "IntStorage": "i32",
    "LongStorage": "i64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "c64",
    "ComplexDoubleStorage": "c128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "UntypedStorage": "bytes",
}

TORCH_DTYPES: dict[str, str] = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float64": "f64",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "float8_e4m3fnuz": "f8_e4m3fnuz",
    "float8_e5m2fnuz": "f8_e5m2fnuz",
    "int8": "i8",
    "uint8": "u8",
    "int16": "i16",
    "uint16": "u16",
    "int32": "i32",
    "uint32": "u32",
    "int64": "i64",
    "uint64": "u64",
    "bool": "bool",
    "complex64": "c64",
    "complex128": "c128",
}

SIZES: dict[str, int] = {
    **{"f32": 4, "f16": 2, "bf16": 2, "f64": 8, "f8_e4m3": 1, "f8_e5m2": 1, "f8_e4m3fnuz": 1, "f8_e5m2fnuz": 1},
    **{"i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "bool": 1, "c64": 8, "c128": 16},
    **{"qint8": 1, "quint8": 1, "qint32": 4, "bytes": 1},
}
"""Bytes per element of every dtype that a PyTorch storage can have."""


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle refers to: its key in the file, dtype and number of elements. ``view_offset`` is where,
    in elements, a view of the older format starts inside it."""

    key: str
    dtype: str
    numel: int
    view_offset: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor as the pickle describes it: a view of a storage, offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """The inert stand-in of an admitted global: what calling it gives, and the dtype it names if it names one."""

    name: str
    build: Callable[..., Any]
    dtype: str | None = None


class _Inert:
    """The value of something that weights do not need."""


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    return _tensor(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    return _tensor(storage, dtype.dtype, offset, shape, stride)


def _tensor(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    if not isinstance(storage, Storage) or dtype not in SIZES:
        raise ValueError("a tensor without a storage")
    if len(shape) != len(stride) or len(shape) > 64:
        raise ValueError("a tensor whose shape and stride do not fit together")
    for number in (offset, *shape, *stride):
        if type(number) is not int or not 0 <= number < 2**63:
            raise ValueError(f"a tensor with {number!r} for a size")
    return Tensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _from_type(build: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(build, _Global):
        raise ValueError("a tensor built by something else than a global")
    return build.build(*arguments)


def _inert(*_: Any) -> _Inert:
    return _Inert()


ADMITTED: dict[str, _Global] = {
    entry.name: entry
    for entry in (
        _Global("collections OrderedDict", lambda *_: {}),
        _Global("collections Counter", _inert),
        _Global("collections defaultdict", lambda *_: {}),
        _Global("builtins set", _inert),
        _Global("__builtin__ set", _inert),
        _Global("builtins bytearray", _inert),
        _Global("_codecs encode", lambda text, *_: str(text).encode("latin-1")),
        _Global("torch Size", lambda sizes=(): tuple(sizes)),
        _Global("torch device", _inert),
        _Global("torch Tensor", _inert),
        _Global("torch._utils _rebuild_tensor", _tensor_v2),
        _Global("torch._utils _rebuild_tensor_v2", _tensor_v2),
        _Global("torch._utils _rebuild_tensor_v3", _tensor_v3),
        _Global("torch._utils _rebuild_parameter", lambda data, *_: data),
        _Global("torch._utils _rebuild_parameter_with_state", lambda data, *_: data),
        _Global("torch._tensor _rebuild_from_type_v2", _from_type),
        _Global("torch._tensor _rebuild_from_type", _from_type),
        _Global("torch.nn.parameter Parameter", lambda data=None, *_: data),
        _Global("torch.storage UntypedStorage", _inert, "bytes"),
        *(_Global(f"torch {name}", _inert, dtype) for name, dtype in STORAGE_DTYPES.items()),
        *(_Global(f"torch.cuda {name}", _inert, dtype) for name, dtype in STORAGE_DTYPES.items()),
        *(_Global(f"torch {name}", _inert, dtype) for name, dtype in TORCH_DTYPES.items()),
    )
}


def read_pickle(file: OpenedFile, offset: int, limit: int | None = None) -> tuple[Any, int]:
    """The value of the pickle at ``offset`` and the offset after it; raises CheckpointError.

    ``limit`` is how many bytes belong to it at most, where the container says so.
    """
    available = min(file.size - offset, MAX_PICKLE if limit is None else limit)
    if available > MAX_PICKLE:
        message = f"holds a pickle of {available} bytes, larger than the limit of {MAX_PICKLE}"
        raise CheckpointError("E_PICKLE_INVALID", message, path=file.path)
    window = min(available, FIRST_WINDOW)
    while True:
        # Most pickles are small: the window grows only if the stream does not end inside it.
        try:
            value, length = _interpret(file.read(offset, window))
            return value, offset + length
        except CheckpointError as error:
            raise CheckpointError(error.code, error.message, path=file.path) from None
        except (Exception, RecursionError) as error:  # noqa: BLE001  a broken stream can fail in any way
            if window >= available:
                detail = " ".join(f"{type(error).__name__}: {error}".split())[:150]
                message = f"holds no readable pickle at byte {offset} ({detail}); fetch the file again"
                raise CheckpointError("E_PICKLE_INVALID", message, path=file.path) from None
            window = min(available, window * 8)


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _interpret(data: bytes) -> tuple[Any, int]:
    """Run the stack machine over one pickle; any exception but CheckpointError means a broken stream."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, position in pickletools.genops(io.BytesIO(data)):
        name = opcode.name
        if name == "STOP":
            return stack.pop(), (position or 0) + 1
        if name in _LITERALS:
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_admit(argument if name == "GLOBAL" else _stack_global(stack)))
        elif name not in ("PROTO", "FRAME"):
            _OPCODES[name](stack)
    raise ValueError("the stream does not end")


def _stack_global(stack: list[Any]) -> str:
    name, module = stack.pop(), stack.pop()
    return f"{module} {name}"


def _admit(name: str) -> _Global:
    found = ADMITTED.get(name)
    if found is None:
        dotted = " ".join(name.split())[:200].replace(" ", ".")
        message = (
            f"its pickle calls for {dotted}, which is not needed for weights and was not run; "
            "save the state dict alone, or convert it to safetensors"
        )
        raise CheckpointError("E_PICKLE_UNSAFE", message)
    return found


def _pop_mark(stack: list[Any]) -> list[Any]:
    position = len(stack) - 1
    while stack[position] is not _MARK:
        position -= 1
        if position < 0:
            raise ValueError("no mark on the stack")
    values = stack[position + 1 :]
    del stack[position:]
    return values


def _set_items(target: Any, flat: list[Any]) -> None:
    if isinstance(target, _Inert):
        return
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        # Nested tuples can make a single hash take forever; no state dict has such keys.
        if not isinstance(key, str | int | float | bytes | None):
            if not isinstance(key, tuple) or any(isinstance(part, tuple) for part in key):
                raise ValueError(f"a dictionary with a {type(key).__name__} for a key")
            continue
        target[key] = value


def _reduce(stack: list[Any]) -> None:
    arguments, function = stack.pop(), stack.pop()
    if not isinstance(function, _Global):
        raise ValueError("a call of something that is no global")
    stack.append(function.build(*arguments))


def _build(stack: list[Any]) -> None:
    stack.pop()  # attributes of a dictionary or a parameter: _metadata and the like


def _persistent(stack: list[Any]) -> None:
    kind, storage, key, _location, numel, *view = stack.pop()
    if kind != "storage" or not isinstance(storage, _Global) or storage.dtype not in SIZES:
        raise ValueError("a persistent identity that is no storage")
    if type(numel) is not int or not 0 <= numel < 2**63:
        raise ValueError(f"a storage of {numel!r} elements")
    view_offset = 0
    if view and view[0] is not None:
        _, view_offset, _ = view[0]
        if type(view_offset) is not int or view_offset < 0:
            raise ValueError("a storage view at no offset")
    stack.append(Storage(str(key), storage.dtype, numel, view_offset))


def _tuple_of(count: int) -> Callable[[list[Any]], None]:
    def build(stack: list[Any]) -> None:
        values = tuple(stack[-count:])
        if len(values) != count:
            raise ValueError("too few values for a tuple")
        del stack[-count:]
        stack.append(values)

    return build


def _append(stack: list[Any]) -> None:
    value = stack.pop()
    stack[-1].append(value)


def _appends(stack: list[Any]) -> None:
    values = _pop_mark(stack)
    stack[-1].extend(values)


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack[-1], [key, value])


def _set_marked_items(stack: list[Any]) -> None:
    flat = _pop_mark(stack)
    _set_items(stack[-1], flat)


def _dictionary(stack: list[Any]) -> None:
    target: dict[Any, Any] = {}
    _set_items(target, _pop_mark(stack))
    stack.append(target)


_OPCODES: dict[str, Callable[[list[Any]], Any]] = {
    "MARK": lambda stack: stack.append(_MARK),
    "POP": lambda stack: stack.pop(),
    "POP_MARK": _pop_mark,
    "DUP": lambda stack: stack.append(stack[-1]),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_SET": lambda stack: stack.append(_Inert()),
    "ADDITEMS": _pop_mark,
    "LIST": lambda stack: stack.append(_pop_mark(stack)),
    "TUPLE": lambda stack: stack.append(tuple(_pop_mark(stack))),
    **{name: _tuple_of(count) for name, count in _TUPLES.items()},
    "DICT": _dictionary,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_marked_items,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
