"""An MPREG server with event-sourced queues: topics go into a queue, and a client works it off.

    python examples/mpreg_server.py [FILE]

The queue's events are in FILE (queues.db); run it twice and it goes on where it was. Needs MPREG:
pip install "mpreg @ git+https://github.com/mattsta/mpreg" hypothesis
"""

from __future__ import annotations

import asyncio
import secrets
import sys

from mpreg.client.pubsub_client import MPREGPubSubExtendedClient  # type: ignore[import-not-found]
from mpreg.core.config import MPREGSettings  # type: ignore[import-not-found]
from mpreg.server import MPREGServer  # type: ignore[import-not-found]

from mpreg_mq import OverflowPolicy, QueueConfiguration
from mpreg_mq.mpreg import (
    AccessPolicy,
    AccessRule,
    MessageQueuePlugin,
    PluginConfiguration,
    QueueClient,
    ReceivedMessage,
)

ORDERS = 20
WORKER = secrets.token_urlsafe()


def configuration() -> PluginConfiguration:
    """A queue for paid orders, fed by their topics; who has the worker's token may consume it."""
    return PluginConfiguration(
        queues=(QueueConfiguration("shipping", max_retries=5),),
        routes=({"topic_pattern": "order.*.paid", "queue_name": "shipping", "overflow_policy": OverflowPolicy.WAIT},),
        rpc=AccessPolicy([AccessRule("shipping", ["consume", "stats"], token=WORKER)]),
    )


async def publish(url: str) -> None:
    """A shop: publishes orders on topics, and knows nothing of queues."""
    async with MPREGPubSubExtendedClient(url, full_log=False) as shop:
        for number in range(ORDERS):
            country = "eu" if number % 2 else "us"
            await shop.publish(f"order.{country}.created", {"order": number})
            await shop.publish(f"order.{country}.paid", {"order": number})


async def work(url: str) -> None:
    """A warehouse: ships what is in the queue, each order once it is paid; the first attempt of one fails."""
    done = asyncio.Event()
    shipped: list[int] = []

    def ship(message: ReceivedMessage) -> None:
        order = message.payload["order"]
        if order == 7 and message.delivery_attempt == 1:
            raise RuntimeError("the label printer jammed")
        shipped.append(order)
        if len(shipped) == ORDERS:
            done.set()

    async with QueueClient(url, token=WORKER) as queues:
        consuming = asyncio.create_task(queues.consume("shipping", "warehouse", ship))
        await done.wait()
        while (counts := await queues.statistics("shipping")).current_in_flight_count:
            await asyncio.sleep(0.01)
        consuming.cancel()
        print(f"{counts.messages_acknowledged} orders shipped so far, {counts.delivery_failures} attempts failed")


async def main(log: str) -> None:
    """Start the server, publish, work, stop."""
    server = MPREGServer(settings=MPREGSettings(name="orders", monitoring_enabled=False, log_level="ERROR"))
    plugin = MessageQueuePlugin(server, log=log, config=configuration())
    await plugin.register()
    serving = asyncio.create_task(server.server())
    while not plugin.host.listening:
        await asyncio.sleep(0.01)
    url = f"ws://127.0.0.1:{server.settings.port}"
    await asyncio.gather(publish(url), work(url))
    await server.shutdown_async()
    await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "queues.db"))
