"""``mpreg-mq dlq``: dead letters."""

from __future__ import annotations

import click

from mpreg_mq.cli.lazy import LazyGroup

COMMANDS = {
    "list": ("mpreg_mq.cli.dlq_list", "The dead letters, with their reasons."),
    "show": ("mpreg_mq.cli.dlq_show", "Dead letters whole, with their payloads."),
    "redrive": ("mpreg_mq.cli.dlq_redrive", "Accept dead letters again."),
    "purge": ("mpreg_mq.cli.dlq_purge", "Remove dead letters for good."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    epilog="\b\nExamples:\n  mpreg-mq dlq list orders.db\n  mpreg-mq dlq redrive orders.db --queue orders --dry-run",
)
def command() -> None:
    """List, show, redrive and purge the dead letters of a log or of a server."""
