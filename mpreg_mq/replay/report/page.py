"""The page of a report, put together from its figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from mpreg_mq.events import EventLog
from mpreg_mq.replay.formats import format_seconds, format_time, plural, printable
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.records import Progress, silent
from mpreg_mq.replay.report.charts import HALF, WIDE, Bar, Line, both, histogram, over_time
from mpreg_mq.replay.report.collect import LogFigures, QueueReport, collect
from mpreg_mq.replay.report.series import PER_DECADE, Bucket, Distribution
from mpreg_mq.replay.report.style import CHART_STYLE, PAGE_STYLE
from mpreg_mq.replay.trace import Trace, trace
from mpreg_mq.replay.trace_svg import trace_svg

_SAME_MOMENT = 1e-3
"""Share of a bucket that floats of seconds since the epoch may be off."""

QUEUES_DRAWN = 6
"""Queues that have a line of their own; the others share one."""


def report(
    log: EventLog,
    *,
    message: str | None = None,
    queue: str | None = None,
    until: Moment | None = None,
    progress: Progress = silent,
) -> str:
    """The page for a log, or one queue of it, with the life of one message: ``message``, or else the slowest.

    One pass over the log for the figures, and those of :func:`~mpreg_mq.replay.trace.trace` for the message.

    Raises:
        EventLogError: there is no such queue.
        MessageNotFoundError: ``message`` names none, or several.
        ReadingStoppedError: the log cannot be read to its end.
    """
    figures = collect(log, queue=queue, until=until, progress=progress)
    life = None
    if message is not None:
        life = trace(log, message, queue=queue, until=until, progress=progress)
    elif figures.slowest:
        slow = figures.slowest[0]
        life = trace(log, slow.message_id, queue=slow.queue, until=until, progress=progress)
    return render(figures, life)


def render(figures: LogFigures, life: Trace | None = None) -> str:
    """The page of these figures."""
    name = figures.location.rsplit("/", 1)[-1]
    span = format_seconds(figures.last_at - figures.first_at)
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{plural(figures.events, "event")} of {plural(len(figures.queues), "queue")}, '
        f"{format_time(figures.first_at)} to {format_time(figures.last_at)} ({span}). Times are UTC.</p>",
        _cards(figures),
    ]
    if figures.queues:
        body += [
            _depth(figures),
            _rates(figures),
            f'<div class="pair">{_latency(figures)}{_attempts(figures)}</div>',
            _dead_letters(figures),
            _refusals(figures),
            _queues(figures),
            _subscribers(figures),
            _slowest(figures),
        ]
    if life is not None:
        body.append(_life(life))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} - mpreg-mq report</title><style>{PAGE_STYLE}\n{CHART_STYLE}</style></head>\n"
        f"<body><main>{chr(10).join(part for part in body if part)}</main></body></html>\n"
    )


def depth_svg(figures: LogFigures) -> str:
    """The chart of pending messages alone, as an SVG document of its own."""
    times, width, lines = depth_lines(figures)
    drawn = over_time(times, width, lines, "messages", "Pending messages over time")(WIDE)
    return (
        drawn.replace(
            ">", f' width="{WIDE}"><style>{CHART_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>', 1
        )
        + "\n"
    )


# --- parts ----------------------------------------------------------------------------------------------------


def _section(title: str, text: str, *content: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="soft">{escape(text)}</p>{"".join(content)}</section>'


def _cards(figures: LogFigures) -> str:
    stats = [queue.statistics for queue in figures.queues.values()]
    latency = figures.latency()
    finished = sum(s.messages_acknowledged for s in stats)
    failed = sum(s.messages_failed for s in stats)
    pending = sum(s.current_queue_size for s in stats)
    cards = [
        (f"{sum(s.messages_sent for s in stats):,}", "sent", ""),
        (f"{finished:,}", "acknowledged", "good" if finished else ""),
        (f"{failed:,}", "dead or failed", "bad" if failed else ""),
        (f"{pending:,}", "pending at the end", ""),
        (f"{sum(s.current_in_flight_count for s in stats):,}", "leased at the end", ""),
        (f"{sum(s.messages_rejected for s in stats):,}", "sends refused", ""),
        (_time_of(latency, 0.5), "median to acknowledgment", ""),
        (_time_of(latency, 0.99), "99 % acknowledged within", ""),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b class="{tone}">{value}</b><span>{label}</span></div>' for value, label, tone in cards
        )
        + "</div>"
    )


def _time_of(distribution: Distribution, share: float) -> str:
    return format_seconds(distribution.percentile(share)) if distribution.total else "-"


def _legend(lines: Iterable[Line]) -> str:
    chips = "".join(f'<span><i class="chip c{line.colour}"></i>{escape(line.name)}</span>' for line in lines)
    return f'<div class="legend">{chips}</div>'


def _depth(figures: LogFigures) -> str:
    times, width, lines = depth_lines(figures)
    text = f"The most messages without an open lease, delayed ones included, in each {format_seconds(width)}."
    drawn = both(over_time(times, width, lines, "pending", "Pending messages over time"))
    return _section("Depth", text, _legend(lines), drawn)


def depth_lines(figures: LogFigures) -> tuple[list[float], float, list[Line]]:
    """Times, seconds between them, and the most pending messages of each queue in between."""
    queues = sorted(
        figures.queues.values(), key=lambda q: (-max((b.most_pending for b in q.series.buckets), default=0), q.name)
    )
    times, width, table = _aligned(figures, queues)
    lines = [
        Line(queue.name, [bucket.most_pending for bucket in buckets], number, number == 1)
        for number, (queue, buckets) in enumerate(zip(queues[:QUEUES_DRAWN], table, strict=False), 1)
    ]
    if len(queues) > QUEUES_DRAWN:
        rest = [sum(row[number].most_pending for row in table[QUEUES_DRAWN:]) for number in range(len(times))]
        lines.append(Line(f"{len(queues) - QUEUES_DRAWN} other queues", rest, 0))
    return times, width, lines


def _aligned(figures: LogFigures, queues: Sequence[QueueReport]) -> tuple[list[float], float, list[list[Bucket]]]:
    """The queues' series on one axis: that of the longest, from the log's first event on."""
    width = max((queue.series.width for queue in queues), default=1.0)
    count = max(1, int((figures.last_at - figures.first_at) / width) + 1)
    times = [figures.first_at + number * width for number in range(count)]
    table = []
    for queue in queues:
        row = [Bucket() for _ in range(count)]
        reached = -1
        for at, bucket in zip(queue.series.times(), queue.series.buckets, strict=True):
            index = min(count - 1, max(0, int((at - figures.first_at) / width + _SAME_MOMENT)))
            into = row[index]
            into.sent += bucket.sent
            into.finished += bucket.finished
            into.failed_attempts += bucket.failed_attempts
            into.refused += bucket.refused
            into.most_pending = max(into.most_pending, bucket.most_pending)
            into.pending, into.leased = bucket.pending, bucket.leased
            reached = max(reached, index)
        for index in range(reached + 1, count):
            row[index].pending = row[index].most_pending = row[reached].pending if reached >= 0 else 0
        table.append(row)
    return times, width, table


def _rates(figures: LogFigures) -> str:
    times, width, table = _aligned(figures, list(figures.queues.values()))

    def rate(name: str) -> list[float]:
        return [sum(getattr(row[number], name) for row in table) / width for number in range(len(times))]

    lines = [
        Line("sent", rate("sent"), 1),
        Line("finished", rate("finished"), 2),
        Line("failed attempts", rate("failed_attempts"), 3),
        Line("refused", rate("refused"), 4),
    ]
    shown = [line for line in lines if any(line.values) or line.colour < 3]
    drawn = both(over_time(times, width, shown, "per second", "Rates over time"))
    return _section("Rates", f"Per second, over {format_seconds(width)} each.", _legend(shown), drawn)


def _latency(figures: LogFigures) -> str:
    latency = figures.latency()
    if not latency.total:
        return _section("From send to acknowledgment", "Nothing was acknowledged.")
    buckets = latency.coarse()
    bars = [
        Bar(format_seconds(low), count, f"{format_seconds(low)} to {format_seconds(high)}: {plural(count, 'message')}")
        for low, high, count in buckets
    ]
    shares = ", ".join(f"p{share:g} {_time_of(latency, share / 100)}" for share in (50, 95, 99))
    text = f"{plural(latency.total, 'message')}: {shares}, longest {format_seconds(latency.most)}."
    marks = [
        (math.log10(latency.percentile(share) / buckets[0][0]) * PER_DECADE, f"p{100 * share:g}")
        for share in (0.5, 0.99)
    ]
    drawn = both(histogram(bars, "Latency, on a logarithmic scale", marks), HALF)
    return _section("From send to acknowledgment", text, drawn)


def _attempts(figures: LogFigures) -> str:
    attempts: Counter[int] = Counter()
    for queue in figures.queues.values():
        attempts.update(queue.attempts)
    if not attempts:
        return _section("Attempts", "No message has come to its end.")
    most = max(attempts)
    last = min(most, 12)
    counts = [(str(n), attempts[n]) for n in range(min(attempts), last)]
    counts.append((f"{last}+" if most > last else str(last), sum(c for n, c in attempts.items() if n >= last)))
    bars = [Bar(label, count, f"{label} attempts: {plural(count, 'message')}", 5) for label, count in counts]
    text = "How many attempts finished messages took; 0 for those that were never delivered."
    return _section("Attempts", text, both(histogram(bars, "Attempts of finished messages"), HALF))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table whose last ``numbers`` columns are right-aligned; cells are HTML."""
    first = len(columns) - numbers
    kinds = ["" if number < first else ' class="number"' for number in range(len(columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return escape(printable(text))


def _dead_letters(figures: LogFigures) -> str:
    rows = [(count, queue.name, reason) for queue in figures.queues.values() for reason, count in queue.reasons.items()]
    if not rows:
        return _section("Dead letters", "None: no message used up its attempts.")
    rows.sort(key=lambda row: (-row[0], row[1:]))
    most = rows[0][0]
    cells = [
        (
            f"{_text(reason)}<div class=meter><i style='width:{max(1.0, 100 * count / most):.0f}%'></i></div>",
            _text(queue),
            f"{count:,}",
        )
        for count, queue, reason in rows[:20]
    ]
    total = sum(count for count, _, _ in rows)
    text = f"{plural(total, 'message')} used up all attempts, for {plural(len(rows), 'reason')}."
    return _section("Dead letters", text, _table(("last error", "queue", "messages"), cells, 1))


def _refusals(figures: LogFigures) -> str:
    rows = [
        (count, queue.name, reason) for queue in figures.queues.values() for reason, count in queue.refusals.items()
    ]
    if not rows:
        return ""
    rows.sort(key=lambda row: (-row[0], row[1:]))
    cells = [(escape(reason.replace("_", " ")), _text(queue), f"{count:,}") for count, queue, reason in rows]
    text = "Sends that were answered with a refusal, by reason."
    return _section("Refused sends", text, _table(("reason", "queue", "sends"), cells, 1))


def _queues(figures: LogFigures) -> str:
    rows = []
    for queue in sorted(figures.queues.values(), key=lambda q: (-q.statistics.messages_sent, q.name)):
        stats, latency = queue.statistics, queue.latency
        rows.append(
            (
                f"<b>{_text(queue.name)}</b>",
                *(
                    f"{number:,}"
                    for number in (
                        stats.messages_sent,
                        stats.messages_acknowledged,
                        stats.messages_failed,
                        stats.messages_expired,
                        stats.messages_rejected,
                        stats.current_queue_size,
                        stats.current_in_flight_count,
                        stats.current_dead_letter_count,
                    )
                ),
                *(_time_of(latency, share) for share in (0.5, 0.95, 0.99)),
            )
        )
    columns = (
        "queue",
        "sent",
        "acknowledged",
        "failed",
        "expired",
        "refused",
        "pending",
        "leased",
        "dead letters",
        "p50",
        "p95",
        "p99",
    )
    return _section("Queues", "Counts over the whole log, and sizes at its end.", _table(columns, rows, 11))


def _subscribers(figures: LogFigures) -> str:
    rows = [
        (
            f"<b>{_text(name)}</b>",
            _text(queue.name),
            f"{found.delivered:,}",
            f"{found.acknowledged:,}",
            f"{found.failed:,}",
            f"{found.expired:,}",
            f"{found.circuits_opened:,}",
            _time_of(found.processing, 0.5),
            _time_of(found.processing, 0.99),
        )
        for queue in figures.queues.values()
        for name, found in sorted(queue.subscribers.items(), key=lambda item: (-item[1].delivered, item[0]))
    ]
    if not rows:
        return ""
    columns = (
        "subscriber",
        "queue",
        "delivered",
        "acknowledged",
        "failed",
        "leases run out",
        "breaker opened",
        "processing p50",
        "p99",
    )
    text = "What each subscriber was given and what it made of it; the busiest first in each queue."
    return _section("Subscribers", text, _table(columns, rows[:100], 7))


_ENDINGS = {
    "MessageAcknowledged": "acknowledged",
    "MessageCompleted": "completed",
    "MessageDeadLettered": "dead letter",
    "MessageFailed": "failed",
    "MessageExpired": "expired",
    "MessageDropped": "dropped",
    "MessagesPurged": "purged",
}


def _slowest(figures: LogFigures) -> str:
    if not figures.slowest:
        return ""
    rows = [
        (
            f"<code>{_text(slow.message_id)}</code>",
            _text(slow.queue),
            _text(slow.topic),
            _ENDINGS.get(slow.end, slow.end),
            str(slow.attempts),
            format_seconds(slow.seconds),
        )
        for slow in figures.slowest
    ]
    columns = ("message", "queue", "topic", "end", "attempts", "send to end")
    return _section("Slowest messages", "Those that took longest from send to their end.", _table(columns, rows, 2))


def _life(life: Trace) -> str:
    rows = [
        (
            format_time(step.record.event.at),
            f"+{format_seconds(step.after_seconds)}" if number else "",
            _text(step.text),
        )
        for number, step in enumerate(life.steps)
    ]
    return _section(
        f"Life of message {life.message_id}",
        f"In queue {life.queue}, on {life.topic}; {'finished' if life.finished else 'not finished'}.",
        f'<div class="scroll trace">{trace_svg(life)}</div>',
        _table(("time", "after", "what happened"), rows, 0),
    )
