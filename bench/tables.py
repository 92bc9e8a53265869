"""Tables for people, in Markdown, so that they can be put into docs/performance.md as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose columns are aligned."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("| " + " | ".join("-" * width for width in widths) + " |")


def print_machine(machine: Mapping[str, Any]) -> None:
    """One line about the machine, one about versions."""
    load = "/".join(f"{value:.2f}" for value in machine["load_average"] or [])
    gpu = machine["gpu"] or "no GPU"
    print(f"{machine['cpu']}, {machine['processors']} processors, {gpu}, {machine['system']}, load {load}")
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    print(f"Python {machine['python']}, {versions}\n")
