"""``mpreg-mq log info``."""

from __future__ import annotations

import attrs
import click

from mpreg_mq.cli.options import log_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.replay.formats import plural
from mpreg_mq.replay.source import log_info


@click.command(epilog="\b\nExample:\n  mpreg-mq log info orders.db")
@log_argument
@json_option
def command(log: EventLog, output: Output) -> None:
    """What LOG holds: streams, positions and size. Reads no event."""
    info = log_info(log)
    if output.as_json:
        output.record(attrs.asdict(info))
        return
    size = "" if info.size_bytes is None else f", {info.size_bytes:,} bytes"
    output.line(
        f"{info.location}: {plural(info.last_position - info.base_position, 'event')} "
        f"in {plural(len(info.streams), 'stream')}{size}"
    )
    if info.base_position:
        output.line(f"events up to position {info.base_position:,} are compacted; snapshots stand for them")
    rows = [(stream.name, f"{stream.events:,}") for stream in info.streams]
    output.table(table(("stream", "events"), rows, right=("events",)))
