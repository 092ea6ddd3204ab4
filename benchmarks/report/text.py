"""Figures and tables as text, for a terminal or for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.harness.model import Entry, Kind, Metric, Row
from benchmarks.harness.statistics import Summary
from benchmarks.results import Results
from benchmarks.targets import verdicts

Line = tuple[str, ...]


def number(value: float) -> str:
    """A figure with about three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.3f}"


def spread(summary: Summary) -> str:
    """Least and greatest of the rounds."""
    return f"{number(summary.low)} .. {number(summary.high)}" if summary.rounds > 1 else ""


def times_ours(ours: Summary | None, other: Summary | None, metric: Metric) -> str:
    """How many times better ours is than another; a dash where that cannot be said."""
    if ours is None or other is None or not ours.median or not other.median:
        return "-"
    quotient = ours.median / other.median if metric.higher_is_better else other.median / ours.median
    return f"{number(quotient)}x"


def row_lines(row: Row, metric: Metric, results: Results) -> list[Line]:
    """A table of one metric: who, durability, median, spread, how many times better ours is."""
    ours_name = next((entry.name for entry in row.entries if entry.kind is Kind.OURS), None)
    ours = None if ours_name is None else results.summary(row.name, ours_name, metric.name)
    lines: list[Line] = [("", "durability", metric.unit, "least .. greatest", "ours to this")]
    for entry in row.entries:
        outcome = results.outcome(row.name, entry.name)
        if outcome is None:
            continue
        summary = results.summary(row.name, entry.name, metric.name)
        if summary is not None:
            better = "" if entry.kind is Kind.OURS else times_ours(ours, summary, metric)
            lines.append((label(entry), entry.durability, number(summary.median), spread(summary), better))
        elif outcome.skipped is not None:
            lines.append((label(entry), entry.durability, "skipped", "", ""))
        elif outcome.failed is not None:
            lines.append((label(entry), entry.durability, "FAILED", "", ""))
    return lines


def label(entry: Entry) -> str:
    """Who it is; a limit is marked as one."""
    return f"limit: {entry.label}" if entry.kind is Kind.LIMIT else entry.label


def sections(rows: Sequence[Row], results: Results) -> Iterator[tuple[str, list[Line]]]:
    """Title and table for each metric that was measured."""
    for row in rows:
        for metric in row.metrics:
            lines = row_lines(row, metric, results)
            if len(lines) > 1:
                yield row.title + (f": {metric.title}" if metric.title else ""), lines


def target_lines(results: Results) -> list[Line]:
    """Every target, what was measured, whether it is reached, and what the least that does the work had."""
    lines: list[Line] = [("row", "target", "to reach", "measured", "reached", "limit")]
    for verdict in verdicts(results):
        target = verdict.target
        lines.append((target.row, target.what, target.wanted, verdict.measured, verdict.word, verdict.limit))
    return lines


def reasons(results: Results) -> list[str]:
    """Why something was skipped or failed; each reason once."""
    said = []
    for outcome in results.outcomes:
        if outcome.skipped is not None:
            said.append(f"{outcome.entry} skipped: {outcome.skipped}")
        if outcome.failed is not None:
            said.append(f"{outcome.entry} in {outcome.row} failed: {outcome.failed}")
    return list(dict.fromkeys(said))


def aligned(lines: Sequence[Line], left: int = 2) -> str:
    """Columns side by side: the first ``left`` flush left, the others flush right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            f"{text:<{width}}" if column < left else f"{text:>{width}}"
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(lines: Sequence[Line], left: int = 2) -> str:
    """A Markdown table."""
    head, *body = (tuple(text.replace("|", r"\|") for text in line) for line in lines)
    rule = tuple("---" if column < left else "---:" for column in range(len(head)))
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def plain_report(rows: Sequence[Row], results: Results) -> str:
    """Everything, for a terminal."""
    parts = [", ".join(f"{name} {value}" for name, value in results.machine.items())]
    if results.settings.get("quick"):
        parts.append("A quick run: tiny sizes, one round. It shows that everything works, and measures nothing.")
    parts += [f"{title}\n{aligned(lines)}" for title, lines in sections(rows, results)]
    if len(targets := target_lines(results)) > 1:
        parts.append(f"targets\n{aligned(targets, left=4)}")
    if said := reasons(results):
        parts.append("\n".join(said))
    return "\n\n".join(parts)
