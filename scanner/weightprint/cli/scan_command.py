"""``weightprint scan``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightprint.cli import exits
from weightprint.cli.app import Device, DeviceOption, Json, Paths, ReadOption, app
from weightprint.cli.console import progress, say, show, write_json
from weightprint.errors import OutputError, UsageError
from weightprint.reading import Read

if TYPE_CHECKING:
    from weightprint.scan import ScanOptions


class FailOn(StrEnum):
    """The weakest verdict that counts as a finding."""

    similar_profile = "similar-profile"
    shared_origin = "shared-origin"
    re_encoded = "re-encoded"
    identical = "identical"


@app.command()
def scan(  # noqa: PLR0913, PLR0917  the command line is the contract
    paths: Paths,
    refs: Annotated[
        list[Path] | None,
        typer.Option(readable=False, help="What to compare with, instead of the default reference set."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(readable=False, help="Directory of fingerprints; made if absent.")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(readable=False, help="Report file; the suffix chooses .json, .jsonl or .csv. Repeatable."),
    ] = None,
    device: DeviceOption = Device.auto,
    read: ReadOption = Read.attention,
    fail_on: Annotated[FailOn | None, typer.Option(help="Exit 10 if a pair's verdict is this or stronger.")] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Exit 0 even if something could not be analysed.")
    ] = False,
    include: Annotated[list[str] | None, typer.Option(help="Only checkpoints whose name matches the glob.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No checkpoint whose name matches the glob.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read; read no weight.")] = False,
    rescan: Annotated[bool, typer.Option("--rescan", help="Read again what is fresh in the store.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the result.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say why each automatic choice was made.")] = False,
    json: Json = False,
) -> None:
    """Fingerprint every checkpoint below PATH and compare each with the references and with each other."""
    from weightprint import store as stores
    from weightprint.report.documents import report_document
    from weightprint.report.files import check_outputs
    from weightprint.report.tables import report_view
    from weightprint.scan import ScanOptions
    from weightprint.scan import scan as run_scan

    if quiet and verbose:
        raise UsageError("E_USAGE", "--quiet and --verbose do not go together; choose one")
    _refuse_many_processes()
    outputs = out or []
    if dry_run and (outputs or fail_on):
        raise UsageError("E_USAGE", "--dry-run compares nothing, so --out and --fail-on do not go with it")
    check_outputs(outputs)
    options = ScanOptions(
        paths=tuple(paths),
        store=store or stores.default_store(),
        references=tuple(refs) if refs else None,
        device=device.value,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        rescan=rescan,
        read=read,
    )
    if dry_run:
        incomplete = _dry_run(options, json)
        raise typer.Exit(exits.exit_code([], None, incomplete and not allow_incomplete))
    with progress(quiet, verbose) as watch:
        report = run_scan(options, watch)
    if verbose:
        say(f"backend {report.backend}")
    if verbose or (store is None and not quiet):
        say(f"fingerprints are kept in {options.store}")
    document = report_document(report)
    unwritten = _write_reports(outputs, document)
    try:
        if json:
            write_json(document)
        else:
            show(report_view(report))
    except OutputError as error:
        unwritten.append(error)
    for failed in unwritten:
        say(f"weightprint: {failed.line()}")
    incomplete = any(outcome.fingerprint.status != "complete" for outcome in (*report.outcomes, *report.references))
    incomplete = ((incomplete or bool(report.notices)) and not allow_incomplete) or bool(unwritten)
    verdicts = [comparison.verdict for comparison in report.comparisons]
    raise typer.Exit(exits.exit_code(verdicts, fail_on.value if fail_on else None, incomplete))


def _write_reports(paths: Sequence[Path], document: Mapping[str, Any]) -> list[OutputError]:
    """Write every report that can be; returns why the others could not."""
    from weightprint.report.files import write_report

    unwritten = []
    for path in paths:
        try:
            write_report(path, document)
        except OutputError as error:
            unwritten.append(error)
    return unwritten


def _refuse_many_processes() -> None:
    """Several ranks would each read every checkpoint; they are not made to share the work yet."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        message = f"WORLD_SIZE is {world}, but every process would do all the work; start one process"
        raise UsageError("E_WORLD", message)


def _dry_run(options: ScanOptions, json: bool) -> bool:
    """Print what a scan would read; returns whether something could not be analysed."""
    from weightprint.report.documents import forecast_document
    from weightprint.report.tables import forecast_view
    from weightprint.scan import forecast

    forecasts, notices = forecast(options)
    if json:
        write_json(forecast_document(forecasts, notices))
    else:
        show(forecast_view(forecasts, notices))
    return bool(notices) or any(forecast.structure.notices for forecast in forecasts)
