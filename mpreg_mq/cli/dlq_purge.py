"""``mpreg-mq dlq purge``."""

from __future__ import annotations

from contextlib import closing

import click

from mpreg_mq.cli.options import log_argument, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog, open_log
from mpreg_mq.replay.dead_letters import purge
from mpreg_mq.replay.formats import plural


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq dlq purge orders.db --queue orders 12-a1b2\n"
    "  mpreg-mq dlq purge orders.db --queue orders --all"
)
@log_argument
@click.argument("messages", nargs=-1)
@queue_option("The queue whose dead letters they are.", required=True)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@json_option
def command(log: EventLog, messages: tuple[str, ...], queue: str, everything: bool, output: Output) -> None:
    """Remove dead letters of LOG for good: MESSAGES (ids, or their beginnings), or all. No process may have it open."""
    if bool(messages) == everything:
        raise click.UsageError("give either the ids of messages, or --all")
    with progress(output, log, "reading") as advance, closing(open_log(log.location)) as writable:
        purged = purge(writable, queue, messages or None, progress=advance)
    if output.as_json:
        for message_id in purged:
            output.record({"queue": queue, "message_id": message_id, "purged": True})
    else:
        output.line(f"{plural(len(purged), 'dead letter')} purged")
