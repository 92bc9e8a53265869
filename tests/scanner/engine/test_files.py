"""Bytes of files: mapped or read, they are the same; what is wrong with a file is said, and nothing stays open."""

import ctypes
import errno
import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_cases import LAYOUTS, Reads, assert_reduced, bits, lay_out, plan_of

from weightprint.data import Matrix, Part, TensorSpec
from weightprint.engine import files as engine_files
from weightprint.engine.cpu import reduce_plan
from weightprint.engine.files import OpenFiles, bytes_of, is_local, is_resident, open_regular
from weightprint.errors import CheckpointError
from weightprint.plan import Slot, plan_reads
from weightprint_kernels.numba_backend import NumbaBackend

PAGE = mmap.PAGESIZE
SIZE = 5 * PAGE + 123


CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()


def write(folder: Path) -> Path:
    (folder / "file").write_bytes(CONTENT)
    return folder / "file"


@pytest.fixture
def content() -> bytes:
    return CONTENT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.fixture(params=["mapped", "read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the bytes come."""
    monkeypatch.setattr(engine_files, "is_local", lambda descriptor: request.param == "mapped")
    return str(request.param)


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a count, not paths


def take(path: Path, offset: int, length: int, meanwhile: Callable[[], None] = lambda: None) -> bytes:
    """The bytes of a slot; ``meanwhile`` is called while they are held."""
    descriptor = open_regular(path)
    try:
        with bytes_of(Slot(path, offset, length, ()), descriptor) as data:
            assert (data.dtype, data.shape) == (np.uint8, (length,))
            meanwhile()
            taken = data.tobytes()
            del data
        return taken
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, SIZE), (0, 1), (SIZE - 1, 1), (1, PAGE), (PAGE, PAGE), (PAGE - 1, 2), (2 * PAGE + 7, 3 * PAGE + 100)],
)
def test_the_bytes_of_a_slot(offset: int, length: int, way: str, path: Path, content: bytes) -> None:
    before = open_descriptors()
    assert take(path, offset, length) == content[offset : offset + length]
    assert open_descriptors() == before


@pytest.mark.parametrize("size", [0, SIZE // 2, SIZE - 1])
def test_a_file_that_is_too_short_is_truncated(size: int, way: str, path: Path) -> None:
    os.truncate(path, size)
    with pytest.raises(CheckpointError) as caught:
        take(path, 100, SIZE - 100)
    assert (caught.value.code, caught.value.path) == ("E_FILE_TRUNCATED", str(path))
    assert f"ends at byte {size}, and its header describes bytes up to {SIZE} at least" in caught.value.message


def test_a_file_cut_to_half_while_its_bytes_are_held(path: Path, content: bytes) -> None:
    """The pages that went away are zeros, the process lives, and the fault is that of the file."""
    held: list[bytes] = []
    descriptor = open_regular(path)
    if not is_local(descriptor):
        pytest.skip("this file system is not mapped")
    with pytest.raises(CheckpointError) as caught, bytes_of(Slot(path, 5, SIZE - 5, ()), descriptor) as data:
        os.truncate(path, 3 * PAGE)
        held.append(data.tobytes())
        del data
    os.close(descriptor)
    assert held == [content[5 : 3 * PAGE] + bytes(SIZE - 3 * PAGE)]
    assert (caught.value.code, caught.value.path) == ("E_FILE_TRUNCATED", str(path))
    assert f"ends at byte {3 * PAGE}" in caught.value.message


def test_pages_that_come_back_are_a_fault_of_the_disk(path: Path, content: bytes) -> None:
    """Of whole size again when that is looked at, as after an error of the disk: the zeros that were read are not
    taken for weights."""

    def gone_and_back() -> None:
        os.truncate(path, 0)

    descriptor = open_regular(path)
    if not is_local(descriptor):
        pytest.skip("this file system is not mapped")
    with pytest.raises(CheckpointError) as caught, bytes_of(Slot(path, 0, SIZE, ()), descriptor) as data:
        gone_and_back()
        assert not data.any()
        os.truncate(path, SIZE)
        del data
    os.close(descriptor)
    assert (caught.value.code, caught.value.path) == ("E_READ", str(path))
    assert f"bytes 0 to {SIZE} could not be read" in caught.value.message


def test_a_file_that_shrinks_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network file system: the size was right, and the end comes all the same."""
    monkeypatch.setattr(engine_files, "is_local", lambda descriptor: False)
    monkeypatch.setattr(engine_files, "READ_BYTES", PAGE)
    preadv = os.preadv

    def shrinking(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags == 0 and offset >= PAGE:
            os.truncate(path, PAGE)
        return preadv(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", shrinking)
    with pytest.raises(CheckpointError) as caught:
        take(path, 0, SIZE)
    assert caught.value.code == "E_FILE_TRUNCATED"
    assert f"ends at byte {PAGE}" in caught.value.message


@pytest.mark.parametrize("at", [0, 2])
def test_a_disk_that_fails(at: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_files, "READ_BYTES", PAGE)
    before = open_descriptors()
    Reads(monkeypatch, fail_after=at)
    with pytest.raises(CheckpointError) as caught:
        take(path, 10, SIZE - 10)
    assert (caught.value.code, caught.value.path) == ("E_READ", str(path))
    assert f"reading at byte {10 + at * PAGE} failed (Input/output error)" in caught.value.message
    assert open_descriptors() == before


@pytest.mark.parametrize("at_most", [1, 7, PAGE])
def test_short_reads_are_put_together(
    at_most: int, path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch, at_most=at_most)
    assert take(path, 3, 2000) == content[3:2003]
    assert max(count for _, count in reads.done) <= at_most
    assert reads.total == 2000


def test_reads_ask_for_no_more_than_a_network_file_system_transfers(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_files, "READ_BYTES", 3 * PAGE)
    reads = Reads(monkeypatch)
    assert take(path, 0, SIZE) == content
    assert reads.done == [(0, 3 * PAGE), (3 * PAGE, SIZE - 3 * PAGE)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mapped_and_read_in_bits_give_the_same(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid = lay_out(layout, tmp_path, "bf16", lead=3)
    plan = plan_of(laid, 700)
    mapped = reduce_plan(plan, NumbaBackend())
    Reads(monkeypatch, at_most=100)
    read = reduce_plan(plan, NumbaBackend())
    assert_reduced(laid, read)
    for number in range(len(laid)):
        assert bits(mapped, number) == bits(read, number)


@pytest.mark.parametrize("damage", ["gone", "pipe", "directory", "no-permission"])
def test_what_cannot_be_opened(damage: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe nobody writes to is refused and not waited for."""
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "directory":
        path.mkdir()
    elif damage == "no-permission":

        def refuse(*arguments: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
    before = open_descriptors() if damage != "no-permission" else None
    with pytest.raises(CheckpointError) as caught:
        open_regular(path)
    code = "E_NOT_REGULAR" if damage in ("pipe", "directory") else "E_READ"
    assert (caught.value.code, caught.value.path) == (code, str(path))
    assert before is None or open_descriptors() == before


# --- the page cache -------------------------------------------------------------------------------------------


def resident(path: Path) -> int:
    """How many pages of a file are in the page cache, by mincore: asking with RWF_NOWAIT would let some be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ), np.uint8)
    pages = (ctypes.c_ubyte * -(-size // PAGE))()
    library = ctypes.CDLL(None, use_errno=True)
    if library.mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(size), pages) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(page & 1 for page in pages)


PAGES = 64


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    return drop(tmp_path)


def drop(folder: Path) -> Path:
    """A file on the disk and not in the page cache."""
    path = folder / "cold"
    with path.open("wb") as file:
        file.write(b"\1" * PAGES * PAGE)
        file.flush()
        os.fsync(file.fileno())
        if not hasattr(os, "RWF_NOWAIT") or not hasattr(os, "posix_fadvise"):
            pytest.skip("this system does not tell what is in the page cache")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        if resident(path):
            pytest.skip("this file system keeps its pages, or does not tell")
    except OSError as error:
        pytest.skip(f"this file system does not tell what is in the page cache ({error.strerror})")
    return path


def test_what_was_not_in_the_page_cache_is_dropped_again(dropped: Path, way: str) -> None:
    assert take(dropped, 0, PAGES * PAGE) == b"\1" * PAGES * PAGE
    assert resident(dropped) == 0


def test_what_was_in_the_page_cache_stays(dropped: Path, way: str) -> None:
    dropped.read_bytes()
    assert resident(dropped) == PAGES
    take(dropped, 0, PAGES * PAGE)
    assert resident(dropped) == PAGES


@pytest.mark.parametrize("missing", [0, PAGES - 1, PAGES])
def test_residency_is_asked_over_the_whole_range(missing: int, dropped: Path) -> None:
    """One page that is missing at either end tells; the last figure stands for none."""
    descriptor = open_regular(dropped)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for page in range(PAGES):
            if page != missing:
                os.pread(descriptor, 1, page * PAGE)
        if resident(dropped) != PAGES - (missing < PAGES):
            pytest.skip("this file system reads more than it is asked for")
        assert is_resident(descriptor, 0, PAGES * PAGE) == (missing == PAGES)
    finally:
        os.close(descriptor)


def test_a_single_byte_is_resident_or_not(dropped: Path) -> None:
    descriptor = open_regular(dropped)
    try:
        assert not is_resident(descriptor, PAGE + 17, 1)
        dropped.read_bytes()
        assert is_resident(descriptor, PAGE + 17, 1)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_reduction_leaves_the_page_cache_as_it_was(warm: bool, dropped: Path, way: str) -> None:
    """But for pages that two slots share: the system drops whole pages alone."""
    rows, columns = PAGES - 1, PAGE // 2
    spec = TensorSpec("q", (rows, columns), "bf16", dropped, 100, rows * PAGE)
    whole = Part(spec, (rows, columns), ((0, rows),))
    plan = plan_reads([Matrix("stack", 0, "q", (rows, columns), (whole,))], slot_bytes=16 * PAGE)
    assert len(plan) == 4
    if warm:
        dropped.read_bytes()
    reduce_plan(plan, NumbaBackend())
    left = resident(dropped)
    assert left == PAGES if warm else left <= len(plan) + 1


# --- which file systems are mapped ----------------------------------------------------------------------------


def test_a_network_file_system_is_known_by_its_type(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = open_regular(path)
    try:
        kind = engine_files._file_systems().get(os.fstat(descriptor).st_dev)
        if kind is None:
            pytest.skip("this file system is not in /proc/self/mountinfo")
        assert is_local(descriptor) == (kind not in engine_files.NETWORK)
        monkeypatch.setattr(engine_files, "NETWORK", frozenset([kind]))
        assert not is_local(descriptor)
    finally:
        os.close(descriptor)


MOUNTS = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:45 / /mnt/models rw shared:9 master:2 - nfs4 server:/export rw,vers=4.2
31 22 0:46 /sub /mnt/with\\040space rw - fuse.sshfs user@host:/ rw
"""


def test_types_are_read_by_device_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optional fields, of which there may be any number, end with a dash."""
    monkeypatch.setattr(Path, "read_text", lambda self: MOUNTS)
    found = engine_files._file_systems.__wrapped__()
    assert found == {os.makedev(0, 21): "ext4", os.makedev(0, 45): "nfs4", os.makedev(0, 46): "fuse.sshfs"}


def test_without_mountinfo_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert engine_files._file_systems.__wrapped__() == {}


# --- open files -----------------------------------------------------------------------------------------------


def test_a_file_is_open_from_its_first_slot_to_its_last(tmp_path: Path) -> None:
    laid = lay_out("row-major", tmp_path, "bf16")
    plan = plan_of(laid, 100)
    path = plan.slots[0].path
    before = open_descriptors()
    files = OpenFiles(plan)
    assert open_descriptors() == before
    seen = set()
    for number in range(len(plan)):
        with files.using(path) as descriptor:
            seen.add(descriptor)
            assert open_descriptors() == before + 1
        assert open_descriptors() == before + (number < len(plan) - 1)
    assert len(seen) == 1


def test_slots_that_are_given_up_count_and_what_is_left_is_closed(tmp_path: Path) -> None:
    plan = plan_of(lay_out("row-major", tmp_path, "bf16"), 100)
    path = plan.slots[0].path
    before = open_descriptors()
    files = OpenFiles(plan)
    with files.using(path):
        for _ in range(len(plan) - 2):
            files.done(path)
    assert open_descriptors() == before + 1
    files.done(path)
    assert open_descriptors() == before
    half = OpenFiles(plan)
    with half.using(path):
        pass
    assert open_descriptors() == before + 1
    half.close()
    half.close()
    assert open_descriptors() == before


def test_no_file_of_an_empty_plan() -> None:
    OpenFiles(plan_reads([])).close()
