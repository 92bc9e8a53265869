"""safetensors: golden bytes, the library as a writer, and every way a header can lie."""

import hashlib
import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from header_files import FOUR_BYTES, assert_bytes_are, fault_of, headers_of, safetensors_bytes, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from weightprint.formats import safetensors

GOLDEN = bytes.fromhex(
    "4000000000000000"  # 64 bytes of header
    "7b2262223a7b226474797065223a2242463136222c227368617065223a5b322c"
    "335d2c22646174615f6f666673657473223a5b302c31325d7d7d202020202020"  # in JSON, padded with spaces
    "000080bf803f0040404080c0"  # 0, -1, 1, 2, 3, -4 in bfloat16
)


def test_golden_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", GOLDEN)
    headers = headers_of(path)
    (spec,) = headers.tensors
    assert (spec.name, spec.shape, spec.dtype, spec.offset, spec.nbytes) == ("b", (2, 3), "bf16", 72, 12)
    assert not spec.column_major
    (source,) = headers.sources
    assert (source.name, source.size, source.format) == ("model.safetensors", 84, "safetensors")
    assert source.mtime_ns == path.stat().st_mtime_ns
    assert source.header_digest == hashlib.sha256(GOLDEN[8:72]).hexdigest()
    assert headers.notices == ()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "f32"),
        (torch.float16, "f16"),
        (torch.bfloat16, "bf16"),
        (torch.float64, "f64"),
        (torch.float8_e4m3fn, "f8_e4m3"),
        (torch.float8_e5m2, "f8_e5m2"),
        (torch.int8, "i8"),
        (torch.uint8, "u8"),
        (torch.int16, "i16"),
        (torch.int32, "i32"),
        (torch.int64, "i64"),
        (torch.bool, "bool"),
    ],
    ids=str,
)
def test_dtypes_of_the_library(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    weights = {"w": torch.arange(24).reshape(4, 6).to(dtype), "none": torch.zeros(0, 6, dtype=dtype)}
    save_file(weights, tmp_path / "model.safetensors")
    headers = headers_of(tmp_path / "model.safetensors")
    assert {spec.dtype for spec in headers.tensors} == {name}
    assert_bytes_are(headers, weights)


shapes = st.lists(st.integers(0, 4), min_size=0, max_size=4)


@given(st.dictionaries(st.text(max_size=20).filter(lambda name: name != "__metadata__"), shapes, max_size=6))
def test_any_names_and_shapes(tmp_path_factory: pytest.TempPathFactory, entries: dict[str, list[int]]) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    weights = {name: torch.randn(shape) for name, shape in entries.items()}
    save_file(weights, path, metadata={"format": "pt"})
    assert_bytes_are(headers_of(path), weights)


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**FOUR_BYTES, **changes}}


LIES: dict[str, tuple[bytes, str]] = {
    "not JSON": (safetensors_bytes(b'{"a":', b"0000"), "E_HEADER_INVALID"),
    "not UTF-8": (safetensors_bytes(b'{"\xff":1}', b"0000"), "E_HEADER_INVALID"),
    "too deep": (safetensors_bytes(b'{"a":' + b"[" * 100_000, b"0000"), "E_HEADER_INVALID"),
    "deep but closed": (safetensors_bytes(entry(shape=json.loads("[" * 900 + "]" * 900)), b"0000"), "E_HEADER_INVALID"),
    "number of 5000 digits": (safetensors_bytes(b'{"a":' + b"1" * 5000 + b"}", b"0000"), "E_HEADER_INVALID"),
    "duplicate tensor": (
        safetensors_bytes(b'{"a":%s,"a":%s}' % ((json.dumps(FOUR_BYTES).encode(),) * 2), b"0000"),
        "E_HEADER_INVALID",
    ),
    "duplicate field": (safetensors_bytes(b'{"a":{"dtype":"F32","dtype":"F32"}}', b"0000"), "E_HEADER_INVALID"),
    "name is half a surrogate pair": (safetensors_bytes({"\ud800": FOUR_BYTES}, b"0000"), "E_HEADER_INVALID"),
    "name of 5000 characters": (safetensors_bytes({"a" * 5000: FOUR_BYTES}, b"0000"), "E_HEADER_INVALID"),
    "entry no object": (safetensors_bytes({"a": [1]}, b"0000"), "E_HEADER_INVALID"),
    "no dtype": (safetensors_bytes({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"0000"), "E_HEADER_INVALID"),
    "dtype no name": (safetensors_bytes(entry(dtype=["F32"] * 1000), b"0000"), "E_HEADER_INVALID"),
    "lower-case dtype": (safetensors_bytes(entry(dtype="f32", shape=[9]), b"0000"), "E_HEADER_INVALID"),
    "negative size": (safetensors_bytes(entry(shape=[-1]), b"0000"), "E_HEADER_INVALID"),
    "true for a size": (safetensors_bytes(entry(shape=[True]), b"0000"), "E_HEADER_INVALID"),
    "fraction for a size": (safetensors_bytes(entry(shape=[1.0]), b"0000"), "E_HEADER_INVALID"),
    "65 dimensions": (safetensors_bytes(entry(shape=[1] * 65), b"0000"), "E_HEADER_INVALID"),
    "sizes that overflow": (safetensors_bytes(entry(shape=[2**62, 4, 2**62]), b"0000"), "E_HEADER_INVALID"),
    "sizes that overflow to right": (safetensors_bytes(entry(shape=[2**32, 2**32, 1]), b""), "E_HEADER_INVALID"),
    "shape smaller than bytes": (safetensors_bytes(entry(shape=[0]), b"0000"), "E_HEADER_INVALID"),
    "shape larger than bytes": (safetensors_bytes(entry(shape=[2]), b"0000"), "E_HEADER_INVALID"),
    "half bytes": (safetensors_bytes(entry(dtype="F4", shape=[7]), b"0000"), "E_HEADER_INVALID"),
    "offsets backwards": (safetensors_bytes(entry(data_offsets=[4, 0]), b"0000"), "E_HEADER_INVALID"),
    "three offsets": (safetensors_bytes(entry(data_offsets=[0, 4, 4]), b"0000"), "E_HEADER_INVALID"),
    "overlap": (safetensors_bytes({"a": FOUR_BYTES, "b": FOUR_BYTES}, b"0000"), "E_HEADER_INVALID"),
    "hole": (
        safetensors_bytes({"a": FOUR_BYTES, "b": {**FOUR_BYTES, "data_offsets": [8, 12]}}, bytes(12)),
        "E_HEADER_INVALID",
    ),
    "hole at the start": (safetensors_bytes(entry(data_offsets=[4, 8]), bytes(8)), "E_HEADER_INVALID"),
    "bytes left over": (safetensors_bytes(entry(), bytes(5)), "E_HEADER_INVALID"),
    "one byte missing": (safetensors_bytes(entry(), bytes(3)), "E_FILE_TRUNCATED"),
    "no data": (safetensors_bytes(entry(), b""), "E_FILE_TRUNCATED"),
    "larger than the file": (struct.pack("<Q", 10**6) + b"{}", "E_HEADER_LARGE"),
    "larger than 64 bits allow": (struct.pack("<Q", 2**64 - 1) + b"{}", "E_HEADER_LARGE"),
    "only a length": (struct.pack("<Q", 64), "E_FILE_TRUNCATED"),
    "three bytes": (b"\x40\0\0", "E_FILE_TRUNCATED"),
    "empty": (b"", "E_EMPTY_FILE"),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda name: name.replace(" ", "-"))
def test_header_that_lies(tmp_path: Path, lie: str) -> None:
    content, code = LIES[lie]
    found, reason = fault_of(write(tmp_path / "model.safetensors", content))
    assert found == code, reason
    assert len(reason) < 300


def test_truncation_names_both_sizes(tmp_path: Path) -> None:
    content = safetensors_bytes(entry(), bytes(3))
    _, reason = fault_of(write(tmp_path / "model.safetensors", content))
    assert f"{len(content)} bytes" in reason
    assert f"describes {len(content) + 1}" in reason


def test_fault_names_the_tensor(tmp_path: Path) -> None:
    headers = headers_of(write(tmp_path / "x.safetensors", safetensors_bytes(entry(shape=[2]), b"0000")))
    assert headers.notices[0].tensor == "a"


def test_header_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.safetensors", safetensors_bytes(entry(), b"0000"))
    monkeypatch.setattr(safetensors, "MAX_HEADER", 10)
    assert fault_of(path)[0] == "E_HEADER_LARGE"


def test_cap_on_the_number_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"t{number}": torch.zeros(1) for number in range(4)}, path)
    assert len(headers_of(path).tensors) == 4
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 3)
    assert fault_of(path)[0] == "E_HEADER_LARGE"


def test_own_caps() -> None:
    assert safetensors.MAX_HEADER == 25 * 2**20
    assert safetensors.MAX_TENSORS == 1_000_000
    assert safetensors.MAX_NAME == 4096


def test_unknown_dtype_of_another_tensor_is_kept_by_name(tmp_path: Path) -> None:
    header = {"odd": {"dtype": "F7_NEW", "shape": [3], "data_offsets": [4, 9]}, "a": FOUR_BYTES}
    headers = headers_of(write(tmp_path / "model.safetensors", safetensors_bytes(header, bytes(9))))
    assert [(spec.name, spec.dtype, spec.nbytes) for spec in headers.tensors] == [("a", "f32", 4), ("odd", "f7_new", 5)]
    assert headers.notices == ()


def test_packed_dtypes_are_measured_in_bits(tmp_path: Path) -> None:
    header = {
        "f4": {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]},
        "f6": {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [3, 6]},
    }
    headers = headers_of(write(tmp_path / "model.safetensors", safetensors_bytes(header, bytes(6))))
    assert [(spec.dtype, spec.nbytes) for spec in headers.tensors] == [("f4", 3), ("f6_e3m2", 3)]


@pytest.mark.parametrize("order", [["none", "full"], ["full", "none"]])
def test_zero_size_tensor_where_another_begins(tmp_path: Path, order: list[str]) -> None:
    entries = {"full": FOUR_BYTES, "none": {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]}}
    content = safetensors_bytes({name: entries[name] for name in order}, b"0000")
    headers = headers_of(write(tmp_path / "model.safetensors", content))
    assert [spec.name for spec in headers.tensors] == ["none", "full"]


@pytest.mark.parametrize(
    "name", ["", "../a", "a\nb", "\x1b[31m", "名前"], ids=["empty", "up", "line", "escape", "kanji"]
)
def test_odd_names_are_only_names(tmp_path: Path, name: str) -> None:
    headers = headers_of(write(tmp_path / "model.safetensors", safetensors_bytes({name: FOUR_BYTES}, b"0000")))
    assert [spec.name for spec in headers.tensors] == [name]


def test_two_hundred_thousand_tensors(tmp_path: Path) -> None:
    count = 200_000
    entries = {f"model.{n}.w": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(count)}
    path = write(tmp_path / "model.safetensors", safetensors_bytes(entries, bytes(count)))
    started = time.process_time()
    headers = headers_of(path)
    assert time.process_time() - started < 10  # some 2 s here; a quadratic reader would take hours
    offsets = np.array([spec.offset for spec in headers.tensors])
    assert len(offsets) == count
    assert (np.diff(offsets) == 1).all()
