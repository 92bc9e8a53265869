"""The application object and what its commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from weightprint import __version__
from weightprint.reading import Read


class _Commands(TyperGroup):
    """Usage errors without the words that a validation library puts before them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="weightprint",
    cls=_Commands,
    help="Scan directories of LLM checkpoints and say, with exact p-values, which of them share an origin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Device(StrEnum):
    """Where weights are reduced."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")]
Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH", readable=False, help="Directories of checkpoints, checkpoints, stores, fingerprints."
    ),
]
ReadOption = Annotated[
    Read, typer.Option(help="What is read of each checkpoint: attention, or feed-forward blocks and experts as well.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where weights are reduced; auto takes CUDA where there is one.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
