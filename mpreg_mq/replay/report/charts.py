"""Charts as SVG: lines over time, bars over time, and bars over a scale; each drawn for a wide and a narrow page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape

import attrs

from mpreg_mq.replay.formats import format_seconds

WIDE, HALF, NARROW = 1000, 480, 380
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 240, 52, 12, 12, 30


@attrs.frozen
class Line:
    """One line of a chart; ``colour`` is the number of one of the page's colours, ``filled`` shades below it."""

    name: str
    values: Sequence[float]
    colour: int
    filled: bool = False


@attrs.frozen
class Bar:
    """One bar: its label, its value, and what to say when somebody points at it."""

    label: str
    value: float
    title: str
    colour: int = 1


def both(draw: Callable[[int], str], wide: int = WIDE) -> str:
    """The same chart for wide pages and for phones; the page shows the one that fits."""
    return f'<div class="wide">{draw(wide)}</div><div class="narrow">{draw(NARROW)}</div>'


def over_time(
    times: Sequence[float], width_seconds: float, lines: Sequence[Line], unit: str, label: str
) -> Callable[[int], str]:
    """Lines over time; ``unit`` says what the values are."""

    def draw(width: int) -> str:
        top = nice_top(max((value for line in lines for value in line.values), default=0.0))
        frame = _Frame(width, top)
        parts = [_open(width, label), *_grid(frame), *_time_axis(frame, times, width_seconds)]
        count = max(1, len(times))
        for line in lines:
            points = [(frame.x((number + 0.5) / count), frame.y(value)) for number, value in enumerate(line.values)]
            if not points:
                continue
            path = _steps(points)
            if line.filled:
                floor = frame.y(0)
                area = f"{path} L{points[-1][0]:.1f} {floor:.1f} L{points[0][0]:.1f} {floor:.1f} Z"
                parts.append(f'<path class="area c{line.colour}" d="{area}"/>')
            parts.append(f'<path class="line c{line.colour}" d="{path}"/>')
        parts += _columns(frame, times, lines, unit)
        return "".join([*parts, "</svg>"])

    return draw


def _steps(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _columns(frame: _Frame, times: Sequence[float], lines: Sequence[Line], unit: str) -> list[str]:
    """Invisible columns that say all values of a moment to whoever points at it."""
    count = max(1, len(times))
    step = (frame.width - _LEFT - _RIGHT) / count
    parts = []
    for number, at in enumerate(times):
        said = ", ".join(f"{line.name} {_short(line.values[number])}" for line in lines)
        parts.append(
            f'<rect class="hover" x="{_LEFT + number * step:.1f}" y="{_TOP}" width="{step:.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>{_clock(at, 1.0)}: {escape(said)} {unit}</title></rect>'
        )
    return parts


def histogram(bars: Sequence[Bar], label: str, marks: Sequence[tuple[float, str]] = ()) -> Callable[[int], str]:
    """Upright bars side by side; ``marks`` are lines at places between 0 and the number of bars, with a name."""

    def draw(width: int) -> str:
        frame = _Frame(width, nice_top(max((bar.value for bar in bars), default=0.0)))
        parts = [_open(width, label), *_grid(frame)]
        count = max(1, len(bars))
        step = (width - _LEFT - _RIGHT) / count
        every = max(1, math.ceil(62 / step))
        for number, bar in enumerate(bars):
            x, y = _LEFT + number * step, frame.y(bar.value)
            height = _HEIGHT - _BOTTOM - y
            parts.append(
                f'<rect class="bar c{bar.colour}" x="{x + step * 0.08:.1f}" y="{y:.1f}" width="{step * 0.84:.1f}" '
                f'height="{max(0.0, height):.1f}" rx="2"><title>{escape(bar.title)}</title></rect>'
            )
            if number % every == 0:
                parts.append(
                    f'<text class="tick" text-anchor="middle" x="{x + step / 2:.1f}" y="{_HEIGHT - 10}">'
                    f"{escape(bar.label)}</text>"
                )
        for place, name in marks:
            x = _LEFT + place * step
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text class="tick" x="{x + 3:.1f}" y="{_TOP + 10}">{escape(name)}</text>')
        return "".join([*parts, "</svg>"])

    return draw


@attrs.frozen
class _Frame:
    """Where values are on a chart."""

    width: int
    top: float

    def x(self, share: float) -> float:
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value / self.top) * (_HEIGHT - _TOP - _BOTTOM)


def nice_top(most: float) -> float:
    """The first of 1, 2, 4, 5, 8 times a power of ten that is at least ``most``; 1.0 where there is nothing."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= most * (1 - 1e-9))


def _open(width: int, label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{escape(label, quote=True)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _grid(frame: _Frame) -> list[str]:
    parts = []
    for quarter in range(5):
        value = frame.top * quarter / 4
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{_short(value)}</text>')
    return parts


def _time_axis(frame: _Frame, times: Sequence[float], width_seconds: float) -> list[str]:
    if not times:
        return []
    span = len(times) * width_seconds
    fit = max(1, int((frame.width - _LEFT - _RIGHT) / 100))
    parts = []
    for number in range(fit):
        share = (number + 0.5) / fit
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{frame.x(share):.1f}" y="{_HEIGHT - 10}">'
            f"{_clock(times[0] + share * span, span)}</text>"
        )
    return parts


def _clock(at: float, span: float) -> str:
    """A time of day as exact as the span needs; a date where the span is days."""
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        return format_seconds(at)
    if span > 2 * 86400:
        return moment.strftime("%m-%d %H:%M")
    if span < 10:
        return moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 10000:02d}"
    return moment.strftime("%H:%M:%S")


def _short(value: float) -> str:
    """A number with at most three digits that count."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
