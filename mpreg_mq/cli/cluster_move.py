"""``mpreg-mq cluster move``."""

from __future__ import annotations

import click

from mpreg_mq.cli.cluster_options import cluster_argument, operate, timeout_option
from mpreg_mq.cli.output import Output, json_option


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq cluster move nats://localhost/ORDERS orders node-2\n"
    "  mpreg-mq cluster move nats://localhost/ORDERS orders --anywhere"
)
@cluster_argument
@click.argument("queue")
@click.argument("node", required=False)
@click.option("--anywhere", is_flag=True, help="Let the cluster choose the node again.")
@timeout_option
@json_option
def command(cluster: str, queue: str, node: str | None, anywhere: bool, seconds: float, output: Output) -> None:
    """Give QUEUE to NODE for as long as it lives, and wait until it has it. Sends meanwhile wait; none is lost."""
    if (node is None) is not anywhere:
        raise click.UsageError("give either NODE or --anywhere")
    owner = operate(cluster, lambda operator: operator.move(queue, node, seconds))
    if output.as_json:
        output.record({"queue": queue, "owner": owner})
    else:
        output.line(f"{queue} is owned by {owner}")
