"""Reports for people: verdict first, evidence second, screen last. Names are printed escaped and never as markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from weightprint.compare import WORDS, figures_of, prepare, words_of
from weightprint.compare.copies import copies_of
from weightprint.compare.direction import Direction
from weightprint.compare.families import Merge
from weightprint.confirm import TAKEN_BACK
from weightprint.data import Comparison, Confirmation, Fingerprint, MatrixStats
from weightprint.errors import Notice
from weightprint.fingerprint import Structure
from weightprint.report.documents import CAVEAT, forecast_bytes, incomplete, stacks, summary
from weightprint.report.pair_lines import flag_lines, hidden_lines, map_lines
from weightprint.report.text import figure, moment, p_text, printable, seconds, size
from weightprint.scan import Forecast, Outcome, Report

VERDICT_STYLE = {
    "identical": "bold magenta",
    "re-encoded": "bold magenta",
    "shared-origin": "bold yellow",
    "similar-profile": "cyan",
    "no-evidence": "green",
    "not-comparable": "dim",
}
FINDINGS = ("identical", "re-encoded", "shared-origin", "similar-profile")
MOST_ROWS = 60


def report_view(report: Report) -> RenderableType:
    """The whole scan: pairs, families, what could not be analysed, summary."""
    return Group(*_report_parts(report))


def _report_parts(report: Report) -> Iterator[RenderableType]:
    ranked = _most_telling(report.comparisons)
    shown = [report.comparisons[number] for number in ranked]
    if shown:
        yield pair_table(shown)
        yield Text("p is corrected over all pairs tested; the score is a screen, not evidence", style="dim")
        untested = int((words_of(report.comparisons) == WORDS.index("not-comparable")).sum())
        if untested:
            what = f"{_count(untested, 'pair')} not comparable: weightprint compare and the report files say why"
            yield Text(what, style="dim")
        yield from map(Text, (*flag_lines(report.comparisons), *hidden_lines(report.comparisons, ranked)))
    for number, family in enumerate(report.families, 1):
        yield Text(f"family {number}: " + ", ".join(printable(name) for name in family.members))
        yield from (Text(f"  {printable(merge_line(merge))}") for merge in family.merges)
    yield from (Text(printable(line)) for line in lineage_lines(report))
    for outcome in report.outcomes:
        yield from (Text(printable(own.sentence(outcome.fingerprint.name))) for own in outcome.copies)
    yield from _troubles(report.outcomes)
    yield from _troubles(report.references, "reference ")
    yield from (Text(printable(notice.line())) for notice in report.notices)
    yield summary_line(report)
    if report.comparisons:
        yield Text(CAVEAT, style="dim")


def _most_telling(comparisons: Sequence[Comparison]) -> list[int]:
    """Numbers of the pairs to show: every finding if there are not too many, else as many pairs as fit."""
    figures = figures_of(comparisons)
    findings = int(np.isin(figures.words, [WORDS.index(word) for word in FINDINGS]).sum())
    rows = max(MOST_ROWS, findings) if findings <= 5 * MOST_ROWS else 5 * MOST_ROWS
    ranked: list[int] = figures.ranked()[:rows].tolist()
    return ranked


def pair_table(comparisons: Sequence[Comparison]) -> Table:
    """One row a pair: verdict, evidence, names, and the screen last."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("a", overflow="fold")
    table.add_column("b", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    for pair in comparisons:
        table.add_row(
            Text(pair.verdict, style=VERDICT_STYLE[pair.verdict]),
            p_text(pair.log10_p),
            Text(printable(pair.a)),
            Text(printable(pair.b)),
            figure(pair.screen.score),
        )
    return table


def _troubles(outcomes: Sequence[Outcome], what: str = "") -> Iterator[Text]:
    """One line for each checkpoint that is not complete; the first reason, and how many more there are."""
    for outcome in outcomes:
        fingerprint = outcome.fingerprint
        if incomplete(outcome):
            more = len(fingerprint.notices) - 1
            tail = f" (and {more} more; weightprint show lists them)" if more > 0 else ""
            line = f"{fingerprint.status}: {what}{fingerprint.name}: {fingerprint.reason}{tail}"
            yield Text(printable(line), style="red" if fingerprint.status == "failed" else "yellow")


def summary_line(report: Report) -> Text:
    """Every checkpoint found is in one of the counts."""
    figures = summary(report)
    stale = figures["skipped_fresh_partial"]
    halves = sum(incomplete(outcome) for outcome in report.references)
    return Text(
        f"{_count(figures['found'], 'checkpoint')} found: "
        f"{figures['complete']} complete, {figures['partial']} partial, "
        f"{figures['failed']} failed, {figures['skipped_fresh']} already fingerprinted{_of_them(stale)}; "
        f"{_count(figures['references'], 'reference')}{_of_them(halves)}; {_count(figures['pairs'], 'pair')} compared; "
        f"{size(figures['bytes_read'])} read in {seconds(report.seconds)}",
        style="bold",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _of_them(number: int) -> str:
    return f" ({number} of them not complete)" if number else ""


def merge_line(merge: Merge) -> str:
    """A merge candidate: its parents with their shares."""
    parents = " and ".join(f"{p.weight:.2f} \u00b1 {p.weight_error:.2f} {p.name}" for p in merge.parents)
    return (
        f"merge candidate ({merge.kind}): {merge.member} of {parents}, or relatives of them; a candidate, not a verdict"
    )


def lineage_lines(report: Report) -> Iterator[str]:
    """Directions that a cue states, and declared origins that what was found agrees with or contradicts."""
    stated = [direction for direction in report.directions.values() if direction.older is not None]
    for direction in stated[:MOST_ROWS]:
        yield f"direction: {direction.older} is older than {direction.younger}: {'; '.join(direction.cues)}"
    if len(stated) > MOST_ROWS:
        yield f"and {_count(len(stated) - MOST_ROWS, 'more direction')}: --out FILE.json has them all"
    for name, findings in report.declared.items():
        for finding in findings:
            if finding.finding != "silent":
                why = finding.reason.removeprefix(f"declared {finding.name}, but ")  # which the line says already
                yield f"declared: {name} names {finding.name} ({finding.source}): {finding.finding}: {why}"


def comparison_view(
    comparison: Comparison,
    direction: Direction | None = None,
    confirmation: Confirmation | None = None,
    layers: tuple[int, int] | None = None,
) -> RenderableType:
    """One pair in full: verdict, reasons, tests, what reading the weights gave, screen, layer map. ``layers`` are how
    many layers either side has, None where that is not known."""
    head = Text(comparison.verdict, style=VERDICT_STYLE[comparison.verdict])
    if comparison.log10_p is not None:
        head = Text.assemble(head, f"   p {p_text(comparison.log10_p)} (corrected)")
    reasons = Table.grid(padding=(0, 1))
    for reason in comparison.reasons:
        reasons.add_row("  -", Text(printable(reason), overflow="fold"))
    parts: list[RenderableType] = [
        head,
        Text(f"a: {printable(comparison.a)}"),
        Text(f"b: {printable(comparison.b)}"),
        reasons,
    ]
    if comparison.tests:
        table = Table(box=None, header_style="bold")
        table.add_column("test")
        for column in ("statistic", "blocks", "z", "log10 p", "log10 factor"):
            table.add_column(column, justify="right", no_wrap=True)
        for test in comparison.tests:
            table.add_row(
                Text(printable(test.name)),
                str(test.statistic),
                str(test.blocks),
                f"{test.z:.2f}",
                f"{test.log10_p:.1f}",
                f"{test.log10_factor:.2f}",
            )
        parts.append(table)
    if confirmation is not None:
        taken_back = any(reason.startswith(TAKEN_BACK) for reason in comparison.reasons)
        parts += _confirmation_parts(confirmation, taken_back)
    screen = comparison.screen
    parts.append(
        Text(
            f"seed score {figure(screen.score)} (a screen, not evidence): "
            + ", ".join(f"{role} {figure(getattr(screen, role))}" for role in "qkvo")
        )
    )
    parts += map(Text, map_lines(comparison, layers))
    if direction is not None:
        stated = f"{direction.older} is older than {direction.younger}: {'; '.join(direction.cues)}"
        parts.append(Text(printable(f"direction: {direction.reason or stated}")))
    parts.append(Text(CAVEAT, style="dim"))
    return Group(*parts)


def _confirmation_parts(confirmation: Confirmation, taken_back: bool) -> Iterator[RenderableType]:
    """What reading the weights gave: outcome, tests, the matching of units, what could not be tested. Without a flag
    that was ``taken_back`` there was nothing to withdraw."""
    nothing = confirmation.outcome == "withdrawn" and not taken_back
    yield Text(f"confirm: {'nothing found' if nothing else confirmation.outcome}", style="bold")
    if confirmation.tests:
        table = Table(box=None, header_style="bold")
        table.add_column("test of the weights")
        for column in ("statistic", "of", "log10 p", "log10 factor"):
            table.add_column(column, justify="right", no_wrap=True)
        for test in confirmation.tests:
            size = f"{test.blocks} blocks" if test.count is None else f"{test.count} heads"
            figures = (f"{test.log10_p:.1f}", f"{test.log10_factor:.2f}")
            table.add_row(Text(printable(test.name)), str(test.statistic), size, *figures)
        yield table
    matching = confirmation.unit_matching
    if matching is not None:
        yield Text(
            f"{matching.agreeing} of {matching.units} hidden units in {_count(matching.layers, 'layer')} find the same "
            f"partner by gate and by up (about {matching.layers} by chance; a figure, no proof)"
        )
    yield from (Text(printable(f"  {reason}")) for reason in confirmation.reasons)


def fingerprint_view(fingerprint: Fingerprint) -> RenderableType:
    """The per-matrix table of one checkpoint, a stack at a time so that it fits 80 columns."""
    read = f"{size(fingerprint.bytes.read)} read of {size(fingerprint.bytes.files)}"
    status = f"{fingerprint.status}, {len(fingerprint.matrices)} matrices, {read}"
    parts: list[RenderableType] = [Text(printable(f"{fingerprint.name}: {status}"))]
    for stack in dict.fromkeys(matrix.stack for matrix in fingerprint.matrices):
        own = [matrix for matrix in fingerprint.matrices if matrix.stack == stack]
        parts += [Text(f"stack {printable(stack) or '(none)'}", style="bold"), _matrix_table(own)]
    copies = [Text(printable(own.sentence(fingerprint.name))) for own in copies_of(prepare(fingerprint))]
    return Group(*parts, *copies, *notice_lines(fingerprint.notices))


def _matrix_table(matrices: Sequence[MatrixStats]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "role", "shape", "mean", "std", "skew", "kurt", "abs max", "nan/inf"):
        table.add_column(column, justify="left" if column == "role" else "right", no_wrap=True)
    for matrix in matrices:
        table.add_row(
            str(matrix.layer),
            Text(printable(matrix.role)),
            Text(printable("x".join(map(str, matrix.shape)))),
            f"{matrix.mean:.2e}",
            f"{matrix.std:.4g}",
            moment(matrix.skewness),
            moment(matrix.kurtosis),
            f"{matrix.abs_max:.4g}",
            str(matrix.non_finite),
        )
    return table


def structure_view(name: str, structure: Structure) -> RenderableType:
    """What a scan would read of one checkpoint, and what is not understood."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stack", "layers", "role", "shape", "matrices", "dtype", "stored"):
        table.add_column(column, justify="right" if column in ("layers", "shape", "matrices") else "left")
    for stack in stacks(structure):
        for role in stack["roles"]:
            table.add_row(
                Text(printable(stack["stack"])),
                str(stack["layers"]),
                role["role"],
                "x".join(map(str, role["shape"])),
                str(role["count"]),
                role["dtype"],
                "(in, out)" if role["transposed"] else "(out, in)",
            )
    coverage, blocks = structure.understanding.coverage, structure.understanding.feed_forward
    of_blocks = f" and {blocks.understood} of {blocks.found} feed-forward blocks" if blocks else ""
    files = sum(source.size for source in structure.sources if source.format != "config")
    lines: list[RenderableType] = [
        Text(
            f"{printable(name)}: {coverage.understood} of {coverage.found} attention modules{of_blocks} understood; "
            f"a scan reads {size(structure.plan.read)} of {size(files)} in {len(structure.plan)} requests"
        )
    ]
    if structure.understanding.matrices:
        lines.append(table)
    said = {notice.path for notice in structure.notices}
    lines += [
        Text(printable(f"not read: {path}: {reason}"), style="dim")
        for path, reason in structure.set_aside
        if str(path) not in said
    ]
    return Group(*lines, *notice_lines(structure.notices))


def forecast_view(forecasts: Sequence[Forecast], notices: Sequence[Notice]) -> RenderableType:
    """What a scan would read, checkpoint by checkpoint."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("checkpoint", "would read", "requests", "note"):
        table.add_column(column, justify="right" if column in ("would read", "requests") else "left", overflow="fold")
    for forecast in forecasts:
        plan, faults = forecast.structure.plan, forecast.structure.notices
        note = "fresh" if forecast.fresh else faults[0].line() if faults else ""
        requests = 0 if forecast.fresh else len(plan)
        name = Text(printable(forecast.checkpoint.name) + (" (reference)" if forecast.reference else ""))
        table.add_row(name, size(forecast_bytes(forecast)), str(requests), Text(printable(note)))
    total = size(sum(forecast_bytes(forecast) for forecast in forecasts))
    own = [forecast for forecast in forecasts if not forecast.reference]
    fresh = sum(forecast.fresh for forecast in own)
    line = f"{_count(len(own), 'checkpoint')}, {fresh} fresh; {_count(len(forecasts) - len(own), 'reference')}"
    return Group(table, *notice_lines(notices), Text(f"{line}; a scan would read {total}", style="bold"))


def references_view(fingerprints: Sequence[Fingerprint]) -> RenderableType:
    """The reference set."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "status", "matrices", "from"):
        table.add_column(column, justify="right" if column == "matrices" else "left", overflow="fold")
    for fingerprint in sorted(fingerprints, key=lambda fingerprint: (fingerprint.name, fingerprint.path)):
        count = str(len(fingerprint.matrices))
        texts = [Text(printable(text)) for text in (fingerprint.name, fingerprint.status, fingerprint.path)]
        table.add_row(texts[0], texts[1], count, texts[2])
    return Group(table, Text(_count(len(fingerprints), "reference"), style="bold"))


def notice_lines(notices: Sequence[Notice]) -> list[Text]:
    """One line a fault."""
    return [Text(printable(notice.line()), style="yellow") for notice in notices]
