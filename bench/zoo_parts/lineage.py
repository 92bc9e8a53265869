"""A member of the zoo: how it is made, what it goes back to, and what is true of it.

The key of a member changes with whatever changes its weights: the code of the function that makes it and of the
modules of the zoo that this one uses, its arguments, its parents, and the version of torch. Comments do not count.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from zoo_parts.models import Model
from zoo_parts.stored import Claim

PARTS = Path(__file__).parent


@dataclass(frozen=True)
class Member:
    """``parents`` are what it was made of, in the order in which ``make`` takes them; ``seeds`` are the initialisations
    that its weights go back to; ``origins`` the untouched models of those seeds that are in the zoo."""

    name: str
    kind: str
    make: partial[Model]
    parents: tuple[str, ...] = ()
    seeds: frozenset[int] = frozenset()
    origins: tuple[str, ...] = ()
    same_units: bool = True
    """Whether its attention units are those of its parents, in their order."""
    attention: str = "same order"
    """One of ATTENTION."""
    expected: tuple[str, ...] = ("shared-origin",)
    """Words of which any is right for the pair with its (first) origin, the one hoped for first."""
    claim: Claim | None = None
    weights: Mapping[str, float] | None = None
    """Shares of a linear merge."""
    layout: str = "plain"
    encoding: str = "bf16"


ATTENTION = ("same order", "heads moved", "laundered", "retrained", "other")


def described(member: Member, members: Mapping[str, Member]) -> dict[str, Any]:
    """A member in lineage.json."""
    claim = member.claim
    return {
        "name": member.name,
        "kind": member.kind,
        "parents": list(member.parents),
        "seeds": sorted(member.seeds),
        "origins": list(member.origins),
        "same_units": member.same_units,
        "attention": member.attention,
        "expected": list(member.expected),
        "direction": [[older, member.name] for older in ancestors(member, members)],
        "declared": claim and {"base": list(claim.base), "place": claim.place, "true": claim.true},
        "weights": member.weights and dict(member.weights),
        "layout": member.layout,
        "encoding": member.encoding,
    }


def ancestors(member: Member, members: Mapping[str, Member]) -> list[str]:
    """Its parents, theirs, and so on, nearest first."""
    found: list[str] = []
    waiting = list(member.parents)
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found.append(name)
            waiting += members[name].parents
    return found


def keys(members: Sequence[Member]) -> dict[str, str]:
    """Of each member by name; parents come before children."""
    found: dict[str, str] = {}
    for member in members:
        make = member.make
        code = "\n".join(_code(module) for module in sorted(_used(make.func.__module__)))
        parts = (
            torch.__version__,
            str(sys.version_info[:2]),
            make.func.__qualname__,
            repr(make.args),
            repr(sorted(make.keywords.items())),
            code,
            *(found[parent] for parent in member.parents),
        )
        found[member.name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return found


def _used(module: str) -> set[str]:
    """A module of the zoo and all that it imports of the zoo."""
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _imports(module: str) -> tuple[str, ...]:
    imports = (node.module for node in ast.walk(_tree(module)) if isinstance(node, ast.ImportFrom))
    return tuple(name for name in imports if name is not None and name.startswith("zoo_parts."))


@cache
def _code(module: str) -> str:
    """Without comments and docstrings."""
    tree = _tree(module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _tree(module: str) -> ast.Module:
    return ast.parse((PARTS / f"{module.removeprefix('zoo_parts.')}.py").read_text())
