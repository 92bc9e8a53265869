"""``weightprint bench``: what this machine reads and reduces a second."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightprint.cli.app import Device, DeviceOption, Json, app
from weightprint.cli.console import say, show, write_json


@app.command()
def bench(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]",
            readable=False,
            help="Checkpoints to read, at most 4 GB of their attention; without it one of 0.4 GB is made in the "
            "directory for temporary files, and removed.",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    json: Json = False,
) -> None:
    """Measure kernels and reading of this machine against its own limits, some 20 seconds long, and say what a night
    could scan."""
    from weightprint.report.throughput import throughput_document, throughput_view
    from weightprint.throughput.bench import measure

    found = measure(path, device.value, say)
    if json:
        write_json(throughput_document(found))
    else:
        show(throughput_view(found))
