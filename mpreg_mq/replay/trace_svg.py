"""A message's life as a picture: a lane for the queue and for each subscriber, time from left to right."""

from __future__ import annotations

import math
from html import escape

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.replay.endings import ends
from mpreg_mq.replay.formats import format_seconds, format_time
from mpreg_mq.replay.trace import Key, Step, Trace

WIDTH = 960
_LEFT, _RIGHT, _TOP, _LANE, _BOTTOM = 170, 30, 64, 46, 46

STYLE = """
.mq-trace { font: 13px/1.3 system-ui, sans-serif; background: #fff; }
.mq-trace text { fill: #24292f; } .mq-trace .soft { fill: #6e7781; font-size: 12px; }
.mq-trace .title { font-size: 16px; font-weight: 600; }
.mq-trace .lane { stroke: #d0d7de; } .mq-trace .lease { fill: #54aeff; opacity: .55; }
.mq-trace .lease.failed { fill: #ff8182; } .mq-trace .wait { stroke: #bf8700; stroke-width: 3; stroke-dasharray: 2 4; }
.mq-trace .good { fill: #1a7f37; } .mq-trace .bad { fill: #cf222e; } .mq-trace .plain { fill: #0969da; }
""".strip()


@attrs.define
class _Chart:
    """Places on the drawing. Time is drawn by the square root, so that short steps beside long waits stay visible."""

    marks: list[float]
    width: float

    def x(self, at: float) -> float:
        """Where a moment is."""
        place = 0.0
        for before, after in zip(self.marks, self.marks[1:], strict=False):
            if at <= before:
                break
            share = min(1.0, (at - before) / (after - before))
            place += share * _weight(after - before)
        total = sum(_weight(after - before) for before, after in zip(self.marks, self.marks[1:], strict=False))
        return _LEFT + (self.width * place / total if total else 0.0)


def _weight(seconds: float) -> float:
    return 0.2 + math.sqrt(min(seconds, 1e6))


def trace_svg(trace: Trace) -> str:
    """The trace as an SVG document of its own, :data:`WIDTH` wide."""
    lanes = _lanes(trace)
    marks = sorted({step.record.event.at for step in trace.steps})
    chart = _Chart(marks, WIDTH - _LEFT - _RIGHT)
    height = _TOP + _LANE * len(lanes) + _BOTTOM
    first, last = marks[0], marks[-1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mq-trace" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="Life of message {escape(trace.message_id, quote=True)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="16" y="26">Message {escape(trace.message_id)} on {escape(trace.topic)}</text>',
        f'<text class="soft" x="16" y="46">{format_time(first)}, {format_seconds(last - first)} in all; '
        "long waits are drawn shorter than they were</text>",
    ]
    for number, name in enumerate(lanes):
        y = _y(number)
        label = name if len(name) <= 20 else name[:19] + "…"
        parts.append(f'<text x="16" y="{y + 4}">{escape(label)}<title>{escape(name)}</title></text>')
        parts.append(f'<line class="lane" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
    parts += _leases(trace, lanes, chart)
    parts += _points(trace, lanes, chart)
    parts += _axis(chart, first, height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _y(lane: int) -> float:
    return _TOP + _LANE * lane + _LANE / 2


def _queue_lane(key: Key, trace: Trace) -> str:
    return f"{key[0]}" if len(trace.messages) == 1 else f"{key[0]} {key[1]}"


def _lanes(trace: Trace) -> list[str]:
    names: dict[str, None] = {}
    for step in trace.steps:
        names.setdefault(_queue_lane((step.queue, step.message_id), trace))
        if isinstance(step.record.event, e.MessageDelivered):
            names.setdefault(step.record.event.subscriber_id)
    return list(names)


def _leases(trace: Trace, lanes: list[str], chart: _Chart) -> list[str]:
    """Bars from delivery to answer, and dashes from a failure to the next attempt."""
    parts: list[str] = []
    open_leases: dict[str, Step] = {}
    end = trace.steps[-1].record.event.at
    for step in trace.steps:
        event = step.record.event
        if isinstance(event, e.MessageDelivered):
            open_leases[event.subscriber_id] = step
        elif isinstance(event, e.MessageAcknowledged | e.DeliveryFailed | e.LeaseExpired):
            started = open_leases.pop(event.subscriber_id, None)
            if started is not None:
                failed = not isinstance(event, e.MessageAcknowledged)
                parts.append(_bar(started, event.at, lanes, chart, failed))
        elif isinstance(event, e.MessageRequeued) and event.due_at > event.at:
            y = _y(lanes.index(_queue_lane((step.queue, step.message_id), trace)))
            x1, x2 = chart.x(event.at), chart.x(min(event.due_at, end))
            parts.append(
                f'<line class="wait" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"><title>{escape(step.text)}'
                "</title></line>"
            )
    parts += [_bar(started, end, lanes, chart, False) for started in open_leases.values()]
    return parts


def _bar(started: Step, until: float, lanes: list[str], chart: _Chart, failed: bool) -> str:
    event = started.record.event
    assert isinstance(event, e.MessageDelivered)
    x1, x2 = chart.x(event.at), chart.x(until)
    y = _y(lanes.index(event.subscriber_id))
    return (
        f'<rect class="lease{" failed" if failed else ""}" x="{x1:.1f}" y="{y - 7}" width="{max(3.0, x2 - x1):.1f}" '
        f'height="14" rx="3"><title>attempt {event.attempt}: {format_seconds(until - event.at)}</title></rect>'
    )


def _points(trace: Trace, lanes: list[str], chart: _Chart) -> list[str]:
    parts = []
    for step in trace.steps:
        event = step.record.event
        name = getattr(event, "subscriber_id", None)
        lane = name if name in lanes and not ends(event) else _queue_lane((step.queue, step.message_id), trace)
        parts.append(
            f'<circle class="{_tone(event)}" cx="{chart.x(event.at):.1f}" cy="{_y(lanes.index(lane))}" r="5"><title>'
            f"{format_time(event.at)} {escape(step.text)}</title></circle>"
        )
    return parts


def _tone(event: e.Event) -> str:
    good = isinstance(event, e.MessageAcknowledged | e.MessageCompleted | e.CircuitClosed)
    bad = isinstance(event, e.DeliveryFailed | e.LeaseExpired) or (ends(event) and not good)
    return "good" if good else "bad" if bad else "plain"


def _axis(chart: _Chart, first: float, height: float) -> list[str]:
    """Times since the first event, as many as fit beside each other."""
    parts: list[str] = []
    free = 0.0
    for at in chart.marks:
        x = chart.x(at)
        if x >= free:
            parts.append(
                f'<text class="soft" text-anchor="middle" x="{x:.1f}" y="{height - 22}">'
                f"+{format_seconds(at - first)}</text>"
            )
            free = x + 72
    return parts
