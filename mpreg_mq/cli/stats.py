"""``mpreg-mq stats``."""

from __future__ import annotations

import attrs
import click

from mpreg_mq.cli.options import MOMENT_HELP, moment, progress, queue_option, source_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.remote import Server
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.replay.formats import format_seconds
from mpreg_mq.replay.statistics import QueueFigures, all_figures
from mpreg_mq.replay.travel import replay

COLUMNS = (
    "queue", "pending", "leased", "dead", "sent", "received", "acknowledged", "failed", "rejected", "requeued",
    "success", "mean processing",
)  # fmt: skip


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq stats orders.db\n  mpreg-mq stats orders.db --until -1h --json\n"
    "  mpreg-mq stats ws://127.0.0.1:9000"
)
@source_argument
@click.option("--until", help=f"When: {MOMENT_HELP} [the end of the log].")
@queue_option()
@json_option
def command(source: EventLog | Server, until: str | None, queue: str | None, output: Output) -> None:
    """The counts of each queue: rebuilt from a log, or asked of a server (ws://host:port)."""
    if isinstance(source, Server):
        if until is not None:
            raise click.UsageError("--until: a server tells how it is now; its log tells how it was")
        queues = source.figures(queue)
    else:
        end = moment("--until", until, source)
        with progress(output, source, "counting") as advance:
            found = replay(source, until=end, queue=queue, progress=advance)
        queues = all_figures(found.states, found.now)
    if output.as_json:
        for figures in queues.values():
            output.record(attrs.asdict(figures))
        return
    output.table(table(COLUMNS, [_row(figures) for figures in queues.values()], right=COLUMNS[1:]))


def _row(figures: QueueFigures) -> tuple[str, ...]:
    counts = figures.statistics
    numbers = (
        figures.pending,
        figures.leased,
        figures.dead_letters,
        counts.messages_sent,
        counts.messages_received,
        counts.messages_acknowledged,
        counts.messages_failed,
        counts.messages_rejected,
        counts.messages_requeued,
    )
    return (
        figures.queue,
        *(f"{number:,}" for number in numbers),
        f"{counts.success_rate():.1%}",
        format_seconds(counts.average_processing_time_seconds),
    )
