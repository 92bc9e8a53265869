"""What the environment may set, and that a bad value is wrong usage that names its variable."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from weightprint.engine import settings
from weightprint.engine.settings import LEAST_SLOT_MIB, MOST_THREADS, processors, read_settings
from weightprint.errors import UsageError
from weightprint.plan import PIECE_BYTES

VARIABLES = ("WEIGHTPRINT_THREADS", "WEIGHTPRINT_READERS", "WEIGHTPRINT_RING_SLOTS", "WEIGHTPRINT_SLOT_MIB")
BAD = ("", "0", "-1", "+2", " 2", "2.0", "1e2", "two", "0x10", "1_0", "²", "99999", "9" * 5000)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(settings, "driver_present", lambda: False)


def test_a_thread_for_each_processor_up_to_what_memory_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().threads == min(processors(), MOST_THREADS)
    for count, threads in ((1, 1), (5, 5), (12, 12), (200, 12)):
        monkeypatch.setattr(settings, "processors", lambda count=count: count)
        assert read_settings().threads == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to processors")
def test_processors_are_those_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processors() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert processors() == len(before)


@pytest.mark.parametrize("value", ["1", "7", "256", "007"])
def test_threads_that_are_set(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPRINT_THREADS", value)
    assert read_settings().threads == int(value)


@pytest.mark.parametrize(
    ("threads", "mebibytes", "places"),
    [(1, 96, 3), (2, 96, 3), (3, 64, 3), (4, 48, 4), (12, 16, 12), (48, 4, 48), (256, 4, 48)],
)
def test_threads_share_what_is_mapped_at_once(
    threads: int, mebibytes: int, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPRINT_THREADS", str(threads))
    found = read_settings()
    assert (found.slot_bytes, found.ring_slots) == (mebibytes * 2**20, places)


def test_what_a_slot_holds_is_set_in_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPRINT_SLOT_MIB", "5")
    assert read_settings().slot_bytes == 5 * 2**20


def test_a_slot_holds_a_piece() -> None:
    """Else pieces, and with them the order of sums, would depend on the settings."""
    assert LEAST_SLOT_MIB * 2**20 >= PIECE_BYTES


@pytest.mark.parametrize("threads", [1, 2, 12])
def test_a_device_gets_a_ring_of_twelve(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few processors there are."""
    monkeypatch.setattr(settings, "driver_present", lambda: True)
    monkeypatch.setenv("WEIGHTPRINT_THREADS", str(threads))
    found = read_settings()
    assert (found.slot_bytes, found.ring_slots) == (16 * 2**20, 12)


@pytest.mark.parametrize("value", BAD, ids=lambda value: value[:10] or "empty")
@pytest.mark.parametrize("name", VARIABLES)
def test_a_bad_value_is_wrong_usage(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        read_settings()
    assert caught.value.code == "E_USAGE"
    assert f"{name} is " in caught.value.message
    assert "it must be a whole number from" in caught.value.message


@pytest.mark.parametrize("name", ["WEIGHTPRINT_THREADS", "WEIGHTPRINT_SLOT_MIB"])
@pytest.mark.parametrize(
    "command",
    [
        "scan {models} --store {store}",
        "scan {models} --store {store} --dry-run",
        "fingerprint {models}/a -o {store}/a.weightprint",
        "show {models}/a",
        "compare {models}/a {models}/a",
        "refs add {models} --refs {store}",
    ],
    ids=lambda command: " ".join(word for word in command.split() if "{" not in word),
)
def test_a_bad_value_ends_the_command(
    command: str, name: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of any checkpoint, and would be the same for all of them."""
    tiny.save(tmp_path / "models/a", tiny.llama(0, layers=2))
    monkeypatch.setenv(name, "many")
    code, out, err = call(*command.format(models=tmp_path / "models", store=tmp_path / "store").split())
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"weightprint: {name} is 'many'; it must be a whole number from ")
    assert err.endswith(" [E_USAGE]\n")


def test_the_settings_import_nothing_heavy() -> None:
    import subprocess

    program = (
        "import sys, weightprint.engine.settings\n"
        "print(sorted({'torch', 'numba', 'llvmlite', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
