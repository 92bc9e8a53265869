"""What is compared with what: every scanned checkpoint with every reference, but not with itself."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import tiny
from weightprint.scan import Report, ScanOptions, scan

BASE = tiny.llama(1, layers=4)


def run(paths: Sequence[Path], references: Sequence[Path], store: Path) -> Report:
    return scan(ScanOptions(paths=tuple(paths), store=store, references=tuple(references)))


def verdicts(report: Report) -> list[tuple[str, str, str]]:
    return [(pair.a, pair.b, pair.verdict) for pair in report.comparisons]


@pytest.fixture
def two_machines(tmp_path: Path) -> tuple[Path, Path]:
    """Stores of two machines, on which different models lay at the same path."""
    for name, weights in (("one", BASE), ("two", tiny.llama(2, layers=4))):
        tiny.save(tmp_path / "models/x", weights)
        run([tmp_path / "models"], [], tmp_path / name)
    return tmp_path / "one", tmp_path / "two"


@pytest.mark.parametrize("turned", [False, True], ids=["one-two", "two-one"])
def test_references_of_one_path_and_different_weights_are_both_compared(
    turned: bool, two_machines: tuple[Path, Path], tmp_path: Path
) -> None:
    suspect = tiny.save(tmp_path / "suspect", tiny.tuned(BASE, 3))
    report = run([suspect], two_machines[::-1] if turned else two_machines, tmp_path / "store")
    assert sorted(verdict for _, _, verdict in verdicts(report)) == ["no-evidence", "shared-origin"]
    assert sorted(outcome.fingerprint.name for outcome in report.references) == ["reference/x", "x"]


def test_a_reference_that_lay_where_a_scanned_checkpoint_lies_now_is_compared(
    two_machines: tuple[Path, Path], tmp_path: Path
) -> None:
    tiny.save(tmp_path / "models/x", tiny.tuned(BASE, 3))
    report = run([tmp_path / "models"], two_machines[:1], tmp_path / "store")
    assert verdicts(report) == [("x", "reference/x", "shared-origin")]


def test_fingerprints_of_another_machine_are_scanned_beside_checkpoints_of_the_same_path(
    two_machines: tuple[Path, Path], tmp_path: Path
) -> None:
    report = run([tmp_path / "models", two_machines[0]], [], tmp_path / "store")
    assert len(report.outcomes) == 2
    assert [verdict for _, _, verdict in verdicts(report)] == ["no-evidence"]


@pytest.mark.parametrize("reference", ["models", "models/x", "link", "models/../models", "store"])
@pytest.mark.parametrize("path", ["models", "models/x", "link", "models/../models", "link/x/../../models"])
def test_no_checkpoint_is_compared_with_itself(
    path: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tmp_path / "models/x", BASE)
    (tmp_path / "link").symlink_to("models")
    monkeypatch.chdir(tmp_path)
    if reference == "store":
        run([Path(path)], [], Path("store"))
    report = run([Path(path)], [Path(reference)], Path("store"))
    assert verdicts(report) == []
    assert (len(report.outcomes), len(report.references)) == (1, 0)


@pytest.mark.parametrize("again", ["models", "../models", "x/../../models"])
def test_a_path_with_dots_is_the_same_checkpoint(again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save(tmp_path / "models/x", BASE)
    run([tmp_path / "models"], [], tmp_path / "store")
    monkeypatch.chdir(tmp_path if again == "models" else tmp_path / "models")
    report = run([Path(again)], [], tmp_path / "store")
    assert [outcome.fresh for outcome in report.outcomes] == [True]
    assert len(os.listdir(tmp_path / "store")) == 1  # noqa: PTH208  a count, not paths


def test_dots_after_a_link_lead_where_the_system_says(tmp_path: Path) -> None:
    tiny.save(tmp_path / "real/models/x", BASE)
    (tmp_path / "link").symlink_to("real/models")
    report = run([tmp_path / "link/../models/x"], [], tmp_path / "store")
    assert [outcome.fingerprint.path for outcome in report.outcomes] == [str(tmp_path / "real/models/x")]


def test_copied_layers_are_a_finding_of_their_checkpoint(tmp_path: Path) -> None:
    deep = {
        f"model.layers.{layer}.{name.split('.', 3)[3]}": values
        for layer, source in enumerate([0, 1, 2, 1, 2, 3])
        for name, values in BASE.items()
        if name.startswith(f"model.layers.{source}.")
    }
    tiny.save(tmp_path / "models/base", BASE)
    tiny.save(tmp_path / "models/deep", deep)
    report = run([tmp_path / "models"], [], tmp_path / "store")
    found = {own.fingerprint.name: [(c.layers, c.channels) for c in own.copies] for own in report.outcomes}
    assert found == {"base": [], "deep": [((1, 3), ("v", "o")), ((2, 4), ("v", "o"))]}
    assert verdicts(report) == [("base", "deep", "shared-origin")]
    (reason,) = [why for why in report.comparisons[0].reasons if "layers 1, 3" in why]
    assert reason == "layers 1, 3 of model.layers in deep are copies of each other (channel v and o)"
