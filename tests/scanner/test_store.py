"""The store: one file a checkpoint, fresh or not, nothing lost when a file is damaged or a writer dies."""

from dataclasses import replace
from pathlib import Path

import pytest
from fingerprints import same, small_fingerprint

from weightprint import store
from weightprint.data import Checkpoint
from weightprint.errors import StoreError, UsageError


def checkpoint(name: str = "family/model") -> Checkpoint:
    return Checkpoint(name, Path(f"/models/{name}"), ())


def test_saved_fingerprint_is_fresh(tmp_path: Path) -> None:
    store.save(tmp_path, small_fingerprint())
    found = store.load_fresh(tmp_path, checkpoint(), small_fingerprint().sources)
    assert found is not None
    assert same(found, small_fingerprint())


def test_found_under_another_name(tmp_path: Path) -> None:
    store.save(tmp_path, small_fingerprint())
    renamed = replace(checkpoint(), name="model")
    assert store.load_fresh(tmp_path, renamed, small_fingerprint().sources) is not None


@pytest.mark.parametrize(
    "field", [{"size": 1}, {"mtime_ns": 1}, {"header_digest": "cd" * 32}], ids=lambda f: next(iter(f))
)
def test_changed_source_is_not_fresh(tmp_path: Path, field: dict[str, int]) -> None:
    store.save(tmp_path, small_fingerprint())
    (source,) = small_fingerprint().sources
    assert store.load_fresh(tmp_path, checkpoint(), (replace(source, **field),)) is None


def test_damaged_file_counts_as_absent(tmp_path: Path) -> None:
    path = store.save(tmp_path, small_fingerprint())
    path.write_bytes(path.read_bytes()[:-1])
    assert store.load_fresh(tmp_path, checkpoint(), small_fingerprint().sources) is None


def test_incomplete_fingerprint_of_another_version_is_not_fresh(tmp_path: Path) -> None:
    store.save(tmp_path, replace(small_fingerprint(), tool_version="0.0.9"))
    assert store.load_fresh(tmp_path, checkpoint(), small_fingerprint().sources) is None


def test_temporary_files_are_ignored(tmp_path: Path) -> None:
    store.save(tmp_path, small_fingerprint())
    (tmp_path / ".family-model.123.abcd.tmp").write_bytes(b"half")
    fingerprints, notices = store.load_all(tmp_path)
    assert len(fingerprints) == 1
    assert not notices


def test_damaged_files_are_named(tmp_path: Path) -> None:
    store.save(tmp_path, small_fingerprint())
    (tmp_path / "bad.weightprint").write_bytes(b"\0" * 50)
    fingerprints, notices = store.load_all(tmp_path)
    assert len(fingerprints) == 1
    assert [(notice.code, notice.path) for notice in notices] == [
        ("E_FINGERPRINT_CORRUPT", str(tmp_path / "bad.weightprint"))
    ]


def test_same_last_part_different_path_are_two_files(tmp_path: Path) -> None:
    store.save(tmp_path, small_fingerprint("a/model"))
    store.save(tmp_path, small_fingerprint("b/model"))
    assert len(store.load_all(tmp_path)[0]) == 2


def test_store_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StoreError) as caught:
        store.save(blocker / "store", small_fingerprint())
    assert caught.value.code == "E_STORE"


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\nc", "", "x" * 500, "-rf", "é\udcff"])
def test_file_names_are_plain(name: str) -> None:
    file = store.file_name(name, "/models/" + name)
    assert "/" not in file
    assert file.isascii()
    assert len(file) < 200
    assert not file.startswith((".", "-"))


def test_remove_named(tmp_path: Path) -> None:
    store.save(tmp_path, small_fingerprint("a"))
    store.save(tmp_path, small_fingerprint("b"))
    with pytest.raises(UsageError, match="no reference is named 'c'"):
        store.remove_named(tmp_path, ["a", "c"])
    assert len(store.load_all(tmp_path)[0]) == 2
    store.remove_named(tmp_path, ["a"])
    assert [fingerprint.name for fingerprint in store.load_all(tmp_path)[0]] == ["b"]
