"""The entry point: runs a command, and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from weightprint.cli import (  # noqa: F401  they register themselves
    bench_command,
    exits,
    look_commands,
    refs_commands,
    scan_command,
)
from weightprint.cli.app import app
from weightprint.cli.console import open_closed_streams, say
from weightprint.errors import WeightprintError


def main() -> None:
    """Run the command line and exit; no traceback reaches a user."""
    open_closed_streams()
    exits.interrupt_on_signals()
    try:
        app(prog_name="weightprint")
    except WeightprintError as error:
        say(f"weightprint: {error.line()}")
        sys.exit(exits.exit_code_of(error))
    except exits.Interrupted as interruption:
        say("weightprint: interrupted; the same command goes on from what a scan has put into its store")
        sys.exit(interruption.exit_code)
    except (typer.Exit, SystemExit):
        raise
    except Exception as error:
        if os.environ.get("WEIGHTPRINT_DEBUG"):
            raise
        say(
            f"weightprint: internal error: {type(error).__name__}: {error}; "
            "this is a bug: please report it with the output of the same command under WEIGHTPRINT_DEBUG=1"
        )
        sys.exit(exits.INTERNAL)
