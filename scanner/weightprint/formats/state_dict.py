"""From the value of a pickle to tensors with byte ranges: find the state dict, place every view inside its storage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from weightprint.data import TensorSpec
from weightprint.errors import CheckpointError, Notice
from weightprint.formats.opened import OpenedFile, is_text
from weightprint.formats.pickle_reader import OddTensor, Storage, Tensor
from weightprint.formats.torch_names import DTYPE_SIZES

USUAL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "params_ema",
    "ema",
    "model_ema",
    "generator",
)
"""Where training scripts put the state dict, when it is not the whole pickle. The one with most tensors is taken; of
equals the first in this order."""

MAX_DEPTH = 3
MAX_NAME = 4096

StateDict = dict[str, Tensor | OddTensor]
Locate = Callable[[Storage], tuple[int, int]]


def find_tensors(value: Any, file: OpenedFile) -> StateDict:
    """Name -> tensor of the state dict in ``value``; raises CheckpointError E_NOT_STATE_DICT."""
    found = _state_dict(value, MAX_DEPTH, set())
    if found:
        return found
    kind = "mapping without tensors" if isinstance(value, dict) else type(value).__name__.strip("_").lower()
    message = f"holds a {kind} where a state dict (tensor names to tensors) was expected; save model.state_dict()"
    raise CheckpointError("E_NOT_STATE_DICT", message, path=file.path)


def _state_dict(value: Any, depth: int, seen: set[int]) -> StateDict:
    """The mapping with most tensors in ``value`` and under its usual keys; each is looked at once, rings too."""
    if not isinstance(value, dict) or id(value) in seen:
        return {}
    seen.add(id(value))
    own = {key: entry for key, entry in value.items() if isinstance(entry, Tensor | OddTensor)}
    inner = [_state_dict(value.get(key), depth - 1, seen) for key in USUAL_KEYS] if depth else []
    return max((own, *inner), key=len)


def place_tensors(
    tensors: StateDict, file: OpenedFile, locate: Locate
) -> tuple[tuple[TensorSpec, ...], tuple[Notice, ...]]:
    """Specs of the tensors that lie whole inside their storages, in file order; a notice for each that does not.

    ``locate`` gives (offset in the file, bytes) of a storage and raises CheckpointError where there is none.
    """
    specs, notices = [], []
    for name, tensor in tensors.items():
        try:
            if isinstance(tensor, OddTensor):
                raise CheckpointError("E_DTYPE", f"is {tensor.kind}, which is not read; save it as a plain tensor")
            specs.append(_place(name, tensor, file, locate))
        except CheckpointError as error:
            notices.append(Notice(error.code, error.message, str(file.path), name if is_text(name) else None))
    return tuple(sorted(specs, key=lambda spec: (spec.offset, spec.nbytes, spec.name))), tuple(notices)


def _place(name: str, tensor: Tensor, file: OpenedFile, locate: Locate) -> TensorSpec:
    if len(name) > MAX_NAME or not is_text(name):
        raise CheckpointError("E_HEADER_INVALID", f"has a tensor name that is no text of up to {MAX_NAME} characters")
    storage, itemsize = tensor.storage, DTYPE_SIZES[tensor.dtype]
    start, stored = locate(storage)
    if stored < storage.nbytes:
        message = f"its storage is {stored} bytes long in the file, the pickle says {storage.nbytes}"
        raise CheckpointError("E_VIEW_INVALID", message)
    base = storage.view_offset * DTYPE_SIZES[storage.dtype]
    available = storage.nbytes - base
    if storage.view_numel is not None:
        available = min(available, storage.view_numel * DTYPE_SIZES[storage.dtype])
    nbytes = math.prod(tensor.shape) * itemsize
    if tensor.offset * itemsize + nbytes > available:
        message = (
            f"view of {nbytes} bytes from byte {tensor.offset * itemsize} is larger than its storage "
            f"of {max(0, available)} bytes; save the tensor itself"
        )
        raise CheckpointError("E_VIEW_INVALID", message)
    row_major = _is_dense(tensor.shape, tensor.stride)
    column_major = len(tensor.shape) == 2 and _is_dense(tensor.shape[::-1], tensor.stride[::-1])
    if not row_major and not column_major:
        shape, stride = list(tensor.shape), list(tensor.stride)
        message = f"view of shape {shape} and stride {stride} is not contiguous; save it with .contiguous()"
        raise CheckpointError("E_VIEW_INVALID", message)
    offset = start + base + tensor.offset * itemsize
    return TensorSpec(name, tensor.shape, tensor.dtype, file.path, offset, nbytes, not row_major)


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie row-major without a gap; the stride of a dimension of length one says nothing."""
    if 0 in shape:
        return True
    step = 1
    for size, own in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and own != step:
            return False
        step *= size
    return True
