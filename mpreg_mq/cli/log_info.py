"""``mpreg-mq log info``."""

from __future__ import annotations

import attrs
import click
from rich.table import Table

from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.replay.source import log_info, open_history


@click.command(epilog="\b\nExample:\n  mpreg-mq log info orders.db")
@click.argument("log")
@json_option
def command(log: str, output: Output) -> None:
    """What LOG holds: streams, positions and size. Reads no event."""
    history = open_history(log)
    try:
        info = log_info(history)
    finally:
        history.close()
    if output.as_json:
        output.record(attrs.asdict(info))
        return
    size = "" if info.size_bytes is None else f", {info.size_bytes:,} bytes"
    output.line(f"{info.location}: {info.last_position:,} events in {len(info.streams)} streams{size}")
    table = Table("stream", "events")
    table.columns[1].justify = "right"
    for stream in info.streams:
        table.add_row(stream.name, f"{stream.version:,}")
    output.data.print(table)
