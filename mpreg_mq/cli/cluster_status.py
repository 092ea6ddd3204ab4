"""``mpreg-mq cluster status``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from mpreg_mq.cli.cluster_options import cluster_argument, operate
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.tables import table

UNHEALTHY = 1
NODE_COLUMNS = ("node", "state", "queues", "lease age", "appends", "append p50", "append p99", "failovers", "lag")
QUEUE_COLUMNS = ("queue", "owner", "epoch", "events", "pending", "in flight", "dead", "pinned")


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq cluster status nats://localhost/ORDERS\n"
    "  mpreg-mq cluster status nats://one:4222,two:4222/ORDERS --json"
)
@cluster_argument
@json_option
@click.pass_context
def command(ctx: click.Context, cluster: str, output: Output) -> None:
    """Nodes and queues of CLUSTER, the address of its log. Exit status 1 where a node or a queue does not answer."""
    status: Any = operate(cluster, lambda operator: operator.status())
    if output.as_json:
        for node in status.nodes:
            output.record({"kind": "node", "state": _state(node), **_fields(node)})
        for queue in status.queues:
            output.record({"kind": "queue", **_fields(queue)})
    else:
        output.table(table(NODE_COLUMNS, [_node_row(node) for node in status.nodes], right=NODE_COLUMNS[2:]))
        output.line()
        output.table(table(QUEUE_COLUMNS, [_queue_row(one) for one in status.queues], right=QUEUE_COLUMNS[2:7]))
    silent = [node.node for node in status.nodes if node.status is None]
    orphans = [queue.name for queue in status.queues if queue.owned is None]
    for what, names in (("no answer from node", silent), ("no owner answers for queue", orphans)):
        for name in names:
            output.note(f"{what} {name}")
    if silent or orphans:
        ctx.exit(UNHEALTHY)


def _fields(value: Any) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(value)
    return fields


def _state(node: Any) -> str:
    if node.status is None:
        return "no answer"
    if node.draining:
        return "draining"
    return "up" if node.owns_queues else "client"


def _node_row(node: Any) -> tuple[str, ...]:
    if node.status is None:
        return node.node, _state(node), *("",) * (len(NODE_COLUMNS) - 2)
    numbers = node.status.metrics
    return (
        node.node,
        _state(node),
        f"{len(node.status.queues):,}",
        f"{node.status.lease_age_seconds:.1f} s",
        f"{numbers['appends']:,.0f}",
        f"{numbers['append_seconds_p50'] * 1000:.1f} ms",
        f"{numbers['append_seconds_p99'] * 1000:.1f} ms",
        f"{numbers['failovers']:,.0f}",
        f"{numbers['replay_lag_events']:,.0f}",
    )


def _queue_row(queue: Any) -> tuple[str, ...]:
    owned = queue.owned
    counts = (
        ("",) * 4
        if owned is None
        else tuple(f"{count:,}" for count in (owned.version, owned.pending, owned.in_flight, owned.dead_letters))
    )
    return queue.name, queue.owner or "(nobody)", str(queue.epoch), *counts, queue.pinned
