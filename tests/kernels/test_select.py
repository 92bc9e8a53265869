"""Choosing a backend: which one, and the words that say why."""

import importlib.util
from importlib.machinery import ModuleSpec

import accelerate
import pytest
import torch
from kernel_backends import TRITON

from weightprint_kernels.select import DEVICES, DeviceUnavailable, select_backend


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher started this process, whoever runs the tests."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "triton" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)


def chosen(device: str) -> tuple[str, str, str]:
    backend, reason = select_backend(device)
    return backend.name, backend.device, reason


def test_cpu_that_was_asked_for(cuda: None) -> None:
    assert chosen("cpu") == ("torch-cpu", "cpu", "the CPU was asked for; one thread")


def test_auto_without_cuda(no_cuda: None) -> None:
    assert chosen("auto") == ("torch-cpu", "cpu", "no CUDA device; one thread")


def test_cuda_that_is_not_there(no_cuda: None) -> None:
    with pytest.raises(DeviceUnavailable, match="torch finds no CUDA device; use --device cpu"):
        select_backend("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:1", "CPU", ""])
def test_device_of_no_known_name(device: str) -> None:
    with pytest.raises(DeviceUnavailable) as raised:
        select_backend(device)
    assert repr(device) in str(raised.value)
    assert all(name in str(raised.value) for name in DEVICES)


@pytest.mark.skipif(not TRITON, reason="needs triton")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_with_triton(device: str, cuda: None) -> None:
    assert chosen(device) == ("triton", "cuda:0", "cuda:0 with triton")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_without_triton(device: str, cuda: None, no_triton: None) -> None:
    assert chosen(device) == ("torch-cuda", "cuda:0", "cuda:0, triton is not installed")


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "WORLD_SIZE"])
def test_process_of_a_launcher_takes_its_own_device(
    variable: str, cuda: None, no_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PartialState:
        device = torch.device("cuda", 3)

    monkeypatch.setenv(variable, "3")
    monkeypatch.setattr(accelerate, "PartialState", PartialState)
    assert chosen("auto") == ("torch-cuda", "cuda:3", "cuda:3, triton is not installed")


@pytest.fixture
def accelerate_gives_cpu(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ACCELERATE_TORCH_DEVICE=cpu does on a machine that has CUDA."""

    class PartialState:
        device = torch.device("cpu")

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(accelerate, "PartialState", PartialState)


def test_auto_where_accelerate_gives_the_cpu(accelerate_gives_cpu: None) -> None:
    assert chosen("auto") == ("torch-cpu", "cpu", "accelerate gives this process cpu; one thread")


def test_cuda_where_accelerate_gives_the_cpu(accelerate_gives_cpu: None) -> None:
    with pytest.raises(DeviceUnavailable, match="gives this process cpu, not a CUDA device; unset ACCELERATE_TORCH_DE"):
        select_backend("cuda")
