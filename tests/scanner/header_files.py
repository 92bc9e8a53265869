"""Weight files written by hand, and what the readers say of them."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from weightprint.data import Checkpoint, Headers
from weightprint.formats import read_headers

FOUR_BYTES = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write(path: Path, content: bytes) -> Path:
    """Write ``content`` and give the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def headers_of(*paths: Path, weight_map: Mapping[str, Path] | None = None) -> Headers:
    """The headers of a checkpoint of just these files."""
    directory = paths[0].parent
    return read_headers(Checkpoint(directory.name, directory, paths, weight_map))


def fault_of(path: Path) -> tuple[str, str]:
    """Code and reason of a file that is refused as a whole: it gives no tensor, no source and one notice."""
    headers = headers_of(path)
    assert (headers.tensors, headers.sources) == ((), ())
    (notice,) = headers.notices
    assert notice.path == str(path)
    assert "\n" not in notice.reason
    return notice.code, notice.reason


def assert_bytes_are(headers: Headers, expected: Mapping[str, torch.Tensor]) -> None:
    """Every tensor of ``expected`` is found, and its bytes lie where the spec says, bit by bit."""
    assert headers.notices == ()
    assert {spec.name for spec in headers.tensors} == set(expected)
    content = {spec.path: np.fromfile(spec.path, np.uint8) for spec in headers.tensors}
    for spec in headers.tensors:
        tensor = expected[spec.name].detach()
        assert spec.shape == tuple(tensor.shape)
        stored = tensor.t() if spec.column_major else tensor
        raw = stored.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert content[spec.path][spec.offset : spec.offset + spec.nbytes].tobytes() == raw, spec.name
