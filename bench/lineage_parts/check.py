"""What must hold of the figures of bench/lineage.py, whatever the zoo: errors are counted, not averaged away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lineage_parts.truth import Held

LEAST_UNIFORMITY = 1e-3
"""Of the Kolmogorov-Smirnov p of layer pairs of unrelated models: one run in a thousand fails by chance."""


def unexpected(attention: Sequence[Held], everything: Sequence[Held]) -> list[dict[str, str]]:
    """Members of which neither scan says, against the first model that they go back to, what is expected of them.
    Laundered ones are counted by themselves."""
    found = []
    for pair, more in zip(attention, everything, strict=True):
        younger, older = (pair.b, pair.a) if pair.a.name in pair.b.origins[:1] else (pair.a, pair.b)
        if older.name not in younger.origins[:1] or not younger.expected or "laundering" in younger.expected:
            continue
        words = {pair.found.verdict, more.found.verdict}
        if words.isdisjoint(younger.expected):
            said = f"{pair.found.verdict}, with FFN {more.found.verdict}"
            found.append({"name": younger.name, "said": said, "expected": " or ".join(younger.expected)})
    return found


def violations(document: Mapping[str, Any]) -> Iterator[str]:
    """A line for everything that must not be."""
    for name, place in document["places"].items():
        for pair in place["unrelated_linked"]:
            yield f"{name}: {pair['a']} and {pair['b']} have nothing in common and are called {pair['verdict']}"
        confirmed = place["confirm"]["unrelated"]["confirmed"]
        if confirmed:
            yield f"{name}: {confirmed} unrelated pairs are confirmed"
        for entry in place["directions"]["not_true"]:
            yield f"{name}: {entry[0]} is called older than {entry[1]}, which is not known to be true"
        for merge in place["merges"]["candidates"]:
            if not merge["is_merge"]:
                yield f"{name}: {merge['member']} is called a merge candidate"
        for wrong in place["unexpected"]:
            yield f"{name}: {wrong['name']} is called {wrong['said']}; expected is {wrong['expected']}"
        uniform = place["uniformity"]["layer pairs of unrelated models"]["kolmogorov_smirnov"]
        if uniform < LEAST_UNIFORMITY:
            yield f"{name}: p of layer pairs of unrelated models are not uniform (Kolmogorov-Smirnov p {uniform:.2g})"
