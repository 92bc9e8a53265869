"""The older PyTorch stream: torch.save as the writer, hand-made streams as PyTorch 0.x and liars wrote them."""

import io
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from header_files import assert_bytes_are, fault_of, headers_of, write

from weightprint.formats.torch_stream import MAGIC, PROTOCOL


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


class Persistent:
    """Stands for a storage: pickled as the persistent identity that it holds."""

    def __init__(self, *identity: object) -> None:
        self.identity = identity


class Rebuilt:
    """Stands for a tensor: pickled as a call of torch's rebuilding function."""

    def __init__(self, *arguments: object, function: Any = torch._utils._rebuild_tensor_v2) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


def stream(
    value: object, keys: object, storages: Sequence[tuple[int, bytes]], system: object = None, version: int = PROTOCOL
) -> bytes:
    """An old stream written by hand."""
    out = io.BytesIO()
    for first in (MAGIC, version, {"little_endian": True} if system is None else system):
        pickle.dump(first, out, protocol=2)
    pickler = pickle.Pickler(out, protocol=2)
    pickler.persistent_id = lambda entry: entry.identity if isinstance(entry, Persistent) else None  # type: ignore
    pickler.dump(value)
    pickle.dump(keys, out, protocol=2)
    for count, content in storages:
        out.write(struct.pack("<q", count) + content)
    return out.getvalue()


def storage(key: object = "7", numel: object = 4, view: object = None) -> Persistent:
    return Persistent("storage", torch.FloatStorage, key, "cpu", numel, view)


def tensor(place: object, offset: object = 0, shape: object = (4,), stride: object = (1,)) -> Rebuilt:
    return Rebuilt(place, offset, shape, stride, False, OrderedDict())


DATA = torch.tensor([1.0, -2.0, 3.0, 4.5])
BYTES = DATA.numpy().tobytes()


def test_what_torch_saves(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    value = {
        "a": torch.randn(3, 5),
        "tied": base,
        "base": base,
        "rows": base[1:3],
        "t": base.t(),
        "half": torch.randn(5).half(),
        "none": torch.zeros(0, 3),
        "long": torch.arange(4),
        "last": torch.nn.Parameter(torch.randn(2)),
    }
    headers = headers_of(write(tmp_path / "pytorch_model.bin", saved(value)))
    assert headers.sources[0].format == "torch-stream"
    assert_bytes_are(headers, value)


def test_storages_of_values_that_are_no_weights_are_walked_over(tmp_path: Path) -> None:
    value = {"optimizer": {"state": {0: torch.randn(9), (1, 2): torch.randn(3)}}, "model": {"w": torch.randn(5)}}
    assert_bytes_are(headers_of(write(tmp_path / "m.bin", saved(value))), value["model"])


def test_hand_made_stream(tmp_path: Path) -> None:
    content = stream({"w": tensor(storage())}, ["7"], [(4, BYTES)])
    assert_bytes_are(headers_of(write(tmp_path / "m.bin", content)), {"w": DATA})
    assert torch.equal(torch.load(tmp_path / "m.bin", weights_only=True)["w"], DATA)


def test_views_of_storages(tmp_path: Path) -> None:
    """PyTorch 0.x: a storage that is a view of another one names that one and where in it."""
    view = storage(view=("8", 1, 2))
    value = {"w": tensor(storage()), "v": tensor(view, 0, (2,)), "late": tensor(view, 1, (1,))}
    path = write(tmp_path / "m.bin", stream(value, ["7"], [(4, BYTES)]))
    assert_bytes_are(headers_of(path), {"w": DATA, "v": DATA[1:3], "late": DATA[2:3]})
    for name, loaded in torch.load(path, weights_only=True).items():
        assert torch.equal(loaded, {"w": DATA, "v": DATA[1:3], "late": DATA[2:3]}[name])


def test_view_past_its_own_storage_view(tmp_path: Path) -> None:
    value = {"w": tensor(storage()), "v": tensor(storage(view=("8", 1, 2)), 0, (3,))}
    headers = headers_of(write(tmp_path / "m.bin", stream(value, ["7"], [(4, BYTES)])))
    assert [(notice.code, notice.tensor) for notice in headers.notices] == [("E_VIEW_INVALID", "v")]


def test_rebuilding_function_of_the_first_releases(tmp_path: Path) -> None:
    value = {"w": Rebuilt(storage(), 0, (2, 2), (2, 1), function=torch._utils._rebuild_tensor)}
    content = stream(value, ["7"], [(4, BYTES)])
    assert_bytes_are(headers_of(write(tmp_path / "m.bin", content)), {"w": DATA.reshape(2, 2)})


def test_ordered_dictionary_as_python_2_pickled_it(tmp_path: Path) -> None:
    class Pairs:
        def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
            return OrderedDict, ([["w", tensor(storage())], ["n", 3]],)

    content = stream(Pairs(), ["7"], [(4, BYTES)])
    assert_bytes_are(headers_of(write(tmp_path / "m.bin", content)), {"w": DATA})


GOOD = {"w": tensor(storage())}
LIES: dict[str, tuple[bytes, str]] = {
    "ends in a storage": (stream(GOOD, ["7"], [(4, BYTES[:-1])]), "E_FILE_TRUNCATED"),
    "ends before a storage": (stream(GOOD, ["7"], []), "E_FILE_TRUNCATED"),
    "count differs": (stream(GOOD, ["7"], [(3, BYTES)]), "E_HEADER_INVALID"),
    "count negative": (stream(GOOD, ["7"], [(-4, BYTES)]), "E_HEADER_INVALID"),
    "huge storage": (stream({"w": tensor(storage(numel=2**62))}, ["7"], [(4, BYTES)]), "E_FILE_TRUNCATED"),
    "key listed twice": (stream(GOOD, ["7", "7"], [(4, BYTES)] * 2), "E_HEADER_INVALID"),
    "key of no storage": (stream(GOOD, ["9", "7"], [(4, BYTES)] * 2), "E_HEADER_INVALID"),
    "keys no list": (stream(GOOD, {"7": 1}, [(4, BYTES)]), "E_HEADER_INVALID"),
    "keys no names": (stream(GOOD, [[["7"] * 5]], [(4, BYTES)]), "E_HEADER_INVALID"),
    "other version": (stream(GOOD, ["7"], [(4, BYTES)], version=1002), "E_HEADER_INVALID"),
    "system no dictionary": (stream(GOOD, ["7"], [(4, BYTES)], system=[1]), "E_HEADER_INVALID"),
    "big-endian": (stream(GOOD, ["7"], [(4, BYTES)], system={"little_endian": False}), "E_FORMAT_REFUSED"),
    "one key of two sizes": (
        stream({"w": tensor(storage()), "v": tensor(storage(numel=5))}, ["7"], [(4, BYTES)]),
        "E_PICKLE_INVALID",
    ),
    "key no text": (stream({"w": tensor(storage(key=[7]))}, [[7]], [(4, BYTES)]), "E_PICKLE_INVALID"),
    "count no number": (stream({"w": tensor(storage(numel="4"))}, ["7"], [(4, BYTES)]), "E_PICKLE_INVALID"),
    "negative shape": (stream({"w": tensor(storage(), 0, (-4,))}, ["7"], [(4, BYTES)]), "E_PICKLE_INVALID"),
    "shape without stride": (stream({"w": tensor(storage(), 0, (2, 2))}, ["7"], [(4, BYTES)]), "E_PICKLE_INVALID"),
    "tensor without storage": (stream({"w": tensor([1, 2])}, [], []), "E_PICKLE_INVALID"),
    "magic alone": (pickle.dumps(MAGIC, protocol=2), "E_PICKLE_INVALID"),
    "plain pickle": (pickle.dumps({"w": [1.0, 2.0]}), "E_NOT_STATE_DICT"),
    "plain number": (pickle.dumps(17, protocol=2), "E_NOT_STATE_DICT"),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda name: name.replace(" ", "-"))
def test_stream_that_lies(tmp_path: Path, lie: str) -> None:
    content, code = LIES[lie]
    found, reason = fault_of(write(tmp_path / "pytorch_model.bin", content))
    assert found == code, reason
    assert len(reason) < 300


def test_storage_that_is_not_listed_costs_its_tensor(tmp_path: Path) -> None:
    value = {"w": tensor(storage()), "v": tensor(storage(key="8"))}
    headers = headers_of(write(tmp_path / "m.bin", stream(value, ["7"], [(4, BYTES)])))
    assert [(notice.code, notice.tensor) for notice in headers.notices] == [("E_HEADER_INVALID", "v")]
    assert [spec.name for spec in headers.tensors] == ["w"]


def test_truncated_anywhere(tmp_path: Path) -> None:
    content = saved({"w": torch.randn(40), "v": torch.randn(3)})
    for length in range(1, len(content), 13):
        code, _ = fault_of(write(tmp_path / "cut.bin", content[:length]))
        assert code in ("E_PICKLE_INVALID", "E_FILE_TRUNCATED")


def test_digest_covers_pickles_and_counts(tmp_path: Path) -> None:
    def digest(content: bytes) -> str:
        return headers_of(write(tmp_path / "m.bin", content)).sources[0].header_digest

    one = digest(stream(GOOD, ["7"], [(4, BYTES)]))
    assert digest(stream(GOOD, ["7"], [(4, bytes(16))])) == one  # weights are no part of the header
    assert digest(stream({"v": tensor(storage())}, ["7"], [(4, BYTES)])) != one


def test_gigabytes_of_weights_are_not_read(tmp_path: Path) -> None:
    """A stream of 6 GB whose storage is one hole, read by a process that may not have 1 GB."""
    numel = 1_500_000_000
    path = write(tmp_path / "m.bin", stream({"w": tensor(storage(numel=numel), 0, (numel,))}, ["7"], [(numel, b"")]))
    start = path.stat().st_size
    os.truncate(path, start + numel * 4)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from weightprint.formats import opened, read_file\n"
        "opened._require_present = lambda *_: None  # the hole is meant\n"
        "resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
        "with opened.open_file(Path(sys.argv[1])) as file: print(read_file(file)[1][0][0].offset)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == start
