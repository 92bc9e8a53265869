"""Lines about pairs beside the table: flags, what the table does not show, maps of layers and heads. Names escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from weightprint.compare import WORDS, words_of
from weightprint.compare.invariants import ADVICE, LAUNDERING
from weightprint.compare.meeting import PARTS
from weightprint.compare.verdict import Judged
from weightprint.data import Comparison, Fingerprint
from weightprint.report.text import printable

MOST_FLAGS = 10
MOST_LAYERS = 40
MOST_HEADS = 24


def flag_lines(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The pairs that are flagged as possible laundering, the first MOST_FLAGS by name; only these are put together."""
    numbers = _flagged(comparisons)
    if not numbers:
        return
    named = [comparisons[number] for number in numbers[:MOST_FLAGS]]
    more = f" and {len(numbers) - len(named)} more" if len(numbers) > len(named) else ""
    yield (
        f"{'1 pair is' if len(numbers) == 1 else f'{len(numbers)} pairs are'} flagged as possible laundering "
        f"(a screen, no evidence): {', '.join(f'{printable(pair.a)} - {printable(pair.b)}' for pair in named)}{more}; "
        f"{ADVICE}"
    )


def _flagged(comparisons: Sequence[Comparison]) -> list[int]:
    if isinstance(comparisons, Judged):
        numbers: list[int] = np.flatnonzero(comparisons.flagged).tolist()
        return numbers
    return [
        number
        for number, pair in enumerate(comparisons)
        if any(reason.startswith(LAUNDERING) for reason in pair.reasons)
    ]


def hidden_lines(comparisons: Sequence[Comparison], shown: Sequence[int]) -> Iterator[str]:
    """How many pairs of each verdict are not among the ``shown`` numbers."""
    words = np.delete(words_of(comparisons), np.asarray(shown, np.int64))
    if len(words):
        counts = np.bincount(words, minlength=len(WORDS)).tolist()
        each = ", ".join(f"{count} {word}" for word, count in zip(WORDS, counts, strict=True) if count)
        pairs = "1 more pair" if len(words) == 1 else f"{len(words)} more pairs"
        yield f"and {pairs}: {each}; --out FILE.csv has them all"


def map_lines(comparison: Comparison, layers: tuple[int, int] | None) -> Iterator[str]:
    """Map of layers, and of heads where some are elsewhere than their layers; ``layers`` are how many either side
    has, without which no map is called complete."""
    if comparison.layer_map:
        mapped = [(a, b) for a, b, _ in comparison.layer_map]
        found = (len({a for a, _ in mapped}), len({b for _, b in mapped}))
        of = ("", "") if layers is None else (f" of {layers[0]}", f" of {layers[1]}")
        straight = all(a == b for a, b in mapped)
        what = (
            "layer by layer, in the same order"
            if straight and found == layers
            else _entries([(f"{a}->{b}", a != b) for a, b in mapped], MOST_LAYERS)
        )
        yield f"layer map ({found[0]}{of[0]} layers of a, {found[1]}{of[1]} of b): {what}"
    if comparison.head_map:
        heads = [(f"{a}.{i}->{b}.{j}", (a, i) != (b, j)) for a, i, b, j, _ in comparison.head_map]
        yield (
            f"head map ({len(heads)} {_parts(comparison)} that agree by themselves, layer.head): "
            f"{_entries(heads, MOST_HEADS)}"
        )


def layers_of(a: Fingerprint, b: Fingerprint) -> tuple[int, int] | None:
    """How many layers of each side were read; None where one has several stacks, since a map is of one of them."""
    if any(len({matrix.stack for matrix in side.matrices}) != 1 for side in (a, b)):
        return None
    first, second = (len({matrix.layer for matrix in side.matrices}) for side in (a, b))
    return first, second


def _parts(comparison: Comparison) -> str:
    """What the parts of the map may be, by the channels that were tested."""
    called = {PARTS.get(test.name.partition(" ")[0], "parts") for test in comparison.tests}
    return " or ".join({"heads": "value heads"}.get(name, name) for name in sorted(called, reverse=True)) or "parts"


def _entries(entries: Sequence[tuple[str, bool]], most: int) -> str:
    """All entries (text, whether it moved) if they are at most so many, else so many of the moved ones and a count."""
    if len(entries) <= most:
        return ", ".join(text for text, _ in entries)
    moved = [text for text, elsewhere in entries if elsewhere]
    more = f" and {len(moved) - most} more" if len(moved) > most else ""
    still = len(entries) - len(moved)
    parts = [", ".join(moved[:most]) + more] if moved else []
    return "; ".join([*parts, *([f"{still} at the same place"] if still else [])])
