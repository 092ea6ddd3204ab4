"""``mpreg-mq log tail``."""

from __future__ import annotations

import contextlib

import click

from mpreg_mq.cli.events import filter_options, show_record
from mpreg_mq.cli.options import log_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog
from mpreg_mq.replay.following import follow, tail
from mpreg_mq.replay.records import EventFilter
from mpreg_mq.replay.travel import require_queue

DEFAULT_COUNT = 10


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq log tail orders.db\n  mpreg-mq log tail -f orders.db --type MessageDeadLettered"
)
@log_argument
@filter_options
@click.option("-n", "--count", type=click.IntRange(0), default=DEFAULT_COUNT, show_default=True, help="How many.")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@json_option
def command(log: EventLog, wanted: EventFilter, count: int, following: bool, output: Output) -> None:
    """The last events of LOG; with -f also those to come, from the live log of another process.

    Which events were compacted before they could be shown is said on stderr.
    """
    # Who follows may wait for a queue that is still to come.
    if wanted.queue is not None and not following:
        require_queue(log, wanted.queue)
    last = log.last_position()
    for record in tail(log, count, wanted, last=last) if count else ():
        show_record(record, output)

    def missed(first: int, last: int) -> None:
        output.note(f"events {first:,} to {last:,} were compacted before they were read")

    if following:
        with contextlib.suppress(KeyboardInterrupt):
            for record in follow(log, last, wanted, missed=missed):
                show_record(record, output)
