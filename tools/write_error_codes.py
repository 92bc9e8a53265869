"""Write docs/errors.md from the table of codes, so that it cannot drift."""

from __future__ import annotations

from pathlib import Path

from weightprint.errors import CODES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
HEAD = """# Error codes

Every reason in a report carries one of these codes; a program matches on the code, never on the text.
This page is written by `python tools/write_error_codes.py`.

| code | means |
| --- | --- |
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(f"| `{code}` | {meaning} |\n" for code, meaning in CODES.items())


if __name__ == "__main__":
    PAGE.write_text(page())
