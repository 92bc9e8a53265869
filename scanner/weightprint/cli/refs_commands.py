"""``weightprint refs``: the reference set is a store that scans compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightprint.cli import exits
from weightprint.cli.app import Device, DeviceOption, Json, Paths, ReadOption, app
from weightprint.cli.console import progress, say, show, write_json
from weightprint.reading import Read

refs_app = typer.Typer(no_args_is_help=True, help="Add, list and remove the references that scans compare with.")
app.add_typer(refs_app, name="refs")

SetOption = Annotated[
    Path | None, typer.Option("--refs", readable=False, help="Directory of the set, instead of the default one.")
]


@refs_app.command("add")
def add(
    paths: Paths,
    refs: SetOption = None,
    device: DeviceOption = Device.auto,
    read: ReadOption = Read.attention,
    json: Json = False,
) -> None:
    """Fingerprint checkpoints into the reference set; the weights themselves are not kept."""
    from weightprint.report.documents import references_document
    from weightprint.scan import add_references
    from weightprint.store import default_references

    directory = refs or default_references()
    with progress(quiet=json, verbose=False) as watch:
        outcomes, notices = add_references(tuple(paths), directory, device.value, watch, read)
    notices += tuple(outcome.unsaved for outcome in outcomes if outcome.unsaved)
    added = [o.fingerprint for o in outcomes if o.fingerprint.status != "failed" and o.unsaved is None]
    if json:
        write_json(references_document([outcome.fingerprint for outcome in outcomes], notices))
    else:
        say(f"{len(added)} of {len(outcomes)} added to {directory}")
    for notice in notices:
        say(notice.line())
    whole = sum(fingerprint.status == "complete" for fingerprint in added)
    incomplete = bool(notices) or whole < len(outcomes)
    raise typer.Exit(exits.exit_code([], None, incomplete))


@refs_app.command("list")
def list_references(refs: SetOption = None, json: Json = False) -> None:
    """List the reference set."""
    from weightprint.report.documents import references_document
    from weightprint.report.tables import references_view
    from weightprint.store import default_references, load_all, require_set

    if refs is not None:
        require_set(refs)
    fingerprints, notices = load_all(refs or default_references())
    if json:
        write_json(references_document(fingerprints, notices))
    else:
        show(references_view(fingerprints))
    for notice in notices:
        say(notice.line())
    raise typer.Exit(exits.exit_code([], None, bool(notices)))


@refs_app.command("remove")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names as refs list prints them.")],
    refs: SetOption = None,
    json: Json = False,
) -> None:
    """Remove references by name. Nothing but their fingerprint files is deleted."""
    from weightprint.report.documents import removed_document
    from weightprint.store import default_references, remove_named

    removed = remove_named(refs or default_references(), names)
    if json:
        write_json(removed_document(names, removed))
        return
    for path in removed:
        say(f"removed {path.name}")
