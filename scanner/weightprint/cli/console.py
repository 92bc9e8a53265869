"""Streams: results to stdout, everything else to stderr; animation only on a terminal, plain lines in a log."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from weightprint.errors import OutputError
from weightprint.report.text import printable, seconds, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from weightprint.scan import Step, Watch


UNFOLDED = 2**16
"""Columns that no line fills: two names of the longest path."""


def say(line: str) -> None:
    """One line to stderr, escaped."""
    _write(sys.stderr, printable(line) + "\n")


def _write(stream: TextIO, text: str) -> None:
    """Write to a stream whose reader may be gone (``| head``): what is left to do, reports and the exit code, counts
    all the same, so the stream is turned to nowhere and the command goes on."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            message = f"cannot be written ({error.strerror}); free some room, or write the result elsewhere"
            raise OutputError("E_OUTPUT", message, path="standard output") from None


def open_closed_streams() -> None:
    """Python has no stream where the caller closed one (``>&-``); what would be written to it goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  open until the end


def show(view: RenderableType) -> None:
    """A view to stdout: as wide as the terminal; in a pipe or a file no line is folded and none ends in blanks."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name must not fail for want of a letter
    terminal = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    if terminal.is_terminal:
        terminal.print(view)
        return
    text = io.StringIO()
    Console(file=text, width=UNFOLDED, markup=False, highlight=False, emoji=False).print(view)
    _write(sys.stdout, "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))


def write_json(document: Mapping[str, Any]) -> None:
    """One document to stdout."""
    from weightprint.report.documents import finite

    _write(sys.stdout, json.dumps(finite(document), indent=1, allow_nan=False) + "\n")


@contextmanager
def progress(quiet: bool, verbose: bool) -> Iterator[Watch]:
    """A watcher of a scan: a bar on a terminal that can move its cursor, else one plain line per checkpoint; with
    ``quiet`` nothing."""
    if quiet:
        yield lambda step: None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(verbose) as watch:
            yield watch
    else:
        yield lambda step: say(step_line(step))


@contextmanager
def _bar(verbose: bool) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True, markup=False, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=None)

        def watch(step: Step) -> None:
            name = printable(step.outcome.fingerprint.name)
            bar.update(task, completed=step.done, total=step.total, description=name)
            if verbose:
                bar.console.print(printable(step_line(step)), markup=False)

        yield watch


def step_line(step: Step) -> str:
    """One checkpoint's line in a log."""
    fingerprint = step.outcome.fingerprint
    status = "fresh" if step.outcome.fresh else fingerprint.status
    what = f"[{step.done}/{step.total}] {fingerprint.name}: {status}"
    if not step.outcome.fresh:
        what += f", {size(fingerprint.bytes.read)} read in {seconds(step.outcome.seconds)}"
    return f"{what}: {fingerprint.reason}" if fingerprint.reason else what
