"""The engine for a device: which backend, on how many threads, and what is said of it."""

import importlib.util
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from engine_cases import lay_two_files

from weightprint.engine.choose import open_engine
from weightprint.engine.cpu import CpuEngine
from weightprint.errors import DeviceError, UsageError
from weightprint.scan import LazyEngine
from weightprint_kernels.layout import UINT8
from weightprint_kernels.numba_backend import NumbaBackend
from weightprint_kernels.torch_backend import TorchBackend


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Threads on which bytes come to a backend of the CPU."""
    seen: set[str] = set()
    for kind in (NumbaBackend, TorchBackend):
        whole = kind.place

        def noted(self: NumbaBackend, data: UINT8, whole: object = whole) -> object:
            seen.add(threading.current_thread().name)
            return whole(self, data)  # type: ignore[operator]

        monkeypatch.setattr(kind, "place", noted)
    return seen


def test_the_cpu_that_was_asked_for(tmp_path: Path, names: set[str]) -> None:
    _, plan, whole = lay_two_files(tmp_path)
    with open_engine("cpu") as engine:  # type: ignore[attr-defined]
        assert isinstance(engine, CpuEngine)
        assert engine.description == "numba: the CPU was asked for"
        reduction = engine.submit(plan).result()
    assert (reduction.backend, sorted(reduction.moments)) == ("numba", sorted(whole.moments))
    assert {name.rpartition("_")[0] for name in names} == {"weightprint-reader"}


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_those_that_are_set(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them meet before any goes on, and no other comes."""
    monkeypatch.setenv("WEIGHTPRINT_THREADS", str(threads))
    _, plan, _ = lay_two_files(tmp_path)
    barrier = threading.Barrier(threads)
    seen: set[str] = set()
    place = NumbaBackend.place

    def meeting(self: NumbaBackend, data: UINT8) -> UINT8:
        seen.add(threading.current_thread().name)
        if len(seen) <= threads and not done.is_set():
            barrier.wait(60)
            done.set()
        return place(self, data)

    done = threading.Event()
    monkeypatch.setattr(NumbaBackend, "place", meeting)
    with open_engine("cpu") as engine:  # type: ignore[attr-defined]
        engine.submit(plan).result()
    assert len(seen) == threads


def test_torch_gets_one_thread(tmp_path: Path, names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba is missing: torch has threads of its own, and gets one."""
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "numba" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setenv("WEIGHTPRINT_THREADS", "4")
    before = torch.get_num_threads()
    try:
        _, plan, _ = lay_two_files(tmp_path)
        with open_engine("cpu") as engine:  # type: ignore[attr-defined]
            assert engine.description == "torch-cpu: the CPU was asked for; numba is not installed; one thread"
            assert engine.submit(plan).result().backend == "torch-cpu"
    finally:
        torch.set_num_threads(before)
    assert len(names) == 1


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError) as caught:
        open_engine(device)
    assert caught.value.code == "E_DEVICE"
    assert "--device cpu" in caught.value.message or "choose one of" in caught.value.message


def test_bad_settings_are_said_before_a_device_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPRINT_THREADS", "none")
    with pytest.raises(UsageError, match="WEIGHTPRINT_THREADS is 'none'"):
        open_engine("cuda")


def test_the_engine_is_built_when_it_is_needed_and_what_must_be_said_is_said_before() -> None:
    said: list[str] = []
    with LazyEngine("cpu", lambda: said.append("before")) as lazy:
        assert (lazy.description, said) == ("none needed", [])
        first = lazy.get()
        assert lazy.get() is first
        assert (lazy.description, said) == ("numba: the CPU was asked for", ["before"])


def test_leaving_ends_the_threads_of_an_engine_that_was_built(tmp_path: Path) -> None:
    _, plan, _ = lay_two_files(tmp_path)
    with LazyEngine("cpu") as lazy:
        lazy.get().submit(plan).result()
        assert [thread for thread in threading.enumerate() if thread.name.startswith("weightprint-reader")]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weightprint-reader")]
