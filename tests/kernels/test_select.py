"""Choosing a backend: which one, and the words that say why."""

import ctypes
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import accelerate
import llvmlite.binding
import pytest
import torch
from kernel_backends import TRITON

from weightprint_kernels import line_sums, select
from weightprint_kernels.select import DEVICES, DeviceUnavailable, driver_present, select_backend


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher started this process, whoever runs the tests."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """torch on the CPU gets one thread for the whole process, which outlives the test no longer."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a driver, and torch finds no device."""
    monkeypatch.setattr(select, "driver_present", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is not to be asked."""

    def asked() -> bool:
        raise AssertionError("torch was asked")

    monkeypatch.setattr(select, "driver_present", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", asked)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "driver_present", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take a package away."""

    def take_away(missing: str) -> None:
        find = importlib.util.find_spec

        def find_others(name: str, package: str | None = None) -> ModuleSpec | None:
            return None if name == missing else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_others)

    return take_away


@pytest.fixture
def no_triton(without: Callable[[str], None]) -> None:
    without("triton")


def chosen(device: str) -> tuple[str, str, str]:
    backend, reason = select_backend(device)
    return backend.name, backend.device, reason


def test_cpu_that_was_asked_for(cuda: None) -> None:
    assert chosen("cpu") == ("numba", "cpu", "the CPU was asked for")


def test_auto_without_cuda(no_cuda: None) -> None:
    assert chosen("auto") == ("numba", "cpu", "no CUDA device")


def test_auto_without_a_driver_does_not_ask_torch(no_driver: None) -> None:
    assert chosen("auto") == ("numba", "cpu", "no CUDA device")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_driver_torch_is_not_imported(device: str) -> None:
    if device == "auto" and driver_present():
        pytest.skip("this machine has a GPU driver")
    program = (
        "import sys; from weightprint_kernels.select import select_backend\n"
        "print(select_backend(sys.argv[1])[0].name, sorted({'torch', 'triton', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, device], capture_output=True, text=True, check=True)
    assert done.stdout == "numba []\n"


REASONS = {"cpu": "the CPU was asked for", "auto": "no CUDA device"}


@pytest.mark.parametrize("device", REASONS)
def test_torch_where_numba_is_missing(device: str, no_driver: None, without: Callable[[str], None]) -> None:
    without("numba")
    assert chosen(device) == ("torch-cpu", "cpu", f"{REASONS[device]}; numba is not installed; one thread")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("device", REASONS)
def test_torch_where_the_processor_does_not_convert(
    device: str, no_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_sums, "supported", lambda: False)
    reason = f"{REASONS[device]}; the processor does not convert binary16; one thread"
    assert chosen(device) == ("torch-cpu", "cpu", reason)


@pytest.mark.parametrize(
    ("machine", "features", "there"),
    [
        ("x86_64", {"f16c": True, "avx": True}, True),
        ("AMD64", {"f16c": True}, True),
        ("x86_64", {"f16c": False, "avx": True}, False),
        ("x86_64", {"avx": True}, False),
        ("aarch64", {}, True),
        ("arm64", {}, True),
        ("riscv64", {}, False),
    ],
)
def test_which_processors_convert(
    machine: str, features: dict[str, bool], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: features)
    assert line_sums.supported() == there


@pytest.mark.parametrize(
    ("system", "kfd", "library", "there"),
    [
        ("linux", False, False, False),
        ("linux", False, True, True),
        ("linux", True, False, True),
        ("win32", False, False, True),
        ("darwin", False, False, True),
    ],
)
def test_whether_there_is_a_driver(
    system: str, kfd: bool, library: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux NVIDIA's library or AMD's device tells; elsewhere torch is asked."""

    def load(name: str) -> None:
        assert name == "libcuda.so.1"
        if not library:
            raise OSError("cannot open shared object file")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/kfd" and kfd)
    assert driver_present() == there


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
    assert chosen("auto") == ("numba", "cpu", "accelerate gives this process cpu")


def test_cuda_where_accelerate_gives_the_cpu(accelerate_gives_cpu: None) -> None:
    with pytest.raises(DeviceUnavailable, match="gives this process cpu, not a CUDA device; unset ACCELERATE_TORCH_DE"):
        select_backend("cuda")
