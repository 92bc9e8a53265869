"""Names on their way to a terminal, and figures as people read them."""

from __future__ import annotations

import math


def printable(text: str) -> str:
    """``text`` with every control, invisible or unencodable character spelled out, on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def size(count: float) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:  # what is more would be rounded to 1e+03
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.0f} PB"


def figure(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}"


def moment(value: float) -> str:
    """A moment in few characters: three decimals, or four digits where it is large."""
    return f"{value:.3f}" if abs(value) < 100 or not math.isfinite(value) else f"{value:.4g}"


def p_text(log10_p: float | None) -> str:
    """A p-value from its logarithm: plain near 1, as a power of ten below."""
    if log10_p is None:
        return "-"
    if log10_p > -3:
        return f"{10**log10_p:.3f}"
    return f"1e{math.ceil(log10_p)}"


def seconds(value: float) -> str:
    """A duration."""
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
