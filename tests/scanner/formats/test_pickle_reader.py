"""The restricted pickle reader: what weights_only admits, what it refuses, and streams made to hurt."""

import os
import pickle
import pickletools
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._weights_only_unpickler as weights_only
from header_files import write
from hypothesis import assume, given
from hypothesis import strategies as st

from weightprint.errors import CheckpointError
from weightprint.formats import pickle_reader
from weightprint.formats.opened import open_file
from weightprint.formats.pickle_reader import ADMITTED, Pickle, read_pickle


def read(path: Path, content: bytes, offset: int = 0, limit: int | None = None) -> Pickle:
    with open_file(write(path, content)) as file:
        return read_pickle(file, offset, limit)


def fault(path: Path, content: bytes) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read(path, content)
    assert caught.value.path == str(path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    return caught.value


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(), inner, max_size=5)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)


@given(values, st.integers(2, 5), st.binary(max_size=20))
def test_plain_values_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int, after: bytes
) -> None:
    # protocol 2 writes bytes as a call on text, the empty ones as one that weights_only refuses too
    assume(protocol > 2 or not _holds_bytes(value))
    content = b"front" + pickle.dumps(value, protocol=protocol)
    found = read(tmp_path_factory.mktemp("pickle") / "x", content + after, offset=5)
    assert found.end == len(content)
    assert found.value == value


def _holds_bytes(value: object) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bytes) or any(map(_holds_bytes, inner))


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = {"a": [1, 2.5, (3, None, True)], "b": "text", "c": -(2**70)}
    assert read(tmp_path / "x", pickle.dumps(value, protocol=protocol)).value == value


def test_pickle_larger_than_the_first_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "FIRST_WINDOW", 16)
    value = {str(number): number for number in range(2000)}
    content = pickle.dumps(value)
    found = read(tmp_path / "x", content + b"more")
    assert (found.value, found.end) == (value, len(content))


def test_limit_of_the_container_is_kept(tmp_path: Path) -> None:
    content = pickle.dumps([1, 2, 3])
    assert read(tmp_path / "x", content, limit=len(content)).value == [1, 2, 3]
    with pytest.raises(CheckpointError, match="E_PICKLE_INVALID"):
        read(tmp_path / "x", content, limit=len(content) - 1)


OTHER_DEVICES_AND_CLASSES = (
    "Tensor",
    "_rebuild_device_tensor_from_numpy",
    "TypedStorage",
    "per_tensor_",
    "per_channel_",
)


@pytest.mark.parametrize("name", sorted(weights_only._get_allowed_globals()))
def test_what_weights_only_admits_is_admitted(name: str) -> None:
    module, _, last = name.rpartition(".")
    if any(part in last for part in OTHER_DEVICES_AND_CLASSES) and name != "torch.Tensor":
        assert f"{module} {last}" not in ADMITTED
    else:
        assert f"{module} {last}" in ADMITTED


OWN = {
    "torch._tensor._rebuild_from_type",  # before _v2
    "torch.storage.UntypedStorage",
    "torch.UntypedStorage",
    "collections.defaultdict",  # empty and inert
    "__builtin__.set",  # as Python 2 calls it
    "__builtin__.complex",
}


def test_nothing_else_is_admitted() -> None:
    allowed = set(weights_only._get_allowed_globals()) | OWN
    extra = {name.replace(" ", ".") for name in ADMITTED} - allowed
    assert {name for name in extra if not name.startswith("torch.cuda.")} == set()


RAN: list[str] = []


def run(text: str = "") -> None:
    RAN.append(text)


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


UNSAFE: dict[str, tuple[bytes, str]] = {
    "system": (pickle.dumps(Call(os.system, "touch evil")), "posix.system"),
    "eval": (pickle.dumps(Call(eval, "1")), "builtins.eval"),
    "getattr": (pickle.dumps(Call(getattr, "a", "b")), "builtins.getattr"),
    "own function": (pickle.dumps(Call(run, "x")), "run"),
    "module": (pickle.dumps(torch.nn.Linear(1, 1)), "torch.nn.modules.linear.Linear"),
    "path": (pickle.dumps(Path("x")), "pathlib.PosixPath"),
    "load": (b"ctorch\nload\n(X\x01\x00\x00\x00atR.", "torch.load"),
    "INST": (b"(X\x02\x00\x00\x00idiposix\nsystem\n.", "INST"),
    "OBJ": (b"(cos\nsystem\nX\x02\x00\x00\x00ido.", "os.system"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "new with keywords": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "persistent text": (b"P0\n.", "PERSID"),
    "whole module": (b"\x80\x02(X\x06\x00\x00\x00moduleK\x01K\x02K\x03K\x04tQ.", "whole module"),
    "stack global": (pickle.dumps(Call(os.system, "id"), protocol=4), "posix.system"),
    "global with blanks": (b"c  os \nsystem x\n.", "os.system.x"),
}


@pytest.mark.parametrize("case", UNSAFE, ids=lambda name: name.replace(" ", "-"))
def test_anything_else_is_refused_by_name_and_not_run(tmp_path: Path, case: str) -> None:
    content, named = UNSAFE[case]
    found = fault(tmp_path / "x", content)
    assert found.code == "E_PICKLE_UNSAFE"
    assert named in found.message
    assert RAN == []


def short(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


DOUBLING = b"]" + b"".join(b"2\x86" for _ in range(60))  # (x, x) of (x, x) of ...: 2^60 when walked
STORAGE = b"(" + short("storage") + b"ctorch\nFloatStorage\n" + short("0") + short("cpu") + b"K\x04tQ"

HURTFUL: dict[str, bytes] = {
    "empty pickle": b"\x80\x02.",
    "no stop": b"\x80\x02]",
    "pop of nothing": b"0.",
    "no mark": b"t.",
    "append to nothing": b"K\x01a.",
    "append to a number": b"K\x01K\x02a.",
    "memo that is not there": b"h\x05.",
    "odd number of items": b"}(K\x01u.",
    "unknown opcode": b"\xff.",
    "string longer than the file": b"\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "bytes longer than the file": b"\x8e" + struct.pack("<Q", 2**63 + 5) + b"abc.",
    "long of 4 GB": b"\x8b" + struct.pack("<I", 2**31 - 1) + b"1.",
    "number of 10,000 digits": b"I" + b"1" * 10_000 + b"\n.",
    "call of a number": b"K\x01)R.",
    "call with a list": b"ccollections\nOrderedDict\n]R.",
    "call with text": b"ctorch\nSize\n" + short("a" * 1000) + b"R.",
    "call with 65 arguments": b"ctorch\ndevice\n(" + b"N" * 65 + b"tR.",
    "size of text": b"ctorch\nSize\n" + short("a" * 1000) + b"\x85R.",
    "calls in calls": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x000"
    + b"h\x00h\x00N" * 3000
    + b")N\x87" * 3000
    + b"R.",
    "storage of a doubled key": b"(" + short("storage") + b"ctorch\nFloatStorage\n" + DOUBLING + b"NK\x01tQ.",
    "storage of a doubled size": b"("
    + short("storage")
    + b"ctorch\nFloatStorage\n"
    + short("0")
    + b"N"
    + DOUBLING
    + b"tQ.",
    "tensor of a doubled size": b"ctorch._utils\n_rebuild_tensor\n(" + STORAGE + DOUBLING + b"K\x04\x85K\x01\x85tR.",
    "global of a doubled name": DOUBLING + short("x") + b"\x93.",
    "tensor of other arity": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "tensor of a storage class": b"ctorch._utils\n_rebuild_tensor\n(ctorch\nFloatStorage\nK\x00)(ttR.",
    "storage of no class": b"(" + short("storage") + b"K\x01" + short("0") + b"NK\x01tQ.",
    "storage of a function": b"(" + short("storage") + b"ctorch\ndevice\n" + short("0") + b"NK\x01tQ.",
    "identity that is a number": b"K\x01Q.",
}


@pytest.mark.parametrize("case", HURTFUL, ids=lambda name: name.replace(" ", "-"))
def test_broken_stream_costs_nothing(tmp_path: Path, case: str) -> None:
    started = time.process_time()
    assert fault(tmp_path / "x", HURTFUL[case]).code == "E_PICKLE_INVALID"
    assert time.process_time() - started < 2


HARMLESS: dict[str, bytes] = {
    "doubling": DOUBLING + b".",
    "doubled key": b"}" + DOUBLING + b"K\x01s.",
    "list that holds itself": b"]q\x00h\x00a.",
    "dictionary that holds itself": b"}q\x00" + short("model") + b"h\x00s.",
    "numbers with one hash": b"}(" + b"".join(
        b"\x8a\x10" + (number * (2**61 - 1)).to_bytes(16, "little") + b"N" for number in range(20_000)
    ) + b"u.",
    "one list for many dictionaries": b"](" + b"".join(short(str(n)) + b"N\x86" for n in range(3000)) + b"eq\x00"
    + b"0ccollections\nOrderedDict\nq\x01" + b"0h\x01h\x00\x85R" * 3000 + b".",
    "deep": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b")" + b"\x85" * 100_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS, ids=lambda name: name.replace(" ", "-"))
def test_odd_stream_costs_nothing(tmp_path: Path, case: str) -> None:
    started = time.process_time()
    assert read(tmp_path / "x", HARMLESS[case]).end == len(HARMLESS[case])
    assert time.process_time() - started < 5


def test_cap_on_opcodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_OPCODES", 100)
    assert read(tmp_path / "x", b"N0" * 40 + b"N.").value is None
    found = fault(tmp_path / "x", b"N0" * 60 + b"N.")
    assert found.code == "E_PICKLE_INVALID"
    assert "opcodes" in found.message


@given(st.lists(st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes]), max_size=30))
def test_any_opcodes(tmp_path_factory: pytest.TempPathFactory, opcodes: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("opcodes") / "x"
    try:
        read(path, b"".join(opcodes) + b"\x01\n\x01.")
    except CheckpointError as error:
        assert error.code in ("E_PICKLE_INVALID", "E_PICKLE_UNSAFE")
