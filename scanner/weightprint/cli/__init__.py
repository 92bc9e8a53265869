"""The command line: thin commands over the library, exit codes, output to the right stream."""

from weightprint.cli.main import main

__all__ = ["main"]
