"""From the value of a pickle to tensors with byte ranges: find the state dict, place every view inside its storage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from weightprint.data import TensorSpec
from weightprint.errors import CheckpointError, Notice
from weightprint.formats.opened import OpenedFile
from weightprint.formats.pickle_reader import SIZES, Storage, Tensor

USUAL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "ema",
    "generator",
)
"""Where training scripts put the state dict, when it is not the whole pickle; the first that holds tensors is taken."""

MAX_DEPTH = 3


def find_tensors(value: Any, file: OpenedFile) -> dict[str, Tensor]:
    """Name -> tensor of the state dict in ``value``; raises CheckpointError E_NOT_STATE_DICT."""
    found = _state_dict(value, MAX_DEPTH)
    if found:
        return found
    kind = f"a {type(value).__name__}" if not isinstance(value, dict) else "a mapping without tensors"
    message = f"holds {kind} where a state dict (tensor names to tensors) was expected; save model.state_dict()"
    raise CheckpointError("E_NOT_STATE_DICT", message, path=file.path)


def _state_dict(value: Any, depth: int) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        return {}
    own = {key: entry for key, entry in value.items() if isinstance(key, str) and isinstance(entry, Tensor)}
    if own or not depth:
        return own
    for key in USUAL_KEYS:
        inner = _state_dict(value.get(key), depth - 1)
        if inner:
            return inner
    return {}


def place_tensors(
    tensors: dict[str, Tensor], file: OpenedFile, locate: Callable[[Storage], tuple[int, int]]
) -> tuple[tuple[TensorSpec, ...], tuple[Notice, ...]]:
    """Specs of the tensors that lie whole inside their storages, in file order; a notice for each that does not.

    ``locate`` gives (offset in the file, bytes) of a storage and raises CheckpointError where there is none.
    """
    specs, notices = [], []
    for name, tensor in tensors.items():
        try:
            specs.append(_place(name, tensor, file, locate))
        except CheckpointError as error:
            notices.append(Notice(error.code, error.message, str(file.path), name))
    return tuple(sorted(specs, key=lambda spec: (spec.offset, spec.name))), tuple(notices)


def _place(name: str, tensor: Tensor, file: OpenedFile, locate: Callable[[Storage], tuple[int, int]]) -> TensorSpec:
    itemsize = SIZES[tensor.dtype]
    numel = math.prod(tensor.shape)
    start, available = locate(tensor.storage)
    first = tensor.storage.view_offset * SIZES[tensor.storage.dtype] + tensor.offset * itemsize
    if first + numel * itemsize > available:
        message = (
            f"view of {numel} elements from element {tensor.offset} is larger than its storage of {available} bytes"
        )
        raise CheckpointError("E_VIEW_INVALID", message)
    row_major = _is_dense(tensor.shape, tensor.stride)
    column_major = len(tensor.shape) == 2 and _is_dense(tensor.shape[::-1], tensor.stride[::-1])
    if not row_major and not column_major:
        message = (
            f"view of shape {tensor.shape} and stride {tensor.stride} is not contiguous; save it with .contiguous()"
        )
        raise CheckpointError("E_VIEW_INVALID", message)
    nbytes = numel * itemsize
    return TensorSpec(name, tensor.shape, tensor.dtype, file.path, start + first, nbytes, not row_major)


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie row-major without a gap; the stride of a dimension of length one says nothing."""
    step = 1
    for size, own in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and own != step:
            return 0 in shape
        step *= size
    return True
