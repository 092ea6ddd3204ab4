"""``mpreg-mq log``: commands about event logs as such."""

from __future__ import annotations

import click

from mpreg_mq.cli.lazy import LazyGroup

COMMANDS = {
    "info": ("mpreg_mq.cli.log_info", "Streams, positions and sizes."),
    "tail": ("mpreg_mq.cli.log_tail", "The last events, and with -f those to come."),
    "show": ("mpreg_mq.cli.log_show", "Events, by queue, message, topic, type and time."),
    "export": ("mpreg_mq.cli.log_export", "Write the log to a file of JSON lines."),
    "import": ("mpreg_mq.cli.log_import", "Read such a file into a log."),
    "compact": ("mpreg_mq.cli.log_compact", "Take the first events out, or into an archive."),
    "copy": ("mpreg_mq.cli.log_copy", "Copy the log into another store, and compare."),
    "repair": ("mpreg_mq.cli.log_repair", "Cut a damaged log before the damage, and keep what was damaged."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog="\b\nExample:\n  mpreg-mq log info orders.db")
def command() -> None:
    """Look into an event log, and look after it."""
