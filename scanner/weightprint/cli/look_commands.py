"""Commands on one or two checkpoints: ``compare``, ``show``, ``inspect``, ``fingerprint``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightprint.cli import exits
from weightprint.cli.app import Device, DeviceOption, Json, ReadOption, app
from weightprint.cli.console import show as show_view
from weightprint.cli.console import write_json
from weightprint.reading import Read

if TYPE_CHECKING:
    from weightprint.data import Checkpoint

Target = Annotated[
    Path, typer.Argument(metavar="X", readable=False, help="A checkpoint, a weight file or a fingerprint file.")
]
First = Annotated[
    Path, typer.Argument(metavar="A", readable=False, help="A checkpoint, a weight file or a fingerprint file.")
]
Second = Annotated[Path, typer.Argument(metavar="B", readable=False, help="What to compare it with, likewise.")]
Unread = Annotated[Path, typer.Argument(metavar="X", readable=False, help="A checkpoint directory or a weight file.")]


@app.command()
def compare(
    a: First,
    b: Second,
    confirm: Annotated[
        bool,
        typer.Option("--confirm", help="Read the weights of both and test what a change of units' order leaves."),
    ] = False,
    device: DeviceOption = Device.auto,
    read: ReadOption = Read.attention,
    json: Json = False,
) -> None:
    """Compare two checkpoints, fingerprint files, or one of each."""
    from weightprint.compare import compare_pair, judge, prepare
    from weightprint.compare.direction import directions
    from weightprint.report.documents import compare_document
    from weightprint.report.pair_lines import layers_of
    from weightprint.report.tables import comparison_view
    from weightprint.scan import LazyEngine, distinct_names, fingerprint_of

    checkpoints = _with_weights(a, b) if confirm else ()
    with LazyEngine(device.value) as engine:
        first, second = distinct_names(fingerprint_of(a, engine, read), fingerprint_of(b, engine, read))
    (comparison,) = judge([compare_pair(first, second)])
    found = directions([comparison], {own.name: prepare(own) for own in (first, second)}.get)
    confirmation = None
    if checkpoints:
        from weightprint.confirm.outcome import confirm_pair, with_confirmation

        confirmation = confirm_pair(*checkpoints, device.value)
        comparison = with_confirmation(comparison, confirmation)
    if json:
        write_json(compare_document(comparison, found, confirmation))
    else:
        direction = found.get((comparison.a, comparison.b))
        show_view(comparison_view(comparison, direction, confirmation, layers_of(first, second)))
    incomplete = any(fingerprint.status != "complete" for fingerprint in (first, second))
    raise typer.Exit(exits.exit_code([], None, incomplete))


def _with_weights(a: Path, b: Path) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints whose weights can be read; raises UsageError E_USAGE for a fingerprint."""
    from weightprint.errors import UsageError
    from weightprint.fingerprint_file import is_fingerprint
    from weightprint.gather import one_checkpoint

    for path in (a, b):
        if is_fingerprint(path):
            message = (
                "is a fingerprint and holds no weights; --confirm reads weights, name the checkpoint it was taken of"
            )
            raise UsageError("E_USAGE", message, path=path)
    return one_checkpoint(a), one_checkpoint(b)


@app.command()
def show(x: Target, device: DeviceOption = Device.auto, read: ReadOption = Read.attention, json: Json = False) -> None:
    """Print the per-matrix table of a checkpoint or fingerprint."""
    from weightprint.fingerprint_file import to_document
    from weightprint.report.tables import fingerprint_view
    from weightprint.scan import LazyEngine, fingerprint_of

    with LazyEngine(device.value) as engine:
        fingerprint = fingerprint_of(x, engine, read)
    if json:
        write_json(to_document(fingerprint))
    else:
        show_view(fingerprint_view(fingerprint))
    raise typer.Exit(exits.exit_code([], None, fingerprint.status != "complete"))


@app.command()
def inspect(x: Unread, read: ReadOption = Read.attention, json: Json = False) -> None:
    """Read headers only: stacks, roles, bytes that a scan would read, and what is not understood."""
    from weightprint.errors import UsageError
    from weightprint.fingerprint import read_structure
    from weightprint.fingerprint_file import is_fingerprint
    from weightprint.gather import one_checkpoint
    from weightprint.report.documents import inspect_document
    from weightprint.report.tables import structure_view

    if is_fingerprint(x):
        raise UsageError("E_USAGE", "is a fingerprint and holds no weights; weightprint show prints it", path=x)
    checkpoint = one_checkpoint(x)
    structure = read_structure(checkpoint, read)
    if json:
        write_json(inspect_document(checkpoint.name, str(checkpoint.path.absolute()), structure))
    else:
        show_view(structure_view(checkpoint.name, structure))
    raise typer.Exit(exits.exit_code([], None, bool(structure.notices)))


@app.command()
def fingerprint(
    x: Target,
    output: Annotated[Path, typer.Option("-o", "--output", readable=False, help="The .weightprint file to write.")],
    device: DeviceOption = Device.auto,
    read: ReadOption = Read.attention,
    json: Json = False,
) -> None:
    """Write the fingerprint file of one checkpoint."""
    from weightprint.cli.console import say
    from weightprint.errors import UsageError
    from weightprint.fingerprint_file import SUFFIX, to_document
    from weightprint.scan import LazyEngine, fingerprint_of
    from weightprint.store import write_fingerprint

    if output.suffix != SUFFIX:
        raise UsageError("E_OUTPUT", f"a fingerprint file ends in {SUFFIX}, so that scans find it", path=output)
    with LazyEngine(device.value) as engine:
        taken = fingerprint_of(x, engine, read)
    if taken.status == "failed":
        if json:
            write_json(to_document(taken))
        say(f"weightprint: nothing written: {taken.reason}")
        raise typer.Exit(exits.INCOMPLETE)
    write_fingerprint(output, taken)
    if json:
        write_json(to_document(taken))
    else:
        say(f"{output}: {taken.status}, {len(taken.matrices)} matrices")
    raise typer.Exit(exits.exit_code([], None, taken.status != "complete"))
