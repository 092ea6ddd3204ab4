"""From publishing on a topic to the callback: MPREG's subscriptions, and a route into a queue, in one run.

    PYTHONPATH=<checkout of MPREG> python -m benchmarks.mpreg_topics [--webhooks FILE] [--messages N]

A real client publishes to a real server on loopback, all in one process. Latency is measured with one message under way
at a time, throughput with as many as 16 publishers can have. With ``--webhooks`` (JSON lines with ``topic`` and
``payload``) these are published too, and what the queues got is compared with a naive matcher.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mpreg_mq import QueueConfiguration, QueueManagerConfiguration
from mpreg_mq.mpreg import MessageQueuePlugin, PluginConfiguration
from mpreg_mq.topics import matches

PUBLISHERS = 16
ROUTES = {"pulls": "github.pull_request.*", "everything": "github.#"}


@asynccontextmanager
async def serving(log: str) -> AsyncIterator[tuple[MessageQueuePlugin, Callable[[], Any]]]:
    """A server with the plugin, and how to make a client of it."""
    from mpreg.client.pubsub_client import MPREGPubSubExtendedClient  # type: ignore[import-not-found]
    from mpreg.core.config import MPREGSettings  # type: ignore[import-not-found]
    from mpreg.server import MPREGServer  # type: ignore[import-not-found]

    server = MPREGServer(
        settings=MPREGSettings(name="measured", monitoring_enabled=False, log_level="ERROR", gossip_interval=5.0)
    )
    config = PluginConfiguration(manager=QueueManagerConfiguration(default_max_queue_size=1_000_000))
    async with MessageQueuePlugin(server, log=log, config=config) as plugin:
        task = asyncio.create_task(server.server())
        while not plugin.host.listening:
            await asyncio.sleep(0.01)
        url = f"ws://127.0.0.1:{server.settings.port}"
        yield plugin, lambda: MPREGPubSubExtendedClient(url, full_log=False)
        await server.shutdown_async()
        await task


class Arrivals:
    """When each message arrived: by the number in its payload."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        self.changed = asyncio.Event()

    def __call__(self, payload: dict[str, Any]) -> None:
        self.at[payload["number"]] = time.perf_counter()
        self.changed.set()

    async def reach(self, count: int) -> None:
        """Wait until so many arrived."""
        while len(self.at) < count:
            self.changed.clear()
            await self.changed.wait()


async def listen(plugin: MessageQueuePlugin, subscriber: Any, path: str) -> Arrivals:
    """Have messages arrive by one of the paths."""
    arrivals = Arrivals()
    if path == "subscription of a client":
        await subscriber.subscribe(["load.message"], lambda one: arrivals(one.payload), get_backlog=False)
    elif path == "subscription within the server":
        model = plugin.host.module("core.model")
        subscription = model.PubSubSubscription(
            subscription_id=str(uuid.uuid4()),
            patterns=(model.TopicPattern(pattern="load.message"),),
            subscriber="measured",
            created_at=time.time(),
            get_backlog=False,
        )
        plugin.host.topic_exchange.add_internal_subscription(subscription, lambda one: arrivals(one.message.payload))
    else:
        await plugin.manager.create_queue("load", QueueConfiguration("load", max_size=1_000_000))
        plugin.manager.subscribe_to_queue("load", "measured", "#", callback=lambda one: arrivals(one.payload))
        await plugin.manager.route_topic_to_queue("load.message", "load")
    return arrivals


async def measure(path: str, log: str, messages: int) -> tuple[float, float, float]:
    """Median and 99th percentile of the latency in ms, and messages per second."""
    async with serving(log) as (plugin, client), client() as publisher, client() as subscriber:
        arrivals = await listen(plugin, subscriber, path)
        started: dict[int, float] = {}
        for number in range(messages):
            started[number] = time.perf_counter()
            await publisher.publish("load.message", {"number": number})
            await arrivals.reach(number + 1)
        latencies = sorted((arrivals.at[number] - started[number]) * 1000 for number in range(messages // 10, messages))
        numbers = iter(range(messages, messages * 4))

        async def publish() -> None:
            for number in numbers:
                await publisher.publish("load.message", {"number": number})

        begun = time.perf_counter()
        await asyncio.gather(*(publish() for _ in range(PUBLISHERS)))
        await arrivals.reach(messages * 4)
        rate = messages * 3 / (time.perf_counter() - begun)
        return statistics.median(latencies), latencies[int(len(latencies) * 0.99)], rate


async def webhooks(bodies: list[dict[str, Any]]) -> bool:
    """Publish recorded webhooks into queues by topic; whether the counts are those of a naive matcher."""
    with tempfile.TemporaryDirectory() as directory:
        async with serving(f"sqlite:///{directory}/webhooks.db") as (plugin, client), client() as publisher:
            for name, pattern in ROUTES.items():
                await plugin.manager.create_queue(name, QueueConfiguration(name, max_payload_bytes=1 << 24))
                await plugin.manager.route_topic_to_queue(pattern, name)
            for body in bodies:
                assert await publisher.publish(body["topic"], body["payload"])
            wanted = {
                name: Counter(body["topic"] for body in bodies if matches(pattern, body["topic"]))
                for name, pattern in ROUTES.items()
            }
            while any(
                plugin.manager.queue(name).get_statistics().messages_sent < wanted[name].total() for name in ROUTES
            ):
                await asyncio.sleep(0.01)
            fine = True
            for name, pattern in ROUTES.items():
                pending = plugin.manager.queue(name).pending_messages
                equal = Counter(one.topic for one in pending) == wanted[name] and [one.payload for one in pending] == [
                    body["payload"] for body in bodies if matches(pattern, body["topic"])
                ]
                fine = fine and equal
                print(
                    f"{pattern:24} {len(pending):4} messages on {len(wanted[name]):3} topics in queue {name}, a naive "
                    f"matcher says {wanted[name].total():4}: {'equal' if equal else 'DIFFERENT'}"
                )
            return fine


async def main(messages: int, bodies: list[dict[str, Any]]) -> bool:
    """Print what was measured."""
    fine = not bodies or await webhooks(bodies)
    print(f"{'publish to callback':46} {'median ms':>10} {'p99 ms':>10} {'messages/s':>11}")
    with tempfile.TemporaryDirectory() as directory:
        for path, log in (
            ("subscription within the server", "memory:"),
            ("subscription of a client", "memory:"),
            ("route and queue, memory log", "memory:"),
            ("route and queue, SQLite log", f"sqlite:///{directory}/measured.db"),
        ):
            median, p99, rate = await measure(path, log, messages)
            print(f"{path:46} {median:10.2f} {p99:10.2f} {rate:11.0f}")
    return fine


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webhooks", type=Path)
    parser.add_argument("--messages", type=int, default=1000)
    given = parser.parse_args()
    lines = given.webhooks.read_text(encoding="utf-8").splitlines() if given.webhooks else []
    sys.exit(0 if asyncio.run(main(given.messages, [json.loads(line) for line in lines])) else 1)
