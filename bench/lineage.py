"""How well the order code, the seed score and the moment curves tell related checkpoints from unrelated ones.

Scans a zoo of known lineage (bench/zoo.py), the published checkpoints of tools/fetch_real.py and, where given, a
directory with a truth file, and holds every pair against what is true of it. Related pairs go back to a common
initialisation; *findable* ones are those of which no side lost the order of its attention units. With ``--page`` the
tables and plots are written as a page of Markdown and its pictures.

    python bench/lineage.py ZOO [--models DIR --truth FILE] [--without-published] [--check | --json | --page FILE.md]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lineage_parts.check import unexpected, violations
from lineage_parts.figures import (
    FLOAT64,
    adjusted_rand_index,
    best_clustering,
    clusters,
    moment_score,
    separation,
    uniformity,
)
from lineage_parts.findings import claims, confirmations, directions, drifts, merges
from lineage_parts.page import show, write_page
from lineage_parts.truth import Held, Truth, published_truths, truths_of

from weightprint.compare import Prepared, prepare
from weightprint.compare.blocks import products
from weightprint.compare.exact import log10_tails
from weightprint.compare.families import EVIDENCE
from weightprint.data import Fingerprint
from weightprint.reading import Read
from weightprint.scan import Report, ScanOptions, scan
from weightprint.throughput.machine import machine

PUBLISHED = Path(__file__).resolve().parents[1] / ".cache" / "real"


@dataclass(frozen=True)
class Scanned:
    """One directory, scanned with attention only and with everything; its pairs, held against the truth."""

    name: str
    models: Path
    truths: Mapping[str, Truth]
    attention: Report
    everything: Report

    @property
    def fingerprints(self) -> dict[str, Fingerprint]:
        return {outcome.fingerprint.name: outcome.fingerprint for outcome in self.attention.outcomes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--models", type=Path, help="a directory of checkpoints of known lineage")
    parser.add_argument("--truth", type=Path, help="what is true of them (bench/lineage_parts/truth.py)")
    parser.add_argument("--without-published", action="store_true", help="leave the published checkpoints out")
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of tables")
    parser.add_argument("--check", action="store_true", help="say only what must not be, and exit 1 if there is any")
    parser.add_argument("--page", type=Path, help="write tables and plots to this Markdown file and beside it")
    options = parser.parse_args()
    places = [("zoo", options.zoo / "models", truths_of(options.zoo / "lineage.json"))]
    if not options.without_published:
        places.append(("published", PUBLISHED, published_truths()))
    if options.models is not None:
        places.append(("given", options.models, truths_of(options.truth or options.models / "truth.json")))
    found = {name: measure(scanned(name, models, truths)) for name, models, truths in places}
    document = {"machine": machine(), "places": found}
    if options.check:
        found_wrong = list(violations(document))
        print("\n".join(found_wrong) or "nothing is found that must not be")
        sys.exit(bool(found_wrong))
    if options.json:
        print(json.dumps(document, indent=1))
    elif options.page is not None:
        write_page(options.page, document)
    else:
        show(document)


def scanned(name: str, models: Path, truths: Mapping[str, Truth]) -> Scanned:
    """Scan a directory twice; raises ValueError for a checkpoint of which nothing is said."""
    with tempfile.TemporaryDirectory() as store:
        reports = [
            scan(ScanOptions(paths=(models,), references=(), store=Path(store), read=read))
            for read in (Read.attention, Read.all)
        ]
    unknown = {outcome.fingerprint.name for outcome in reports[0].outcomes} - set(truths)
    if unknown:
        raise ValueError(f"nothing is said of {', '.join(sorted(unknown))} of {models}")
    return Scanned(name, models, truths, *reports)


def held(report: Report, truths: Mapping[str, Truth]) -> list[Held]:
    """Each pair with the truth."""
    return [Held(found, truths[found.a], truths[found.b]) for found in report.comparisons]


def measure(place: Scanned) -> dict[str, Any]:
    """All figures of one directory."""
    pairs, everything = held(place.attention, place.truths), held(place.everything, place.truths)
    null = null_p(place)
    scores = {
        "order code, attention": order_scores(pairs),
        "order code, attention and FFN": order_scores(everything),
        "seed score": np.array([_or_lowest(pair.found.screen.score) for pair in pairs]),
        "moment curves": moment_scores(place, pairs),
    }
    return {
        "checkpoints": len(place.attention.outcomes),
        "pairs": len(pairs),
        "separation": {
            "findable": _separations(scores, pairs, [pair.findable for pair in pairs]),
            "of an origin": _separations(scores, pairs, [pair.findable and of_origin(pair) for pair in pairs]),
            "related": _separations(scores, pairs, [pair.related for pair in pairs]),
        },
        "uniformity": {
            "layer pairs of unrelated models": asdict(uniformity(null)),
            "unrelated pairs, corrected inside the pair": asdict(uniformity(10.0 ** -order_scores(_unrelated(pairs)))),
        },
        "null": np.sort(null).tolist(),
        "unrelated_linked": _linked(_unrelated(pairs)) + _linked(_unrelated(everything)),
        "unexpected": unexpected(pairs, everything),
        "kinds": kinds(pairs, everything, scores),
        "not_found": [_named(pair) for pair in pairs if pair.findable and not _evidence(pair)],
        "clustering": clustering(place, pairs, scores),
        "drift": drifts(place.models, pairs, place.truths),
        "directions": directions(place.everything, place.truths),
        "declared": claims(place.everything, place.truths),
        "merges": merges(place.everything, place.truths),
        "confirm": confirmations(place.models, pairs, everything, place.truths),
    }


def order_scores(pairs: Sequence[Held]) -> FLOAT64:
    """-log10 p of each pair, corrected inside the pair; 0 without a test."""
    return np.array([-(pair.found.pair_log10_p or 0.0) for pair in pairs], np.float64)


def moment_scores(place: Scanned, pairs: Sequence[Held]) -> FLOAT64:
    """The score of moment curves of each pair."""
    own = place.fingerprints
    return np.array([_or_lowest(moment_score(own[pair.a.name], own[pair.b.name])) for pair in pairs])


def _or_lowest(score: float | None) -> float:
    return -1.0 if score is None else score


def _separations(scores: Mapping[str, FLOAT64], pairs: Sequence[Held], chosen: Sequence[bool]) -> dict[str, Any]:
    related, unrelated = np.array(chosen, bool), np.array([not pair.related for pair in pairs], bool)
    return {name: asdict(separation(own[related], own[unrelated])) for name, own in scores.items()}


def of_origin(pair: Held) -> bool:
    """Whether one side is the untouched model that the other goes back to."""
    return pair.a.name in pair.b.origins or pair.b.name in pair.a.origins


def null_p(place: Scanned) -> FLOAT64:
    """Exact p of every layer pair, in either channel, of every two models of which neither is made of another, that go
    back to different seeds: tests of independent networks, pairwise independent of each other."""
    seeds: dict[str, Prepared] = {}
    for name, truth in place.truths.items():
        if not truth.parents and name in place.fingerprints:
            seeds.setdefault(min(truth.seeds), prepare(place.fingerprints[name]))
    prepared = list(seeds.values())
    found = []
    for number, a in enumerate(prepared):
        for b in prepared[:number]:
            for x, y in ((x, y) for x in a.groups for y in b.groups if (x.channel, x.units) == (y.channel, y.units)):
                if x.codes is not None and y.codes is not None and x.codes.block == y.codes.block:
                    statistic, counts = products(x.codes, y.codes)
                    if (counts == counts.max()).all() and counts.max():
                        found.append(log10_tails(statistic.ravel(), int(counts.max()), x.codes.block))
    return np.asarray(10.0 ** np.concatenate(found)) if found else np.zeros(0)


def kinds(pairs: Sequence[Held], everything: Sequence[Held], scores: Mapping[str, FLOAT64]) -> list[dict[str, Any]]:
    """Each kind of derivation against the models that it goes back to: words, p, scores."""
    rows: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        if pair.related and of_origin(pair):
            younger = pair.b if pair.a.name in pair.b.origins else pair.a
            rows.setdefault(younger.kind, []).append(number)
    return [
        {
            "kind": kind,
            "pairs": len(own),
            "verdicts": _counted([pairs[number].found.verdict for number in own]),
            "verdicts, FFN read": _counted([everything[number].found.verdict for number in own]),
            **{name: [float(value[own].min()), float(value[own].max())] for name, value in scores.items()},
        }
        for kind, own in sorted(rows.items())
    ]


def clustering(place: Scanned, pairs: Sequence[Held], scores: Mapping[str, FLOAT64]) -> dict[str, Any]:
    """Adjusted Rand index of the families, and the best that any limit on the other scores gives."""
    kept = [
        name for name in sorted(place.fingerprints) if place.truths[name].attention in ("same order", "heads moved")
    ]
    inside = [(n, pair) for n, pair in enumerate(pairs) if {pair.a.name, pair.b.name} <= set(kept)]
    truth = clusters(kept, ((pair.a.name, pair.b.name) for _, pair in inside if pair.related))
    found = clusters(kept, ((pair.a.name, pair.b.name) for _, pair in inside if _evidence(pair)))
    others = {
        name: best_clustering(kept, truth, [(p.a.name, p.b.name, float(scores[name][n])) for n, p in inside])
        for name in ("seed score", "moment curves")
    }
    return {
        "members": len(kept),
        "clusters": len(set(truth)),
        "order code": adjusted_rand_index(found, truth),
        **{name: {"best": best, "limit": limit} for name, (best, limit) in others.items()},
    }


def _unrelated(pairs: Sequence[Held]) -> list[Held]:
    return [pair for pair in pairs if not pair.related]


def _evidence(pair: Held) -> bool:
    return pair.found.verdict in EVIDENCE


def _linked(pairs: Sequence[Held]) -> list[dict[str, Any]]:
    return [_named(pair) for pair in pairs if _evidence(pair)]


def _named(pair: Held) -> dict[str, Any]:
    found = pair.found
    return {"a": found.a, "b": found.b, "verdict": found.verdict, "log10_p": found.log10_p}


def _counted(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


if __name__ == "__main__":
    main()
