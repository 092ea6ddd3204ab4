"""Two MPREG servers of different clusters: orders are taken at one and shipped at the other.

    python examples/federated_orders.py

The shop sends to a queue that it does not have: MPREG's fabric finds it. Then the warehouse's server is stopped and
started again on its log: nothing that it had accepted is lost. Needs MPREG:
pip install "mpreg @ git+https://github.com/mattsta/mpreg" hypothesis
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mpreg.core.config import MPREGSettings  # type: ignore[import-not-found]
from mpreg.fabric.federation_config import create_permissive_bridging_config  # type: ignore[import-not-found]
from mpreg.server import MPREGServer  # type: ignore[import-not-found]

from mpreg_mq import QueuedMessage
from mpreg_mq.mpreg import MessageQueuePlugin

ORDERS = 10


@asynccontextmanager
async def cluster(name: str, log: str | Path = "memory:", peer: str | None = None) -> AsyncIterator[MessageQueuePlugin]:
    """A server of a cluster of its own, with queues."""
    settings = MPREGSettings(
        name=name,
        cluster_id=name,
        connect=peer,
        gossip_interval=0.3,
        monitoring_enabled=False,
        log_level="ERROR",
        federation_config=create_permissive_bridging_config(name),
    )
    server = MPREGServer(settings=settings)
    plugin = MessageQueuePlugin(server, log=log)
    await plugin.register()
    serving = asyncio.create_task(server.server())
    while not plugin.host.listening:
        await asyncio.sleep(0.01)
    try:
        yield plugin
    finally:
        await server.shutdown_async()
        await serving


def knows(plugin: MessageQueuePlugin, queue_name: str) -> bool:
    """Whether a server has heard of a queue of another one."""
    return any(entry.queue_name == queue_name for entry in plugin.host.queue_entries())


async def main() -> None:
    """Order at one server, ship at the other."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "warehouse.db"
        async with cluster("shop") as shop:
            url = f"ws://127.0.0.1:{shop.host.server.settings.port}"
            async with cluster("warehouse", log, peer=url) as warehouse:
                await warehouse.manager.create_queue("orders")
                while not knows(shop, "orders"):
                    await asyncio.sleep(0.05)
                for number in range(ORDERS):
                    answer = await shop.federation.send_confirmed("orders", "order.paid", {"order": number})
                    assert answer.success, answer.error_message
                counts = shop.get_federation_statistics()["warehouse"]
                print(f"{counts.acknowledged} orders accepted at the warehouse, none shipped yet")

        async with cluster("warehouse", log) as warehouse:
            shipped: list[int] = []

            async def ship(message: QueuedMessage) -> None:
                shipped.append(message.payload["order"])

            warehouse.manager.subscribe_to_queue("orders", "packer", "order.#", callback=ship)
            while len(shipped) < ORDERS:
                await asyncio.sleep(0.01)
            print(f"after a restart {len(shipped)} orders shipped, in the order in which they were taken")
            assert shipped == list(range(ORDERS))


if __name__ == "__main__":
    asyncio.run(main())
