"""Choosing a backend, with the reason for the choice. torch, triton and numba are imported here, not before."""

from __future__ import annotations

import importlib.util
import os

from weightprint_kernels.backend import Backend
from weightprint_kernels.driver import driver_present

DEVICES = ("auto", "cpu", "cuda")


class DeviceUnavailable(ValueError):
    """The device that was asked for is not there."""


def select_backend(device: str) -> tuple[Backend, str]:
    """The backend for ``device`` (auto, cpu or cuda) and why it was chosen; raises DeviceUnavailable."""
    if device not in DEVICES:
        raise DeviceUnavailable(f"no device is called {device!r}; choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return _on_cpu("the CPU was asked for")
    if device == "auto" and not driver_present():
        return _on_cpu("no CUDA device")
    import torch

    if not torch.cuda.is_available():
        if device == "cuda":
            raise DeviceUnavailable("torch finds no CUDA device; use --device cpu, or install a CUDA build of torch")
        return _on_cpu("no CUDA device")
    place = _own_device()
    if torch.device(place).type != "cuda":
        # ACCELERATE_TORCH_DEVICE=cpu does that; Triton would crash on the first launch.
        if device == "cuda":
            refusal = f"accelerate gives this process {place}, not a CUDA device"
            raise DeviceUnavailable(f"{refusal}; unset ACCELERATE_TORCH_DEVICE, or use --device cpu")
        return _on_cpu(f"accelerate gives this process {place}")
    if importlib.util.find_spec("triton") is None:
        from weightprint_kernels.torch_backend import TorchBackend

        return TorchBackend(place), f"{place}, triton is not installed"
    from weightprint_kernels.triton_backend import TritonBackend

    return TritonBackend(place), f"{place} with triton"


def _on_cpu(reason: str) -> tuple[Backend, str]:
    """Numba, or torch where Numba is missing or the processor is too old for it.

    torch gets one thread, for the whole process: on regions as small as a batch its threads wait for each other by
    spinning, and two of them read 1.3 times as fast as one on two idle cores, and forty times slower on two busy ones.
    """
    if (refusal := numba_refusal()) is not None:
        return _torch_on_cpu(f"{reason}; {refusal}")
    from weightprint_kernels.line_sums import supported

    if not supported():
        return _torch_on_cpu(f"{reason}; the processor does not convert binary16")
    from weightprint_kernels.numba_backend import NumbaBackend

    return NumbaBackend(), reason


def numba_refusal() -> str | None:
    """Why Numba cannot compile here; None where it can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    import numba

    return "NUMBA_DISABLE_JIT is set" if numba.config.DISABLE_JIT else None


def _torch_on_cpu(reason: str) -> tuple[Backend, str]:
    import torch

    from weightprint_kernels.torch_backend import TorchBackend

    torch.set_num_threads(1)
    return TorchBackend("cpu"), f"{reason}; one thread"


def _own_device() -> str:
    """The device of this process: its own where a launcher started several, else the first CUDA device."""
    if "LOCAL_RANK" in os.environ or "WORLD_SIZE" in os.environ:
        from accelerate import PartialState

        return str(PartialState().device)
    return "cuda:0"
