"""Streams and terminals: results on stdout, the rest on stderr, plain lines where nothing can move."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fingerprints import small_fingerprint
from rich.text import Text

import tiny
from command_line import run
from weightprint.cli.console import progress, say, show, step_line, write_json
from weightprint.scan import Outcome, Step

NAMES = ("family/base", "family/tuned", "a-stranger-with-a-rather-long-name/of-several-parts-v1.0-instruct-bf16")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, two related, fingerprinted into the store beside them."""
    root = tmp_path_factory.mktemp("console")
    base = tiny.llama(0)
    for name, weights in zip(NAMES, (base, tiny.tuned(base, 1), tiny.llama(2)), strict=True):
        tiny.save(root / "models" / name, weights)
    run("scan", str(root / "models"), "--store", str(root / "store"), env=environment(root))
    return root / "models"


def environment(root: Path, **more: str) -> dict[str, str]:
    """The machine's variables without those that a terminal listens to."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "XDG_DATA_HOME": str(root / "home"), "TERM": "xterm-256color", **more}


def scan(models: Path, *arguments: str) -> list[str]:
    return ["scan", str(models), "--store", str(models.parent / "store"), *arguments]


@dataclass(frozen=True)
class Shown:
    """What a command wrote to a terminal and to a pipe beside it."""

    terminal: str
    piped: str
    code: int

    @property
    def lines(self) -> list[str]:
        """Lines of the terminal without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.terminal).replace("\r\n", "\n").split("\n")


def on_terminal(
    arguments: list[str], columns: int, variables: Mapping[str, str], stdout: bool = True, stderr: bool = True
) -> Shown:
    """Run weightprint with the streams chosen on a terminal of so many columns, the other one in a pipe."""
    own, others = pty.openpty()
    fcntl.ioctl(others, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "weightprint", *arguments]
    streams = {name: others if wanted else subprocess.PIPE for name, wanted in (("stdout", stdout), ("stderr", stderr))}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=dict(variables), **streams) as process:
        os.close(others)
        read = b""
        while chunk := _read(own):
            read += chunk
        os.close(own)
        rest = process.stdout or process.stderr
        piped = rest.read() if rest else b""
    return Shown(read.decode(), piped.decode(), process.returncode)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_off_a_terminal_every_checkpoint_is_one_plain_line(models: Path) -> None:
    done = run(*scan(models), env=environment(models.parent))
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert {line.split()[1] for line in lines} == {f"{name}:" for name in NAMES}
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_in_a_pipe_no_line_is_folded_and_none_ends_in_blanks(models: Path) -> None:
    lines = run(*scan(models), env=environment(models.parent, COLUMNS="40")).stdout.splitlines()
    assert sum(NAMES[2] in line for line in lines) == 2
    assert any(line.startswith("3 checkpoints found") and line.endswith(" s") for line in lines)
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--dry-run",), ("--dry-run", "--json")], ids=" ".join)
def test_quiet_leaves_stderr_empty(models: Path, arguments: tuple[str, ...]) -> None:
    done = run(*scan(models, "--quiet", *arguments), env=environment(models.parent))
    assert done.stderr == ""
    assert done.stdout


def test_verbose_says_why(models: Path) -> None:
    fresh = run(*scan(models, "--verbose"), env=environment(models.parent)).stderr
    assert "backend none needed" in fresh
    assert str(models.parent / "store") in fresh
    again = run(*scan(models, "--verbose", "--rescan", "--device", "cpu"), env=environment(models.parent)).stderr
    assert ": the CPU was asked for" in again


@pytest.mark.parametrize("command", ["scan", "show", "inspect", "compare"])
def test_with_json_stdout_is_one_document(models: Path, command: str) -> None:
    stored = str(sorted((models.parent / "store").iterdir())[0])
    own = {"scan": scan(models), "show": ["show", stored], "compare": ["compare", stored, stored]}
    done = run(*own.get(command, ["inspect", str(models / NAMES[0])]), "--json", env=environment(models.parent))
    assert json.loads(done.stdout)["schema"].startswith("weightprint.")
    assert done.stdout.isascii()


def test_what_has_no_result_writes_nothing_to_stdout(models: Path, tmp_path: Path) -> None:
    stored, references = str(models.parent / "store"), ["--refs", str(tmp_path / "set")]
    file = str(sorted((models.parent / "store").iterdir())[0])
    for arguments in (
        ["refs", "add", stored, *references],
        ["refs", "remove", NAMES[0], *references],
        ["fingerprint", file, "-o", str(tmp_path / "x.weightprint")],
    ):
        done = run(*arguments, env=environment(tmp_path))
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_letter_that_stdout_lacks_is_spelled_out(tmp_path: Path, encoding: str) -> None:
    checkpoint = tiny.save(tmp_path / "modèle-模型", tiny.llama(0, layers=1))
    variables = environment(tmp_path, PYTHONIOENCODING=encoding)
    done = run("inspect", str(checkpoint), env=variables, encoding=encoding)
    assert done.stdout.startswith("modèle-模型".encode(encoding, "backslashreplace").decode(encoding))


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_gets_tables_of_its_width_and_a_bar_that_goes(models: Path, columns: int) -> None:
    shown = on_terminal(scan(models), columns, environment(models.parent))
    assert shown.code == 0
    assert "\x1b[?25l" in shown.terminal
    assert "\x1b[?25h" in shown.terminal
    table = [line for line in shown.lines if "no-evidence" in line or "shared-origin " in line or NAMES[0] in line]
    assert table
    assert max(len(line.rpartition("\r")[2]) for line in table) <= columns
    assert any(line.rpartition("\r")[2].startswith("verdict") for line in shown.lines)


def test_the_bar_stays_out_of_a_piped_result(models: Path) -> None:
    shown = on_terminal(scan(models), 80, environment(models.parent), stdout=False)
    assert "\x1b" in shown.terminal
    assert "\x1b" not in shown.piped
    assert shown.piped.splitlines()[0].split() == ["verdict", "p", "a", "b", "score"]


def test_a_log_of_a_terminal_session_has_plain_lines(models: Path) -> None:
    shown = on_terminal(scan(models), 80, environment(models.parent), stderr=False)
    assert "\x1b[1;33mshared-origin" in shown.terminal
    assert [line.split()[0] for line in shown.piped.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]


@pytest.mark.parametrize(
    ("variables", "bar", "colour"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
    ids=["plain", "no-color", "dumb"],
)
def test_colour_and_animation_are_two_decisions(
    models: Path, variables: dict[str, str], bar: bool, colour: bool
) -> None:
    shown = on_terminal(scan(models), 80, environment(models.parent, **variables))
    assert ("\x1b[2K" in shown.terminal) == bar
    assert bool(re.search(r"\x1b\[[0-9;]*3[1-7]m", shown.terminal)) == colour
    assert any(line.startswith("[3/3]") for line in shown.lines) != bar


def test_verbose_on_a_terminal_keeps_a_line_of_each_checkpoint(models: Path) -> None:
    shown = on_terminal(scan(models, "--verbose"), 120, environment(models.parent), stdout=False)
    for number in (1, 2, 3):
        assert f"[{number}/3] " in shown.terminal


def test_columns_decides_where_it_is_set(models: Path) -> None:
    variables = environment(models.parent, COLUMNS="100")
    shown = on_terminal(scan(models), 200, variables, stderr=False)
    assert 80 < max(map(len, shown.lines)) <= 100
    assert max(map(len, shown.lines)) <= 100


def step(status: str = "complete", fresh: bool = False, name: str = "a/b") -> Step:
    whole = small_fingerprint(name)
    if status == "complete":
        whole = replace(whole, status=status, code=None, reason=None)
    return Step(2, 7, Outcome(whole, 1.5, fresh))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (step(), "[2/7] a/b: complete, 4.1 kB read in 1.5 s"),
        (step(fresh=True), "[2/7] a/b: fresh"),
        (
            step("partial"),
            "[2/7] a/b: partial, 4.1 kB read in 1.5 s: model.layers.2.self_attn.k_proj.weight: k rows 16 but v rows 12 "
            "[E_NOT_UNDERSTOOD]",
        ),
    ],
    ids=["complete", "fresh", "partial"],
)
def test_the_line_of_a_checkpoint(given: Step, line: str) -> None:
    assert step_line(given) == line


def test_lines_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[31m\nb\u202e\udc80")
    assert capsys.readouterr() == ("", "a\\x1b[31m\\nb\\u202e\\udc80\n")
    with progress(quiet=False, verbose=False) as watch:
        watch(step(fresh=True, name="x\ny\x1b"))
    assert capsys.readouterr() == ("", "[2/7] x\\ny\\x1b: fresh\n")


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True, verbose=False) as watch:
        watch(step())
    assert capsys.readouterr() == ("", "")


def test_a_view_has_no_markup_and_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    show(Text("[red]a[/red] :warning: " + "long " * 100))
    assert capsys.readouterr() == ("[red]a[/red] :warning: " + ("long " * 100).rstrip() + "\n", "")


def test_a_document_of_impossible_figures_is_written_with_null(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "\x1b\u202e\udc80"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": "\x1b\u202e\udc80"}
    assert (out.isascii(), err) == (True, "")


def test_a_stream_that_is_no_file_is_written_to_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    show(Text("plain"))
    assert stream.getvalue() == "plain\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["table", "json"])
def test_a_full_stdout_is_said_and_costs_no_report(models: Path, tmp_path: Path, json_flag: list[str]) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "weightprint", *scan(models, "--quiet", "--out", str(report), *json_flag)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("weightprint: standard output: cannot be written (No space left on device)")
    assert json.loads(report.read_text())["summary"]["found"] == len(NAMES)


def test_a_closed_stdout_is_no_fault(models: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = [sys.executable, "-m", "weightprint", *scan(models, "--quiet", "--out", str(report))]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(report.read_text())["summary"]["found"] == len(NAMES)
