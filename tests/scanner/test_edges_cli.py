"""Edges of the command line: damaged fingerprints, what is set aside, dry runs, outputs that fail, a second signal."""

import csv
import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fingerprints import small_fingerprint

import tiny
from weightprint import store as stores
from weightprint.atomic import write_atomic
from weightprint.cli import exits
from weightprint.engine import files as engine_files
from weightprint.report import files as report_files

pytestmark = pytest.mark.usefixtures("own_home", "own_signals")

BASE = tiny.llama(1, layers=2)
SELECTED = 2 * (2 * 64 * 64 + 2 * 32 * 64) * 4  # bytes of its attention

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call: Call) -> Call:
    """The shared one, and whatever the edge, it is no internal error."""

    def checked(*arguments: object) -> tuple[int, str, str]:
        code, out, err = call(*arguments)
        assert "internal error" not in err
        return code, out, err

    return checked


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two relatives."""
    tiny.save(tmp_path / "models/base", BASE)
    tiny.save(tmp_path / "models/tuned", tiny.tuned(BASE, 2))
    return tmp_path / "models"


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A fingerprint that lost its last byte."""
    file = stores.save(tmp_path / "taken", small_fingerprint("gone"))
    damaged = tmp_path / "bad.weightprint"
    damaged.write_bytes(file.read_bytes()[:-1])
    return damaged


def codes(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Code and file name of every notice."""
    return [(notice["code"], Path(notice["path"]).name) for notice in entry["notices"]]


CORRUPT = [("E_FINGERPRINT_CORRUPT", "bad.weightprint")]
COMPLETE = [("base", "complete"), ("tuned", "complete")]


# --- damaged fingerprints -------------------------------------------------------------------------------------


def test_a_damaged_fingerprint_beside_a_checkpoint_costs_itself_alone(
    models: Path, damaged: Path, tmp_path: Path, call: Call
) -> None:
    out_file = tmp_path / "report.json"
    code, out, _ = call("scan", damaged, models, "--out", out_file)
    report = json.loads(out_file.read_text())
    assert (code, codes(report)) == (3, CORRUPT)
    assert [(entry["name"], entry["status"]) for entry in report["checkpoints"]] == COMPLETE
    assert [pair["verdict"] for pair in report["pairs"]] == ["shared-origin"]
    assert f"{damaged}: " in out
    assert "[E_FINGERPRINT_CORRUPT]" in out


def test_a_damaged_reference_costs_itself_alone(models: Path, damaged: Path, call: Call) -> None:
    code, out, _ = call("scan", models / "tuned", "--refs", models / "base", "--refs", damaged, "--json")
    report = json.loads(out)
    assert (code, codes(report)) == (3, CORRUPT)
    assert [(pair["a"], pair["b"], pair["verdict"]) for pair in report["pairs"]] == [("tuned", "base", "shared-origin")]


DAMAGED_ALONE = ["scan {bad}", "scan {base} --refs {bad}", "refs add {bad}", "show {bad}"]
DAMAGED_ALONE += [f"{line} --dry-run" for line in DAMAGED_ALONE[:2]]


@pytest.mark.parametrize("line", DAMAGED_ALONE)
def test_a_damaged_fingerprint_alone_is_one_line(line: str, models: Path, damaged: Path, call: Call) -> None:
    code, out, err = call(*line.format(bad=damaged, base=models / "base").split())
    assert (code, out) == (3, "")
    assert err.startswith(f"weightprint: {damaged}: ")
    assert err.endswith("[E_FINGERPRINT_CORRUPT]\n")
    assert len(err.splitlines()) == 1


def test_references_are_added_beside_a_damaged_fingerprint(
    models: Path, damaged: Path, tmp_path: Path, call: Call
) -> None:
    damaged.rename(models / "bad.weightprint")
    code, out, err = call("refs", "add", models, "--refs", tmp_path / "set")
    assert (code, out) == (3, "")
    assert f"2 of 2 added to {tmp_path / 'set'}\n" in err
    assert err.endswith("[E_FINGERPRINT_CORRUPT]\n")
    code, out, _ = call("refs", "add", models, "--refs", tmp_path / "again", "--json")
    document = json.loads(out)
    assert (code, codes(document)) == (3, CORRUPT)
    assert [(entry["name"], entry["status"]) for entry in document["references"]] == COMPLETE
    (models / "bad.weightprint").unlink()
    code, out, _ = call("refs", "add", models, "--refs", tmp_path / "again", "--json")
    assert (code, json.loads(out)["notices"]) == (0, [])


def test_a_reference_that_cannot_be_kept_is_not_called_added(
    models: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "write_atomic", full_disk)
    code, out, err = call("refs", "add", models / "base", "--refs", tmp_path / "set")
    assert (code, out) == (3, "")
    assert f"0 of 1 added to {tmp_path / 'set'}\n" in err
    assert err.endswith("choose another place or free it [E_STORE]\n")


def test_listed_references_carry_notices(damaged: Path, call: Call) -> None:
    stores.save(damaged.parent / "set", small_fingerprint("model"))
    damaged.rename(damaged.parent / "set/bad.weightprint")
    code, out, err = call("refs", "list", "--refs", damaged.parent / "set", "--json")
    document = json.loads(out)
    assert (code, codes(document)) == (3, CORRUPT)
    assert [entry["name"] for entry in document["references"]] == ["model"]
    assert err.endswith("[E_FINGERPRINT_CORRUPT]\n")


@pytest.mark.parametrize("there", [False, True], ids=["nothing", "a file"])
def test_a_reference_set_that_is_not_there_is_not_an_empty_one(there: bool, tmp_path: Path, call: Call) -> None:
    if there:
        (tmp_path / "nowhere").write_text("no directory")
    code, out, err = call("refs", "list", "--refs", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert err.endswith("refs add makes one [E_NOT_FOUND]\n")
    # The default set need not be there.
    code, out, err = call("refs", "list")
    assert (code, "0 references" in out, err) == (0, True, "")


def test_one_name_of_two_references_removes_neither(tmp_path: Path, call: Call) -> None:
    names = ("a-one.weightprint", "b-two.weightprint")
    for name, seed in zip(names, range(2), strict=True):
        stores.write_fingerprint(tmp_path / "set" / name, small_fingerprint("model", seed))
    code, out, err = call("refs", "remove", "model", "--refs", tmp_path / "set")
    assert (code, out) == (2, "")
    assert err.endswith("name one by its file: a-one.weightprint, b-two.weightprint [E_USAGE]\n")
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == list(names)
    code, out, err = call("refs", "remove", "a-one.weightprint", "--refs", tmp_path / "set")
    assert (code, out, err) == (0, "", "removed a-one.weightprint\n")
    assert [file.name for file in (tmp_path / "set").iterdir()] == ["b-two.weightprint"]


# --- what is said of checkpoints ------------------------------------------------------------------------------


def test_what_is_set_aside_is_shown_with_its_reason(models: Path, call: Call) -> None:
    base = models / "base"
    (base / "pytorch_model.bin").write_bytes(b"the same model")
    (base / "optimizer.pt").write_bytes(b"moments")
    aside = [
        {"path": str(base / "optimizer.pt"), "reason": "holds no weights by its name"},
        {"path": str(base / "pytorch_model.bin"), "reason": "model.safetensors is read instead"},
    ]
    code, out, _ = call("inspect", base, "--json")
    assert (code, json.loads(out)["set_aside"]) == (0, aside)
    code, out, _ = call("inspect", base)
    for entry in aside:
        assert f"not read: {entry['path']}: {entry['reason']}\n" in out
    for fresh in (False, True):
        code, out, _ = call("scan", models, "--json")
        found = {entry["name"]: entry for entry in json.loads(out)["checkpoints"]}
        assert (code, found["base"]["set_aside"], found["tuned"]["set_aside"]) == (0, aside, [])
        assert found["base"]["fresh"] == fresh


def test_the_fingerprint_of_a_failed_checkpoint_is_a_document_and_no_file(tmp_path: Path, call: Call) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    code, out, err = call("fingerprint", tmp_path, "-o", tmp_path / "failed.weightprint", "--json")
    document = json.loads(out)
    assert (code, document["status"], document["code"]) == (3, "failed", "E_EMPTY_FILE")
    assert err.startswith("weightprint: nothing written: ")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert call("fingerprint", tmp_path, "-o", tmp_path / "failed.weightprint") == (3, "", err)


@pytest.mark.parametrize("command", ["scan", "inspect", "show", "refs add"])
def test_a_path_too_long_for_a_name_is_one_line(command: str, tmp_path: Path, call: Call) -> None:
    name = "x" * 300
    code, out, err = call(*command.split(), tmp_path / name, *(["-q"] if command == "scan" else []))
    (line,) = [line for line in (err if command == "refs add" else out).splitlines() if "E_UNREADABLE" in line]
    assert code == 3
    assert f"{tmp_path / name}: cannot be opened (File name too long)" in line


# --- before anything is read ----------------------------------------------------------------------------------


def test_a_dry_run_counts_the_references_that_would_be_read(models: Path, call: Call) -> None:
    arguments = ("scan", models / "tuned", "--refs", models / "base")
    code, out, _ = call(*arguments, "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0
    for kind, name in (("checkpoints", "tuned"), ("references", "base")):
        assert [(entry["name"], entry["bytes"]["read"]) for entry in document[kind]] == [(name, SELECTED)]
    assert document["summary"] == {"found": 1, "fresh": 0, "bytes_to_read": 2 * SELECTED}
    _, out, _ = call(*arguments, "--dry-run")
    assert "base (reference)" in out
    assert out.endswith("1 checkpoint, 0 fresh; 1 reference; a scan would read 197 kB\n")
    # What it says is what a scan does, and once that is done nothing is left to read.
    _, out, _ = call(*arguments, "--json")
    assert json.loads(out)["summary"]["bytes_read"] == 2 * SELECTED
    _, out, _ = call(*arguments, "--dry-run", "--json")
    assert json.loads(out)["summary"]["bytes_to_read"] == 0
    _, out, _ = call(*arguments, "--dry-run", "--rescan", "--json")
    assert json.loads(out)["summary"]["bytes_to_read"] == 2 * SELECTED


def test_a_dry_run_counts_a_reference_that_is_scanned_once(models: Path, call: Call) -> None:
    _, out, _ = call("scan", models, "--refs", models / "base", "--dry-run", "--json")
    document = json.loads(out)
    assert [entry["name"] for entry in document["checkpoints"]] == ["base", "tuned"]
    assert (document["references"], document["summary"]["bytes_to_read"]) == ([], 2 * SELECTED)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["scan", "dry-run"])
def test_references_that_are_not_there_are_wrong_usage(
    dry: list[str], models: Path, tmp_path: Path, call: Call
) -> None:
    code, out, err = call("scan", models, "--refs", tmp_path / "nowhere", *dry)
    assert (code, out) == (2, "")
    assert err.endswith("nowhere: there is no such file or directory [E_NOT_FOUND]\n")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["scan", "dry-run"])
@pytest.mark.parametrize("globs", [["--include", "zzz"], ["--exclude", "*"], ["--include", "t*", "--exclude", "t*"]])
def test_globs_that_leave_nothing_are_named_with_what_they_leave_out(
    globs: list[str], dry: list[str], models: Path, call: Call
) -> None:
    code, out, err = call("scan", models, *globs, *dry)
    assert (code, out) == (11, "")
    assert err == (
        f"weightprint: {models}: 2 checkpoints lie below it, and --include and --exclude leave none of them "
        "[E_NO_CHECKPOINT]\n"
    )


def test_globs_are_not_blamed_for_an_empty_directory(tmp_path: Path, call: Call) -> None:
    code, out, err = call("scan", tmp_path, "--include", "zzz")
    assert (code, out, "--include" in err) == (11, "", False)
    assert "no checkpoint lies below it" in err


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail if a weight is read."""

    def opened(path: Path) -> int:
        # An Exception would be a fault of the checkpoint.
        raise SystemExit(f"the weights of {path} were read")

    monkeypatch.setattr(engine_files, "open_regular", opened)


@pytest.mark.parametrize("command", ["scan {models} -q --store {file}", "refs add {models} --refs {file} --json"])
def test_a_file_where_the_store_should_be_ends_the_command_first(
    command: str, models: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_read(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    code, out, err = call(*command.format(models=models, file=tmp_path / "file").split())
    assert (code, out) == (2, "")
    assert err.startswith(f"weightprint: {tmp_path / 'file'}: no fingerprint can be written there (")
    assert err.endswith("choose another store [E_STORE]\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("out_file", "says"),
    [
        ("closed/report.json", "its directory cannot be written to"),
        ("nowhere/report.json", "its directory is not there"),
        (f"{'x' * 300}/report.json", "its directory is not there or cannot be entered"),
    ],
    ids=["closed", "absent", "too-long"],
)
def test_an_output_that_cannot_be_is_refused_first(
    out_file: str, says: str, models: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_read(monkeypatch)
    (tmp_path / "closed").mkdir()
    access = os.access
    closed = tmp_path / "closed"
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    code, out, err = call("scan", models, "--out", tmp_path / "good.json", "--out", tmp_path / out_file)
    assert (code, out) == (2, "")
    assert says in err
    assert err.endswith("[E_OUTPUT]\n")
    assert not (tmp_path / "home").exists()


# --- at the end -----------------------------------------------------------------------------------------------


def full_disk(*arguments: object) -> None:
    """A write to a device without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], 3), (["--allow-incomplete"], 3), (["--fail-on", "shared-origin"], 10)],
    ids=["plain", "allow-incomplete", "finding"],
)
def test_an_output_that_fails_costs_neither_the_others_nor_the_table(
    options: list[str], expected: int, models: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:

    def partly_full(path: Path, content: bytes) -> None:
        return full_disk() if path.name == "full.jsonl" else write_atomic(path, content)

    monkeypatch.setattr(report_files, "write_atomic", partly_full)
    outs = [f"--out={tmp_path / name}" for name in ("first.json", "full.jsonl", "last.csv")]
    code, out, err = call("scan", models, *outs, *options)
    assert code == expected
    assert "2 checkpoints found: 2 complete" in out
    assert err.splitlines()[-1] == (
        f"weightprint: {tmp_path / 'full.jsonl'}: cannot be written (No space left on device); name another file: "
        "what is in the store is not read again [E_OUTPUT]"
    )
    assert json.loads((tmp_path / "first.json").read_text())["summary"]["found"] == 2
    (row,) = csv.DictReader((tmp_path / "last.csv").read_text().splitlines())
    assert row["verdict"] == "shared-origin"
    assert not (tmp_path / "full.jsonl").exists()


SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("first", SIGNALS, ids=lambda number: number.name)
def test_signals_after_the_first_are_ignored(first: signal.Signals) -> None:
    exits.interrupt_on_signals()
    with pytest.raises(exits.Interrupted) as caught:
        signal.raise_signal(first)
    assert caught.value.exit_code == 128 + first
    for number in (*SIGNALS, *SIGNALS):
        signal.raise_signal(number)


@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: f"then-{number.name}")
@pytest.mark.parametrize("first", SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_decides(
    first: signal.Signals, second: signal.Signals, models: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_twice(*arguments: object) -> None:
        try:
            signal.raise_signal(first)
        finally:
            signal.raise_signal(second)

    monkeypatch.setattr("weightprint.gather.discover", interrupted_twice)
    code, out, err = call("scan", models)
    assert (code, out) == (128 + first, "")
    assert err == "weightprint: interrupted; the same command goes on from what a scan has put into its store\n"


@pytest.mark.parametrize("command", ["refs list", "refs remove x"])
@pytest.mark.parametrize("name", ["nowhere", "x" * 300], ids=["absent", "too-long"])
def test_a_reference_set_that_is_not_there_is_said(command: str, name: str, tmp_path: Path, call: Call) -> None:
    code, out, err = call(*command.split(), "--refs", tmp_path / name)
    assert (code, out) == (2, "")
    assert err.endswith("there is no such reference set; refs add makes one [E_NOT_FOUND]\n")


def test_a_reference_set_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.save(tmp_path / "home" / "weightprint" / "references", small_fingerprint("a"))
    tiny.save(tmp_path / "base", BASE)
    listdir = os.listdir

    def refuse(path: Any) -> list[str]:
        if str(path).endswith("references"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    for command in (["refs", "list"], ["scan", tmp_path / "base"]):
        code, out, err = call(*command)
        assert code == 3
        assert "references: the directory cannot be read (Permission denied)" in out + err


def test_an_output_whose_name_is_too_long_is_refused_before_reading(tmp_path: Path, call: Call) -> None:
    tiny.save(tmp_path / "base", BASE)
    code, _, err = call("scan", tmp_path / "base", "--out", tmp_path / f"{'x' * 300}.json")
    assert (code, (tmp_path / "home").exists()) == (2, False)
    assert "cannot be made (File name too long); name another file [E_OUTPUT]" in err


def test_a_fingerprint_that_cannot_be_opened_is_unreadable(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stores.save(tmp_path / "set", small_fingerprint("a"))

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    code, out, err = call("show", path)
    assert (code, out) == (3, "")
    assert err.endswith("cannot be read (Permission denied); check the disk and the permissions [E_UNREADABLE]\n")
