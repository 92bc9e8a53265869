"""The figures of a published score matrix, on five models whose figures were worked out by hand."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import screen
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

NAMES = ("a/1", "a/2", "a/3", "b/1", "b/2")
FAMILIES = [["a/1", "a_2", "a/3"], ["b/1", "b/2"]]
RELATED = {(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.3, (3, 4): 0.95}
UNRELATED = {(0, 3): 0.85, (0, 4): 0.1, (1, 3): 0.2, (1, 4): 0.3, (2, 3): -0.4, (2, 4): 0.5}
FEW = st.lists(st.integers(0, 5).map(lambda step: step / 4), min_size=1, max_size=30).map(np.array)


def matrix() -> list[list[float]]:
    scores = np.eye(len(NAMES))
    for (a, b), score in {**RELATED, **UNRELATED}.items():
        scores[a, b] = scores[b, a] = score
    return [list(map(float, row)) for row in scores]


def write(folder: Path, rows: list[list[float]] | list[list[str]], families: object) -> tuple[Path, Path]:
    scores, groups = folder / "scores.csv", folder / "families.json"
    with scores.open("w", newline="") as lines:
        csv.writer(lines).writerows([["", *NAMES], *([name, *row] for name, row in zip(NAMES, rows, strict=True))])
    groups.write_text(families if isinstance(families, str) else json.dumps(families))
    return scores, groups


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["screen.py", *map(str, arguments)])
    screen.main()


def test_all_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clusters = tmp_path / "theirs.json"
    clusters.write_text(json.dumps([["a/1", "a/2"], ["b_1", "b_2"]]))
    run(monkeypatch, *write(tmp_path, matrix(), FAMILIES), "--clusters", clusters, "--pair", "a/1", "b/1")
    printed = capsys.readouterr().out
    rows = {
        cells[1]: cells[2:-1]
        for cells in ([*map(str.strip, line.split("|"))] for line in printed.splitlines())
        if len(cells) > 2
    }
    assert printed.startswith("5 models, 2 families\n")
    assert rows["related pairs"][0] == "4"
    assert rows["unrelated pairs"][0] == "6"
    # Unrelated pairs below 0.9, 0.8, 0.3 (one equal) and 0.95: 6 + 5 + 3.5 + 6 of 24.
    assert rows["AUC"][0] == "0.8542"
    assert rows["unrelated maximum"] == ["0.8500", "a/1 / b/1"]
    assert rows["TPR at 1 % FPR"] == ["0.500", "above 0.8500"]
    # 0.85 is the highest of six, equal to itself: 92 % of them are below it.
    assert [rows[f"high for similar-profile, {word}"][0] for word in ("related", "unrelated")] == ["0.500", "0.000"]
    # Highest score within the own family, and with the other.
    assert rows["a/3"] == ["0.8000", "0.5000"]
    assert rows["b/1"] == ["0.9500", "0.8500"]
    # a/3 stands alone in both: 2 pairs of 4 and of 2 are common, 0.8 expected.
    assert rows["theirs.json"] == rows["linked at 0.9"] == ["3", f"{(2 - 0.8) / (3 - 0.8):.4f}"]
    assert rows["linked at 0.8"] == ["1", "0.0000"]
    assert rows["a/1"][-2:] == ["b/1", "0.8500"]


def test_families_counted_as_one_are_related(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = write(tmp_path, matrix(), [["a/1", "a/2"], ["a/3"], ["b/1", "b/2"]])
    run(monkeypatch, *places)
    apart = capsys.readouterr().out
    run(monkeypatch, *places, "--as-one", "a/3", "a/2")
    joined = capsys.readouterr().out
    assert ("3 families" in apart, "2 families" in joined) == (True, True)
    run(monkeypatch, *write(tmp_path, matrix(), FAMILIES))
    assert joined == capsys.readouterr().out != apart


@given(FEW, FEW)
def test_area_is_that_of_mann_and_whitney(related: screen.Floats, unrelated: screen.Floats) -> None:
    expected = mannwhitneyu(related, unrelated).statistic / (len(related) * len(unrelated))
    assert screen.share_below(unrelated, related).mean() == pytest.approx(expected, abs=1e-12)


@given(FEW, FEW, st.floats(0, 0.99))
def test_no_more_false_ones_than_allowed(related: screen.Floats, unrelated: screen.Floats, allowed: float) -> None:
    limit, rate = screen.true_rate(related, unrelated, allowed)
    assert (unrelated > limit).mean() <= allowed
    assert rate == (related > limit).mean()
    # Any lower limit among the scores lets too many through.
    assert all((unrelated > lower).mean() > allowed for lower in {*unrelated.tolist()} if lower < limit)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 1, 1], [7, 7, 3, 3], 1.0),
        ([0, 0, 1, 1], [0, 0, 1, 2], 4 / 7),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),
        ([0, 0, 1, 1], [0, 0, 0, 0], 0.0),
        ([0, 1, 2], [5, 6, 7], 1.0),
    ],
    ids=["names do not matter", "one split", "crossed", "all in one", "all alone"],
)
def test_adjusted_rand_index(a: list[int], b: list[int], expected: float) -> None:
    assert screen.adjusted_rand_index(a, b) == pytest.approx(expected)
    assert screen.adjusted_rand_index(b, a) == pytest.approx(expected)


def changed(a: int, b: int, value: float | str) -> list[list[str]]:
    rows = [list(map(str, row)) for row in matrix()]
    rows[a][b] = str(value)
    return rows


@pytest.mark.parametrize(
    ("rows", "families", "file", "why"),
    [
        (changed(0, 1, 0.7), FAMILIES, "scores.csv", "(a, b) and (b, a) differ"),
        (changed(0, 0, "nan"), FAMILIES, "scores.csv", "not finite"),
        (changed(0, 1, "high"), FAMILIES, "scores.csv", "could not convert string to float: 'high'"),
        ([*changed(0, 0, 1)[:-1], ["1"]], FAMILIES, "scores.csv", "not a square matrix"),
        (changed(0, 0, 1), FAMILIES[:1], "families.json", "b/1 is in no family"),
        (changed(0, 0, 1), [*FAMILIES, ["a/1"]], "families.json", "stands in it twice"),
        (changed(0, 0, 1), [*FAMILIES, ["c/1"]], "families.json", "none of the matrix"),
        (changed(0, 0, 1), {"a": 1}, "families.json", "not a list of lists"),
        (changed(0, 0, 1), "[", "families.json", "Expecting value"),
        (changed(0, 0, 1), [list(NAMES)], "", "several families"),
        (changed(0, 0, 1), [[name] for name in NAMES], "", "several families"),
    ],
    ids=["asymmetric", "nan", "text", "ragged", "no family", "twice", "stranger", "object", "no json", "one", "alone"],
)
def test_bad_file_is_one_line_that_names_it(
    rows: list[list[str]],
    families: object,
    file: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *write(tmp_path, rows, families))
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert why in line
    assert file in line


def test_unknown_model_of_a_pair_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *write(tmp_path, matrix(), FAMILIES), "--pair", "a/1", "c/1")
    assert "c/1: no model of the matrix has this name" in capsys.readouterr().err
