"""``mpreg-mq diff``."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import attrs
import click

from mpreg_mq.cli.events import show_record
from mpreg_mq.cli.options import MOMENT_HELP, log_argument, moment, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.replay.diff import Change, Parting, diff_logs, diff_moments
from mpreg_mq.replay.formats import plural
from mpreg_mq.replay.moments import is_later
from mpreg_mq.replay.source import open_history
from mpreg_mq.replay.wording import record_fields


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq diff orders.db --from 100 --to 200\n  mpreg-mq diff orders.db --from -5m\n"
    "  mpreg-mq diff orders.db copy.db"
)
@log_argument
@click.argument("other", required=False, type=click.Path())
@click.option("--from", "start", help=f"From: {MOMENT_HELP}.")
@click.option("--to", "end", help="To; likewise [the end].")
@queue_option()
@json_option
def command(
    log: EventLog, other: str | None, start: str | None, end: str | None, queue: str | None, output: Output
) -> None:
    """What changed in LOG from one moment to another; or how LOG and OTHER differ, and where their histories part."""
    if (other is None) == (start is None):
        raise click.UsageError("give either another log, or --from a moment of this one")
    if other is not None:
        with closing(open_history(other)) as right, progress(output, log, "comparing") as advance:
            found = diff_logs(log, right, progress=advance)
        for parting in found.partings:
            _show_parting(parting, output)
        if not found.partings and not output.as_json:
            output.line("the logs hold the same events")
        _show_changes(found.changes, output)
        return
    assert start is not None
    first, last = moment("--from", start, log), moment("--to", end, log)
    assert first is not None
    if last is not None and is_later(first, last, log):
        raise click.BadParameter(f"got {last}, which is before --from {first}; exchange them", param_hint="--to")
    with progress(output, log, "replaying", 3) as advance:
        between = diff_moments(log, first, last, queue=queue, progress=advance)
    if output.as_json:
        output.record({"kind": "events", "count": sum(between.events.values()), "by_type": between.events})
    else:
        output.line(f"{plural(sum(between.events.values()), 'event')} in between")
        output.table(
            table(("event", "count"), [(name, f"{n:,}") for name, n in between.events.items()], right=("count",))
        )
    _show_changes(between.changes, output)


def _show_parting(parting: Parting, output: Output) -> None:
    if output.as_json:
        fields = {
            side: [record_fields(record) for record in getattr(parting, side)] for side in ("before", "left", "right")
        }
        counts = {"left_count": parting.left_count, "right_count": parting.right_count}
        output.record(
            {
                "kind": "parting",
                "stream": parting.stream,
                "version": parting.version,
                **fields,
                **counts,
                "reason": parting.reason,
            }
        )
        return
    output.line(f"{parting.stream} parts at version {parting.version:,}")
    if parting.reason:
        output.line(f"  {parting.reason}")
    for sign, records, count in (
        (" ", parting.before, len(parting.before)),
        ("-", parting.left, parting.left_count),
        ("+", parting.right, parting.right_count),
    ):
        for record in records:
            output.line(f"{sign} ", end="")
            show_record(record, output)
        if count > len(records):
            output.line(f"{sign} ... {plural(count - len(records), 'more event')}")


def _show_changes(changes: tuple[Change, ...], output: Output) -> None:
    if output.as_json:
        for change in changes:
            output.record({"kind": "change", **attrs.asdict(change)})
    elif changes:
        rows = [
            (change.queue, change.part, change.name, _short(change.before), _short(change.after)) for change in changes
        ]
        output.line()
        output.table(table(("queue", "part", "name", "before", "after"), rows))


def _short(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."
