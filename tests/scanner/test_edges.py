"""Edges of what is found and kept: paths that cannot be entered, stores below what is scanned, streams made to hurt."""

import errno
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fingerprints import small_fingerprint
from roles.role_headers import SHAPES, headers, read, tensor

import tiny
from weightprint import store as stores
from weightprint.discover import discover
from weightprint.engine import files as engine_files
from weightprint.errors import CheckpointError, StoreError, UsageError
from weightprint.fingerprint import read_structure
from weightprint.formats.opened import open_file
from weightprint.formats.pickle_reader import read_pickle
from weightprint.formats.torch_stream import MAGIC, PROTOCOL
from weightprint.scan import Report, ScanOptions, scan

pytestmark = pytest.mark.usefixtures("own_home")

BASE = tiny.llama(1, layers=2)


WITHOUT_PRIVILEGE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
needs_permissions = pytest.mark.skipif(
    bool(WITHOUT_PRIVILEGE) and shutil.which("setpriv") is None, reason="root can read everything"
)


def unprivileged(*arguments: str) -> tuple[int, str, str]:
    """Run weightprint as somebody whom permissions bind: (exit code, stdout, stderr)."""
    command = [*WITHOUT_PRIVILEGE, sys.executable, "-m", "weightprint", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A good checkpoint beside a directory that can be listed and not searched, a config that may not be read, and a
    directory that may not be entered."""
    tree = tmp_path_factory.mktemp("edges") / "tree"
    for name in ("good", "listed", "config", "locked/base"):
        tiny.save(tree / name, BASE)
    closed = {"listed": 0o444, "locked": 0, "config/config.json": 0}
    for name, mode in closed.items():
        (tree / name).chmod(mode)
    yield tree
    for name in closed:
        (tree / name).chmod(0o700)


@needs_permissions
def test_what_may_not_be_entered_costs_itself_alone(tree: Path) -> None:
    code, out, err = unprivileged("scan", str(tree), "--store", str(tree.parent / "store"), "--json")
    found = {entry["name"]: entry for entry in json.loads(out)["checkpoints"]}
    assert {name: (entry["status"], entry["code"]) for name, entry in found.items()} == {
        "good": ("complete", None),
        "listed": ("failed", "E_UNREADABLE"),
        "config": ("partial", "E_UNREADABLE"),
        "locked": ("failed", "E_UNREADABLE"),
    }
    assert code == 3
    for name, file in {"listed": "model.safetensors", "config": "config.json"}.items():
        assert found[name]["notices"][0]["path"] == str(tree / name / file)
        assert "Permission denied" in found[name]["reason"]
        assert f"{file}: cannot be opened" in err


@needs_permissions
@pytest.mark.parametrize("command", ["scan", "inspect", "show"])
@pytest.mark.parametrize("place", ["locked", "locked/base", "locked/base.weightprint", "listed"])
def test_a_path_that_cannot_be_looked_at_is_unreadable_and_not_absent(command: str, place: str, tree: Path) -> None:
    code, out, err = unprivileged(command, str(tree / place), *(["-q"] if command == "scan" else []))
    assert (code, "E_UNREADABLE" in out, "no such file" in out + err) == (3, True, False)
    assert str(tree / place) in out


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory to which nothing can be written once it is closed."""
    (tmp_path / "closed").mkdir()
    yield tmp_path / "closed"
    (tmp_path / "closed").chmod(0o700)


@needs_permissions
def test_a_store_that_only_can_be_read_serves_what_is_fresh_and_is_refused_for_more(
    closed: Path, tmp_path: Path
) -> None:
    models = tiny.save(tmp_path / "models/old", BASE).parent
    run([models], closed)
    closed.chmod(0o555)
    arguments = ("scan", str(models), "--store", str(closed), "-q")
    code, out, err = unprivileged(*arguments, "--json")
    assert (code, json.loads(out)["summary"]["skipped_fresh"], err) == (0, 1, "")
    tiny.save(models / "new", BASE)
    code, out, err = unprivileged(*arguments)
    assert (code, out) == (2, "")
    assert err == f"weightprint: {closed}: no fingerprint can be written there (Permission denied); " + (
        "choose another store [E_STORE]\n"
    )


@needs_permissions
def test_an_output_whose_directory_cannot_be_written_is_refused_before_reading(closed: Path, tmp_path: Path) -> None:
    base, store = tiny.save(tmp_path / "base", BASE), tmp_path / "store"
    closed.chmod(0o555)
    code, out, err = unprivileged("scan", str(base), "--store", str(store), "--out", str(closed / "report.json"))
    assert (code, out, store.exists()) == (2, "", False)
    assert "report.json: its directory cannot be written to" in err
    assert err.endswith("[E_OUTPUT]\n")


def test_a_config_that_the_disk_cannot_read_is_not_called_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tmp_path / "base", BASE)

    def broken(*arguments: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    (found,) = discover([tmp_path])
    assert [(notice.code, notice.path) for notice in found.notices] == [("E_READ", str(tmp_path / "base/config.json"))]


def test_a_name_that_no_file_system_takes_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    (found,) = discover([path])
    (notice,) = found.notices
    assert (found.path, notice.code, notice.path) == (path, "E_UNREADABLE", str(path))
    assert "File name too long" in notice.reason
    report = run([path], tmp_path / "store")
    assert [outcome.fingerprint.code for outcome in report.outcomes] == ["E_UNREADABLE"]


def run(paths: Sequence[Path], store: Path, references: Sequence[Path] = ()) -> Report:
    return scan(ScanOptions(paths=tuple(paths), store=store, references=tuple(references)))


def pairs(report: Report) -> set[tuple[str, str, str]]:
    return {(pair.a, pair.b, pair.verdict) for pair in report.comparisons}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A directory of two relatives, and a link to it beside it."""
    tiny.save(tmp_path / "tree/base", BASE)
    tiny.save(tmp_path / "tree/tuned", tiny.tuned(BASE, 2))
    (tmp_path / "link").symlink_to("tree")
    return tmp_path


RELATIVES = {("base", "tuned", "shared-origin")}


@pytest.mark.parametrize("store", ["tree/store", "link/store", "tree/base/../store", "link/store/../../tree/store"])
@pytest.mark.parametrize("path", ["tree", "link", "link/../tree", "tree/."])
def test_a_store_below_the_scanned_path_is_not_scanned_whatever_leads_to_it(
    path: str, store: str, family: Path
) -> None:
    first = run([family / "tree"], family / "tree/store")
    assert pairs(first) == RELATIVES
    # What the store says of a checkpoint that was since replaced would be another checkpoint.
    tiny.save(family / "tree/tuned", tiny.tuned(BASE, 3))
    report = run([family / path], family / store)
    assert [outcome.fingerprint.name for outcome in report.outcomes] == ["base", "tuned"]
    assert (pairs(report), report.references) == (RELATIVES, ())
    again = run([family / path], family / store)
    assert [outcome.fresh for outcome in again.outcomes] == [True, True]
    assert pairs(again) == RELATIVES


@pytest.mark.parametrize(("scanned", "referred"), [("tree", "link"), ("link", "tree"), ("tree", "link/base/../")])
def test_a_reference_taken_through_a_link_is_the_scanned_checkpoint_itself(
    scanned: str, referred: str, family: Path
) -> None:
    run([family / referred], family / "references")
    report = run([family / scanned], family / "store", [family / "references"])
    assert (pairs(report), report.references) == (RELATIVES, ())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the checkpoints whose weights are read."""
    names: list[str] = []
    whole = engine_files.open_regular

    def noted(path: Path) -> int:
        names.append(path.parent.name)
        return whole(path)

    monkeypatch.setattr(engine_files, "open_regular", noted)
    return names


@pytest.mark.parametrize("store", ["file", "file/store"])
def test_a_store_that_cannot_be_is_refused_before_weights_are_read(
    store: str, tmp_path: Path, reads: list[str]
) -> None:
    base = tiny.save(tmp_path / "base", BASE)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="no fingerprint can be written there") as caught:
        run([base], tmp_path / store)
    assert (caught.value.code, caught.value.path, reads) == ("E_STORE", str(tmp_path / store), [])
    assert (tmp_path / "file").read_text() == "in the way"
    run([base], tmp_path / "store")
    assert set(reads) == {"base"}  # two threads may open it at once


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    stores.require_writable(tmp_path / "new/store")
    stores.require_writable(tmp_path / "new/store")
    assert list((tmp_path / "new/store").iterdir()) == []


def test_a_name_of_two_references_removes_neither(tmp_path: Path) -> None:
    one, two = (replace(small_fingerprint("model"), path=path) for path in ("/one/model", "/two/model"))
    files = [stores.save(tmp_path, fingerprint) for fingerprint in (one, two)]
    other = stores.save(tmp_path, small_fingerprint("other"))
    with pytest.raises(UsageError, match="2 references are named 'model'") as caught:
        stores.remove_named(tmp_path, ["other", "model"])
    assert caught.value.code == "E_USAGE"
    assert all(file.name in caught.value.message for file in files)
    assert all(file.exists() for file in (*files, other))
    assert stores.remove_named(tmp_path, [files[0].name]) == [files[0]]
    # What is left bears its name alone; named twice it goes once.
    assert stores.remove_named(tmp_path, ["model", files[1].name, "model"]) == [files[1]]
    assert list(tmp_path.iterdir()) == [other]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def identity(*more: bytes, end: bytes) -> bytes:
    """A storage's persistent identity: four elements of float32 on the CPU, and ``more``."""
    parts = (text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), b"K\x04", *more)
    return b"(" + b"".join(parts) + end


PLACE = b"(" + text("0") + b"K\x01K\x02"

IDENTITIES: dict[str, tuple[bytes, bool]] = {
    "tuple-of-5": (identity(end=b"t"), True),
    "tuple-without-view": (identity(b"N", end=b"t"), True),
    "tuple-with-view": (identity(PLACE + b"t", end=b"t"), True),
    "list-of-5": (identity(end=b"l"), False),
    "list-with-view": (identity(PLACE + b"t", end=b"l"), False),
    "tuple-of-4": (identity(end=b"t").replace(text("cpu"), b""), False),
    "tuple-of-7": (identity(b"N", b"N", end=b"t"), False),
    "view-that-is-a-list": (identity(PLACE + b"l", end=b"t"), False),
    "view-of-2": (identity(PLACE.replace(text("0"), b"") + b"t", end=b"t"), False),
    "view-of-4": (identity(PLACE + b"Nt", end=b"t"), False),
    "view-that-is-text": (identity(text("abc"), end=b"t"), False),
    "view-that-is-a-dictionary": (identity(b"}(K\x01NK\x02NK\x03Nu", end=b"t"), False),
}


def fault_of(path: Path, content: bytes) -> str | None:
    """The code that reading a pickle of ``content`` ends with, None if it is read."""
    path.write_bytes(content)
    try:
        with open_file(path) as file:
            read_pickle(file, 0)
    except CheckpointError as error:
        return error.code
    return None


@pytest.mark.parametrize("case", IDENTITIES)
def test_a_storage_is_a_tuple_and_its_view_a_tuple_of_three(case: str, tmp_path: Path) -> None:
    stream, admitted = IDENTITIES[case]
    assert fault_of(tmp_path / "x", b"\x80\x02" + stream + b"Q.") == (None if admitted else "E_PICKLE_INVALID")


def bomb(longer: bytes) -> bytes:
    """A pickle with one long identity that is used again and again; each use may cost no more than a look at it."""
    return b"\x80\x02" + longer + b"q\x000}" + b"h\x00Q0" * 10_000 + b"."


BOMBS = {
    "long-list": identity(b"N" * 100_000, end=b"l"),
    "long-tuple": identity(b"N" * 100_000, end=b"t"),
    "long-view": identity(b"(" + b"N" * 100_000 + b"l", end=b"t"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_long_identity_is_refused_at_its_first_use(case: str, tmp_path: Path) -> None:
    started = time.process_time()
    assert fault_of(tmp_path / "x", bomb(BOMBS[case])) == "E_PICKLE_INVALID"
    assert time.process_time() - started < 2


def test_a_bomb_is_a_failed_checkpoint(tmp_path: Path) -> None:
    front = (MAGIC, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}})
    stream = b"".join(pickle.dumps(value, 2) for value in front) + bomb(BOMBS["long-list"])
    (tmp_path / "pytorch_model.bin").write_bytes(stream)
    (found,) = discover([tmp_path])
    (notice,) = [notice for notice in read_structure(found).notices if notice.code != "E_NO_ATTENTION"]
    assert (notice.code, notice.path) == ("E_PICKLE_INVALID", str(tmp_path / "pytorch_model.bin"))


STEMS = {"": "#", "model.layers": "model.layers.#", "stages.0.blocks": "stages.0.blocks.#"}
# name of a tensor -> the stem whose layer 2 it shows to be there
BEARERS = {
    "2.mlp.up.weight": "",
    "2": "",
    "model.layers.2.mlp.up.weight": "model.layers",
    "model.layers.2": "model.layers",
    "stages.0.blocks.2.mlp.up.weight": "stages.0.blocks",
    "stages.0.blocks.2.parts.7.up.weight": "stages.0.blocks",
    "stages.1.blocks.2.mlp.up.weight": None,
    "stages.2.blocks.0.mlp.up.weight": None,
    "other.model.layers.2.mlp.up.weight": None,
    "model.layers.20.mlp.up.weight": None,
    "model.layers.x.2.mlp.up.weight": None,
    "model.layers2.mlp.up.weight": None,
    "mlp.2.up.weight": None,
}


@pytest.mark.parametrize("stem", STEMS, ids=lambda stem: stem or "no-prefix")
def test_a_layer_is_there_if_a_tensor_of_its_own_stack_bears_its_number(stem: str) -> None:
    shapes = {f"{STEMS[stem]}.attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"}
    tensors = [spec for spec in headers(shapes, 4) if not spec.name.startswith(STEMS[stem].replace("#", "2."))]
    assert len(tensors) == 12
    for name, owner in BEARERS.items():
        understanding = read([*tensors, tensor(name, (64, 48))])
        said = [notice.reason.split(":")[0] for notice in understanding.notices]
        missing = [] if owner == stem else [f"layer 2 of {stem or 'the model'} is missing"]
        assert (name, said) == (name, missing)


def test_gaps_of_several_stacks_are_told_apart() -> None:
    tensors = []
    for stem in ("visual.blocks", "model.layers"):
        shapes = {f"{stem}.#.attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"}
        tensors += [spec for spec in headers(shapes, 6) if f"{stem}.2." not in spec.name and ".4." not in spec.name]
    tensors += [tensor("visual.blocks.2.mlp.weight", (64, 48)), tensor("model.layers.4.mlp.weight", (64, 48))]
    reasons = sorted(notice.reason.split(":")[0] for notice in read(tensors).notices)
    assert reasons == ["layer 2 of model.layers is missing", "layer 4 of visual.blocks is missing"]
