"""One matrix or vector of a checkpoint as a torch tensor, read when it is asked for and kept by nobody.

Shapes: matrices float32 [out, in], y = W x, whatever way they are stored; vectors float32 [n]. Plain formats only
(bf16, f16, f32, 8-bit floats as the scan reads them). A weight that is not finite makes the tensor None: what it
would touch is left out of the tests.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from weightprint.data import Matrix, TensorSpec
from weightprint.errors import CheckpointError, DeviceError
from weightprint.formats.opened import open_file
from weightprint_kernels.layout import ITEMSIZE

if TYPE_CHECKING:
    from torch import Tensor


def device_of(wanted: str) -> str:
    """The device of torch for auto, cpu or cuda; raises DeviceError E_DEVICE if it is not there."""
    import torch

    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise DeviceError("E_DEVICE", "torch finds no CUDA device; use --device cpu")
    return "cpu"


def readable(spec: TensorSpec) -> bool:
    """Whether the bytes of a tensor are its numbers."""
    return spec.dtype in ITEMSIZE and prod(spec.shape) > 0


def matrix_weights(matrix: Matrix, device: str) -> Tensor | None:
    """W of a matrix, float32 [out, in]."""
    import torch

    parts = []
    for part in matrix.parts:
        whole = tensor_weights(part.tensor, device)
        if whole is None:
            return None
        logical = whole.reshape(part.stored)
        logical = logical.T if matrix.transposed else logical
        parts += [logical[start:stop] for start, stop in part.ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def tensor_weights(spec: TensorSpec, device: str) -> Tensor | None:
    """A stored tensor, float32, in its own shape; raises CheckpointError if its bytes cannot be read."""
    import torch

    dtypes = {
        "bf16": torch.bfloat16,
        "f16": torch.float16,
        "f32": torch.float32,
        "f8_e4m3": torch.float8_e4m3fn,
        "f8_e5m2": torch.float8_e5m2,
    }
    with open_file(spec.path) as file:
        content = bytearray(file.read(spec.offset, spec.nbytes))
    if len(content) != spec.nbytes:
        message = "ends before the bytes that its header describes; fetch the file again"
        raise CheckpointError("E_FILE_TRUNCATED", message, path=spec.path, tensor=spec.name)
    flat = torch.frombuffer(content, dtype=torch.uint8).view(dtypes[spec.dtype]).to(device).float()
    if not bool(torch.isfinite(flat).all()):
        return None
    # The bytes of a column-major tensor are those of its transpose.
    return flat.reshape(spec.shape[::-1]).T if spec.column_major else flat.reshape(spec.shape)
