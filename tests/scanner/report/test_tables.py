"""Tables for people: what they say, in which order, in which width, and that no name is more than a name."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from compare.build import Shape, model, weights
from compare.build import fingerprint as made
from fingerprints import small_fingerprint
from report.report_cases import NASTY, VERDICTS, comparison, fingerprint, nasty_report, outcome, report
from rich.console import Console, RenderableType

import tiny
from weightprint.compare import compare_all, judge
from weightprint.compare.invariants import ADVICE, LAUNDERING
from weightprint.data import Comparison
from weightprint.discover import discover
from weightprint.errors import Notice
from weightprint.fingerprint import Structure, read_structure
from weightprint.lineage import DeclaredFinding
from weightprint.report import tables
from weightprint.report.pair_lines import flag_lines, layers_of
from weightprint.scan import Forecast

LONG = "organisation/Some-Model-Family-3.1-8B-Instruct-GPTQ-INT4-version-0.0.1"


def printed(view: RenderableType, width: int = 100, color: bool = False) -> str:
    """What a terminal of ``width`` columns shows, by a console that would take markup and emoji codes for such."""
    system = "standard" if color else None
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, color_system=system, highlight=False, emoji=True
    )
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def pair(number: int, verdict: str = "no-evidence") -> Comparison:
    return comparison(verdict, f"model-{number}", f"other-{number}")


@pytest.fixture
def structure(tmp_path: Path) -> Structure:
    (checkpoint,) = discover([tiny.save(tmp_path / "tiny", tiny.llama(0, layers=2))])
    return read_structure(checkpoint)


def test_verdict_first_evidence_second_screen_last() -> None:
    table = tables.pair_table([pair(1, "shared-origin")])
    assert [column.header for column in table.columns] == ["verdict", "p", "a", "b", "score"]
    assert printed(table).splitlines()[1].split() == ["shared-origin", "1e-9", "model-1", "other-1", "0.9877"]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_all_six_verdicts_are_printed_strongest_first(width: int) -> None:
    lines = printed(tables.report_view(report()), width).splitlines()
    first_words = [line.split()[0] for line in lines if line.strip()]
    assert first_words[: 1 + len(VERDICTS)] == ["verdict", *VERDICTS]


def test_a_pair_without_a_test_has_a_dash_and_no_figure() -> None:
    line = printed(tables.pair_table([pair(1, "not-comparable")])).splitlines()[1]
    assert line.split() == ["not-comparable", "-", "model-1", "other-1", "-"]


@pytest.mark.parametrize(("number", "said"), [(0, None), (1, "1 pair not comparable"), (3, "3 pairs not comparable")])
def test_pairs_without_a_test_are_counted(number: int, said: str | None) -> None:
    pairs = (pair(0), *(pair(1 + index, "not-comparable") for index in range(number)))
    text = printed(tables.report_view(report(comparisons=pairs)))
    assert (said in text) if said else ("not comparable" not in text)


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_are_folded_and_never_cut(width: int) -> None:
    lines = printed(tables.pair_table([comparison("shared-origin", f"a/{LONG}", f"b/{LONG}")]), width).splitlines()
    assert max(map(len, lines)) <= width
    columns = [line[slice(lines[0].index(" a "), None)] for line in lines[1:]]
    assert not any("…" in column for column in columns)
    start, second = lines[0].index(" a ") + 1, lines[0].index(" b ") + 1
    assert "".join(line[start:second].strip() for line in lines[1:]) == f"a/{LONG}"
    end = lines[0].index("score") - 2
    assert "".join(line[second:end].strip() for line in lines[1:]) == f"b/{LONG}"


def test_the_most_telling_pairs_are_shown_and_the_rest_counted() -> None:
    pairs = (*map(pair, range(200)), pair(200, "shared-origin"), pair(201, "identical"))
    text = printed(tables.report_view(report(comparisons=pairs)))
    assert text.splitlines()[1].startswith("identical")
    assert text.splitlines()[2].startswith("shared-origin")
    assert text.count("\nno-evidence ") == tables.MOST_ROWS - 2
    assert "and 142 more pairs: 142 no-evidence; --out FILE.csv has them all" in text


def test_no_finding_is_hidden_behind_the_limit() -> None:
    pairs = (*(pair(number, "shared-origin") for number in range(100)), pair(100))
    text = printed(tables.report_view(report(comparisons=pairs)))
    assert text.count("\nshared-origin  1e-9") == 100
    assert "and 1 more pair: 1 no-evidence; --out" in text


def test_findings_beyond_the_table_are_counted_by_verdict() -> None:
    pairs = (*(pair(n, "shared-origin") for n in range(320)), *(pair(n, "similar-profile") for n in range(7)), pair(0))
    text = printed(tables.report_view(report(comparisons=pairs)), 200)
    assert text.count("\nshared-origin ") == 5 * tables.MOST_ROWS
    assert "and 28 more pairs: 20 shared-origin, 7 similar-profile, 1 no-evidence; --out FILE.csv" in text


def flagged_pair(name: str) -> Comparison:
    return replace(comparison("similar-profile", name, "b"), reasons=(f"{LAUNDERING} why", "more"))


@pytest.mark.parametrize("number", [0, 1, 10, 13])
def test_flagged_pairs_are_named_below_the_table(number: int) -> None:
    pairs = (*(flagged_pair(f"a\n{n}") for n in range(number)), pair(0))
    text = printed(tables.report_view(report(comparisons=pairs)), 600)
    lines = [line.strip() for line in text.splitlines() if "flagged" in line]
    if not number:
        assert not lines
        return
    named = ", ".join(f"a\\n{n} - b" for n in range(min(number, 10))) + (" and 3 more" if number == 13 else "")
    counted = "1 pair is" if number == 1 else f"{number} pairs are"
    assert lines == [f"{counted} flagged as possible laundering (a screen, no evidence): {named}; {ADVICE}"]


def test_flags_of_judged_pairs_are_those_of_their_reasons() -> None:
    base = weights(1, Shape(6, 64, 48))
    moved = {
        key: value[::-1] if key[2] == "v" else value[:, ::-1] if key[2] == "o" else value for key, value in base.items()
    }
    prints = [made("a", base), made("b", moved), made("same", base), model("c", 2, Shape(6, 64, 48))]
    judged = judge(compare_all(prints, [(i, j) for i in range(4) for j in range(i)]))
    expected = [any(reason.startswith(LAUNDERING) for reason in own.reasons) for own in judged]
    assert judged.flagged.tolist() == expected
    assert sum(expected) == 2
    assert list(flag_lines(judged)) == list(flag_lines(tuple(judged)))


def test_what_could_not_be_analysed_is_said_with_its_reason() -> None:
    text = printed(tables.report_view(report()), 300)
    assert "partial: b: model.layers.2.self_attn.k_proj.weight: k rows 16 but v rows 12 [E_NOT_UNDERSTOOD]" in text
    assert "failed: c: /models/c/model.safetensors: ends too early; fetch it again [E_FILE_TRUNCATED]" in text
    assert "/store/x.weightprint: is damaged; delete it [E_FINGERPRINT_CORRUPT]" in text
    assert "complete: a" not in text


def test_more_than_one_reason_is_counted() -> None:
    notices = (Notice("E_READ", "one"), Notice("E_READ", "two"), Notice("E_READ", "three"))
    broken = replace(outcome("x", "failed"), fingerprint=replace(fingerprint("x", "failed"), notices=notices))
    assert "(and 2 more; weightprint show lists them)" in printed(tables.report_view(report((broken,))), 300)


def test_the_summary_accounts_for_every_checkpoint() -> None:
    outcomes = (outcome("a"), outcome("b", "partial"), outcome("c", "failed"), outcome("d", fresh=True), outcome("e"))
    assert printed(tables.summary_line(report(outcomes)), 300).strip() == (
        "5 checkpoints found: 2 complete, 1 partial, 1 failed, 1 already fingerprinted; 1 reference; "
        "6 pairs compared; 16.4 kB read in 1 min 02 s"
    )


def test_families_and_the_caveat_are_printed() -> None:
    text = printed(tables.report_view(report()), 600)
    assert "family 1: a, b" in text
    assert "never says who derived from whom" in text
    assert "p is corrected over all pairs tested; the score is a screen, not evidence" in text


def test_a_report_without_pairs_has_no_table_and_no_caveat() -> None:
    text = printed(tables.report_view(report(comparisons=())), 600)
    assert not any(line.startswith("verdict") for line in text.splitlines())
    assert "3 checkpoints found" in text


def test_colour_is_on_the_verdict_and_nowhere_else_in_a_row() -> None:
    line = printed(tables.pair_table([pair(1, "shared-origin")]), color=True).splitlines()[1]
    assert line.startswith("\x1b[1;33mshared-origin\x1b[0m")
    assert "\x1b" not in line.partition("\x1b[0m")[2]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_pair_in_full(verdict: str) -> None:
    lines = printed(tables.comparison_view(comparison(verdict, "first", "second")), 200).splitlines()
    assert lines[0].split()[0] == verdict
    assert ("(corrected)" in lines[0]) == (verdict != "not-comparable")
    assert [line.strip() for line in lines[1:5]] == [
        "a: first",
        "b: second",
        f"- why it is {verdict}",
        "- and one thing more",
    ]
    places = {start: n for n, line in enumerate(lines) for start in ("seed score", " test") if line.startswith(start)}
    assert (" test" in places) == (verdict != "not-comparable")
    assert places.get(" test", 0) < places["seed score"]


def mapped(*layers: tuple[int, int]) -> Comparison:
    return replace(comparison("shared-origin"), layer_map=tuple((a, b, 9.0) for a, b in layers))


@pytest.mark.parametrize(
    ("pair", "layers", "said"),
    [
        (mapped((0, 0), (1, 2)), None, "layer map (2 layers of a, 2 of b): 0->0, 1->2"),
        (mapped((0, 0), (1, 1), (3, 2)), (4, 3), "layer map (3 of 4 layers of a, 3 of 3 of b): 0->0, 1->1, 3->2"),
        (mapped((0, 0), (1, 1)), None, "layer map (2 layers of a, 2 of b): 0->0, 1->1"),
        (mapped((0, 0), (1, 1)), (3, 3), "layer map (2 of 3 layers of a, 2 of 3 of b): 0->0, 1->1"),
        (mapped((0, 0), (1, 1)), (2, 2), "(2 of 2 layers of a, 2 of 2 of b): layer by layer, in the same order"),
        (mapped((0, 0), (0, 1)), (1, 2), "layer map (1 of 1 layers of a, 2 of 2 of b): 0->0, 0->1"),
        (mapped(*((n, n) for n in range(41))), (42, 42), "of 42 of b): 41 at the same place"),
        (mapped(*((n, n + n // 40) for n in range(41))), (41, 42), "of 42 of b): 40->41; 40 at the same place"),
        (mapped(*((n, n + 1) for n in range(45))), (46, 46), "39->40 and 5 more"),
    ],
)  # fmt: skip
def test_the_layer_map_leaves_nothing_out_unsaid(pair: Comparison, layers: tuple[int, int] | None, said: str) -> None:
    assert f"{said}\n" in printed(tables.comparison_view(pair, layers=layers), 1000)


def test_layers_are_counted_where_a_side_has_one_stack() -> None:
    whole = small_fingerprint()
    number = len({matrix.layer for matrix in whole.matrices})
    two = replace(whole, matrices=(*whole.matrices, replace(whole.matrices[0], stack="other")))
    assert layers_of(whole, whole) == (number, number)
    assert layers_of(whole, two) is None


def test_the_head_map_names_what_moved() -> None:
    said = "head map (2 value heads that agree by themselves, layer.head): 0.0->0.0, 1.2->2.0\n"
    assert said in printed(tables.comparison_view(comparison("shared-origin")))
    many = replace(comparison("shared-origin"), head_map=tuple((0, i, 0, i + 1, 9.0) for i in range(30)))
    assert "0.23->0.24 and 6 more" in printed(tables.comparison_view(many), 400)
    assert "head map" not in printed(tables.comparison_view(replace(many, head_map=())))


def test_a_merge_candidate_is_no_verdict() -> None:
    (family,) = report().families
    (merge,) = family.merges
    assert tables.merge_line(merge).endswith("other, or relatives of them; a candidate, not a verdict")


def test_a_contradicted_claim_is_named_once() -> None:
    finding = DeclaredFinding("README.md", "org/b", "b", "contradicts", "declared org/b, but the order says no")
    lines = list(tables.lineage_lines(replace(report(), declared={"a": (finding,)}, directions={})))
    assert lines == ["declared: a names org/b (README.md): contradicts: the order says no"]


def test_folded_reasons_stay_behind_their_dash() -> None:
    view = tables.comparison_view(replace(comparison("identical"), reasons=("word " * 40,)))
    lines = printed(view, 60).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("  - word"))
    assert lines[start + 1].startswith("    word")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_a_large_model_loses_nothing_in_a_terminal(width: int) -> None:
    whole = small_fingerprint(LONG)
    large = replace(
        whole,
        matrices=tuple(
            replace(
                matrix, stack=f"{LONG}.layers", layer=126, shape=(16384, 16384), skewness=-12.345, kurtosis=1234.5678
            )
            for matrix in whole.matrices
        ),
    )
    text = printed(tables.fingerprint_view(large), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("16384x16384") == len(whole.matrices)
    assert text.count("-12.345") == text.count("1235") == len(whole.matrices)
    assert f"stack {LONG}.layers" in text.replace("\n", "")


def test_every_stack_has_its_table() -> None:
    whole = small_fingerprint()
    matrices = tuple(replace(matrix, stack="" if matrix.layer else "vision.layers") for matrix in whole.matrices)
    lines = printed(tables.fingerprint_view(replace(whole, matrices=matrices))).splitlines()
    assert [line for line in lines if line.startswith("stack")] == ["stack vision.layers", "stack (none)"]


def test_figures_that_do_not_exist_say_so() -> None:
    lines = printed(tables.fingerprint_view(small_fingerprint())).splitlines()
    skews = {line.split()[1]: line.split()[5] for line in lines if line.split()[0].isdigit()}
    assert skews == {"q": "0.100", "k": "nan", "v": "0.100", "o": "0.100"}


def test_notices_of_a_checkpoint_follow_its_table() -> None:
    lines = printed(tables.fingerprint_view(small_fingerprint()), 200).splitlines()
    assert lines[-1] == "model.layers.2.self_attn.k_proj.weight: k rows 16 but v rows 12 [E_NOT_UNDERSTOOD]"


def test_inspect(structure: Structure) -> None:
    text = printed(tables.structure_view("tiny", structure), 80)
    assert text.startswith("tiny: 2 of 2 attention modules understood; a scan reads ")
    assert [line.split() for line in text.splitlines()[-4:]] == [
        ["model.layers", "2", role, shape, "2", "f32", "(out,", "in)"]
        for role, shape in (("q", "64x64"), ("k", "32x64"), ("v", "32x64"), ("o", "64x64"))
    ]


def test_inspect_of_nothing_says_why(tmp_path: Path) -> None:
    weights = {name: value for name, value in tiny.llama(0).items() if "attn" not in name}
    (checkpoint,) = discover([tiny.save(tmp_path / "mlp", weights)])
    structure = read_structure(checkpoint)
    text = printed(tables.structure_view("mlp", structure), 200)
    assert "[E_NO_ATTENTION]" in text
    assert "role" not in text
    assert "[E_NO_ATTENTION]" in printed(tables.forecast_view([Forecast(checkpoint, False, structure)], []), 300)


def test_a_dry_run_says_what_is_fresh_and_what_would_be_read(structure: Structure, tmp_path: Path) -> None:
    (checkpoint,) = discover([tmp_path / "tiny"])
    lines = printed(
        tables.forecast_view([Forecast(checkpoint, fresh, structure) for fresh in (True, False)], [])
    ).splitlines()
    assert lines[1].split() == ["tiny", "0", "B", "0", "fresh"]
    assert lines[2].split()[0] == "tiny"
    assert lines[3].startswith("2 checkpoints, 1 fresh; 0 references; a scan would read ")


VIEWS: dict[str, Callable[[str], RenderableType]] = {
    "report": lambda name: tables.report_view(nasty_report(name)),
    "pair": lambda name: tables.comparison_view(
        replace(comparison("identical", name, name), reasons=(name,), tests=(replace(TEST, name=name),))
    ),
    "fingerprint": lambda name: tables.fingerprint_view(
        replace(
            small_fingerprint(name),
            status=name,
            notices=(Notice("E_READ", name, name, name),),
            matrices=tuple(replace(m, stack=name, role=name) for m in small_fingerprint().matrices),
        )
    ),
    "references": lambda name: tables.references_view(
        [replace(small_fingerprint(name), path=name, status=name), small_fingerprint(name)]
    ),
}
TEST = comparison("identical").tests[0]


@pytest.mark.parametrize("width", [60, 200])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_no_name_is_more_than_a_name(name: str, view: str, width: int) -> None:
    """No control character, no direction override, no markup, no emoji: only what ``printable`` spells out."""
    plain = printed(VIEWS[view](name), width)
    assert all(character.isprintable() for line in plain.split("\n") for character in line)
    harmless = printed(VIEWS[view]("a"), width, color=True)
    colours = {part.partition("m")[0] for part in harmless.split("\x1b[")[1:]}
    shown = printed(VIEWS[view](name), width, color=True)
    assert {part.partition("m")[0] for part in shown.split("\x1b[")[1:]} == colours
    if width == 200:
        assert tables.printable(name) in plain


def test_a_fingerprint_file_of_strange_shapes_is_printed_escaped() -> None:
    whole = small_fingerprint()
    odd = replace(whole, matrices=(replace(whole.matrices[0], shape=("\x1b[2J", 1)),))  # type: ignore[arg-type]
    assert r"\x1b[2Jx1" in printed(tables.fingerprint_view(odd))
