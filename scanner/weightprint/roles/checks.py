"""Self-checks of one attention module: laws that the shapes of q, k, v and o obey, whatever the family.

A wrong guess about names, layout or orientation breaks one of them, and the module is then "not understood" instead
of wrongly read. Shapes are logical, (out, in). A check returns why the shapes do not fit, or None; it looks only at
the roles that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weightprint.roles.config import Hints

Shape = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What the checks look at. ``cross``: keys and values come from another sequence."""

    shapes: Mapping[str, Shape]
    hints: Hints
    cross: bool

    def rows(self, role: str) -> int | None:
        """Output width of a role, None where it is absent."""
        return self.shapes[role][0] if role in self.shapes else None

    def columns(self, role: str) -> int | None:
        """Input width of a role, None where it is absent."""
        return self.shapes[role][1] if role in self.shapes else None

    def describe(self, *roles: str) -> str:
        """The shapes of ``roles`` for a reason."""
        return ", ".join(f"{role} {list(self.shapes[role])}" for role in roles if role in self.shapes)


Check = Callable[[Facts], str | None]


def first_misfit(facts: Facts) -> str | None:
    """The first law that the shapes break."""
    return next((reason for check in CHECKS if (reason := check(facts)) is not None), None)


def _one_input(facts: Facts) -> str | None:
    q, k, v = (facts.columns(role) for role in "qkv")
    if k is not None and v is not None and k != v:
        return f"k and v take inputs of different width: {facts.describe('k', 'v')}"
    other = k if k is not None else v
    if not facts.cross and q is not None and other is not None and q != other:
        return f"q, k and v take inputs of different width: {facts.describe('q', 'k', 'v')}"
    return None


def _output_returns(facts: Facts) -> str | None:
    """o writes what q reads; twice as wide an input (two streams joined) is known too (Zamba, EAGLE)."""
    width, out = facts.columns("q"), facts.rows("o")
    if width is None or out is None or width in (out, 2 * out):
        return None
    return f"o does not give back the width that q takes: {facts.describe('q', 'o')}"


def _output_takes_heads(facts: Facts) -> str | None:
    q, v, inner = facts.rows("q"), facts.rows("v"), facts.columns("o")
    if inner is None or "kv_b" in facts.shapes or "o_a" in facts.shapes:
        return None
    if q is not None and q != inner and not _asymmetric(facts, q, inner):
        return f"o does not take as many inputs as q has rows: {facts.describe('q', 'o')}"
    if v is not None and inner % v:
        return f"o does not take a multiple of v's rows: {facts.describe('v', 'o')}"
    return None


def _keys_like_values(facts: Facts) -> str | None:
    k, v = facts.rows("k"), facts.rows("v")
    if k is None or v is None or k == v or _asymmetric(facts, k, v):
        return None
    return f"k and v have different numbers of rows: {facts.describe('k', 'v')}"


def _groups(facts: Facts) -> str | None:
    q, k = facts.rows("q"), facts.rows("k")
    if q is None or k is None or q % k == 0:
        return None
    return f"q's rows are no multiple of k's: {facts.describe('q', 'k')}"


def _asymmetric(facts: Facts, of_q: int, of_v: int) -> bool:
    """Whether the config has heads of v narrower or wider than those of q, in just this ratio."""
    wide, narrow = facts.hints.head_dim, facts.hints.v_head_dim
    return wide is not None and narrow is not None and of_q * narrow == of_v * wide


def _chain(first: str, second: str) -> Check:
    def check(facts: Facts) -> str | None:
        rank, taken = facts.rows(first), facts.columns(second)
        if rank is None or taken is None or rank == taken:
            return None
        return f"{second} does not take what {first} gives: {facts.describe(first, second)}"

    return check


def _latent(facts: Facts) -> str | None:
    """kv_a gives the latent and the shared rotary key, kv_b takes the latent alone."""
    rank, taken = facts.rows("kv_a"), facts.columns("kv_b")
    if rank is None or taken is None or taken <= rank:
        return None
    return f"kv_b takes more than kv_a gives: {facts.describe('kv_a', 'kv_b')}"


def _latent_input(facts: Facts) -> str | None:
    width = next((facts.columns(role) for role in ("q_a", "q") if role in facts.shapes), None)
    latent = facts.columns("kv_a")
    if width is None or latent is None or width == latent:
        return None
    return f"kv_a and q take inputs of different width: {facts.describe('q_a', 'q', 'kv_a')}"


CHECKS: tuple[Check, ...] = (
    _one_input,
    _output_takes_heads,
    _output_returns,
    _keys_like_values,
    _groups,
    _chain("q_a", "q_b"),
    _chain("o_a", "o_b"),
    _latent,
    _latent_input,
)
