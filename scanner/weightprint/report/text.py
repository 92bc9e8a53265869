"""Names on their way to a terminal, and figures as people read them."""

from __future__ import annotations

import math


def printable(text: str) -> str:
    """``text`` with every control, invisible or unencodable character spelled out, on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def size(count: float) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def figure(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}"


def p_text(log10_p: float | None) -> str:
    """A p-value from its logarithm: plain near 1, as a power of ten below."""
    if log10_p is None:
        return "-"
    if log10_p > -3:
        return f"{10**log10_p:.3f}"
    return f"1e{math.ceil(log10_p)}"


def seconds(value: float) -> str:
    """A duration."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
