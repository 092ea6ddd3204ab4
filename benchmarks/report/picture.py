"""The picture: a panel for each metric that is compared, a bar for each entry. Plain SVG, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import attrs

from benchmarks.harness.model import Entry, Kind, Metric, Row
from benchmarks.harness.statistics import Summary
from benchmarks.report.text import label, number
from benchmarks.results import Results

WIDTH = 1240
MARGIN = 20
COLUMNS = 2
COLUMN_GAP = 32
COLUMN_WIDTH = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * COLUMN_GAP) / COLUMNS
LABEL_WIDTH = 245
FIGURE_WIDTH = 75
BAR_HEIGHT = 14
BAR_STEP = 18
TITLE_HEIGHT = 42
PANEL_GAP = 20
HEADER_HEIGHT = 74
LIMIT_ROOM = 1.3
"""A limit that is further above everything else than this is cut off, or it would make all bars alike."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
COLOURS = {Kind.OURS: "#1f6feb", Kind.PEER: "#8c959f", Kind.LIMIT: "#d8dee4"}
INK, FAINT = "#1f2328", "#59636e"
BOLD = 'font-weight="600"'


@attrs.frozen
class Bar:
    """One bar of a panel."""

    label: str
    kind: Kind
    summary: Summary


@attrs.frozen
class Panel:
    """A row's metric with what was measured, best first."""

    title: str
    unit: str
    higher_is_better: bool
    bars: tuple[Bar, ...]

    @property
    def height(self) -> int:
        """Pixels that it takes."""
        return TITLE_HEIGHT + BAR_STEP * len(self.bars) + PANEL_GAP

    @property
    def greatest(self) -> float:
        """The value at the right end of its scale."""
        others = [bar.summary.high for bar in self.bars if bar.kind is not Kind.LIMIT]
        limits = [bar.summary.high for bar in self.bars if bar.kind is Kind.LIMIT]
        if not others:
            return max(limits)
        return max(others + [min(limit, LIMIT_ROOM * max(others)) for limit in limits])


def panels(rows: Sequence[Row], results: Results) -> list[Panel]:
    """A panel for every metric that ours and somebody else have, or a limit."""
    found = []
    for row in rows:
        for metric in row.metrics:
            bars = [bar for entry in row.entries if (bar := _bar(row, entry, metric, results)) is not None]
            if len({bar.kind for bar in bars}) > 1:
                title = row.title + (f": {metric.title}" if metric.title else "")
                bars.sort(key=lambda bar: bar.summary.median, reverse=metric.higher_is_better)
                found.append(Panel(title[0].upper() + title[1:], metric.unit, metric.higher_is_better, tuple(bars)))
    return found


def _bar(row: Row, entry: Entry, metric: Metric, results: Results) -> Bar | None:
    summary = results.summary(row.name, entry.name, metric.name)
    return None if summary is None else Bar(label(entry), entry.kind, summary)


def _text(x: float, y: float, text: str, size: int = 12, colour: str = INK, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" {extra}>{escape(text)}</text>'


def _draw_bar(bar: Bar, left: float, top: float, scale: float, right: float) -> list[str]:
    low, median, high = (left + value * scale for value in (bar.summary.low, bar.summary.median, bar.summary.high))
    cut = median > right
    end = min(median, right)
    weight, colour = (BOLD, INK) if bar.kind is Kind.OURS else ("", FAINT)
    shape = f'x="{left:.1f}" y="{top:.1f}" width="{max(1.0, end - left):.1f}" height="{BAR_HEIGHT}" rx="2"'
    lines = [
        _text(left - 8, top + 11, bar.label, colour=colour, extra=f'text-anchor="end" {weight}'),
        f'<rect {shape} fill="{COLOURS[bar.kind]}"/>',
    ]
    if not cut:
        span = f"M{low:.1f} {top + BAR_HEIGHT / 2:.1f}H{min(high, right):.1f}"
        lines.append(f'<path d="{span}" stroke="{INK}" stroke-width="1.5"/>')
    figure = number(bar.summary.median) + (" →" if cut else "")
    lines.append(_text(min(max(median, high), right) + 6, top + 11, figure, extra=weight))
    return lines


def _draw_panel(panel: Panel, left: float, top: float) -> list[str]:
    direction = "more is better" if panel.higher_is_better else "less is better"
    lines = [
        _text(left, top + 14, panel.title, 13, extra=BOLD),
        _text(left, top + 30, f"{panel.unit}, {direction}", 11, FAINT),
    ]
    zero = left + LABEL_WIDTH
    room = COLUMN_WIDTH - LABEL_WIDTH - FIGURE_WIDTH
    scale = room / panel.greatest if panel.greatest else 0.0
    for index, bar in enumerate(panel.bars):
        lines += _draw_bar(bar, zero, top + TITLE_HEIGHT - 4 + index * BAR_STEP, scale, zero + room)
    return lines


def _legend(y: float) -> list[str]:
    lines = []
    x = float(MARGIN)
    for kind, text in ((Kind.OURS, "mpreg-mq"), (Kind.PEER, "peers"), (Kind.LIMIT, "limits of the machine")):
        lines.append(f'<rect x="{x:.1f}" y="{y - 10}" width="12" height="12" rx="2" fill="{COLOURS[kind]}"/>')
        lines.append(_text(x + 18, y, text, colour=FAINT))
        x += 36 + 7.5 * len(text)
    note = "medians; the line spans least and greatest round; every panel has a scale of its own; → is cut off"
    lines.append(_text(x, y, note, colour=FAINT))
    return lines


def columns(drawn: Sequence[Panel]) -> list[list[Panel]]:
    """The panels in their order, split so that the columns are about as tall."""
    share = sum(panel.height for panel in drawn) / COLUMNS
    split: list[list[Panel]] = [[] for _ in range(COLUMNS)]
    passed = 0
    for panel in drawn:
        split[min(COLUMNS - 1, int((passed + panel.height / 2) / share))].append(panel)
        passed += panel.height
    return split


def picture(rows: Sequence[Row], results: Results) -> str:
    """The SVG document."""
    split = columns(panels(rows, results))
    height = HEADER_HEIGHT + max(sum(panel.height for panel in column) for column in split)
    machine = results.machine
    caption = f"mpreg-mq side by side: {machine['date']}, {machine['processor']}, {machine['python']}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="{FONT}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(MARGIN, 28, caption, 15, extra=BOLD),
        *_legend(50),
    ]
    for index, column in enumerate(split):
        top = float(HEADER_HEIGHT)
        for panel in column:
            lines += _draw_panel(panel, MARGIN + index * (COLUMN_WIDTH + COLUMN_GAP), top)
            top += panel.height
    return "\n".join((*lines, "</svg>")) + "\n"
