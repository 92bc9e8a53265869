"""Report files: the suffix chooses the format, the file is complete or not there at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from weightprint.atomic import write_atomic
from weightprint.errors import OutputError, UsageError
from weightprint.formats.opened import is_directory
from weightprint.report.documents import finite, flat_pairs
from weightprint.report.text import printable

FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def check_outputs(paths: list[Path]) -> None:
    """Refuse, before a night's work, a file that could not be written after it."""
    for path in paths:
        if path.suffix not in WRITERS:
            known = " ".join(WRITERS)
            raise UsageError(
                "E_OUTPUT", f"the suffix {path.suffix!r} names no known format; use one of {known}", path=path
            )
        if is_directory(path):
            raise UsageError("E_OUTPUT", "is a directory; name a file in it", path=path)
        if not is_directory(path.absolute().parent):
            raise UsageError("E_OUTPUT", "its directory is not there or cannot be entered; create it first", path=path)
        if not os.access(path.absolute().parent, os.W_OK):
            raise UsageError("E_OUTPUT", "its directory cannot be written to; choose another", path=path)
        try:
            path.lstat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UsageError("E_OUTPUT", f"cannot be made ({error.strerror}); name another file", path=path) from None


def write_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a report document in the format of the suffix; raises OutputError."""
    content = io.BytesIO()
    for piece in WRITERS[path.suffix](document):
        content.write(piece.encode("utf-8", errors="backslashreplace"))
    try:
        write_atomic(path, content.getvalue())
    except OSError as error:
        message = f"cannot be written ({error.strerror}); name another file: what is in the store is not read again"
        raise OutputError("E_OUTPUT", message, path=path) from None


def _json(document: Mapping[str, Any]) -> Iterator[str]:
    """One pair a line, so that half a million need not be one text."""
    for number, (key, value) in enumerate(document.items()):
        yield f"{',' if number else '{'}\n {json.dumps(key)}: "
        if key == "pairs" and value:
            yield from (f"{',' if row else '['}\n  {_line(pair)}" for row, pair in enumerate(value))
            yield "\n ]"
        else:
            # No text of JSON holds a line break of its own.
            yield json.dumps(finite(value), indent=1, allow_nan=False).replace("\n", "\n ")
    yield "\n}\n"


def _json_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """One line per checkpoint, reference, pair, family and notice; the summary is last and carries the schema."""
    kinds = {"checkpoints": "checkpoint", "references": "reference", "pairs": "pair", "families": "family"}
    for key, kind in {**kinds, "notices": "notice"}.items():
        yield from (_line({"type": kind, **entry}) + "\n" for entry in document[key])
    yield _line({"type": "summary", "schema": document["schema"], **document["summary"]}) + "\n"


def _line(entry: Mapping[str, Any]) -> str:
    try:
        return json.dumps(entry, allow_nan=False)
    except ValueError:  # rarely, so that the others need not be looked through
        return json.dumps(finite(entry), allow_nan=False)


def _csv(document: Mapping[str, Any]) -> Iterator[str]:
    """The pairs as rows."""
    pairs = document["pairs"]
    columns = list(next(flat_pairs(pairs[:1]), dict.fromkeys(["a", "b", "verdict", "log10_p"])))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    yield _taken(text)
    for row in map(finite, flat_pairs(pairs)):
        writer.writerow({key: inert_cell(value) for key, value in row.items()})
        yield _taken(text)


def _taken(text: io.StringIO) -> str:
    """What was written so far, which is gone from ``text`` then."""
    written = text.getvalue()
    text.seek(0)
    text.truncate()
    return written


def inert_cell(value: object) -> object:
    """A text cell on one line, control characters spelled out, with a quote in front if a spreadsheet would run it as
    a formula; numbers stay numbers. Names as they are stand in the JSON formats."""
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(FORMULA_STARTS) else text
    return value


WRITERS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}
