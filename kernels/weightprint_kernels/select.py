"""Choosing a backend, with the reason for the choice. torch and triton are imported here, not before."""

from __future__ import annotations

import importlib.util
import os

from weightprint_kernels.backend import Backend

DEVICES = ("auto", "cpu", "cuda")


class DeviceUnavailable(ValueError):
    """The device that was asked for is not there."""


def select_backend(device: str) -> tuple[Backend, str]:
    """The backend for ``device`` (auto, cpu or cuda) and why it was chosen; raises DeviceUnavailable."""
    import torch

    if device not in DEVICES:
        raise DeviceUnavailable(f"no device is called {device!r}; choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return _on_cpu("the CPU was asked for")
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
    """torch on one thread, for the whole process.

    On regions as small as a batch its threads wait for each other by spinning: two of them read 1.3 times as fast as
    one on two idle cores, and forty times slower on two busy ones.
    """
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
