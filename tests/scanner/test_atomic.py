"""Atomic writes: the old file or the new one, whichever call fails, and nothing left beside it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fingerprints import same, small_fingerprint

from weightprint import store
from weightprint.atomic import TEMPORARY_SUFFIX, write_atomic
from weightprint.errors import StoreError
from weightprint.fingerprint_file import read_fingerprint

OLD, NEW = b"old" * 100, b"new" * 200
Fault = Callable[[pytest.MonkeyPatch, BaseException], None]


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def open_fails(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    patch.setattr(Path, "open", failing(error))


def write_fails(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Half of the content reaches the file, then no more."""
    whole = Path.open

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Half":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise error

    patch.setattr(Path, "open", lambda path, *arguments, **options: Half(whole(path, *arguments, **options)))


def fsync_fails(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    patch.setattr(os, "fsync", failing(error))


def rename_fails(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    patch.setattr(Path, "replace", failing(error))


def directory_open_fails(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    whole = os.open

    def watched(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise error
        return whole(path, flags, *arguments, **options)

    patch.setattr(os, "open", watched)


def directory_fsync_fails(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    whole = os.fsync

    def watched(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112  a descriptor
            raise error
        whole(descriptor)

    patch.setattr(os, "fsync", watched)


FAULTS: dict[str, tuple[Fault, bytes]] = {
    # name: (what fails, what the file holds afterwards)
    "open": (open_fails, OLD),
    "write": (write_fails, OLD),
    "fsync": (fsync_fails, OLD),
    "rename": (rename_fails, OLD),
    "directory-open": (directory_open_fails, NEW),
    "directory-fsync": (directory_fsync_fails, NEW),
}
ERRORS = {
    "ENOSPC": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "EIO": OSError(errno.EIO, os.strerror(errno.EIO)),
    "EACCES": OSError(errno.EACCES, os.strerror(errno.EACCES)),
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("existing", [True, False], ids=["over-a-file", "new"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_leaves_the_old_or_the_new(fault: str, error: str, existing: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.weightprint"
    if existing:
        path.write_bytes(OLD)
    plant, expected = FAULTS[fault]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(ERRORS[error])) as caught:
        plant(patch, ERRORS[error])
        write_atomic(path, NEW)
    assert caught.value is ERRORS[error]
    there = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    assert there == ({path.name: expected} if existing or expected is NEW else {})
    write_atomic(path, NEW)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {path.name: NEW}


def test_the_file_is_on_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    order: list[tuple[str, bytes]] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  a descriptor
        order.append((f"fsync {'directory' if target == str(tmp_path) else 'file'}", path.read_bytes()))
        if target != str(tmp_path):
            assert Path(target).read_bytes() == NEW
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> Path:
        order.append(("rename", path.read_bytes()))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_atomic(path, NEW)
    assert order == [("fsync file", OLD), ("rename", OLD), ("fsync directory", NEW)]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "𝛑" * 60, "\udcff" * 255], ids=["ascii", "two", "four", "raw"])
def test_any_name_that_the_file_system_takes(name: str, tmp_path: Path) -> None:
    write_atomic(tmp_path / name, NEW)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(OLD)
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", NEW)
    assert (tmp_path / "target").read_bytes() == OLD
    assert (tmp_path / "link").read_bytes() == NEW
    assert not (tmp_path / "link").is_symlink()


def test_a_directory_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "a", NEW)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_temporary_names_are_hidden_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda source, target: seen.append(source) or replace(source, target))
    for _ in range(3):
        write_atomic(tmp_path / "a.weightprint", NEW)
    assert len(set(seen)) == 3
    assert all(path.name.startswith(".") and path.suffix == TEMPORARY_SUFFIX for path in seen)
    assert {path.parent for path in seen} == {tmp_path}


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_store_says_why_and_keeps_what_it_had(fault: str, error: str, tmp_path: Path) -> None:
    first, second = small_fingerprint(seed=1), small_fingerprint(seed=2)
    path = store.save(tmp_path, first)
    plant, expected = FAULTS[fault]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoreError) as caught:
        plant(patch, ERRORS[error])
        store.save(tmp_path, second)
    assert (caught.value.code, caught.value.path) == ("E_STORE", str(path))
    assert str(ERRORS[error].args[1]) in caught.value.message
    assert same(read_fingerprint(path), second if expected is NEW else first)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
