"""``mpreg-mq log export``."""

from __future__ import annotations

import attrs
import click

from mpreg_mq.cli.options import log_argument, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog
from mpreg_mq.events.transfer import export_log
from mpreg_mq.replay.base import unless_overtaken
from mpreg_mq.replay.formats import plural
from mpreg_mq.replay.source import QUEUE_STREAMS


@click.command(epilog="\b\nExample:\n  mpreg-mq log export orders.db orders.jsonl.gz")
@log_argument
@click.argument("file", type=click.Path(dir_okay=False))
@queue_option("Only the events of this queue.")
@json_option
def command(log: EventLog, file: str, queue: str | None, output: Output) -> None:
    """Write LOG to FILE as JSON lines, through gzip if its name ends in .gz. Every command reads such a file."""
    streams = None if queue is None else [QUEUE_STREAMS + queue]
    with progress(output, log, "exporting") as advance:
        done = unless_overtaken(
            log, lambda: export_log(log, file, streams=streams, on_progress=lambda step: advance(step.position))
        )
    if output.as_json:
        output.record({"file": file, **attrs.asdict(done)})
    else:
        output.line(f"{plural(done.events, 'event')} written to {file}")
