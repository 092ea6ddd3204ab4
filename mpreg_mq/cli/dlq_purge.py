"""``mpreg-mq dlq purge``."""

from __future__ import annotations

from contextlib import closing

import click

from mpreg_mq.cli.options import progress, queue_option, source_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.remote import Server
from mpreg_mq.events import EventLog
from mpreg_mq.replay.dead_letters import purge
from mpreg_mq.replay.formats import plural
from mpreg_mq.replay.source import open_to_write


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq dlq purge orders.db --queue orders 12-a1b2\n"
    "  mpreg-mq dlq purge orders.db --queue orders --all"
)
@source_argument
@click.argument("messages", nargs=-1)
@queue_option("The queue whose dead letters they are.", required=True)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@json_option
def command(source: EventLog | Server, messages: tuple[str, ...], queue: str, everything: bool, output: Output) -> None:
    """Remove dead letters for good, MESSAGES or all: of a log that no process has open, or of a server (ws://host:port).

    MESSAGES are ids; of a log also their beginnings.
    """
    if bool(messages) == everything:
        raise click.UsageError("give either the ids of messages, or --all")
    if isinstance(source, Server):
        count = source.purge(queue, messages or None)
        if output.as_json:
            output.record({"queue": queue, "purged": count})
        else:
            output.line(f"{plural(count, 'dead letter')} purged")
        return
    with progress(output, source, "reading") as advance, closing(open_to_write(source)) as writable:
        purged = purge(writable, queue, messages or None, progress=advance)
    if output.as_json:
        for message_id in purged:
            output.record({"queue": queue, "message_id": message_id, "purged": True})
    else:
        output.line(f"{plural(len(purged), 'dead letter')} purged")
