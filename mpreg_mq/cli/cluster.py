"""``mpreg-mq cluster``: queues on several nodes; needs the ``nats`` extra."""

from __future__ import annotations

import click

from mpreg_mq.cli.lazy import LazyGroup

COMMANDS = {
    "status": ("mpreg_mq.cli.cluster_status", "Nodes and queues: who owns what, and how they are."),
    "move": ("mpreg_mq.cli.cluster_move", "Give a queue to a node."),
    "drain": ("mpreg_mq.cli.cluster_drain", "Have a node give all its queues away."),
    "run": ("mpreg_mq.cli.cluster_run", "Run a node that owns queues, until it is told to end."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog="\b\nExample:\n  mpreg-mq cluster status nats://localhost/ORDERS")
def command() -> None:
    """Look after queues on several nodes."""
