"""Declared origins: what is read of a checkpoint's own files, and what a report makes of it."""

import json
import os
from pathlib import Path

import pytest

import tiny
from weightprint.data import Declared
from weightprint.declared import MOST_BYTES, MOST_NAMES, base_models, read_declared
from weightprint.fingerprint_file import read_fingerprint, to_bytes
from weightprint.lineage import matches
from weightprint.scan import Report, ScanOptions, scan

BASE = tiny.llama(1, layers=4)


def card(front: str) -> str:
    return f"---\nlicense: mit\n{front}\ntags:\n- a\n---\n\n# A model\nbase_model: not/this\n"


@pytest.mark.parametrize(
    ("front", "names"),
    [
        ("base_model: org/base", ["org/base"]),
        ('base_model: "org/base"  # the base', ["org/base"]),
        ("base_model:\n- org/a\n- 'org/b'", ["org/a", "org/b"]),
        ("base_model:\n  # two\n  - org/a\n\n  - org/b", ["org/a", "org/b"]),
        ("base_model: [org/a, 'org/b']", ["org/a", "org/b"]),
        ("base_model: [org/a,", []),
        ("base_model:", []),
        ("base_model: null", []),
        ("base_model: *alias", []),
        ("base_model: !!python/object/apply:os.system [x]", []),
        ("base_model: {a: b}", []),
        ("base_model: |\n  org/a", []),
        ("base_model_relation: merge", []),
        ("other:\n  base_model: org/a", []),
        ("base_model: a\x1b[31mb", []),
        ("base_model: " + "x" * 5000, []),
        ("base_model:\n" + "\n".join(f"- org/{n}" for n in range(1000)), [f"org/{n}" for n in range(MOST_NAMES)]),
    ],
)
def test_base_models_of_a_card(front: str, names: list[str]) -> None:
    assert base_models(card(front)) == names


@pytest.mark.parametrize(
    "text", ["", "base_model: a", "---\nbase_model: a\n", "--- x\nbase_model: a\n---\n", "# ---\n---\n"]
)
def test_a_card_without_front_matter_declares_nothing(text: str) -> None:
    assert base_models(text) == []


def test_three_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card("base_model: org/card"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/adapter"}))
    assert read_declared(tmp_path, {"_name_or_path": "org/config"}, "x") == (
        Declared("config.json", "org/config"),
        Declared("README.md", "org/card"),
        Declared("adapter_config.json", "org/adapter"),
    )


@pytest.mark.parametrize("value", ["x", "X", "", 3, None, ["a"], "{path}", "{path}/", "{path}/../{name}"])
def test_itself_is_no_origin(value: object, tmp_path: Path) -> None:
    own = value.format(path=tmp_path, name=tmp_path.name) if isinstance(value, str) else value
    assert read_declared(tmp_path, {"_name_or_path": own}, "x") == ()


def test_hostile_files_declare_nothing(tmp_path: Path) -> None:
    readme, adapter = tmp_path / "README.md", tmp_path / "adapter_config.json"
    readme.write_bytes(b"---\n" + b"x: y\n" * MOST_BYTES + b"base_model: a\n---\n")
    adapter.write_text("[" * 60_000)
    assert read_declared(tmp_path, {}, "x") == ()
    readme.write_bytes(b"---\nbase_model: a\n\0\n---\n")
    adapter.write_text("[1]")
    assert read_declared(tmp_path, {}, "x") == ()
    readme.unlink()
    os.mkfifo(readme)
    adapter.unlink()
    adapter.mkdir()
    assert read_declared(tmp_path, {}, "x") == ()
    readme.unlink()
    readme.symlink_to(readme)
    assert read_declared(tmp_path, {}, "x") == ()


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("org/a", ["one"]),
        ("ORG/A", ["one"]),
        ("other/a", ["one", "two"]),
        ("/data/org/a/", ["one"]),
        ("hub/b", ["three"]),
        ("b", ["three"]),
        ("a-2", []),
        ("", []),
    ],
)
def test_names_are_matched_whole_or_by_their_last_part(declared: str, found: list[str]) -> None:
    keys = {"one": ("x/org/a",), "two": ("a",), "three": ("z", "hub/b")}
    assert matches(declared, keys) == found


def report_of(tmp_path: Path) -> Report:
    return scan(ScanOptions(paths=(tmp_path / "models",), store=tmp_path / "store", references=()))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base, a fine-tune that names it, one that names a stranger, a stranger, and others that name nobody here."""
    root = tmp_path / "models"
    tiny.save(root / "base", BASE)
    for name, base in (("true", "org/base"), ("false", "org/stranger"), ("away", "org/elsewhere"), ("own", "org/own")):
        (tiny.save(root / name, tiny.tuned(BASE, len(name))) / "README.md").write_text(card(f"base_model: {base}"))
    tiny.save(root / "stranger", tiny.llama(9, layers=4))
    return root


def test_declared_origins_are_held_against_what_is_found(models: Path, tmp_path: Path) -> None:
    report = report_of(tmp_path)
    found = {name: [(f.matched, f.finding) for f in findings] for name, findings in report.declared.items()}
    assert found == {
        "true": [("base", "agrees")],
        "false": [("stranger", "contradicts")],
        "away": [(None, "silent")],
        "own": [(None, "silent")],
    }
    (contradiction,) = report.declared["false"]
    assert "evidence links it with" in contradiction.reason
    assert "no common origin" in contradiction.reason


def test_a_changed_card_needs_no_weight_to_be_read(models: Path, tmp_path: Path) -> None:
    report_of(tmp_path)
    (models / "false/README.md").write_text(card("base_model: org/base"))
    report = report_of(tmp_path)
    assert all(outcome.fresh for outcome in report.outcomes)
    assert [finding.finding for finding in report.declared["false"]] == ["agrees"]
    stored = [read_fingerprint(file) for file in (tmp_path / "store").glob("false*.weightprint")]
    assert [own.declared for own in stored] == [(Declared("README.md", "org/base"),)]


def test_nothing_declared_is_not_written(models: Path, tmp_path: Path) -> None:
    report = report_of(tmp_path)
    content = {outcome.fingerprint.name: to_bytes(outcome.fingerprint) for outcome in report.outcomes}
    assert rb"\"declared\"" not in content["base"]
    assert rb"\"declared\"" in content["true"]
