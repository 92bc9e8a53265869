"""Every checkpoint found is accounted for, and what fails on the way to the report costs nothing else."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fingerprints import small_fingerprint

import tiny
from command_line import run, run_json
from weightprint import scan as scans
from weightprint import store as stores
from weightprint.cli import exits
from weightprint.errors import StoreError, UsageError
from weightprint.scan import ScanOptions, Step, scan

pytestmark = pytest.mark.usefixtures("own_home")

BASE = tiny.llama(1, layers=2)


def options(tmp_path: Path, *paths: Path) -> ScanOptions:
    return ScanOptions(paths=paths or (tmp_path / "models",), store=tmp_path / "store", references=())


def test_two_snapshots_of_the_same_blobs_are_two_checkpoints(tmp_path: Path) -> None:
    blob = tiny.save(tmp_path / "blobs", BASE) / "model.safetensors"
    for revision in ("r1", "r2"):
        for name in ("alpha", "beta"):
            link = tmp_path / "models" / revision / f"{name}.safetensors"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    report = scan(options(tmp_path))
    assert len({outcome.fingerprint.name for outcome in report.outcomes}) == len(report.outcomes) == 4


def test_links_to_the_same_nowhere_are_checkpoints_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in "ab":
        (tmp_path / "models" / f"{name}.safetensors").symlink_to("/nowhere/blob")
    report = scan(options(tmp_path))
    assert [outcome.fingerprint.code for outcome in report.outcomes] == ["E_DANGLING_LINK"] * 2


def test_nothing_to_keep_needs_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save(tmp_path / "models" / "mlp", {"model.layers.0.mlp.up_proj.weight": BASE.popitem()[1]})

    def refuse(store: Path) -> None:
        raise StoreError("E_STORE", "read-only", path=store)

    monkeypatch.setattr(stores, "require_writable", refuse)
    (outcome,) = scan(options(tmp_path)).outcomes
    assert outcome.fingerprint.code == "E_NO_ATTENTION"


def test_a_store_that_goes_away_in_mid_scan_costs_no_report(tmp_path: Path) -> None:
    for seed in range(3):
        tiny.save(tmp_path / "models" / str(seed), tiny.llama(seed, layers=2))

    def take_away(step: Step) -> None:
        if step.done == 1:
            for file in (tmp_path / "store").iterdir():
                file.unlink()
            (tmp_path / "store").rmdir()
            (tmp_path / "store").write_text("no directory any more")

    report = scan(options(tmp_path), take_away)
    assert {outcome.fingerprint.status for outcome in report.outcomes} == {"complete"}
    assert [notice.code for notice in report.notices] == ["E_STORE"] * 2
    assert len(report.comparisons) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_finding_is_told_by_the_exit_code_where_stdout_is_full(tmp_path: Path) -> None:
    tiny.save(tmp_path / "models" / "base", BASE)
    tiny.save(tmp_path / "models" / "tuned", tiny.tuned(BASE, 2))
    words = ["scan", str(tmp_path / "models"), "--store", str(tmp_path / "store"), "--fail-on", "shared-origin", "-q"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "weightprint", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 10
    assert "standard output: cannot be written" in done.stderr


def test_a_dry_run_tells_of_damaged_fingerprints(tmp_path: Path) -> None:
    tiny.save(tmp_path / "models" / "base", BASE)
    file = stores.save(tmp_path / "taken", small_fingerprint("gone"))
    file.write_bytes(file.read_bytes()[:-1])
    words = ["scan", str(tmp_path / "models"), str(tmp_path / "taken"), "--dry-run"]
    assert "E_FINGERPRINT_CORRUPT" in run(*words, expect=3).stdout
    document = run_json(*words, "--json", expect=3)
    assert [notice["code"] for notice in document["notices"]] == ["E_FINGERPRINT_CORRUPT"]


def test_one_of_two_references_in_different_folders_goes_by_its_file(tmp_path: Path) -> None:
    for folder in ("s1", "s2"):
        stores.save(tmp_path / folder, small_fingerprint("a"))
    with pytest.raises(UsageError, match="2 references are named 'a'") as caught:
        stores.remove_named(tmp_path, ["a"])
    (first, second) = caught.value.message.rpartition(": ")[2].split(", ")
    assert (first[:3], second[:3]) == ("s1/", "s2/")
    assert stores.remove_named(tmp_path, [first]) == [tmp_path / first]
    assert [path.parent.name for path in tmp_path.rglob("*.weightprint")] == ["s2"]


def test_a_set_that_cannot_be_looked_at_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(StoreError) as caught:
        stores.require_set(tmp_path)
    assert caught.value.code == "E_UNREADABLE"


@pytest.mark.usefixtures("own_signals")
def test_a_signal_that_was_lost_can_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    exits.interrupt_on_signals()
    with pytest.raises(exits.Interrupted):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    now = 102.0
    with pytest.raises(exits.Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_a_fingerprint_that_cannot_be_kept_is_not_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.save(tmp_path / "taken", small_fingerprint("a"))

    def full(store: Path, fingerprint: object) -> None:
        raise StoreError("E_STORE", "no room", path=store)

    monkeypatch.setattr(stores, "save", full)
    outcomes, notices = scans.add_references((tmp_path / "taken",), tmp_path / "set", "cpu", lambda step: None)
    assert [outcome.unsaved.code for outcome in outcomes if outcome.unsaved] == ["E_STORE"]
    assert notices == ()


def test_fingerprints_without_sources_are_never_taken_for_each_other(tmp_path: Path) -> None:
    for number in range(2):
        stores.write_fingerprint(
            tmp_path / "models" / f"{number}.weightprint",
            replace(small_fingerprint("same"), sources=(), tool_version=str(number)),
        )
    report = scan(options(tmp_path))
    assert [json.loads(f'"{outcome.fingerprint.name}"') for outcome in report.outcomes] == ["same", "same (2)"]
