"""Report files: the suffix chooses the format; whole or not there; nothing in them is run by whoever opens them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.report_cases import NASTY, VERDICTS, comparison, nasty_report, report

from weightprint.errors import OutputError, UsageError
from weightprint.report.documents import report_document
from weightprint.report.files import WRITERS, check_outputs, inert_cell, write_report
from weightprint.report.text import printable

STARTS = "=+-@\t\r\n＝＋－＠"
FORMULAS = {
    "equals": '=HYPERLINK("http://x","y")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3",
    "at": "@SUM(1,2)",
    "tab": "\t=1+1",
    "return": "\r=1+1",
    "newline": "\n=1+1",
    "full-width": "＝1+1",
}


def written(path: Path, document: dict[str, Any] | None = None) -> str:
    write_report(path, report_document(report()) if document is None else document)
    return path.read_text(encoding="utf-8")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_there_is_a_writer_for_every_suffix_of_the_documentation() -> None:
    assert set(WRITERS) == {".json", ".jsonl", ".csv"}


def test_json(tmp_path: Path) -> None:
    assert json.loads(written(tmp_path / "r.json")) == json.loads(json.dumps(report_document(report())))


def test_every_json_line_is_a_document_and_the_summary_is_last(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path / "r.jsonl").splitlines()]
    kinds = [line["type"] for line in lines]
    assert kinds == [*["checkpoint"] * 3, "reference", *["pair"] * len(VERDICTS), "family", "notice", "summary"]
    assert lines[-1]["schema"] == "weightprint.report/1"
    assert [line["verdict"] for line in lines if line["type"] == "pair"] == list(VERDICTS)


def test_csv_has_one_row_a_pair(tmp_path: Path) -> None:
    table = rows(written(tmp_path / "r.csv"))
    assert [row["verdict"] for row in table] == list(VERDICTS)
    assert list(table[0])[:5] == ["a", "b", "verdict", "log10_p", "pair_log10_p"]
    assert float(table[0]["log10_p"]) == -1234.5
    assert table[0]["screen_o"] == "-0.1"
    assert (table[-1]["log10_p"], table[-1]["screen_score"]) == ("", "")
    assert table[0]["reasons"] == "why it is identical | and one thing more"


def test_csv_of_no_pair_is_a_header(tmp_path: Path) -> None:
    text = written(tmp_path / "r.csv", report_document(report(comparisons=())))
    assert text == "a,b,verdict,log10_p\n"


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(formula: str, tmp_path: Path) -> None:
    (row,) = rows(written(tmp_path / "r.csv", report_document(report(comparisons=(comparison("identical", formula),)))))
    spelled = printable(formula)
    assert row["a"] == (f"'{spelled}" if spelled == formula else spelled)


@given(st.text(alphabet=st.sampled_from(STARTS + "a'\" ,;"), max_size=6) | st.text(max_size=6))
def test_a_text_cell_is_inert_and_keeps_its_text(text: str) -> None:
    cell = inert_cell(text)
    assert isinstance(cell, str)
    assert not cell.startswith(tuple(STARTS))
    assert cell.isprintable()
    assert printable(text) in (cell, cell.removeprefix("'"))


@pytest.mark.parametrize("breaks", ["\r", "\n", "\r\n", "\u2028", "\x85", "\x0b", "\x1c"], ids=ascii)
def test_no_name_makes_a_row_of_its_own(breaks: str, tmp_path: Path) -> None:
    pairs = (comparison("identical", f"a{breaks}=1+1,b"),)
    write_report(tmp_path / "r.csv", report_document(report(comparisons=pairs)))
    content = (tmp_path / "r.csv").read_bytes().decode()
    assert len(content.splitlines()) == 2
    assert rows(content)[0]["a"] == printable(f"a{breaks}=1+1,b")


@pytest.mark.parametrize("value", [-1.5, -3, 0, None])
def test_figures_stay_figures(value: object) -> None:
    assert inert_cell(value) is value


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_nasty_names_make_valid_files(name: str, suffix: str, tmp_path: Path) -> None:
    text = written(tmp_path / f"r{suffix}", report_document(nasty_report(name)))
    if suffix == ".csv":
        assert {row["a"] for row in rows((tmp_path / "r.csv").read_bytes().decode())} == {printable(name)}
    elif suffix == ".json":
        assert json.loads(text)["pairs"][0]["a"] == name
    else:
        assert [json.loads(line) for line in text.splitlines()][-1]["type"] == "summary"
        assert text.isascii()


@pytest.mark.parametrize("suffix", WRITERS)
def test_infinite_figures_make_valid_files(suffix: str, tmp_path: Path) -> None:
    document = report_document(report())
    document["pairs"][0]["screen"]["score"] = float("nan")
    document["pairs"][0]["log10_p"] = float("-inf")
    text = written(tmp_path / f"r{suffix}", document)
    assert "nan" not in text.lower().replace("nan/", "")
    assert "infinity" not in text.lower()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("r.xlsx", ".json .jsonl .csv"),
        ("r", ".json .jsonl .csv"),
        ("r.JSON", ".json .jsonl .csv"),
        ("missing/r.json", "its directory is not there or cannot be entered; create it first"),
        ("directory.json", "is a directory; name a file in it"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "directory.json").mkdir()
    with pytest.raises(UsageError) as caught:
        check_outputs([tmp_path / "good.json", tmp_path / name])
    assert (caught.value.code, caught.value.path) == ("E_OUTPUT", str(tmp_path / name))
    assert says in caught.value.message


def test_files_that_can_be_written_are_not_refused(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")
    check_outputs([tmp_path / "new.json", tmp_path / "old.csv"])
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]


def test_a_file_that_fails_at_the_end_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write_report(tmp_path / "gone" / "r.json", report_document(report()))
    assert caught.value.code == "E_OUTPUT"
    assert "No such file or directory" in caught.value.message


def test_an_old_report_is_replaced_whole_and_nothing_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old" * 10_000)
    written(path)
    assert json.loads(path.read_text())["schema"] == "weightprint.report/1"
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]
