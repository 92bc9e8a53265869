"""PyTorch's zip format: torch.save as the writer, torch's own values as the oracle, and zips that lie."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from header_files import assert_bytes_are, fault_of, headers_of, write
from torch.storage import _dtype_to_storage_type_map as dtype_to_storage

from weightprint.formats import torch_archive
from weightprint.formats.torch_names import DTYPE_SIZES, STORAGE_DTYPES, TORCH_DTYPES

Weights = dict[str, torch.Tensor]


def weights() -> Weights:
    base = torch.randn(4, 6)
    return {
        "plain": torch.randn(3, 5),
        "half": torch.randn(7).half(),
        "brain": torch.randn(2, 2, 2).bfloat16(),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "base": base,
        "tied": base,
        "rows": base[1:3],
        "transposed": base.t(),
        "long": torch.arange(5),
    }


def save(value: object, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".safetensors", ""])
def test_content_decides_and_not_the_suffix(tmp_path: Path, suffix: str) -> None:
    value = weights()
    headers = headers_of(save(value, tmp_path / f"pytorch_model{suffix}"))
    assert headers.sources[0].format == "torch-zip"
    assert_bytes_are(headers, value)


def test_views_lie_inside_their_storages(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in headers_of(save(weights(), tmp_path / "m.pt")).tensors}
    assert specs["tied"].offset == specs["base"].offset
    assert specs["rows"].offset == specs["base"].offset + 6 * 4
    assert [name for name, spec in specs.items() if spec.column_major] == ["transposed"]


DTYPES = sorted({getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}, key=str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_of_torch_has_its_name_and_size(dtype: torch.dtype) -> None:
    assert DTYPE_SIZES[TORCH_DTYPES[str(dtype).removeprefix("torch.")]] == dtype.itemsize


def test_every_storage_class_has_the_dtype_of_torch() -> None:
    ours = {name: TORCH_DTYPES[str(dtype).removeprefix("torch.")] for dtype, name in dtype_to_storage().items()}
    assert ours == STORAGE_DTYPES


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.complex64, torch.bool, torch.float64],
    ids=str,
)
def test_dtypes_without_a_storage_class(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    value = {"w": torch.arange(6).to(dtype).reshape(2, 3)}
    headers = headers_of(save(value, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped))
    assert headers.tensors[0].dtype == TORCH_DTYPES[str(dtype).removeprefix("torch.")]
    assert_bytes_are(headers, value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path: Path, protocol: int, zipped: bool) -> None:
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    value = weights()
    assert_bytes_are(headers_of(save(value, tmp_path / "m.pt", **options)), value)


WRAPPED: dict[str, Callable[[Weights], object]] = {
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "args": {"lr": 1e-3}, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}},
    "module": lambda w: {"module": OrderedDict(w), "steps": [1, 2]},
    "nested": lambda w: {"params": {"model": {"state_dict": w}}, "other": (None, True, 1.5, b"bytes", {1, 2})},
    "parameters": lambda w: {
        name: torch.nn.Parameter(value, requires_grad=False) for name, value in w.items() if value.is_floating_point()
    },
    "most tensors": lambda w: {"model": w, "ema": {"plain": w["plain"]}, "alpha": torch.ones(1)},
    "module state": lambda w: torch.nn.Linear(5, 3).state_dict(),
    "other values": lambda w: w | {"version": 3, "name": "x", "size": torch.Size([1]), "dtype": torch.float16},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("wrap", WRAPPED, ids=lambda name: name.replace(" ", "-"))
def test_state_dict_is_found(tmp_path: Path, wrap: str, zipped: bool) -> None:
    path = save(WRAPPED[wrap](weights()), tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    loaded = torch.load(path, weights_only=True)
    inner: Any = {
        "state_dict": lambda: loaded["state_dict"],
        "model": lambda: loaded["model"],
        "module": lambda: loaded["module"],
        "nested": lambda: loaded["params"]["model"]["state_dict"],
        "most tensors": lambda: loaded["model"],
        "other values": lambda: {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)},
    }.get(wrap, lambda: loaded)()
    assert_bytes_are(headers_of(path), inner)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("value", [[1, 2], "text", {"a": 1}, {}, None, torch.zeros(3), {3: torch.zeros(3)}], ids=repr)
def test_not_a_state_dict(tmp_path: Path, value: object, zipped: bool) -> None:
    assert fault_of(save(value, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped))[0] == "E_NOT_STATE_DICT"


BAD_VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "stride zero": lambda: torch.zeros(1).as_strided((10**6, 10**6), (0, 0)),
    "expanded": lambda: torch.zeros(3, 1).expand(3, 4),
    "every second column": lambda: torch.zeros(4, 6)[:, ::2],
    "permuted": lambda: torch.zeros(2, 3, 4).permute(2, 0, 1),
    "conjugated": lambda: torch.zeros(2, 2, dtype=torch.complex64).conj(),
    "sparse": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("view", BAD_VIEWS, ids=lambda name: name.replace(" ", "-"))
def test_bad_view_costs_its_tensor_only(tmp_path: Path, view: str, zipped: bool) -> None:
    value = {"good": torch.ones(2, 3), "bad": BAD_VIEWS[view](), "fine": torch.ones(4)}
    headers = headers_of(save(value, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped))
    (notice,) = headers.notices
    assert (notice.code, notice.tensor) == ("E_DTYPE" if view in ("conjugated", "sparse") else "E_VIEW_INVALID", "bad")
    assert {spec.name for spec in headers.tensors} == {"good", "fine"}


def rewritten(path: Path, change: Callable[[str, bytes], tuple[str, bytes, int] | None]) -> Path:
    """The archive again, each entry as ``change`` says: name, bytes, compression; None leaves it out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            changed = change(name, content)
            if changed is not None:
                archive.writestr(changed[0], changed[1], changed[2])
    return path


def test_plainly_zipped_archive_is_read(tmp_path: Path) -> None:
    path = save({"w": torch.randn(9)}, tmp_path / "m.pt")
    assert_bytes_are(headers_of(rewritten(path, lambda n, c: (n, c, zipfile.ZIP_STORED))), torch.load(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entry_is_refused_by_tensor(tmp_path: Path, method: int) -> None:
    path = save({"w": torch.randn(900), "v": torch.ones(5)}, tmp_path / "m.pt")
    with zipfile.ZipFile(path) as archive:
        large = max(archive.infolist(), key=lambda entry: entry.file_size).filename
    path = rewritten(path, lambda n, c: (n, c, method if n == large else zipfile.ZIP_STORED))
    headers = headers_of(path)
    (notice,) = headers.notices
    assert (notice.code, notice.tensor, notice.path) == ("E_ZIP_COMPRESSED", "w", str(path))
    assert [spec.name for spec in headers.tensors] == ["v"]


def test_compressed_pickle_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.randn(9)}, tmp_path / "m.pt")
    method = {"data.pkl": zipfile.ZIP_DEFLATED}
    path = rewritten(path, lambda n, c: (n, c, method.get(n.split("/")[-1], zipfile.ZIP_STORED)))
    assert fault_of(path)[0] == "E_ZIP_COMPRESSED"


def test_storage_that_is_not_there(tmp_path: Path) -> None:
    path = save({"w": torch.randn(9), "v": torch.ones(5)}, tmp_path / "m.pt")
    path = rewritten(path, lambda n, c: None if n.endswith("data/0") else (n, c, zipfile.ZIP_STORED))
    headers = headers_of(path)
    assert [(notice.code, notice.tensor) for notice in headers.notices] == [("E_HEADER_INVALID", "w")]
    assert [spec.name for spec in headers.tensors] == ["v"]


def test_storage_shorter_than_its_pickle_says(tmp_path: Path) -> None:
    path = save({"w": torch.randn(9)[:4]}, tmp_path / "m.pt")
    path = rewritten(path, lambda n, c: (n, c[:-4] if n.endswith("data/0") else c, zipfile.ZIP_STORED))
    assert [notice.code for notice in headers_of(path).notices] == ["E_VIEW_INVALID"]


def test_big_endian_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.randn(9)}, tmp_path / "m.pt")
    path = rewritten(path, lambda n, c: (n, b"big" if n.endswith("byteorder") else c, zipfile.ZIP_STORED))
    assert fault_of(path)[0] == "E_FORMAT_REFUSED"


def test_without_byteorder_entry(tmp_path: Path) -> None:
    path = save({"w": torch.randn(9)}, tmp_path / "m.pt")
    path = rewritten(path, lambda n, c: None if n.endswith("byteorder") else (n, c, zipfile.ZIP_STORED))
    assert_bytes_are(headers_of(path), torch.load(path))


def test_entry_twice(tmp_path: Path) -> None:
    path = save({"w": torch.randn(9)}, tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/0", bytes(36))
    assert fault_of(path)[0] == "E_HEADER_INVALID"


def test_truncated(tmp_path: Path) -> None:
    content = save({"w": torch.randn(900)}, tmp_path / "m.pt").read_bytes()
    for length in (4, 9, 100, len(content) // 2, len(content) - 1):
        assert fault_of(write(tmp_path / "cut.pt", content[:length]))[0] == "E_FILE_TRUNCATED"


def test_numpy_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY")
    assert fault_of(tmp_path / "w.bin")[0] == "E_FORMAT_REFUSED"


def test_other_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    assert fault_of(tmp_path / "w.bin")[0] == "E_FORMAT_UNKNOWN"


def test_torchscript(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}))
        archive.writestr("w/constants.pkl", pickle.dumps(()))
    code, reason = fault_of(tmp_path / "w.pt")
    assert code == "E_FORMAT_REFUSED"
    assert "TorchScript" in reason


def test_cap_on_the_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"w": torch.randn(9)}, tmp_path / "m.pt")
    monkeypatch.setattr("weightprint.formats.pickle_reader.MAX_PICKLE", 10)
    assert fault_of(path)[0] == "E_PICKLE_INVALID"


def test_cap_on_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"w": torch.randn(9)}, tmp_path / "m.pt")
    monkeypatch.setattr(torch_archive, "MAX_DIRECTORY", 10)
    assert fault_of(path)[0] == "E_FILE_TRUNCATED"
