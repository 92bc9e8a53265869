"""What a checkpoint says of its own origin, in files beside its weights: read at discovery, kept in the fingerprint.

Three places: config.json ``_name_or_path``, README.md ``base_model`` of the front matter, adapter_config.json
``base_model_name_or_path``. A model card is written by anybody, so little of it is read and nothing is executed: at
most 64 KiB, a subset of YAML (one key with a plain or quoted text, a list in brackets, or a list of lines), no anchors,
tags or nesting. Whatever does not fit declares nothing and costs nothing.

A claim is of the files as they are now: a changed README needs no weight to be read again, and the fingerprint in the
store is written anew with it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from weightprint.data import Declared

MOST_BYTES = 64 * 2**10
MOST_NAMES = 16
MOST_CHARACTERS = 256

_KEY = re.compile(r"base_model[ \t]*:(?:[ \t]+(.*))?$")
_FENCE = re.compile(r"---[ \t]*$")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)$")


def read_declared(directory: Path, config: Mapping[str, Any], name: str) -> tuple[Declared, ...]:
    """The origins that the files of ``directory`` name, each once; not itself (its own ``name`` or path)."""
    found = [
        *(Declared("config.json", own) for own in _texts(config.get("_name_or_path"))),
        *(Declared("README.md", own) for own in base_models(_head(directory / "README.md"))),
        *(Declared("adapter_config.json", own) for own in _of_adapter(directory / "adapter_config.json")),
    ]
    wanted = [own for own in dict.fromkeys(found) if not _is_itself(own.name, directory, name)]
    return tuple(wanted[:MOST_NAMES])


def base_models(card: str) -> list[str]:
    """The names under ``base_model`` in the front matter of a model card; none where it does not end."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or not _FENCE.match(lines[0]):
        return []
    end = next((at for at, line in enumerate(lines[1:], 1) if _FENCE.match(line)), None)
    if end is None:
        return []
    for at, line in enumerate(lines[1:end], 1):
        key = _KEY.match(line)
        if key is not None:
            value = _without_comment(key.group(1) or "")
            return _names(_values(value) if value else _items(lines[at + 1 : end]))
    return []


def _values(value: str) -> list[str]:
    """The texts of a value on one line: a list in brackets, or a single text."""
    if not value.startswith("["):
        return [value]
    return value[1:-1].split(",") if value.endswith("]") else []


def _items(lines: list[str]) -> Iterator[str]:
    for line in lines:
        item = _ITEM.match(line)
        if item is None:
            if line.strip() and not line.lstrip().startswith("#"):
                return
            continue
        yield _without_comment(item.group(1))


def _without_comment(value: str) -> str:
    return re.split(r"(?:^|[ \t])#", value, maxsplit=1)[0].strip()


def _names(values: Iterable[str]) -> list[str]:
    """Plain or quoted texts; what looks like other YAML (an anchor, an alias, a tag, a mapping) is left out."""
    names = []
    for value in values:
        text = value.strip()
        if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
            text = text[1:-1]
        elif text[:1] in tuple("&*!{}|>%@`\"'[]") or ": " in text or text in ("null", "~"):
            continue
        names += _texts(text)
    return names[:MOST_NAMES]


def _texts(value: object) -> list[str]:
    if not isinstance(value, str):
        return []
    text = value.strip()
    return [text] if text and len(text) <= MOST_CHARACTERS and text.isprintable() else []


def _of_adapter(path: Path) -> list[str]:
    try:
        document = json.loads(_head(path))
    except (ValueError, RecursionError):
        return []
    return _texts(document.get("base_model_name_or_path")) if isinstance(document, dict) else []


def _head(path: Path) -> str:
    """The first bytes of a regular file as text; nothing where there is none, or where it is no text."""
    try:
        # Without waiting, so that a pipe costs nothing.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return ""
    try:
        content = os.read(handle, MOST_BYTES) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    except OSError:
        return ""
    finally:
        os.close(handle)
    # The last character may be cut.
    return "" if b"\0" in content else content.decode("utf-8", errors="replace")


def _is_itself(declared: str, directory: Path, name: str) -> bool:
    """Whether a name is that of the checkpoint itself: its name, its directory, or a path that leads there."""
    tail = declared.rstrip("/").casefold()
    if tail in (name.casefold(), directory.name.casefold()):
        return True
    return os.path.isabs(declared) and os.path.realpath(declared) == os.path.realpath(directory)  # noqa: PTH117
