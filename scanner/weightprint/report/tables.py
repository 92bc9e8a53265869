"""Reports for people: verdict first, evidence second, screen last. Names are printed escaped and never as markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from weightprint.data import Comparison, Fingerprint
from weightprint.errors import Notice
from weightprint.fingerprint import Structure
from weightprint.report.documents import CAVEAT, forecast_bytes, incomplete, stacks, summary
from weightprint.report.text import figure, p_text, printable, seconds, size
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
    shown = _most_telling(report.comparisons)
    if shown:
        yield pair_table(shown)
        hidden = len(report.comparisons) - len(shown)
        if hidden:
            yield Text(f"and {hidden} more pairs without a finding or beyond this table: --out FILE.csv has them all")
    for number, family in enumerate(report.families, 1):
        yield Text(f"family {number}: " + ", ".join(printable(name) for name in family.members))
    yield from _troubles(report.outcomes)
    yield from _troubles(report.references)
    yield from (Text(printable(notice.line())) for notice in report.notices)
    yield summary_line(report)
    if report.comparisons:
        yield Text(CAVEAT, style="dim")


def _most_telling(comparisons: Sequence[Comparison]) -> list[Comparison]:
    rank = {verdict: number for number, verdict in enumerate(VERDICT_STYLE)}
    ordered = sorted(comparisons, key=lambda c: (rank[c.verdict], c.log10_p or 0.0, c.a, c.b))
    findings = sum(comparison.verdict in FINDINGS for comparison in ordered)
    return ordered[: max(MOST_ROWS, findings)] if findings <= 5 * MOST_ROWS else ordered[: 5 * MOST_ROWS]


def pair_table(comparisons: Sequence[Comparison]) -> Table:
    """One row a pair."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("p (corrected)", justify="right", no_wrap=True)
    table.add_column("seed score", justify="right", no_wrap=True)
    table.add_column("a", overflow="fold")
    table.add_column("b", overflow="fold")
    for pair in comparisons:
        table.add_row(
            Text(pair.verdict, style=VERDICT_STYLE[pair.verdict]),
            p_text(pair.log10_p),
            figure(pair.screen.score),
            Text(printable(pair.a)),
            Text(printable(pair.b)),
        )
    return table


def _troubles(outcomes: Sequence[Outcome]) -> Iterator[Text]:
    """One line for each checkpoint that is not complete; the first reason, and how many more there are."""
    for outcome in outcomes:
        fingerprint = outcome.fingerprint
        if incomplete(outcome):
            more = len(fingerprint.notices) - 1
            tail = f" (and {more} more; weightprint show lists them)" if more > 0 else ""
            line = f"{fingerprint.status}: {fingerprint.name}: {fingerprint.reason}{tail}"
            yield Text(printable(line), style="red" if fingerprint.status == "failed" else "yellow")


def summary_line(report: Report) -> Text:
    """Every checkpoint found is in one of the counts."""
    figures = summary(report)
    return Text(
        f"{figures['found']} checkpoints found: {figures['complete']} complete, {figures['partial']} partial, "
        f"{figures['failed']} failed, {figures['skipped_fresh']} already fingerprinted; "
        f"{figures['references']} references; {figures['pairs']} pairs compared; "
        f"{size(figures['bytes_read'])} read in {seconds(report.seconds)}",
        style="bold",
    )


def comparison_view(comparison: Comparison) -> RenderableType:
    """One pair in full: verdict, reasons, tests, screen, layer map."""
    head = Text.assemble(
        (comparison.verdict, VERDICT_STYLE[comparison.verdict]), f"   p {p_text(comparison.log10_p)} (corrected)"
    )
    parts: list[RenderableType] = [
        Text(f"a: {printable(comparison.a)}"),
        Text(f"b: {printable(comparison.b)}"),
        head,
        *(Padding(Text(f"- {printable(reason)}"), (0, 0, 0, 2)) for reason in comparison.reasons),
    ]
    if comparison.tests:
        table = Table("test", "statistic", "blocks", "z", "log10 p", "log10 factor", box=None, header_style="bold")
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
    screen = comparison.screen
    parts.append(
        Text(
            f"seed score {figure(screen.score)} (a screen, not evidence): "
            + ", ".join(f"{role} {figure(getattr(screen, role))}" for role in "qkvo")
        )
    )
    moved = [entry for entry in comparison.layer_map if entry[0] != entry[1]]
    if comparison.layer_map:
        what = ", ".join(f"{a}->{b}" for a, b, _ in moved) if moved else "layer by layer, in the same order"
        parts.append(Text(f"layer map ({len(comparison.layer_map)} layers): {what}"))
    parts.append(Text(CAVEAT, style="dim"))
    return Group(*parts)


def fingerprint_view(fingerprint: Fingerprint) -> RenderableType:
    """The per-matrix table of one checkpoint."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stack", "layer", "role", "shape", "mean", "std", "skewness", "kurtosis", "abs max", "not finite"):
        table.add_column(column, justify="left" if column in ("stack", "role") else "right", no_wrap=column != "stack")
    for matrix in fingerprint.matrices:
        table.add_row(
            Text(printable(matrix.stack)),
            str(matrix.layer),
            matrix.role,
            "x".join(map(str, matrix.shape)),
            f"{matrix.mean:.3e}",
            f"{matrix.std:.6f}",
            f"{matrix.skewness:.3f}",
            f"{matrix.kurtosis:.3f}",
            f"{matrix.abs_max:.4g}",
            str(matrix.non_finite),
        )
    read = f"{size(fingerprint.bytes.read)} read of {size(fingerprint.bytes.files)}"
    lines: list[RenderableType] = [
        Text(f"{printable(fingerprint.name)}: {fingerprint.status}, {len(fingerprint.matrices)} matrices, {read}"),
        table,
        *notice_lines(fingerprint.notices),
    ]
    return Group(*lines)


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
    coverage = structure.understanding.coverage
    files = sum(source.size for source in structure.sources if source.format != "config")
    lines: list[RenderableType] = [
        Text(
            f"{printable(name)}: {coverage.understood} of {coverage.found} attention modules understood; "
            f"a scan reads {size(structure.plan.read)} of {size(files)} in {len(structure.plan.slots)} requests"
        ),
        table,
        *notice_lines(structure.notices),
    ]
    return Group(*lines)


def forecast_view(forecasts: Sequence[Forecast]) -> RenderableType:
    """What a scan would read, checkpoint by checkpoint."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("checkpoint", "would read", "requests", "note"):
        table.add_column(column, justify="right" if column in ("would read", "requests") else "left", overflow="fold")
    for forecast in forecasts:
        plan, notices = forecast.structure.plan, forecast.structure.notices
        note = "fresh" if forecast.fresh else notices[0].line() if notices else ""
        requests = 0 if forecast.fresh else len(plan.slots)
        name = Text(printable(forecast.checkpoint.name))
        table.add_row(name, size(forecast_bytes(forecast)), str(requests), Text(printable(note)))
    total = size(sum(forecast_bytes(forecast) for forecast in forecasts))
    fresh = sum(forecast.fresh for forecast in forecasts)
    return Group(table, Text(f"{len(forecasts)} checkpoints, {fresh} fresh; a scan would read {total}", style="bold"))


def references_view(fingerprints: Sequence[Fingerprint]) -> RenderableType:
    """The reference set."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "status", "matrices", "from"):
        table.add_column(column, justify="right" if column == "matrices" else "left", overflow="fold")
    for fingerprint in fingerprints:
        count = str(len(fingerprint.matrices))
        table.add_row(Text(printable(fingerprint.name)), fingerprint.status, count, Text(printable(fingerprint.path)))
    return Group(table, Text(f"{len(fingerprints)} references", style="bold"))


def notice_lines(notices: Sequence[Notice]) -> list[Text]:
    """One line a fault."""
    return [Text(printable(notice.line()), style="yellow") for notice in notices]
