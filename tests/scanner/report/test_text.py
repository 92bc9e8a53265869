"""Names on their way to a terminal, and figures as people read them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.report_cases import NASTY

from weightprint.report.text import figure, moment, p_text, printable, seconds, size


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_nasty_names_become_one_plain_line(name: str) -> None:
    assert printable(name).isprintable()
    assert len(printable(name).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb", r"a\nb"),
        ("a\u202eb", r"a\u202eb"),
        ("a\udc80b", r"a\udc80b"),
        ("[red]a[/red]", "[red]a[/red]"),
        ("modèle/Модель/模型", "modèle/Модель/模型"),
        ("", ""),
    ],
    ids=["escape", "newline", "right-to-left", "surrogate", "markup", "letters", "empty"],
)
def test_what_is_printed_of_a_name(name: str, printed: str) -> None:
    assert printable(name) == printed


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_is_printable_and_encodable(name: str) -> None:
    assert printable(name).isprintable()
    printable(name).encode("utf-8")
    assert printable(printable(name)) == printable(name)


SIZES = {
    0: "0 B",
    1: "1 B",
    999: "999 B",
    1000: "1 kB",
    1234: "1.23 kB",
    999_499: "999 kB",
    999_999: "1 MB",
    12_345_678: "12.3 MB",
    999_999_999: "1 GB",
    16_060_522_496: "16.1 GB",
    999_999_999_999: "1 TB",
    2_345_678_901_234_567: "2 PB",
}


@pytest.mark.parametrize("count", SIZES)
def test_size(count: int) -> None:
    assert size(count) == SIZES[count]


@given(st.integers(0, 10**18))
def test_no_size_is_written_with_an_exponent(count: int) -> None:
    assert re.fullmatch(r"\d{1,3}(\.\d{1,2})? [kMGT]?B|\d+ PB", size(count))


SECONDS = {
    0.0: "0.0 s",
    2.345: "2.3 s",
    59.94: "59.9 s",
    59.96: "1 min 00 s",
    60.0: "1 min 00 s",
    61.5: "1 min 02 s",
    3599.4: "59 min 59 s",
    3599.6: "1 h 00 min",
    37_000.0: "10 h 16 min",
}


@pytest.mark.parametrize("value", SECONDS)
def test_seconds(value: float) -> None:
    assert seconds(value) == SECONDS[value]


@pytest.mark.parametrize(
    ("log10_p", "printed"),
    [
        (None, "-"),
        (0.0, "1.000"),
        (-0.25, "0.562"),
        (-2.9, "0.001"),
        (-3.0, "1e-3"),
        (-6.0, "1e-6"),
        (-6.3, "1e-6"),
        (-797.7, "1e-797"),
    ],
)
def test_p_values_are_upper_bounds_where_they_are_powers(log10_p: float | None, printed: str) -> None:
    assert p_text(log10_p) == printed


@given(st.floats(-1e6, 0))
def test_no_p_value_is_printed_as_nought_or_as_less_than_it_is(log10_p: float) -> None:
    printed = p_text(log10_p)
    assert float(printed.replace("1e", "") if printed.startswith("1e") else printed) != 0
    if printed.startswith("1e"):
        assert int(printed[2:]) >= log10_p


@pytest.mark.parametrize(
    ("value", "printed"),
    [(None, "-"), (float("nan"), "-"), (float("inf"), "-"), (0.12345678, "0.1235"), (-1.0, "-1.0000")],
    ids=str,
)
def test_figure(value: float | None, printed: str) -> None:
    assert figure(value) == printed


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0.0, "0.000"), (-0.0361, "-0.036"), (99.4, "99.400"), (12345.678, "1.235e+04"), (float("nan"), "nan")],
    ids=str,
)
def test_moment(value: float, printed: str) -> None:
    assert moment(value) == printed
