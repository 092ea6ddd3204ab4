"""``mpreg-mq dlq redrive``."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import attrs
import click

from mpreg_mq.cli.options import progress, queue_option, source_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.remote import Server
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.replay.dead_letters import redrive
from mpreg_mq.replay.formats import plural
from mpreg_mq.replay.source import open_to_write


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq dlq redrive orders.db --queue orders --dry-run\n"
    "  mpreg-mq dlq redrive orders.db --queue orders 12-a1b2 17-a1b2\n"
    "  mpreg-mq dlq redrive orders.db --queue orders --limit 10 --to retries"
)
@source_argument
@click.argument("messages", nargs=-1)
@queue_option("The queue whose dead letters they are.", required=True)
@click.option("--to", "target", help="The queue that they go to [their own].")
@click.option("--limit", type=click.IntRange(1), help="Most of them, oldest first.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@json_option
def command(
    source: EventLog | Server,
    messages: tuple[str, ...],
    queue: str,
    target: str | None,
    limit: int | None,
    dry_run: bool,
    output: Output,
) -> None:
    """Accept dead letters again, MESSAGES or all: of a log that no process has open, or of a server (ws://host:port).

    MESSAGES are ids; of a log also their beginnings.
    """
    chosen = messages or None
    if isinstance(source, Server):
        made = source.redrive(queue, chosen, limit, target, dry_run)
        for message_id in made:
            if output.as_json:
                output.record({"target_queue": target or queue, "new_message_id": message_id, "dry_run": dry_run})
        if not output.as_json:
            output.line(f"{plural(len(made), 'dead letter')} {'would be ' if dry_run else ''}redriven")
        return
    with progress(output, source, "reading") as advance:
        again = partial(
            redrive,
            queue=queue,
            message_ids=chosen,
            limit=limit,
            target_queue=target,
            progress=advance,
            refused=output.note,
        )
        if dry_run:
            done = again(source, dry_run=True)
        else:
            with closing(open_to_write(source)) as writable:
                done = again(writable)
    if output.as_json:
        for entry in done:
            output.record({**attrs.asdict(entry), "dry_run": dry_run})
        return
    output.line(f"{plural(len(done), 'dead letter')} {'would be ' if dry_run else ''}redriven")
    if done:
        rows = [(e.message_id, e.topic, f"{e.target_queue}/{e.new_message_id}", e.then) for e in done]
        output.table(table(("dead letter", "topic", "becomes", "then, with the subscribers it had last"), rows))
