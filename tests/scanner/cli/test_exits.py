"""Every exit code, what leads to it, and what stderr says then."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from weightprint.cli import exits
from weightprint.cli import main as run_main
from weightprint.cli.exits import exit_code, exit_code_of
from weightprint.errors import CheckpointError, DeviceError, OutputError, StoreError, UsageError, WeightprintError

pytestmark = pytest.mark.usefixtures("own_home", "own_signals")

VERDICTS = ("not-comparable", "no-evidence", "similar-profile", "shared-origin", "re-encoded", "identical")


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two relatives, one with a hole in its layers."""
    base = tiny.llama(0)
    tiny.save(tmp_path / "models" / "base", base)
    holed = tiny.tuned(base, 1)
    del holed["model.layers.3.self_attn.q_proj.weight"]
    tiny.save(tmp_path / "models" / "holed", holed)
    return tmp_path / "models"


@pytest.mark.parametrize("fail_on", exits.SEVERITY)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_finding_is_a_verdict_at_or_above_the_threshold(fail_on: str, verdict: str) -> None:
    finding = VERDICTS.index(verdict) >= VERDICTS.index(fail_on)
    assert exit_code([verdict], fail_on, False) == (10 if finding else 0)
    assert exit_code(["no-evidence", verdict], fail_on, True) == (10 if finding else 3)


@pytest.mark.parametrize(("incomplete", "code"), [(False, 0), (True, 3)])
def test_without_a_threshold_no_verdict_is_a_finding(incomplete: bool, code: int) -> None:
    assert exit_code(VERDICTS, None, incomplete) == code
    assert exit_code([], "identical", incomplete) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("E_USAGE", "x"), 2),
        (UsageError("E_NOT_FOUND", "x"), 2),
        (UsageError("E_OUTPUT", "x"), 2),
        (UsageError("E_NO_CHECKPOINT", "x"), 11),
        (StoreError("E_FINGERPRINT_CORRUPT", "x"), 3),
        (DeviceError("E_DEVICE", "x"), 2),
        (StoreError("E_STORE", "x"), 2),
        (OutputError("E_OUTPUT", "x"), 3),
        (CheckpointError("E_FILE_TRUNCATED", "x"), 3),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.code}" if isinstance(value, WeightprintError) else str(value),
)
def test_an_error_that_ends_a_command_has_its_code(error: WeightprintError, code: int) -> None:
    assert exit_code_of(error) == code


def test_findings_use_no_code_of_tracebacks_or_usage() -> None:
    assert {exits.FINDING, exits.NOTHING, exits.INCOMPLETE}.isdisjoint({exits.INTERNAL, exits.USAGE, exits.DONE})
    assert len(exits.EXIT_CODES) == 8


COMPLETE = [
    "scan {base}",
    "scan {base} --dry-run",
    "compare {base} {base}",
    "show {base}",
    "inspect {base}",
    "fingerprint {base} -o {out}.weightprint",
    "refs add {base}",
    "refs list",
]


def fill(line: str, models: Path, tmp_path: Path) -> list[str]:
    names = {"base": models / "base", "holed": models / "holed", "all": models, "out": tmp_path / "out"}
    return line.format(**names).split()


@pytest.mark.parametrize("line", COMPLETE)
def test_0_when_all_is_well(line: str, models: Path, tmp_path: Path, call: Call) -> None:
    code, out, err = call(*fill(line, models, tmp_path))
    assert (code, "E_" in out + err) == (0, False)


INCOMPLETE = [line.replace("{base} {base}", "{base} {holed}").replace(" {base}", " {holed}") for line in COMPLETE[:-1]]


@pytest.mark.parametrize("line", INCOMPLETE)
def test_3_when_something_could_not_be_analysed(line: str, models: Path, tmp_path: Path, call: Call) -> None:
    assert call(*fill(line, models, tmp_path))[0] == 3


@pytest.mark.parametrize("line", ["scan {all} --allow-incomplete", "scan {all} --dry-run --allow-incomplete"])
def test_allow_incomplete(line: str, models: Path, tmp_path: Path, call: Call) -> None:
    assert call(*fill(line, models, tmp_path))[0] == 0


def test_10_wins_over_3(models: Path, call: Call) -> None:
    assert call("scan", str(models), "--fail-on", "shared-origin")[0] == 10
    assert call("scan", str(models))[0] == 3


WRONG = {
    "no-path": ("scan", "Missing argument"),
    "unknown-command": ("frobnicate {all}", "No such command"),
    "unknown-option": ("scan {all} --frobnicate", "No such option"),
    "unknown-device": ("scan {all} --device tpu", "tpu"),
    "unknown-verdict": ("scan {all} --fail-on no-evidence", "no-evidence"),
    "unknown-read": ("scan {all} --read everything", "everything"),
    "quiet-and-verbose": ("scan {all} -q -v", "E_USAGE"),
    "dry-run-and-out": ("scan {all} --dry-run --out {out}.json", "E_USAGE"),
    "dry-run-and-fail-on": ("scan {all} --dry-run --fail-on identical", "E_USAGE"),
    "bad-suffix": ("scan {all} --out {out}.txt", "E_OUTPUT"),
    "no-such-path": ("scan {all}/nowhere", "E_NOT_FOUND"),
    "many-checkpoints": ("compare {all} {base}", "E_USAGE"),
    "bad-fingerprint-suffix": ("fingerprint {base} -o {out}.bin", "E_OUTPUT"),
    "no-fingerprint-output": ("fingerprint {base}", "Missing option"),
    "unknown-reference": ("refs remove nobody", "E_NOT_FOUND"),
}


@pytest.mark.parametrize("case", WRONG)
def test_2_when_the_command_line_is_wrong(case: str, models: Path, tmp_path: Path, call: Call) -> None:
    line, says = WRONG[case]
    code, out, err = call(*fill(line, models, tmp_path))
    assert (code, out) == (2, "")
    assert says in err
    assert not (tmp_path / "home").exists()
    assert not list(tmp_path.glob("out*"))


def test_inspect_of_a_fingerprint_says_what_to_do_instead(models: Path, tmp_path: Path, call: Call) -> None:
    file = str(tmp_path / "base.weightprint")
    assert call("fingerprint", str(models / "base"), "-o", file)[0] == 0
    code, out, err = call("inspect", file)
    assert (code, out) == (2, "")
    assert "weightprint show prints it [E_USAGE]" in err


@pytest.mark.parametrize("command", ["scan", "inspect", "show", "refs add"])
def test_11_when_there_is_nothing(command: str, tmp_path: Path, call: Call) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = call(*command.split(), str(tmp_path / "empty"))
    assert (code, out) == (11, "")
    assert err.endswith("[E_NO_CHECKPOINT]\n")


def test_several_processes_are_refused(models: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, out, err = call("scan", str(models))
    assert (code, out) == (2, "")
    assert "WORLD_SIZE is 4" in err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert call("scan", str(models / "base"))[0] == 0


def breaking(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the discovery of every command raise ``error``."""

    def discover(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("weightprint.gather.discover", discover)


def test_1_is_a_bug_and_shows_no_traceback(models: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, ZeroDivisionError("by\nnought\x1b[31m"))
    code, out, err = call("scan", str(models))
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "weightprint: internal error: ZeroDivisionError: by\\nnought\\x1b[31m; this is a bug: please report it with "
        "the output of the same command under WEIGHTPRINT_DEBUG=1"
    ]


def test_a_bug_shows_its_traceback_on_request(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, ZeroDivisionError("by nought"))
    monkeypatch.setenv("WEIGHTPRINT_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["weightprint", "scan", str(models)])
    with pytest.raises(ZeroDivisionError):
        run_main()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_command_and_says_how_to_go_on(
    number: signal.Signals, models: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightprint.gather.discover", lambda *arguments: signal.raise_signal(number))
    code, out, err = call("scan", str(models))
    assert (code, out) == (128 + number, "")
    assert err == "weightprint: interrupted; the same command goes on from what a scan has put into its store\n"
    assert code in exits.EXIT_CODES


def test_an_interruption_is_no_fault_of_a_checkpoint() -> None:
    assert not issubclass(exits.Interrupted, Exception)


def test_names_of_an_error_are_escaped(tmp_path: Path, call: Call) -> None:
    code, _, err = call("scan", str(tmp_path / "a\x1b[31m\nb\u202e"))
    assert code == 2
    assert "a\\x1b[31m\\nb\\u202e: there is no such file or directory" in err
    assert len(err.splitlines()) == 1


def test_an_error_of_a_store_is_one_line(models: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("not a directory")
    code, out, err = call("scan", str(models / "base"), "--store", str(tmp_path / "file" / "store"), "--quiet")
    assert (code, out) == (2, "")
    assert err.endswith("[E_STORE]\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_reader_that_goes_away_costs_neither_report_nor_exit_code(gone: str, models: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["scan", str(models), "--fail-on", "shared-origin", "--out", str(report)]
    command = [sys.executable, "-m", "weightprint", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        closed, kept = (process.stdout, process.stderr) if gone == "stdout" else (process.stderr, process.stdout)
        closed.close()
        words = kept.read()
    assert process.returncode == 10
    assert json.loads(report.read_text())["summary"]["found"] == 2
    assert "Error" not in words
    assert ("[2/2]" if gone == "stdout" else "2 checkpoints found") in words
