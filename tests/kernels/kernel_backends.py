"""The backends that this process can run: one process either interprets Triton's kernels or compiles them."""

import importlib.util
import os
from collections.abc import Callable

import torch

from weightprint_kernels.backend import Backend
from weightprint_kernels.numba_backend import NumbaBackend
from weightprint_kernels.reference import ReferenceBackend
from weightprint_kernels.torch_backend import TorchBackend

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = importlib.util.find_spec("triton") is not None


def _triton(device: str) -> Backend:
    from weightprint_kernels.triton_backend import TritonBackend

    return TritonBackend(device)


def backends() -> dict[str, Callable[[], Backend]]:
    """Name of a test id -> how to build the backend."""
    if INTERPRETING:
        return {"triton-interpreter": lambda: _triton("cpu")}
    found: dict[str, Callable[[], Backend]] = {
        "reference": ReferenceBackend,
        "numba": NumbaBackend,
        "torch-cpu": TorchBackend,
    }
    if torch.cuda.is_available():
        found["torch-cuda"] = lambda: TorchBackend("cuda:0")
        if TRITON:
            found["triton-compiled"] = lambda: _triton("cuda:0")
    return found
