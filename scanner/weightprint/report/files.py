"""Report files: the suffix chooses the format, the file is complete or not there at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
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
    content = WRITERS[path.suffix](finite(document)).encode("utf-8", errors="backslashreplace")
    try:
        write_atomic(path, content)
    except OSError as error:
        message = f"cannot be written ({error.strerror}); name another file: what is in the store is not read again"
        raise OutputError("E_OUTPUT", message, path=path) from None


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _json_lines(document: Mapping[str, Any]) -> str:
    """One line per checkpoint, reference, pair, family and notice; the summary is last and carries the schema."""
    kinds = {"checkpoints": "checkpoint", "references": "reference", "pairs": "pair", "families": "family"}
    lines = [{"type": kind, **entry} for key, kind in kinds.items() for entry in document[key]]
    lines += [{"type": "notice", **notice} for notice in document["notices"]]
    lines.append({"type": "summary", "schema": document["schema"], **document["summary"]})
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _csv(document: Mapping[str, Any]) -> str:
    """The pairs as rows."""
    rows = flat_pairs(document["pairs"])
    text = io.StringIO()
    columns = list(rows[0]) if rows else ["a", "b", "verdict", "log10_p"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: inert_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def inert_cell(value: object) -> object:
    """A text cell on one line, control characters spelled out, with a quote in front if a spreadsheet would run it as
    a formula; numbers stay numbers. Names as they are stand in the JSON formats."""
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(FORMULA_STARTS) else text
    return value


WRITERS: dict[str, Callable[[Mapping[str, Any]], str]] = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}
