"""Interrupted at any moment and started again: nothing is lost, nothing is read or kept twice."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from weightprint import scan as scans
from weightprint import store as stores
from weightprint.cli.exits import Interrupted
from weightprint.discover import discover
from weightprint.engine import files as engine_files
from weightprint.engine.collect import Reduction
from weightprint.engine.cpu import CpuEngine, PendingOnCpu
from weightprint.fingerprint import Structure
from weightprint.scan import Report, ScanOptions, forecast, scan

MODELS = 5


def make_models(folder: Path) -> Path:
    for number in range(MODELS):
        tiny.save(folder / f"models/m{number}", tiny.llama(number, layers=2))
    return folder / "models"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return make_models(tmp_path)


def options(models: Path, **changes: object) -> ScanOptions:
    return ScanOptions(paths=(models,), store=models.parent / "store", references=(), **changes)  # type: ignore[arg-type]


def statuses(report: Report) -> dict[str, tuple[str, bool]]:
    return {outcome.fingerprint.name: (outcome.fingerprint.status, outcome.fresh) for outcome in report.outcomes}


def stored(models: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (models.parent / "store").glob("*")}


@pytest.fixture
def expected(models: Path, tmp_path: Path) -> dict[str, bytes]:
    """What the store holds after a scan that nothing interrupts."""
    scan(ScanOptions(paths=(models,), store=tmp_path / "other", references=()))
    return {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}


STEPS: dict[str, tuple[object, str]] = {
    # name: (where the function is looked up, its name)
    "reading-headers": (scans, "read_structure"),
    "asking-for-weights": (CpuEngine, "submit"),
    "waiting-for-weights": (PendingOnCpu, "result"),
    "putting-together": (scans, "fingerprint_from"),
    "before-saving": (stores, "save"),
    "making-bytes": (stores, "to_bytes"),
    "opening": (Path, "open"),
    "syncing": (os, "fsync"),
    "renaming": (Path, "replace"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("call", range(0, 2 * MODELS, 3))
@pytest.mark.parametrize("step", STEPS)
def test_an_interruption_at_any_step_loses_and_repeats_nothing(
    step: str, call: int, number: int, models: Path, expected: dict[str, bytes]
) -> None:
    place, name = STEPS[step]
    whole = getattr(place, name)
    calls = 0

    def interrupted(*arguments: object, **changes: object) -> object:
        nonlocal calls
        calls += 1
        if calls > call:
            raise Interrupted(number)
        return whole(*arguments, **changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, interrupted)
        try:
            scan(options(models))
        except Interrupted:
            assert calls > call
        else:
            assert calls <= call
    kept = stored(models)
    assert kept.items() <= expected.items()
    report = scan(options(models))
    fresh = [name for name, (_, fresh) in statuses(report).items() if fresh]
    assert len(fresh) == len(kept)
    assert {status for status, _ in statuses(report).values()} == {"complete"}
    assert stored(models) == expected
    assert all(fresh for _, fresh in statuses(scan(options(models))).values())


def test_a_full_disk_costs_what_it_could_not_keep_and_the_next_scan_goes_on(
    models: Path, expected: dict[str, bytes]
) -> None:
    replace = Path.replace
    calls = 0

    def full(source: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", full)
        report = scan(options(models))
    assert len(stored(models)) == 2
    assert len(report.comparisons) == len(report.outcomes) * (len(report.outcomes) - 1) // 2
    assert {status for status, _ in statuses(report).values()} == {"complete"}
    assert [notice.code for notice in report.notices] == ["E_STORE"] * (len(report.outcomes) - 2)
    assert all("No space left" in notice.reason for notice in report.notices)
    assert sum(fresh for _, fresh in statuses(scan(options(models))).values()) == 2
    assert stored(models) == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from weightprint.scan import ScanOptions, scan

step, after = sys.argv[1], int(sys.argv[2])
place, name = {"write": (os, "fsync"), "rename": (Path, "replace")}[step]
whole = getattr(place, name)
calls = 0

def killed(*arguments, **options):
    global calls
    calls += 1
    if calls > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **options)

setattr(place, name, killed)
scan(ScanOptions(paths=(Path(sys.argv[3]),), store=Path(sys.argv[4]), references=()))
"""


@pytest.mark.parametrize(("step", "after", "kept"), [("write", 0, 0), ("write", 4, 2), ("rename", 3, 3)])
def test_a_kill_leaves_half_files_that_nobody_takes_for_whole(
    step: str, after: int, kept: int, models: Path, expected: dict[str, bytes]
) -> None:
    command = [sys.executable, "-c", KILLED, step, str(after), str(models), str(models.parent / "store")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    whole = {name: content for name, content in stored(models).items() if name.endswith(".weightprint")}
    assert len(whole) == kept
    assert whole.items() <= expected.items()
    assert len(stored(models)) == kept + 1, "the file that was being written is there under its temporary name"
    assert sum(fresh for _, fresh in statuses(scan(options(models))).values()) == kept
    assert {name: content for name, content in stored(models).items() if not name.endswith(".tmp")} == expected


def test_a_checkpoint_scanned_under_two_names_is_kept_once(models: Path) -> None:
    scan(options(models))
    tiny.save(models / "m0", tiny.llama(77, layers=2))
    scan(ScanOptions(paths=(models / "m0",), store=models.parent / "store", references=()))
    tiny.save(models / "m0", tiny.llama(78, layers=2))
    scan(ScanOptions(paths=(models.parent,), store=models.parent / "store", references=(), include=("models/m0",)))
    fingerprints, notices = stores.load_all(models.parent / "store")
    assert sorted(fingerprint.path for fingerprint in fingerprints) == [str(models / f"m{n}") for n in range(MODELS)]
    assert notices == ()
    assert all(fresh for _, fresh in statuses(scan(options(models))).values())


def test_what_cannot_be_analysed_is_tried_again_and_counted_each_time(models: Path) -> None:
    (models / "m1/model.safetensors").write_bytes(b"x" * 100)
    for _ in range(2):
        report = statuses(scan(options(models)))
        assert report.pop("m1") == ("failed", False)
        assert len(report) == MODELS - 1
    tiny.save(models / "m1", tiny.llama(1, layers=2))
    assert statuses(scan(options(models)))["m1"] == ("complete", False)


def test_a_disk_that_failed_once_is_asked_again(models: Path) -> None:
    preadv = os.preadv
    calls = itertools.count()  # threads read side by side

    def failing_once(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags == 0 and next(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, offset, flags)

    weights = tiny.llama(0, layers=2)
    tiny.save_sharded(models / "m0", weights)
    (models / "m0/model.safetensors").unlink()
    alone = ScanOptions(paths=(models / "m0",), store=models.parent / "store", references=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_files, "is_local", lambda descriptor: False)
        patch.setattr(os, "preadv", failing_once)
        (outcome,) = scan(alone).outcomes
    assert (outcome.fingerprint.status, outcome.fingerprint.code) == ("partial", "E_READ")
    assert len(stored(models)) == 1
    (checkpoint,) = discover([models / "m0"])
    assert stores.load_fresh(alone.store, checkpoint, outcome.fingerprint.sources) is None
    assert statuses(scan(alone)) == {"m0": ("complete", False)}
    assert statuses(scan(alone)) == {"m0": ("complete", True)}


def index_of(checkpoint: Path) -> Path:
    return checkpoint / "model.safetensors.index.json"


def misplace(checkpoint: Path) -> None:
    index = json.loads(index_of(checkpoint).read_text())
    first, last = min(index["weight_map"].values()), max(index["weight_map"].values())
    index["weight_map"] |= {next(name for name, file in index["weight_map"].items() if file == first): last}
    index_of(checkpoint).write_text(json.dumps(index))


REPAIRABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    # name: (damage beside the weights, its code)
    "index-not-JSON": (lambda checkpoint: index_of(checkpoint).write_text("{"), "E_INDEX_INVALID"),
    "index-of-another-revision": (misplace, "E_SHARD_TENSOR"),
    "config-not-JSON": (lambda checkpoint: (checkpoint / "config.json").write_text("{"), "E_CONFIG_INVALID"),
}


@pytest.mark.parametrize("case", REPAIRABLE)
@pytest.mark.parametrize("repair", ["fetched-again", "removed"])
def test_what_was_repaired_is_complained_of_no_more(case: str, repair: str, models: Path) -> None:
    damage, code = REPAIRABLE[case]
    checkpoint = tiny.save_sharded(models / "bad", tiny.llama(9))
    (checkpoint / "config.json").unlink() if repair == "removed" else None
    files = [path for path in checkpoint.iterdir() if path.suffix == ".json"]
    good = {path: path.read_bytes() for path in files}
    damage(checkpoint)
    first = {outcome.fingerprint.name: outcome.fingerprint for outcome in scan(options(models)).outcomes}
    assert (first["bad"].status, first["bad"].code) == ("partial", code)
    assert statuses(scan(options(models)))["bad"] == ("partial", True)
    for path in checkpoint.glob("*.json"):
        if repair == "removed":
            path.unlink()
        else:
            path.write_bytes(good[path])
    assert not next(entry for entry in forecast(options(models))[0] if entry.checkpoint.name == "bad").fresh
    assert statuses(scan(options(models)))["bad"] == ("complete", False)


def test_what_breaks_later_is_noticed(models: Path) -> None:
    scan(options(models))
    (models / "m1/config.json").unlink()
    assert statuses(scan(options(models)))["m1"] == ("complete", False)
    (models / "m1/config.json").write_text("{")
    assert statuses(scan(options(models)))["m1"] == ("partial", False)


def test_a_partial_checkpoint_is_fresh_from_wherever_it_is_scanned(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny.llama(1, layers=2)
    weights["model.layers.1.self_attn.v_proj.weight"][0, 0] = np.nan
    tiny.save(models / "m1", weights)
    (models / "m2/config.json").write_text("{")
    scan(options(models))
    monkeypatch.chdir(models)
    report = scan(ScanOptions(paths=(Path("."),), store=models.parent / "store", references=()))  # noqa: PTH201
    assert {name: fresh for name, (_, fresh) in statuses(report).items()} == {f"m{n}": True for n in range(MODELS)}
    assert {name for name, (status, _) in statuses(report).items() if status == "partial"} == {"m1", "m2"}


def test_rescan_reads_everything_and_keeps_the_same(models: Path, expected: dict[str, bytes]) -> None:
    scan(options(models))
    assert not any(fresh for _, fresh in statuses(scan(options(models, rescan=True))).values())
    assert stored(models) == expected


def test_a_damaged_fingerprint_is_taken_anew(models: Path, expected: dict[str, bytes]) -> None:
    scan(options(models))
    path = next((models.parent / "store").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    assert sum(fresh for _, fresh in statuses(scan(options(models))).values()) == MODELS - 1
    assert stored(models) == expected


def test_a_checkpoint_that_changes_while_it_is_read_is_read_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_together = scans.fingerprint_from

    def meanwhile(checkpoint: scans.Checkpoint, structure: Structure, reduction: Reduction) -> scans.Fingerprint:
        if checkpoint.name == "m3":
            (models / "m3/model.safetensors").touch()
        return put_together(checkpoint, structure, reduction)

    with monkeypatch.context() as patch:
        patch.setattr(scans, "fingerprint_from", meanwhile)
        assert statuses(scan(options(models)))["m3"] == ("failed", False)
    assert statuses(scan(options(models)))["m3"] == ("complete", False)
