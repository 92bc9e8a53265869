"""The JSON documents as DESIGN's contract names them: field by field, type by type."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fingerprints import small_fingerprint
from hypothesis import given
from hypothesis import strategies as st
from report.report_cases import NASTY, VERDICTS, comparison, fingerprint, nasty_report, outcome, report

import tiny
from weightprint.compare import compare_pair, judge
from weightprint.data import Screen, Test
from weightprint.discover import discover
from weightprint.errors import Notice
from weightprint.fingerprint import Structure, read_structure
from weightprint.fingerprint_file import to_document
from weightprint.report import documents
from weightprint.report.documents import finite, p_value
from weightprint.scan import Forecast

# A shape is a type, a tuple of types, [shape of each entry], or {field: shape}. ANY is what DESIGN leaves open.
Shape = Any
ANY: Shape = object
FIGURE: Shape = (float, type(None))
TEXT_OR_NULL: Shape = (str, type(None))

ASIDE: Any = {"path": str, "reason": str}
NOTICE = {"code": str, "reason": str, "path": TEXT_OR_NULL, "tensor": TEXT_OR_NULL}
BYTES = {"files": int, "selected": int, "read": int}
COVERAGE = {"found": int, "understood": int}
FEED_FORWARD: Shape = (dict, type(None))  # the same, or null where they were not looked for
NOT_UNDERSTOOD = {"tensor": TEXT_OR_NULL, "reason": str, "code": str}
SOURCE = {"name": str, "size": int, "mtime_ns": int, "format": str, "header_digest": str}
MATRIX = {
    **{"stack": str, "layer": int, "role": str, "tensors": [str], "shape": [int], "dtype": str, "count": int},
    **{"mean": FIGURE, "std": FIGURE, "skewness": FIGURE, "kurtosis": FIGURE, "abs_max": FIGURE, "zeros": int},
    **{"non_finite": int, "head_width": (int, type(None))},
}
PAIR = {
    **{"a": str, "b": str, "verdict": str, "p_value": FIGURE, "log10_p": FIGURE, "pair_log10_p": FIGURE},
    "tests": [{"name": str, "statistic": int, "blocks": int, "z": FIGURE, "log10_p": FIGURE, "log10_factor": FIGURE}],
    "screen": {
        **{"score": FIGURE, "q": FIGURE, "k": FIGURE, "v": FIGURE, "o": FIGURE},
        **{"background_percentile": FIGURE, "background_pairs": int},
    },
    **{"layer_map": [[(int, float)]], "head_map": [[(int, float)]], "reasons": [str]},
    **{"agreement": (dict, type(None)), "direction": (dict, type(None))},
}
CHECKPOINT = {
    **{"name": str, "path": str, "status": str, "code": TEXT_OR_NULL, "reason": TEXT_OR_NULL, "fresh": bool},
    **{"seconds": float, "bytes": BYTES, "coverage": COVERAGE, "feed_forward": FEED_FORWARD},
    **{"matrices": int, "non_finite": int},
    **{"copies": [{"stack": str, "of": str, "numbers": [int], "channels": [str]}]},
    **{"formats": [str], "dtypes": [str], "backend": str, "set_aside": [ASIDE], "notices": [NOTICE]},
}
SCANNED = {
    **CHECKPOINT,
    "declared": [{"source": str, "name": str, "matched": TEXT_OR_NULL, "finding": str, "reason": str}],
}
FAMILY = {
    "members": [str],
    "evidence": [{"a": str, "b": str, "verdict": str, "log10_p": FIGURE}],
    "merges": [
        {
            "parents": [{"name": str, "partial_z": FIGURE, "weight": FIGURE, "weight_error": FIGURE}],
            **{"member": str, "kind": str, "reason": str, "exact": bool},
        }
    ],
}
FORECAST = {
    **{"name": str, "path": str, "fresh": bool, "bytes": {"selected": int, "read": int}},
    **{"requests": int, "notices": [NOTICE]},
}
DOCUMENTS: dict[str, Shape] = {
    "weightprint.report/1": {
        **{"schema": str, "checkpoints": [SCANNED], "references": [CHECKPOINT], "pairs": [PAIR], "families": [FAMILY]},
        "summary": {
            **{"found": int, "complete": int, "partial": int, "failed": int, "skipped_fresh": int},
            **{"skipped_fresh_partial": int, "references": int, "pairs": int, "verdicts": ANY, "alpha": float},
            **{"seconds": float, "bytes_read": int, "backend": str},
        },
        **{"notices": [NOTICE], "caveat": str},
    },
    "weightprint.comparison/1": {"schema": str, **PAIR, "caveat": str},
    "weightprint.fingerprint/1": {
        **{"schema": str, "name": str, "path": str, "status": str, "code": TEXT_OR_NULL, "reason": TEXT_OR_NULL},
        **{"matrices": [MATRIX], "not_understood": [NOT_UNDERSTOOD], "bytes": BYTES, "coverage": COVERAGE},
        **{"sources": [SOURCE], "notices": [NOTICE], "backend": str, "tool_version": str},
    },
    "weightprint.inspect/1": {
        **{"schema": str, "name": str, "path": str, "coverage": COVERAGE, "feed_forward": FEED_FORWARD},
        **{"not_understood": [NOT_UNDERSTOOD]},
        "stacks": [
            {
                **{"stack": str, "layers": int},
                "roles": [{"role": str, "shape": [int], "dtype": str, "transposed": bool, "count": int}],
            }
        ],
        **{"notices": [NOTICE], "set_aside": [ASIDE], "sources": [SOURCE], "tensors": int},
        **{"bytes": BYTES, "requests": int},
    },
    "weightprint.forecast/1": {
        "schema": str,
        **{"checkpoints": [FORECAST], "references": [FORECAST], "notices": [NOTICE]},
        "summary": {"found": int, "fresh": int, "bytes_to_read": int},
    },
    "weightprint.references/1": {
        **{"schema": str, "notices": [NOTICE]},
        "references": [
            {
                **{"name": str, "path": str, "status": str, "code": TEXT_OR_NULL, "reason": TEXT_OR_NULL},
                "matrices": int,
            }
        ],
    },
}


def misfit(value: Any, shape: Shape, where: str = "document") -> str | None:
    """The first place where ``value`` has not the ``shape``, or None."""
    if isinstance(shape, dict):
        if not isinstance(value, dict) or set(value) != set(shape):
            return f"{where}: {sorted(set(value) ^ set(shape))}"
        return next((m for key in shape if (m := misfit(value[key], shape[key], f"{where}.{key}"))), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where}: {type(value).__name__} is no list"
        return next((m for n, entry in enumerate(value) if (m := misfit(entry, shape[0], f"{where}[{n}]"))), None)
    types = shape if isinstance(shape, tuple) else (shape,)
    fits = isinstance(value, types) and (bool in types or object in types or not isinstance(value, bool))
    return None if fits else f"{where}: {value!r} is {type(value).__name__}"


@pytest.fixture
def structure(tmp_path: Path) -> Structure:
    """Of a checkpoint with a hole, so that there is something to complain of."""
    weights = tiny.llama(0, layers=3)
    del weights["model.layers.1.self_attn.q_proj.weight"]
    (checkpoint,) = discover([tiny.save(tmp_path / "tiny", weights)])
    return read_structure(checkpoint)


@pytest.fixture
def every_document(structure: Structure, tmp_path: Path) -> dict[str, Any]:
    """Schema -> a document of it, as a program reads it."""
    (checkpoint,) = discover([tmp_path / "tiny"])
    forecasts = [Forecast(checkpoint, fresh, structure) for fresh in (False, True)]
    forecasts.append(Forecast(checkpoint, False, structure, reference=True))
    made = [
        documents.report_document(report()),
        documents.compare_document(comparison("shared-origin")),
        to_document(small_fingerprint()),
        documents.inspect_document("tiny", "/models/tiny", structure),
        documents.forecast_document(forecasts, [Notice("E_STORE", "full")]),
        documents.references_document([fingerprint("a"), fingerprint("b", "failed")], [Notice("E_STORE", "full")]),
    ]
    return {document["schema"]: json.loads(json.dumps(finite(document), allow_nan=False)) for document in made}


@pytest.mark.parametrize("schema", DOCUMENTS)
def test_fields_and_types_are_those_of_the_contract(schema: str, every_document: dict[str, Any]) -> None:
    assert misfit(every_document[schema], DOCUMENTS[schema]) is None
    assert next(iter(every_document[schema])) == "schema"


def test_every_list_of_the_documents_has_been_looked_into(every_document: dict[str, Any]) -> None:
    def empty(value: Any, where: str) -> list[str]:
        if isinstance(value, dict):
            return [found for key, entry in value.items() for found in empty(entry, f"{where}.{key}")]
        if isinstance(value, list):
            return [found for entry in value for found in empty(entry, where)] if value else [where]
        return []

    often_empty = {
        "notices",
        "set_aside",
        "references",
        "not_understood",
        "tests",
        "layer_map",
        "head_map",
        "dtypes",
    } | {"declared"}
    found = {place for schema, document in every_document.items() for place in empty(document, schema)}
    assert not {place for place in found if place.rpartition(".")[2] not in often_empty}


def test_a_direction_is_said_with_its_cues_and_why_there_is_none(every_document: dict[str, Any]) -> None:
    stated, unstated = every_document["weightprint.report/1"]["pairs"][:2]
    assert stated["direction"] == {"older": "a", "younger": "b", "cues": ["why a is older"]}
    assert (unstated["direction"], unstated["reasons"][-1]) == (None, "cues disagree")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_pairs_of_every_verdict_keep_the_shape(verdict: str) -> None:
    assert misfit(json.loads(json.dumps(documents.comparison_document(comparison(verdict)))), PAIR) is None


def test_a_real_pair_keeps_the_shape() -> None:
    (judged,) = judge([compare_pair(small_fingerprint("a"), small_fingerprint("b", 1))])
    assert misfit(json.loads(json.dumps(finite(documents.comparison_document(judged)))), PAIR) is None


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_names_come_back_as_they_are(name: str) -> None:
    text = json.dumps(finite(documents.report_document(nasty_report(name))), allow_nan=False)
    document = json.loads(text)
    assert text.isascii()
    assert document["pairs"][0]["a"] == name
    assert document["checkpoints"][0]["notices"][0]["tensor"] == f"tensor {name}"
    assert misfit(document, DOCUMENTS["weightprint.report/1"]) is None


NO_FIGURES = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", NO_FIGURES, ids=str)
def test_figures_that_json_cannot_write_are_null(value: float) -> None:
    pair = comparison("shared-origin")
    odd = replace(
        pair,
        tests=(Test("v whole", 1, 1, value, value, value),),
        screen=Screen(value, value, value, value, value, value, 3),
        layer_map=((0, 0, value),),
    )
    document = json.loads(json.dumps(finite(documents.comparison_document(odd)), allow_nan=False))
    assert set(document["tests"][0].values()) == {"v whole", 1, None}
    assert document["screen"] == {**dict.fromkeys(asdict(odd.screen)), "background_pairs": 3}
    assert document["layer_map"] == [[0, 0, None]]


def test_a_figure_that_does_not_exist_is_null_in_a_fingerprint() -> None:
    document = to_document(small_fingerprint())
    assert {matrix["skewness"] for matrix in document["matrices"] if matrix["role"] == "k"} == {None}
    json.dumps(document, allow_nan=False)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@given(JSON_LIKE)
def test_finite_leaves_everything_else_alone(value: Any) -> None:
    assert json.loads(json.dumps(finite(value), allow_nan=False)) == json.loads(
        json.dumps(value), parse_constant=lambda constant: None
    )
    assert finite(finite(value)) == finite(value)


@given(st.floats(-1e9, 0))
def test_p_value_is_never_nought_and_never_less_than_it_says(log10_p: float) -> None:
    value = p_value(log10_p)
    assert value is not None
    assert 0 < value <= 1
    assert value >= sys.float_info.min
    assert math.log10(value) >= log10_p - 1e-9
    if log10_p > -300:
        assert math.isclose(math.log10(value), log10_p, abs_tol=1e-9)


def test_no_p_value_without_a_test() -> None:
    assert p_value(None) is None
    assert documents.comparison_document(comparison("not-comparable"))["p_value"] is None


OUTCOMES = st.lists(
    st.builds(outcome, st.just("x"), st.sampled_from(["complete", "partial", "failed"]), st.booleans()), max_size=12
)


@given(OUTCOMES)
def test_the_summary_adds_up(outcomes: list[Any]) -> None:
    figures = documents.summary(report(tuple(outcomes)))
    assert figures["found"] == len(outcomes)
    assert figures["found"] == sum(figures[key] for key in ("complete", "partial", "failed", "skipped_fresh"))
    assert figures["skipped_fresh"] == sum(entry.fresh for entry in outcomes)
    assert figures["skipped_fresh_partial"] <= figures["skipped_fresh"]
    assert figures["bytes_read"] == sum(entry.fingerprint.bytes.read for entry in outcomes if not entry.fresh)
    assert sum(figures["verdicts"].values()) == figures["pairs"] == len(VERDICTS)


def test_counts_of_the_summary() -> None:
    outcomes = (
        *(outcome("a"), outcome("b"), outcome("c", "partial"), outcome("d", "failed")),
        *(outcome("e", fresh=True), outcome("f", "partial", fresh=True)),
    )
    figures = documents.summary(report(outcomes))
    counts = ("found", "complete", "partial", "failed", "skipped_fresh", "skipped_fresh_partial", "references")
    assert [figures[key] for key in counts] == [6, 2, 1, 1, 2, 1, 1]


def test_code_stands_beside_every_reason() -> None:
    def check(value: Any) -> int:
        if isinstance(value, dict):
            if {"finding", "kind"} & value.keys():  # of lineage, where that is the word to match on
                return 0
            assert "reason" not in value or "code" in value
            assert value.get("reason") is None or value["code"] is not None
            return ("reason" in value) + sum(map(check, value.values()))
        return sum(map(check, value)) if isinstance(value, list) else 0

    assert check(documents.report_document(report())) >= 6
    assert check(to_document(small_fingerprint())) >= 2


def test_inspect_says_what_a_scan_would_read(structure: Structure) -> None:
    document = documents.inspect_document("tiny", "/models/tiny", structure)
    (stack,) = document["stacks"]
    assert (stack["stack"], stack["layers"]) == ("model.layers", 3)
    assert {role["role"]: (role["shape"], role["count"]) for role in stack["roles"]} == {
        "q": ([64, 64], 2),
        "k": ([32, 64], 3),
        "v": ([32, 64], 3),
        "o": ([64, 64], 3),
    }
    assert document["bytes"]["selected"] == 4 * 64 * (2 * 64 + 3 * 64 + 2 * 3 * 32)
    assert [notice["code"] for notice in document["notices"]] == ["E_LAYER_HOLE"]


def test_nothing_to_read_has_a_reason(tmp_path: Path) -> None:
    weights = {name: value for name, value in tiny.llama(0).items() if "attn" not in name}
    (checkpoint,) = discover([tiny.save(tmp_path / "mlp", weights)])
    structure = read_structure(checkpoint)
    inspected = documents.inspect_document("mlp", "/models/mlp", structure)
    foreseen = documents.forecast_document([Forecast(checkpoint, False, structure)], [])["checkpoints"][0]
    for document in (inspected, foreseen):
        assert [notice["code"] for notice in document["notices"]] == ["E_NO_ATTENTION"]


def test_a_fresh_checkpoint_costs_nothing(structure: Structure, tmp_path: Path) -> None:
    (checkpoint,) = discover([tmp_path / "tiny"])
    document = documents.forecast_document([Forecast(checkpoint, fresh, structure) for fresh in (True, False)], [])
    fresh, other = document["checkpoints"]
    assert (fresh["requests"], fresh["bytes"]["read"]) == (0, 0)
    assert other["bytes"]["read"] == document["summary"]["bytes_to_read"] > 0
    assert document["summary"]["fresh"] == 1
