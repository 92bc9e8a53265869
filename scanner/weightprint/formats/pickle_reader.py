"""The pickles of PyTorch files, read without unpickling: nothing is imported, nothing is called.

``pickletools.genops`` takes the stream apart; a small stack machine puts together the few kinds of value that a
state dict needs. The globals that ``torch.load(weights_only=True)`` admits stand in a table, each with an inert
stand-in; any other global is refused by name. Bytes, opcodes and the length of every call are bounded, and nothing
from the stream is printed or hashed but text, so that a stream costs no more than reading it. What is given up:
objects of other classes, which weights_only refuses too, and dictionary entries whose key is no text.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from weightprint.errors import CheckpointError
from weightprint.formats.opened import OpenedFile
from weightprint.formats.torch_names import DTYPE_SIZES, STORAGE_DTYPES, TORCH_DTYPES

MAX_PICKLE = 64 * 2**20
MAX_OPCODES = 10_000_000
MAX_ARGUMENTS = 64
MAX_DIMENSIONS = 64
FIRST_WINDOW = 2**20
LARGEST = 2**63


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle refers to: its key in the file, dtype and number of elements.

    The older format knows views of storages: of ``view_numel`` elements from element ``view_offset``.
    """

    key: str
    dtype: str
    numel: int
    view_offset: int = 0
    view_numel: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of the whole storage."""
        return self.numel * DTYPE_SIZES[self.dtype]


@dataclass(frozen=True)
class Tensor:
    """A tensor as the pickle describes it: a view of a storage, offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class OddTensor:
    """A tensor whose values are not simply the bytes of a storage; ``kind`` says what it is."""

    kind: str


@dataclass(frozen=True)
class Pickle:
    """One pickle: its value, the offset after it, and every storage that it refers to, by key."""

    value: Any
    end: int
    storages: dict[str, Storage]


@dataclass(frozen=True)
class _Global:
    """The inert stand-in of an admitted global: what calling it gives, and the dtype it names if it names one."""

    name: str
    build: Callable[..., Any]
    dtype: str | None = None


@dataclass
class _Machine:
    """Stack, memo and storages of one run."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)


class _Inert:
    """The value of something that weights do not need."""

    __slots__ = ()


_INERT = _Inert()
_MARK = object()


def read_pickle(file: OpenedFile, offset: int, limit: int | None = None) -> Pickle:
    """The pickle at ``offset``; raises CheckpointError E_PICKLE_INVALID or E_PICKLE_UNSAFE.

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
            value, length, storages = _interpret(file.read(offset, window))
            return Pickle(value, offset + length, storages)
        except CheckpointError as error:
            raise CheckpointError(error.code, error.message, path=file.path) from None
        except Exception as error:  # noqa: BLE001  a broken stream can fail in any way
            if window >= available:
                detail = " ".join(f"{type(error).__name__}: {error}".split())[:150]
                message = f"holds no readable pickle at byte {offset} ({detail}); fetch the file again"
                raise CheckpointError("E_PICKLE_INVALID", message, path=file.path) from None
            window = min(available, window * 8)


def _interpret(data: bytes) -> tuple[Any, int, dict[str, Storage]]:
    """Run the stack machine over one pickle; any exception but CheckpointError means a broken stream."""
    machine = _Machine()
    stack, memo = machine.stack, machine.memo
    for count, (opcode, argument, position) in enumerate(pickletools.genops(io.BytesIO(data))):
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in _PUTS:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name == "STOP":
            return stack.pop(), (position or 0) + 1, machine.storages
        elif name in _OPCODES:
            _OPCODES[name](machine, argument)
        else:
            message = f"its pickle uses the opcode {name}, which weights do not need; save the state dict alone"
            raise CheckpointError("E_PICKLE_UNSAFE", message)
        if count > MAX_OPCODES:
            raise CheckpointError("E_PICKLE_INVALID", f"holds a pickle of more than {MAX_OPCODES} opcodes")
    raise ValueError("the stream does not end")


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor | OddTensor:
    metadata = rest[2] if len(rest) > 2 else None
    if isinstance(metadata, dict) and any(metadata.get(bit) for bit in ("conj", "neg")):
        return OddTensor("a lazily conjugated or negated view")
    return _tensor(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    return _tensor(storage, dtype.dtype, offset, shape, stride)


def _tensor(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    if not isinstance(storage, Storage) or dtype not in DTYPE_SIZES:
        raise ValueError("a tensor without a storage")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("a tensor whose shape and stride do not fit together")
    if not all(_is_natural(number) for number in (offset, *shape, *stride)):
        raise ValueError("a tensor whose offset, shape or stride is no natural number")
    return Tensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _from_type(build: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    return _call(build, arguments)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global):
        raise ValueError("a call of something that is no global")
    if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
        raise ValueError(f"a call of {function.name} with unfit arguments")
    return function.build(*arguments)


def _inert(*_: Any) -> _Inert:
    return _INERT


def _first(data: Any = None, *_: Any) -> Any:
    return data


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, list | tuple) or len(sizes) > MAX_DIMENSIONS:
        raise ValueError("a torch.Size of something else than sizes")
    return tuple(sizes)


def _ordered(items: Any = None) -> dict[str, Any]:
    """An OrderedDict; Python 2 gave it its items as one list of pairs, which is emptied so that it pays once."""
    target: dict[str, Any] = {}
    if isinstance(items, list):
        for key, value in items:
            _set_item(target, key, value)
        items.clear()
    return target


def _odd(kind: str) -> Callable[..., OddTensor]:
    return lambda *_: OddTensor(kind)


ADMITTED: dict[str, _Global] = {
    entry.name: entry
    for entry in (
        _Global("collections OrderedDict", _ordered),
        _Global("collections Counter", _inert),
        _Global("collections defaultdict", lambda *_: {}),
        *(_Global(f"{module} {name}", _inert) for module in ("builtins", "__builtin__") for name in ("set", "complex")),
        _Global("builtins bytearray", _inert),
        _Global("_codecs encode", _inert),
        _Global("torch Size", _size),
        _Global("torch device", _inert),
        _Global("torch Tensor", _inert),
        _Global("torch.serialization _get_layout", _inert),
        _Global("torch._utils _rebuild_tensor", _tensor_v2),
        _Global("torch._utils _rebuild_tensor_v2", _tensor_v2),
        _Global("torch._utils _rebuild_tensor_v3", _tensor_v3),
        _Global("torch._utils _rebuild_parameter", _first),
        _Global("torch._utils _rebuild_parameter_with_state", _first),
        _Global("torch._utils _rebuild_qtensor", _odd("a quantised tensor")),
        _Global("torch._utils _rebuild_sparse_tensor", _odd("a sparse tensor")),
        _Global("torch._utils _rebuild_nested_tensor", _odd("a nested tensor")),
        _Global("torch._utils _rebuild_meta_tensor_no_storage", _odd("a meta tensor, which has no values")),
        _Global("torch._utils _rebuild_wrapper_subclass", _odd("a wrapped tensor")),
        _Global("torch._utils _rebuild_device_tensor_from_cpu_tensor", _first),
        _Global("torch._tensor _rebuild_from_type_v2", _from_type),
        _Global("torch._tensor _rebuild_from_type", _from_type),
        _Global("torch.nn.parameter Parameter", _first),
        *(_Global(f"torch{place} UntypedStorage", _inert, "bytes") for place in ("", ".storage")),
        *(
            _Global(f"torch{place} {name}", _inert, dtype)
            for place in ("", ".cuda")
            for name, dtype in STORAGE_DTYPES.items()
        ),
        *(_Global(f"torch {name}", _inert, dtype) for name, dtype in TORCH_DTYPES.items()),
    )
}
"""``module name`` -> stand-in; what weights_only admits, less what only other devices and tensor classes need."""


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


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


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_admit(argument))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError("a global whose name is no text")
    machine.stack.append(_admit(f"{module} {name}"))


def _pop_mark(machine: _Machine) -> list[Any]:
    stack = machine.stack
    position = len(stack) - 1
    while position >= 0 and stack[position] is not _MARK:
        position -= 1
    if position < 0:
        raise ValueError("no mark on the stack")
    values = stack[position + 1 :]
    del stack[position:]
    return values


def _set_item(target: Any, key: Any, value: Any) -> None:
    """Entries that are not named by text hold no weights, and hashing what a stream makes up may take forever."""
    if type(key) is str and type(target) is dict:
        target[key] = value


def _set_items(target: Any, flat: list[Any]) -> None:
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        _set_item(target, key, value)


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(_call(function, arguments))


def _persistent(machine: _Machine, _: Any) -> None:
    identity = machine.stack.pop()
    if type(identity) is not tuple or not 5 <= len(identity) <= 6:
        raise ValueError("a persistent identity that is no storage")
    kind, storage_type, key, _location, numel, *view = identity
    if type(kind) is not str or kind != "storage":
        message = "its pickle holds a whole module; save the state dict alone, or convert it to safetensors"
        raise CheckpointError("E_PICKLE_UNSAFE", message)
    dtype = storage_type.dtype if isinstance(storage_type, _Global) else None
    if type(key) is not str or dtype is None or not _is_natural(numel):
        raise ValueError("a persistent identity that is no storage")
    storage = Storage(key, dtype, numel)
    known = machine.storages.setdefault(key, storage)
    if known.nbytes != storage.nbytes:
        raise ValueError("a storage of two sizes")
    if view and view[0] is not None:
        if type(view[0]) is not tuple or len(view[0]) != 3:
            raise ValueError("a storage view that is no place in a storage")
        _, view_offset, view_numel = view[0]
        if not _is_natural(view_offset) or not _is_natural(view_numel):
            raise ValueError("a storage view whose offset or size is no natural number")
        storage = Storage(key, dtype, numel, view_offset, view_numel)
    machine.stack.append(storage)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def build(machine: _Machine, _: Any) -> None:
        values = tuple(machine.stack[-count:])
        if len(values) != count:
            raise ValueError("too few values for a tuple")
        del machine.stack[-count:]
        machine.stack.append(values)

    return build


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.stack[-1].append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = _pop_mark(machine)
    machine.stack[-1].extend(values)


def _set_one(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_item(machine.stack[-1], key, value)


def _set_marked(machine: _Machine, _: Any) -> None:
    flat = _pop_mark(machine)
    _set_items(machine.stack[-1], flat)


def _dictionary(machine: _Machine, _: Any) -> None:
    target: dict[str, Any] = {}
    _set_items(target, _pop_mark(machine))
    machine.stack.append(target)


def _push(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


_OPCODES: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "MARK": _push(lambda: _MARK),
    "EMPTY_LIST": _push(list),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_DICT": _push(dict),
    "EMPTY_SET": _push(_inert),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: _pop_mark(machine),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "ADDITEMS": lambda machine, _: _pop_mark(machine),
    "LIST": lambda machine, _: machine.stack.append(_pop_mark(machine)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(_pop_mark(machine))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "DICT": _dictionary,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_one,
    "SETITEMS": _set_marked,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": lambda machine, _: machine.stack.pop(),  # attributes of a dictionary or a parameter: _metadata and such
    "BINPERSID": _persistent,
}
"""What each opcode does to the machine; any other opcode is refused."""
