"""Streams: results to stdout, everything else to stderr; animation only on a terminal, plain lines in a log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weightprint.report.text import printable, seconds, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from weightprint.scan import Step, Watch


def say(line: str) -> None:
    """One line to stderr, escaped."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


def show(view: RenderableType) -> None:
    """A view to stdout; in a pipe or a file it is as wide as it needs to be."""
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    console.print(view)


def write_json(document: Mapping[str, Any]) -> None:
    """One document to stdout."""
    from weightprint.report.documents import finite

    sys.stdout.write(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")


@contextmanager
def progress(quiet: bool, verbose: bool) -> Iterator[Watch]:
    """A watcher of a scan: a bar on a terminal, else one plain line per checkpoint; with ``quiet`` nothing."""
    if quiet:
        yield lambda step: None
    elif sys.stderr.isatty():
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
