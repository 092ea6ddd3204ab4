"""``mpreg-mq log``: commands about event logs as such."""

from __future__ import annotations

import click

from mpreg_mq.cli.lazy import LazyGroup

COMMANDS = {
    "info": ("mpreg_mq.cli.log_info", "Streams, positions and sizes."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog="\b\nExample:\n  mpreg-mq log info orders.db")
def command() -> None:
    """Look into an event log, and look after it."""
