"""``mpreg-mq replay``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import click

from mpreg_mq.cli.options import MOMENT_HELP, log_argument, moment, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.projections import QueueState
from mpreg_mq.replay import inspection
from mpreg_mq.replay.formats import format_seconds, format_time, plural
from mpreg_mq.replay.inspection import Row
from mpreg_mq.replay.travel import replay

DEFAULT_ROWS = 20


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq replay orders.db\n  mpreg-mq replay orders.db --until 2026-05-01T10:15:30Z\n"
    "  mpreg-mq replay orders.db --until 4711 --queue orders --json"
)
@log_argument
@click.option("--until", help=f"When: {MOMENT_HELP} [the end of the log].")
@queue_option()
@click.option(
    "--rows", "limit", type=click.IntRange(0), default=DEFAULT_ROWS, show_default=True, help="Most rows of a table."
)
@json_option
def command(log: EventLog, until: str | None, queue: str | None, limit: int, output: Output) -> None:
    """The queues as they were: pending messages in order, leases, dead letters, keys, breakers, statistics.

    With --json there is a line for each queue, message, lease, dead letter, key and subscriber.
    """
    end = moment("--until", until, log)
    with progress(output, log, "replaying") as advance:
        found = replay(log, until=end, queue=queue, progress=advance)
    if not output.as_json:
        when = format_time(found.now) if found.position else "before the first event"
        output.line(f"{plural(found.events, 'event')}, up to position {found.position:,}, {when}")
    for state in found.states.values():
        if not state.created:
            continue
        if output.as_json:
            for row in inspection.rows(state, found.now):
                output.record(row)
        else:
            show(state, found.now, limit, output)


def show(state: QueueState, now: float, limit: int, output: Output) -> None:
    """Print a queue as tables."""
    head = inspection.queue_row(state, now)
    counts = head["statistics"]
    flags = "".join(f", {word}" for word in ("paused", "deleted") if head[word])
    output.line(f"\nqueue {head['queue']} ({head['type']}{flags}), version {head['version']:,}")
    if head["configuration"]:
        output.line("  configured: " + ", ".join(f"{key}={value}" for key, value in head["configuration"].items()))
    words = ("sent", "received", "acknowledged", "failed", "expired", "dropped", "purged", "rejected", "requeued")
    output.line("  " + ", ".join(f"{word} {counts[f'messages_{word}']:,}" for word in words))

    def left(moment_: float | None) -> str:
        return "" if moment_ is None else format_seconds(moment_ - now)

    messages = state.messages
    _part(
        output, limit, "pending, in order", messages.pending_count, inspection.pending_rows(state, now),
        ("place", "message", "topic", "standing", "due in", "attempts", "age", "last error"),
        lambda row: (
            str(row["place"]), row["message_id"], row["topic"], row["standing"],
            left(row["due_at"]) if row["due_at"] > now else "", f"{row['attempts']}/{row['max_attempts']}",
            format_seconds(now - row["sent_at"]), row["last_error"] or "",
        ),
    )  # fmt: skip
    _part(
        output, limit, "leased", messages.leased_count, inspection.lease_rows(state),
        ("message", "topic", "subscriber", "attempt", "for", "ends in"),
        lambda row: (
            row["message_id"], row["topic"], row["subscriber_id"], str(row["attempt"]),
            format_seconds(now - row["delivered_at"]), left(row["deadline"]),
        ),
    )  # fmt: skip
    _part(
        output, limit, "dead letters", len(state.dead_letters), inspection.dead_letter_rows(state),
        ("message", "topic", "attempts", "subscriber", "since", "reason"),
        lambda row: (
            row["message_id"], row["topic"], str(row["attempts"]), row["subscriber_id"] or "",
            format_time(row["dead_at"]), row["reason"],
        ),
    )  # fmt: skip
    _part(
        output, limit, "deduplication keys", state.deduplication.live_count(now),
        inspection.deduplication_rows(state, now),
        ("key", "message", "expires in"),
        lambda row: (row["key"], row["message_id"], left(row["until"])),
    )  # fmt: skip
    subscribers = list(inspection.subscriber_rows(state))
    _part(
        output, limit, "subscribers", len(subscribers), subscribers,
        ("subscriber", "patterns", "in flight", "failures in a row", "breaker"),
        lambda row: (
            row["subscriber_id"], " ".join(row["patterns"]), f"{row['in_flight']}/{row['max_in_flight']}",
            str(row["failures"]), _circuit(row, left),
        ),
    )  # fmt: skip


def _circuit(row: Row, left: Callable[[float | None], str]) -> str:
    until = row["circuit_open_until"]
    return str(row["circuit"]) + ("" if until is None else f", for {left(until)}")


def _part(
    output: Output,
    limit: int,
    title: str,
    count: int,
    found: Iterable[Row],
    columns: tuple[str, ...],
    cells: Callable[[Row], tuple[str, ...]],
) -> None:
    if not count or not limit:
        return
    shown: Iterator[Row] = islice(found, limit)
    more = f", the first {limit}" if count > limit else ""
    right = tuple(name for name in columns if name in ("place", "attempt", "attempts", "age", "in flight"))
    output.line()
    output.line(f"{title}: {count:,}{more}")
    output.table(table(columns, map(cells, shown), right=right))
