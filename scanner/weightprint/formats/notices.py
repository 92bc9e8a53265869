"""Keep long lists of the same complaint short: one damaged file may be at fault in a million tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from weightprint.errors import Notice

MAX_ALIKE = 20


def fold(notices: Iterable[Notice]) -> tuple[Notice, ...]:
    """The notices in order; of those with one code (tensors: one code and file) the first MAX_ALIKE, then a count."""
    kept: list[Notice] = []
    seen: Counter[tuple[str, str | None]] = Counter()
    for notice in notices:
        key = (notice.code, notice.path if notice.tensor else None)
        seen[key] += 1
        if seen[key] <= MAX_ALIKE:
            kept.append(notice)
    for (code, path), count in seen.items():
        if count > MAX_ALIKE:
            kept.append(Notice(code, f"the same holds for {count - MAX_ALIKE} more", path))
    return tuple(kept)
