"""The JSON documents that programs read: plain dictionaries, every figure finite or null."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

from weightprint.compare import WORDS, Family, words_of
from weightprint.compare.direction import Direction, Pair
from weightprint.data import Agreement, Comparison, Confirmation, Coverage, Fingerprint, Screen, Test
from weightprint.errors import Notice
from weightprint.fingerprint import Structure
from weightprint.index import matrix_figures
from weightprint.scan import Forecast, Outcome, Report

REPORT_SCHEMA = "weightprint.report/1"
COMPARE_SCHEMA = "weightprint.comparison/1"
INSPECT_SCHEMA = "weightprint.inspect/1"
FORECAST_SCHEMA = "weightprint.forecast/1"
REFERENCES_SCHEMA = "weightprint.references/1"

MOST_IN_A_LIST = 20_000
Directions = Mapping[Pair, Direction]
NO_DIRECTIONS: Directions = MappingProxyType({})
_TEST_FIELDS = tuple(field.name for field in fields(Test))
_AGREEMENT_FIELDS = tuple(field.name for field in fields(Agreement))
_SCREEN_FIELDS = tuple(field.name for field in fields(Screen))

CAVEAT = (
    "A verdict never says who derived from whom, and no-evidence is not proof of independence. shared-origin means "
    "that independent initialisation is rejected: it holds for parent, child, sibling and cousin alike, and for two "
    "trainings from scratch that used the same code, shapes and random seed."
)


def report_document(report: Report) -> dict[str, Any]:
    """``scan --json``."""
    return {
        "schema": REPORT_SCHEMA,
        "checkpoints": [
            {**outcome_document(outcome), "declared": declared_documents(report, outcome.fingerprint.name)}
            for outcome in report.outcomes
        ],
        "references": [outcome_document(outcome) for outcome in report.references],
        "pairs": pair_documents(report.comparisons, report.directions),
        "families": [family_document(family) for family in report.families],
        "summary": summary(report),
        "notices": [notice_document(notice) for notice in report.notices],
        "caveat": CAVEAT,
    }


def summary(report: Report) -> dict[str, Any]:
    """found = complete + partial + failed + skipped_fresh, always; the first three count what was analysed now."""
    now = Counter(outcome.fingerprint.status for outcome in report.outcomes if not outcome.fresh)
    return {
        "found": len(report.outcomes),
        "complete": now["complete"],
        "partial": now["partial"],
        "failed": now["failed"],
        "skipped_fresh": sum(outcome.fresh for outcome in report.outcomes),
        "skipped_fresh_partial": sum(outcome.fresh and incomplete(outcome) for outcome in report.outcomes),
        "references": len(report.references),
        "pairs": len(report.comparisons),
        "verdicts": dict(sorted(Counter(WORDS[word] for word in words_of(report.comparisons).tolist()).items())),
        "alpha": report.alpha,
        "seconds": round(report.seconds, 3),
        "bytes_read": sum(o.fingerprint.bytes.read for o in (*report.outcomes, *report.references) if not o.fresh),
        "backend": report.backend,
    }


def incomplete(outcome: Outcome) -> bool:
    """Whether something of the checkpoint could not be analysed."""
    return outcome.fingerprint.status != "complete"


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """One checkpoint of a report."""
    fingerprint = outcome.fingerprint
    matrices = matrix_figures(fingerprint)
    return {
        "name": fingerprint.name,
        "path": fingerprint.path,
        "status": fingerprint.status,
        "code": fingerprint.code,
        "reason": fingerprint.reason,
        "fresh": outcome.fresh,
        "seconds": round(outcome.seconds, 4),
        "bytes": asdict(fingerprint.bytes),
        "coverage": coverage_document(fingerprint.coverage),
        "feed_forward": coverage_document(fingerprint.feed_forward),
        "matrices": matrices.count,
        "copies": [asdict(own) for own in outcome.copies],
        "non_finite": matrices.non_finite,
        "formats": sorted({source.format for source in fingerprint.sources if source.format != "config"}),
        "dtypes": list(matrices.dtypes),
        "backend": fingerprint.backend,
        "set_aside": set_aside_document(outcome.set_aside),
        "notices": [notice_document(notice) for notice in fingerprint.notices],
    }


def coverage_document(coverage: Coverage | None) -> dict[str, int] | None:
    """How much was understood; None of feed-forward blocks that were not looked for."""
    return None if coverage is None else {"found": coverage.found, "understood": coverage.understood}


def declared_documents(report: Report, name: str) -> list[dict[str, Any]]:
    """The origins that a checkpoint declares, and what was found of each."""
    return [asdict(finding) for finding in report.declared.get(name, ())]


def set_aside_document(set_aside: Sequence[tuple[Path, str]]) -> list[dict[str, str]]:
    """Weight-like files of a checkpoint that are not read, and why."""
    return [{"path": str(path), "reason": reason} for path, reason in set_aside]


def notice_document(notice: Notice) -> dict[str, Any]:
    """A fault: code beside reason, path and tensor where they apply."""
    return asdict(notice)


def comparison_document(comparison: Comparison, directions: Directions = NO_DIRECTIONS) -> dict[str, Any]:
    """One pair: ``compare --json`` and each entry of a report's pairs."""
    direction = directions.get((comparison.a, comparison.b))
    why_none = [] if direction is None or direction.reason is None else [direction.reason]
    return {
        "a": comparison.a,
        "b": comparison.b,
        "verdict": comparison.verdict,
        "p_value": p_value(comparison.log10_p),
        "log10_p": comparison.log10_p,
        "pair_log10_p": comparison.pair_log10_p,
        "tests": [_plain(test, _TEST_FIELDS) for test in comparison.tests],
        "screen": screen_document(comparison.screen),
        "agreement": _agreement(comparison.agreement),
        "layer_map": [list(entry) for entry in comparison.layer_map],
        "head_map": [list(entry) for entry in comparison.head_map],
        "direction": direction_document(direction),
        "reasons": [*comparison.reasons, *why_none],
    }


def direction_document(direction: Direction | None) -> dict[str, Any] | None:
    """Which of a pair is older, and the cues; None where nothing says so or cues disagree."""
    if direction is None or direction.older is None:
        return None
    return {"older": direction.older, "younger": direction.younger, "cues": list(direction.cues)}


class PairDocuments(Sequence[dict[str, Any]]):
    """The documents of many pairs, each made when it is looked at."""

    def __init__(self, comparisons: Sequence[Comparison], directions: Directions = NO_DIRECTIONS) -> None:
        self._comparisons = comparisons
        self._directions = directions

    def __len__(self) -> int:
        return len(self._comparisons)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [comparison_document(comparison, self._directions) for comparison in self._comparisons[index]]
        return comparison_document(self._comparisons[index], self._directions)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (comparison_document(comparison, self._directions) for comparison in self._comparisons)


def pair_documents(
    comparisons: Sequence[Comparison], directions: Directions = NO_DIRECTIONS
) -> Sequence[dict[str, Any]]:
    """The documents of all pairs: a list, unless it would take gigabytes."""
    many = PairDocuments(comparisons, directions)
    return many if len(many) > MOST_IN_A_LIST else list(many)


def compare_document(
    comparison: Comparison, directions: Directions = NO_DIRECTIONS, confirmation: Confirmation | None = None
) -> dict[str, Any]:
    """``compare --json``; with ``--confirm`` what reading the weights gave stands in ``confirm``."""
    confirm = {} if confirmation is None else {"confirm": confirmation_document(confirmation)}
    return {"schema": COMPARE_SCHEMA, **comparison_document(comparison, directions), **confirm, "caveat": CAVEAT}


def confirmation_document(confirmation: Confirmation) -> dict[str, Any]:
    """What reading the weights of a pair gave."""
    return {
        "outcome": confirmation.outcome,
        "tests": [
            {key: value for key, value in asdict(test).items() if value is not None} for test in confirmation.tests
        ],
        "p_value": p_value(confirmation.log10_p),
        "log10_p": confirmation.log10_p,
        "unit_matching": None if confirmation.unit_matching is None else asdict(confirmation.unit_matching),
        "reasons": list(confirmation.reasons),
    }


def p_value(log10_p: float | None) -> float | None:
    """10 ** log10_p, kept an upper bound where it underflows: the smallest normal double."""
    if log10_p is None:
        return None
    return max(math.pow(10.0, max(log10_p, -400.0)), sys.float_info.min)


def screen_document(screen: Screen) -> dict[str, Any]:
    """Seed score, per role and mean, with its percentile among the report's unlinked pairs."""
    return _plain(screen, _SCREEN_FIELDS)


def _agreement(agreement: Agreement | None) -> dict[str, Any] | None:
    if agreement is None:
        return None
    return {**_plain(agreement, _AGREEMENT_FIELDS), "curves": list(agreement.curves)}


def _plain(record: object, names: Sequence[str]) -> dict[str, Any]:
    """asdict of a record of plain values, without the copies that asdict makes of each."""
    return {name: getattr(record, name) for name in names}


def family_document(family: Family) -> dict[str, Any]:
    """One connected component of the evidence."""
    document: dict[str, Any] = asdict(family)
    return document


def inspect_document(name: str, path: str, structure: Structure) -> dict[str, Any]:
    """``inspect --json``: what a scan would read, and what is not understood; no weight was read for it."""
    understanding = structure.understanding
    files = sum(source.size for source in structure.sources if source.format != "config")
    return {
        "schema": INSPECT_SCHEMA,
        "name": name,
        "path": path,
        "stacks": stacks(structure),
        "coverage": coverage_document(understanding.coverage),
        "feed_forward": coverage_document(understanding.feed_forward),
        "not_understood": [
            {"tensor": notice.tensor, "reason": notice.reason, "code": notice.code}
            for coverage in (understanding.coverage, understanding.feed_forward)
            for notice in (coverage.not_understood if coverage else ())
        ],
        "notices": [notice_document(notice) for notice in structure.notices],
        "set_aside": set_aside_document(structure.set_aside),
        "sources": [asdict(source) for source in structure.sources],
        "tensors": len(structure.headers.tensors),
        "bytes": {"files": files, "selected": structure.plan.selected, "read": structure.plan.read},
        "requests": len(structure.plan),
    }


def stacks(structure: Structure) -> list[dict[str, Any]]:
    """Per stack: its layers, and per role the shapes, how many matrices have them, and how they are stored."""
    grouped: dict[str, dict[tuple[str, tuple[int, int], str, bool], list[int]]] = {}
    for matrix in structure.understanding.matrices:
        dtype = "+".join(sorted({part.tensor.dtype for part in matrix.parts}))
        roles = grouped.setdefault(matrix.stack, {})
        roles.setdefault((matrix.role, matrix.shape, dtype, matrix.transposed), []).append(matrix.layer)
    return [
        {
            "stack": stack,
            "layers": len({layer for layers in roles.values() for layer in layers}),
            "roles": [
                {"role": role, "shape": list(shape), "dtype": dtype, "transposed": transposed, "count": len(layers)}
                for (role, shape, dtype, transposed), layers in roles.items()
            ],
        }
        for stack, roles in grouped.items()
    ]


def forecast_document(forecasts: Sequence[Forecast], notices: Sequence[Notice]) -> dict[str, Any]:
    """``scan --dry-run --json``."""
    own = [forecast for forecast in forecasts if not forecast.reference]
    return {
        "schema": FORECAST_SCHEMA,
        "checkpoints": [_forecast_document(forecast) for forecast in own],
        "references": [_forecast_document(forecast) for forecast in forecasts if forecast.reference],
        "notices": [notice_document(notice) for notice in notices],
        "summary": {
            "found": len(own),
            "fresh": sum(forecast.fresh for forecast in own),
            "bytes_to_read": sum(forecast_bytes(forecast) for forecast in forecasts),
        },
    }


def _forecast_document(forecast: Forecast) -> dict[str, Any]:
    return {
        "name": forecast.checkpoint.name,
        "path": str(forecast.checkpoint.path.absolute()),
        "fresh": forecast.fresh,
        "bytes": {"selected": forecast.structure.plan.selected, "read": forecast_bytes(forecast)},
        "requests": 0 if forecast.fresh else len(forecast.structure.plan),
        "notices": [notice_document(notice) for notice in forecast.structure.notices],
    }


def forecast_bytes(forecast: Forecast) -> int:
    """Bytes that a scan would read of the checkpoint now."""
    return 0 if forecast.fresh else forecast.structure.plan.read


def references_document(fingerprints: Sequence[Fingerprint], notices: Sequence[Notice]) -> dict[str, Any]:
    """``refs list --json`` and ``refs add --json``."""
    return {
        "schema": REFERENCES_SCHEMA,
        "notices": [notice_document(notice) for notice in notices],
        "references": [
            {
                "name": fingerprint.name,
                "path": fingerprint.path,
                "status": fingerprint.status,
                "code": fingerprint.code,
                "reason": fingerprint.reason,
                "matrices": len(fingerprint.matrices),
            }
            for fingerprint in fingerprints
        ],
    }


def removed_document(names: Sequence[str], files: Sequence[Path]) -> dict[str, Any]:
    """``refs remove --json``: the names that were asked for and the fingerprint files that are gone."""
    return {"schema": REFERENCES_SCHEMA, "removed": list(names), "files": [str(file) for file in files]}


def finite(value: Any) -> Any:
    """The same document with null for every figure that JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | PairDocuments):
        return [finite(entry) for entry in value]
    return value


def flat_pairs(pairs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pairs as flat rows for a spreadsheet or a data frame."""
    return (
        {
            "a": pair["a"],
            "b": pair["b"],
            "verdict": pair["verdict"],
            "log10_p": pair["log10_p"],
            "pair_log10_p": pair["pair_log10_p"],
            **{f"screen_{key}": value for key, value in pair["screen"].items()},
            "reasons": " | ".join(pair["reasons"]),
        }
        for pair in pairs
    )
