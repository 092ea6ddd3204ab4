"""``mpreg-mq log show``."""

from __future__ import annotations

from itertools import islice

import click

from mpreg_mq.cli.events import filter_options, show_record
from mpreg_mq.cli.options import log_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog
from mpreg_mq.replay.records import EventFilter, read
from mpreg_mq.replay.travel import require_queue


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq log show orders.db --queue orders --since 100 --until 200\n"
    "  mpreg-mq log show orders.db --type DeliveryFailed --topic 'order.#' --json"
)
@log_argument
@filter_options
@click.option("-n", "--limit", type=click.IntRange(1), help="Stop after so many.")
@json_option
def command(log: EventLog, wanted: EventFilter, limit: int | None, output: Output) -> None:
    """The events of LOG, oldest first: position, time, stream, what it is about, and what happened."""
    if wanted.queue is not None:
        require_queue(log, wanted.queue)
    after = 0
    if wanted.since is not None and wanted.since.position is not None and wanted.topic is None:
        after = max(0, wanted.since.position - 1)
    for record in islice(wanted.select(read(log, after=after)), limit):
        show_record(record, output)
