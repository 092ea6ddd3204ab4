"""``mpreg-mq cluster drain``."""

from __future__ import annotations

import click

from mpreg_mq.cli.cluster_options import cluster_argument, operate, timeout_option
from mpreg_mq.cli.output import Output, json_option


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq cluster drain nats://localhost/ORDERS node-2\n"
    "  mpreg-mq cluster drain nats://localhost/ORDERS node-2 --undo"
)
@cluster_argument
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let the node take queues again.")
@timeout_option
@json_option
def command(cluster: str, node: str, undo: bool, seconds: float, output: Output) -> None:
    """Have NODE give all its queues away and take none, and wait until it owns none; it can be stopped then.

    It stays drained, over restarts too, until --undo.
    """
    if undo:
        operate(cluster, lambda operator: operator.undrain(node))
        text, fields = f"{node} takes queues again", {"node": node, "drained": False}
    else:
        had = operate(cluster, lambda operator: operator.drain(node, seconds))
        text, fields = f"{node} owns no queues any more; it had {had}", {"node": node, "drained": True, "queues": had}
    if output.as_json:
        output.record(fields)
    else:
        output.line(text)
