"""Missing pages under a map: noted, replaced by zeros, and outside the windows as deadly as ever.

Real files, real maps, real signals.
"""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from weightprint.engine import guard as guard_module
from weightprint.engine.guard import WINDOWS, Guard, installed_guard

PAGE = mmap.PAGESIZE


@pytest.fixture
def guard() -> Guard:
    found = installed_guard()
    if found is None:
        pytest.skip("files are not mapped on this system")
    return found


@pytest.fixture
def maps(tmp_path: Path) -> Iterator[tuple[list[Path], list[npt.NDArray[np.uint8]]]]:
    """Three files of eight pages of ones, and what they are mapped to."""
    paths, arrays = [], []
    for name in "abc":
        path = tmp_path / name
        path.write_bytes(b"\1" * 8 * PAGE)
        with path.open("rb") as file:
            arrays.append(np.frombuffer(mmap.mmap(file.fileno(), 8 * PAGE, prot=mmap.PROT_READ), np.uint8))
        paths.append(path)
    yield paths, arrays
    del arrays


def test_there_is_one_guard(guard: Guard) -> None:
    assert installed_guard() is guard


def test_missing_pages_are_zeros_and_noted_in_their_own_window(
    guard: Guard, maps: tuple[list[Path], list[npt.NDArray[np.uint8]]]
) -> None:
    paths, arrays = maps
    with ExitStack() as stack:
        missing = [stack.enter_context(guard.watch(array.ctypes.data, 8 * PAGE)) for array in arrays]
        os.truncate(paths[1], 3 * PAGE)
        assert [int(array.sum()) for array in arrays] == [8 * PAGE, 3 * PAGE, 8 * PAGE]
        assert [was_missing() for was_missing in missing] == [False, True, False]
        # Pages that were there stay what they were, and the rest of the window cannot fault again.
        assert arrays[1][: 3 * PAGE].all()
        assert not arrays[1][3 * PAGE :].any()


def test_a_fault_on_the_last_byte_of_the_last_page(
    guard: Guard, maps: tuple[list[Path], list[npt.NDArray[np.uint8]]]
) -> None:
    paths, arrays = maps
    with guard.watch(arrays[0].ctypes.data, 8 * PAGE) as was_missing:
        os.truncate(paths[0], 7 * PAGE)
        assert not was_missing()
        assert arrays[0][-1] == 0
        assert was_missing()
        assert arrays[0][: 7 * PAGE].all()


def test_a_window_forgets_what_the_one_before_saw(
    guard: Guard, maps: tuple[list[Path], list[npt.NDArray[np.uint8]]]
) -> None:
    """More windows one after the other than there are at once, each in a place that may have seen a fault."""
    paths, arrays = maps
    with guard.watch(arrays[0].ctypes.data, 8 * PAGE) as was_missing:
        os.truncate(paths[0], 0)
        assert arrays[0].sum() == 0
        assert was_missing()
    for _ in range(WINDOWS + 1):
        with guard.watch(arrays[1].ctypes.data, 8 * PAGE) as was_missing:
            assert not was_missing()


def test_as_many_windows_as_reading_threads_at_once(
    guard: Guard, maps: tuple[list[Path], list[npt.NDArray[np.uint8]]]
) -> None:
    paths, arrays = maps
    starts = [arrays[number * len(arrays) // WINDOWS].ctypes.data + number % 8 * PAGE for number in range(WINDOWS)]
    with ExitStack() as stack:
        missing = [stack.enter_context(guard.watch(start, PAGE)) for start in starts]
        os.truncate(paths[-1], 0)
        assert arrays[-1][(WINDOWS - 1) % 8 * PAGE] == 0
        assert sum(was_missing() for was_missing in missing) == 1


OUTSIDE = """
import faulthandler, mmap, os, sys
from weightprint.engine.guard import installed_guard

if sys.argv[2] == "enabled":
    faulthandler.enable()
guard = installed_guard()
assert guard is not None
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE, prot=mmap.PROT_READ)
os.truncate(sys.argv[1], 0)
with guard.watch(1 << 40, mmap.PAGESIZE):
    print("alive", flush=True)
    mapped[mmap.PAGESIZE]
print("never said")
"""


@pytest.mark.parametrize("faulthandler", ["enabled", "not"])
def test_a_fault_outside_the_windows_kills_as_it_did_before(faulthandler: str, guard: Guard, tmp_path: Path) -> None:
    """With faulthandler's message, where that had the signal."""
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 2 * PAGE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    command = [sys.executable, "-c", OUTSIDE, str(path), faulthandler]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "alive\n")
    assert ("Fatal Python error: Bus error" in done.stderr) == (faulthandler == "enabled")


@pytest.mark.parametrize(
    ("system", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64"), ("linux", "i686")]
)
def test_elsewhere_there_is_no_guard(system: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert guard_module._install.__wrapped__() is None


AT_ONCE = """
import mmap, os, sys, threading
import numpy as np
from weightprint.engine.guard import installed_guard

barrier, found = threading.Barrier(8), []

def ask():
    barrier.wait()
    found.append(installed_guard())

threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(set(map(id, found))) == 1
with open(sys.argv[1], "rb") as file:
    data = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
os.truncate(sys.argv[1], 0)
with found[0].watch(data.ctypes.data, len(data)) as was_missing:
    assert data.sum() == 0 and was_missing()
"""


def test_threads_that_ask_at_once_get_one_guard(guard: Guard, tmp_path: Path) -> None:
    """Two would leave the handler with one table and the windows in the other."""
    (tmp_path / "file").write_bytes(b"1" * PAGE)
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(tmp_path / "file")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
