"""``mpreg-mq cluster run``."""

from __future__ import annotations

import asyncio
import logging
import signal

import click

from mpreg_mq.cli.cluster_options import cluster_argument, needs_nats
from mpreg_mq.cli.output import Output, json_option


@click.command(epilog="\b\nExample:\n  mpreg-mq cluster run nats://localhost/ORDERS?replicas=3 --node-id node-2")
@cluster_argument
@click.option("--node-id", help="Name of this node [made of host and process].")
@click.option(
    "--lease-seconds", default=5.0, show_default=True, type=click.FloatRange(0.2, 3600), help="Same for all nodes."
)
@json_option
def command(cluster: str, node_id: str | None, lease_seconds: float, output: Output) -> None:
    """Run a node of CLUSTER, which owns its share of the queues. SIGINT and SIGTERM make it hand them over and end."""
    needs_nats()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run(cluster, node_id, lease_seconds, output))


async def _run(cluster: str, node_id: str | None, lease_seconds: float, output: Output) -> None:
    from mpreg_mq.cluster import ClusterConfiguration, ClusterQueueManager

    configuration = (
        ClusterConfiguration(lease_seconds=lease_seconds)
        if node_id is None
        else ClusterConfiguration(node_id, lease_seconds)
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with ClusterQueueManager(cluster, configuration) as manager:
        node = manager.node.configuration.node_id
        if output.as_json:
            output.record({"node": node, "state": "up"})
        else:
            output.line(f"{node} is up")
        await ended.wait()
        output.note(f"{node} hands its queues over and ends")
