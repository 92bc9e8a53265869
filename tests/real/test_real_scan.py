"""One scan of six published checkpoints: the three that share an origin are found, no other pair is accused."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from command_line import run_json

RXNFP = ("rxnfp-bert-pretrained", "rxnfp-bert-ft", "rxnfp-bert-ft-10k-25s")
NOT_A_FINDING = {"no-evidence", "similar-profile", "not-comparable"}

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def report(real: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = tmp_path_factory.mktemp("store")
    root = next(iter(real.values())).parent
    return run_json("scan", str(root), "--store", str(store), "--refs", str(real["antiberty"]), "--json")


def pair(report: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    (found,) = [p for p in report["pairs"] if {p["a"], p["b"]} == {a, b}]
    return dict(found)


def test_every_checkpoint_is_complete(report: dict[str, Any], real: dict[str, Path]) -> None:
    assert {c["name"] for c in report["checkpoints"]} == set(real)
    assert {c["status"] for c in report["checkpoints"]} == {"complete"}
    summary = report["summary"]
    assert summary["found"] == summary["complete"] == len(real)


@pytest.mark.parametrize(
    ("a", "b", "v_log10_p", "score"),
    [
        ("rxnfp-bert-pretrained", "rxnfp-bert-ft-10k-25s", -1229.4, 0.9998),
        ("rxnfp-bert-pretrained", "rxnfp-bert-ft", -789.6, 0.9978),
        ("rxnfp-bert-ft", "rxnfp-bert-ft-10k-25s", -772.3, 0.9989),
    ],
)
def test_fine_tunes_share_an_origin(report: dict[str, Any], a: str, b: str, v_log10_p: float, score: float) -> None:
    found = pair(report, a, b)
    assert found["verdict"] == "shared-origin"
    (whole,) = [test for test in found["tests"] if test["name"].startswith("v whole")]
    assert whole["log10_p"] == pytest.approx(v_log10_p, abs=0.1)
    assert found["screen"]["score"] == pytest.approx(score, abs=5e-5)
    assert found["log10_p"] < -700
    assert [(entry[0], entry[1]) for entry in found["layer_map"]] == [(layer, layer) for layer in range(12)]


def test_no_other_pair_is_a_finding(report: dict[str, Any], real: dict[str, Path]) -> None:
    others = [p for p in report["pairs"] if not {p["a"], p["b"]} <= set(RXNFP)]
    assert len(others) == len(list(combinations(real, 2))) - 3
    assert {p["verdict"] for p in others} <= NOT_A_FINDING
    assert all(p["log10_p"] is None or p["log10_p"] > -3 for p in others)


def test_unrelated_pair_with_a_high_seed_score_is_not_accused(report: dict[str, Any]) -> None:
    found = pair(report, "microformer-mgm", "antiberty")
    assert found["screen"]["score"] == pytest.approx(0.824, abs=5e-4)
    assert found["verdict"] in NOT_A_FINDING


def test_only_attention_bytes_are_read(report: dict[str, Any]) -> None:
    for checkpoint in report["checkpoints"]:
        figures = checkpoint["bytes"]
        assert figures["selected"] <= figures["read"] <= 1.02 * figures["selected"]
        assert figures["read"] < figures["files"]


def test_family(report: dict[str, Any]) -> None:
    assert [sorted(family["members"]) for family in report["families"]] == [sorted(RXNFP)]


def test_second_scan_reads_nothing(real: dict[str, Path], tmp_path: Path) -> None:
    command = (
        "scan",
        str(real["microformer-mgm"]),
        "--store",
        str(tmp_path),
        "--refs",
        str(real["antiberty"]),
        "--json",
    )
    first = run_json(*command)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = run_json(*command)
    assert first["summary"]["complete"] == 1
    assert second["summary"]["skipped_fresh"] == 1
    assert second["summary"]["bytes_read"] == 0
    assert json.dumps(first["pairs"]) == json.dumps(second["pairs"])
    run_json(*command, "--rescan")
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
