"""The figures of bench/lineage.py for people: tables in Markdown, on the terminal or as a page with plots beside it."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import print_machine, print_table

from lineage_parts.figures import FALSE_RATES, LEVELS
from lineage_parts.plots import draw_drift, draw_null

Document = Mapping[str, Any]

HEAD = """# Evidence: error rates on checkpoints of known lineage

Made by `python bench/lineage.py ZOO --page docs/evidence.md` on a zoo made by `python bench/zoo.py ZOO`; nothing is
written by hand here. What the tests are: [method.md](method.md). A pair is *related* if both go back to a common
initialisation, and *findable* if moreover neither side lost the order of its attention units. The null hypothesis of
every p is that the two networks were initialised independently. p of a pair is corrected for every test made inside the
pair; verdicts are corrected over all pairs of their scan.
"""


def write_page(path: Path, document: Document) -> None:
    """Write the page, and its plots into a directory of the page's name beside it."""
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print(HEAD)
        show(document, pictures)
    path.write_text(text.getvalue().rstrip() + "\n")


def show(document: Document, pictures: Path | None = None) -> None:
    """Print every table; with ``pictures``, draw the plots there and refer to them."""
    print_machine(document["machine"])
    for name, place in document["places"].items():
        print(f"## {name.capitalize()}: {place['checkpoints']} checkpoints, {place['pairs']} pairs\n")
        for section in SECTIONS:
            section(place)
        if pictures is not None and place["drift"]:
            _pictures(name, place, pictures)


def _pictures(name: str, place: Document, pictures: Path) -> None:
    for what, draw in (("drift", draw_drift), ("null", draw_null)):
        file = pictures / f"{name}-{what}.svg"
        draw(place, file)
        print(f"![{what}]({pictures.name}/{file.name})\n")


def _separation(place: Document) -> None:
    print("### How the scores lie apart\n")
    for which, what in (
        ("findable", "all findable pairs, cousins included"),
        ("of an origin", "findable pairs of a model and the untouched model that it goes back to"),
        ("related", "all related pairs, those that nothing in the order of attention's units can show included"),
    ):
        rows = place["separation"][which]
        print(f"Related pairs here are {what}.\n")
        columns = ["AUC", *(f"TPR at {rate:.1%} FPR" for rate in FALSE_RATES), "smallest related", "largest unrelated"]
        print_table(
            ["score", "related", "unrelated", *columns],
            (
                [
                    name,
                    str(own["related"]),
                    str(own["unrelated"]),
                    _plain(own["auc"], 4),
                    *(_plain(value, 3) for value in own["true_positives"]),
                    _plain(own["smallest_related"], 3),
                    _plain(own["largest_unrelated"], 3),
                ]
                for name, own in rows.items()
            ),
        )
        print()
    print("The order code's score is -log10 p of the pair.\n")
    linked = place["unrelated_linked"]
    print(f"Unrelated pairs that a verdict links: {len(linked)}.\n")
    for pair in linked:
        print(f"- {pair['a']}, {pair['b']}: {pair['verdict']}, log10 p {_plain(pair['log10_p'], 1)}")
    missed = place["not_found"]
    print(f"Findable pairs without evidence from attention: {len(missed)}" + (".\n" if not missed else ":\n"))
    if missed:
        table: dict[str, list[str]] = {}
        for pair in missed:
            table.setdefault(pair["a"], []).append(f"{pair['b']} ({_plain(pair['log10_p'], 1)})")
        for name, others in table.items():
            print(f"- {name}: {', '.join(others)}")
        print("\nIn brackets log10 p after correction over the scan.\n")


def _uniformity(place: Document) -> None:
    print("### Whether p is uniform where nothing is to be found\n")
    print_table(
        ["p of", "number", "Kolmogorov-Smirnov p", *(f"at most {level:g} (expected)" for level in LEVELS)],
        (
            [
                name,
                str(own["number"]),
                _plain(own["kolmogorov_smirnov"], 3),
                *(f"{n} ({level * own['number']:.0f})" for n, level in zip(own["at_most"], LEVELS, strict=True)),
            ]
            for name, own in place["uniformity"].items()
        ),
    )
    print(
        "\nLayer pairs are single exact tests, pairwise independent. p of a pair is Bonferroni's upper bound over the "
        "tests inside it, so it lies above uniform; pairs that share relatives are no independent sample.\n"
    )


def _kinds(place: Document) -> None:
    if not place["kinds"]:
        return
    print("### Each kind of derivation against the model it goes back to\n")
    print_table(
        ["kind", "pairs", "verdicts", "verdicts with FFN", "-log10 p", "with FFN", "seed score", "moment curves"],
        (
            [
                own["kind"],
                str(own["pairs"]),
                _words(own["verdicts"]),
                _words(own["verdicts, FFN read"]),
                _range(own["order code, attention"], 1),
                _range(own["order code, attention and FFN"], 1),
                _range(own["seed score"], 3),
                _range(own["moment curves"], 3),
            ]
            for own in place["kinds"]
        ),
    )
    print()


def _drift(place: Document) -> None:
    if not place["drift"]:
        return
    print("### Power as a function of drift\n")
    print_table(
        ["member", "cosine of W_V", "blocks", "log10 p, v whole", "o whole", "of the pair", "seed score", "verdict"],
        (
            [
                own["name"],
                _plain(own["cosine"], 3),
                str(own["blocks"]),
                _plain(own.get("v_log10_p"), 1),
                _plain(own.get("o_log10_p"), 1),
                _plain(own["pair_log10_p"], 1),
                _plain(own["seed_score"], 3),
                own["verdict"],
            ]
            for own in place["drift"]
        ),
    )
    print()


def _clustering(place: Document) -> None:
    own = place["clustering"]
    print("### Families\n")
    print(
        f"{own['members']} members that kept their units' order or whose heads moved, {own['clusters']} families in "
        f"truth. Adjusted Rand index of the families found: {_plain(own['order code'], 4)}. Linking every pair from a "
        "score on, at the limit that is best in hindsight: "
        + ", ".join(
            f"{name} {_plain(own[name]['best'], 4)} (at {_plain(own[name]['limit'], 3)})"
            for name in ("seed score", "moment curves")
        )
        + ".\n"
    )


def _beside(place: Document) -> None:
    own = place["directions"]
    print("### Directions, declared origins, merges\n")
    cues = ", ".join(f"{cue} {number}" for cue, number in own["cues"].items())
    print(
        f"Directions: stated for {own['stated']} of {own['related_pairs']} linked pairs, true for {own['true']} "
        f"({cues or 'no cue'}).\n"
    )
    for entry in own["not_true"]:
        print(f"- not known to be true: {entry[0]} older than {entry[1]}: {'; '.join(entry[2:])}")
    for claim, found in place["declared"].items():
        if found:
            print(f"Declared origins, {claim}: {', '.join(f'{word} {number}' for word, number in found.items())}.\n")
    candidates = place["merges"]["candidates"]
    if candidates or place["merges"]["not_found"]:
        print_table(
            ["merge candidate", "kind", "is one", "parents named: weight (truth), partial z"],
            ([c["member"], c["kind"], _yes(c["is_merge"]), "; ".join(_parents(c["parents"]))] for c in candidates),
        )
        print(f"\nMerges not found: {', '.join(place['merges']['not_found']) or 'none'}.\n")


def _parents(parents: Sequence[Document]) -> Iterator[str]:
    for own in parents:
        truth = "" if own["true_weight"] is None else f" ({own['true_weight']:g})"
        weight = "" if own["weight"] is None else f" {own['weight']:.2f} ± {own['weight_error'] or 0:.2f}{truth}"
        z = "" if own["partial_z"] is None else f", z {own['partial_z']:.1f}"
        is_one = own["is_parent"]
        called = (
            " (not a parent)" if is_one is None else "" if is_one == own["name"] else f" (same weights as {is_one})"
        )
        yield f"{own['name']}{called}:{weight}{z}"


def _confirm(place: Document) -> None:
    own = place["confirm"]
    if not own["laundered"]:
        return
    print("### Laundering\n")
    columns = {
        "pairs": "pairs",
        "flagged": "flagged, attention read",
        "linked": "linked, FFN read",
        "linked or flagged": "linked or flagged, FFN read",
        "confirmed": "confirmed",
        "withdrawn": "withdrawn",
        "not possible": "not possible",
    }
    rows = {**own["laundered"], "all": own["all laundered"]}
    print_table(
        ["kind", *columns.values()], ([kind, *(str(row[column]) for column in columns)] for kind, row in rows.items())
    )
    unrelated = own["unrelated"]
    print(
        f"\nOf {unrelated['pairs']} unrelated pairs {unrelated['flagged']} are flagged. Of "
        f"the {unrelated['looked_at']} looked at with `--confirm`, all untouched models with each other and every "
        "flagged pair, "
        f"{unrelated['confirmed']} are confirmed, {unrelated['withdrawn']} withdrawn, {unrelated['not possible']} not "
        "possible.\n"
    )
    print(f"Neither linked nor confirmed: {', '.join(own['missed']) or 'none'}.\n")


SECTIONS = (_separation, _uniformity, _kinds, _drift, _clustering, _beside, _confirm)


def _plain(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value + 0.0:.{digits}f}"  # no minus before a zero


def _range(ends: Sequence[float], digits: int) -> str:
    low, high = (_plain(value, digits) for value in ends)
    return low if low == high else f"{low} to {high}"


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {number}" for word, number in counts.items())


def _yes(value: bool) -> str:
    return "yes" if value else "no"
