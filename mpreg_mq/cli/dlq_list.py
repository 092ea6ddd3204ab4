"""``mpreg-mq dlq list``."""

from __future__ import annotations

import click

from mpreg_mq.cli.options import progress, queue_option, source_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.remote import Server
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.replay.dead_letters import dead_letters
from mpreg_mq.replay.formats import format_time
from mpreg_mq.replay.inspection import dead_letter_row

COLUMNS = ("queue", "message", "topic", "dead since", "attempts", "subscriber", "reason")


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq dlq list orders.db\n  mpreg-mq dlq list orders.db --queue orders --json"
)
@source_argument
@queue_option()
@json_option
def command(source: EventLog | Server, queue: str | None, output: Output) -> None:
    """The dead letters of a log, or of a server (ws://host:port), oldest first in each queue."""
    if isinstance(source, Server):
        rows = source.dead_letters(queue)
    else:
        with progress(output, source, "reading") as advance:
            rows = [dead_letter_row(name, entry) for name, entry in dead_letters(source, queue=queue, progress=advance)]
    if output.as_json:
        for row in rows:
            output.record(row)
    elif not rows:
        output.line("no dead letters")
    else:
        cells = [
            (
                row["queue"],
                row["message_id"],
                row["topic"],
                format_time(row["dead_at"]),
                str(row["attempts"]),
                row["subscriber_id"] or "",
                row["reason"],
            )
            for row in rows
        ]
        output.table(table(COLUMNS, cells, right=("attempts",)))
