"""Helpers for tests that run several nodes in this process, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from mpreg_mq.clock import Clock

PATIENCE_SECONDS = 60.0
"""Real time after which a test gives up; nothing is asserted about it."""

LEASE_SECONDS = 0.6
"""Short, so that a failover is soon; on a loaded machine a needless one is no error."""


async def until(holds: Callable[[], bool]) -> None:
    """Look now and then until something holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


def make_node(url: str, name: str, clock: Clock | None = None, fabric: Any = None, **settings: Any) -> Any:
    """A manager that has not started; its class is imported here, because it needs nats-py."""
    from mpreg_mq.cluster import ClusterConfiguration, ClusterQueueManager

    settings = {"lease_seconds": LEASE_SECONDS, **settings}
    return ClusterQueueManager(url, ClusterConfiguration(node_id=name, **settings), clock=clock, fabric=fabric)


@contextlib.asynccontextmanager
async def running_nodes(url: str, *names: str, clock: Clock | None = None, **settings: Any) -> AsyncIterator[list[Any]]:
    """Nodes that see each other."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(make_node(url, name, clock, **settings)) for name in names]
        await until(lambda: all(len(node.node.directory.members()) == len(names) for node in nodes))
        yield nodes


async def created(nodes: list[Any], name: str, config: Any = None) -> tuple[Any, Any]:
    """Create a queue; the manager that owns it, and one that does not."""
    assert await nodes[0].create_queue(name, config)
    await until(lambda: all(node.owner_of(name) is not None for node in nodes))
    owner = next(node for node in nodes if node.owner_of(name) == node.node.configuration.node_id)
    return owner, next(node for node in nodes if node is not owner)


async def owned_by(nodes: list[Any], name: str, owner: Any) -> None:
    """Wait until everybody sees that ``owner`` has the queue."""
    await until(lambda: all(node.owner_of(name) == owner.node.configuration.node_id for node in nodes))
    await until(lambda: name in owner.node.ownership.queues)


async def crash(node: Any) -> None:
    """End a node as its process's end would."""
    await node.node.kill()
    node._closed = True
