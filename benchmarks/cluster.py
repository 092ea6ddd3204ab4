"""Queues on JetStream against plain nats-py on the same servers, failover times, and how owners scale.

``python -m benchmarks.cluster`` starts nats-servers of its own in a temporary directory, on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats

from mpreg_mq.cluster import ClusterConfiguration, ClusterQueueManager
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import open_log
from tests.support.nats_servers import Cluster, nats_cluster

PAYLOAD = "x" * 200
BATCH = 100
FAILOVERS = 5
LEASES_SECONDS = (1.0, 2.0)
OWNERS = (1, 2, 4)

Report = Callable[..., None]


async def rate(seconds: float, work: Callable[[], Awaitable[int]]) -> float:
    """Messages a second of something that is repeated for so long."""
    await work()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += await work()
    return done / (time.perf_counter() - start)


async def latencies(seconds: float, work: Callable[[], Awaitable[int]]) -> tuple[float, float]:
    """Median and 99th percentile of something that is repeated for so long, in milliseconds."""
    await work()
    found, start = [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        began = time.perf_counter()
        await work()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found), statistics.quantiles(found, n=100)[98] if len(found) > 1 else found[0]


class Plain:
    """nats-py by itself: publish with confirmation, pull, acknowledge."""

    def __init__(self, client: Any, context: Any, pull: Any) -> None:
        self._client = client
        self._context = context
        self._pull = pull

    @classmethod
    async def open(cls, cluster: Cluster) -> Plain:
        """A stream of its own with as many replicas as there are servers, and a durable pull consumer."""
        client = await nats.connect([server.url for server in cluster.servers])
        context = client.jetstream()
        await context.add_stream(name="PLAIN", subjects=["plain"], num_replicas=len(cluster.servers))
        return cls(client, context, await context.pull_subscribe("plain", durable="puller"))

    async def batch(self) -> int:
        """Publish a batch at once and wait for all confirmations; pull it; acknowledge and wait for that."""
        payload = PAYLOAD.encode()
        futures = [await self._context.publish_async("plain", payload) for _ in range(BATCH)]
        await asyncio.gather(*futures)
        taken = 0
        while taken < BATCH:
            messages = await self._pull.fetch(BATCH - taken, timeout=5)
            for message in messages:
                await message.ack()
            taken += len(messages)
        await self._client.flush()
        return BATCH

    async def one(self) -> int:
        """One message from the publish to the confirmed acknowledgment."""
        await self._context.publish("plain", PAYLOAD.encode())
        (message,) = await self._pull.fetch(1, timeout=5)
        await message.ack_sync()
        return 1

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


class Ours:
    """A queue through the manager of a node."""

    def __init__(self, manager: ClusterQueueManager, queue: str) -> None:
        self._manager = manager
        self._queue = queue

    async def batch(self) -> int:
        """Send a batch, receive it, acknowledge it; each is confirmed by the log."""
        results = await self._manager.send_messages(self._queue, [("t", PAYLOAD)] * BATCH)
        assert all(result.success for result in results)
        taken = 0
        while taken < BATCH:
            messages = await self._manager.receive_messages(self._queue, "w", BATCH - taken, 5.0)
            counted = await self._manager.acknowledge_messages(self._queue, [one.id for one in messages], "w")
            assert all(counted)
            taken += len(messages)
        return BATCH

    async def one(self) -> int:
        """One message from the send to the confirmed acknowledgment."""
        assert (await self._manager.send_message(self._queue, "t", PAYLOAD)).success
        (message,) = await self._manager.receive_messages(self._queue, "w", 1, 5.0)
        assert await self._manager.acknowledge_message(self._queue, message.id, "w")
        return 1


async def compare(cluster: Cluster, seconds: float, report: Report) -> None:
    """Throughput with batches and latency of one message: plain, at the owner, and from another node."""
    size = len(cluster.servers)
    plain = await Plain.open(cluster)
    configuration = ClusterConfiguration("owner", 5.0)
    async with (
        ClusterQueueManager(cluster.url("OURS"), configuration) as owner,
        ClusterQueueManager(cluster.url("OURS"), ClusterConfiguration("client", 5.0, owns_queues=False)) as client,
    ):
        await owner.create_queue("q", QueueConfiguration("q", max_size=1_000_000))
        while not client.list_queues():
            await asyncio.sleep(0.05)
        contestants: dict[str, Plain | Ours] = {
            "nats-py": plain,
            "at the owner": Ours(owner, "q"),
            "forwarded": Ours(client, "q"),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        # In turns, so that what else the machine does hits all of them.
        for _ in range(3):
            for name, contestant in contestants.items():
                rates[name].append(await rate(seconds / 3, contestant.batch))
        base = statistics.median(rates["nats-py"])
        for name, contestant in contestants.items():
            middle, slow = await latencies(seconds, contestant.one)
            found = statistics.median(rates[name])
            report(
                "throughput",
                servers=size,
                what=name,
                messages_per_second=round(found),
                share=round(found / base, 2),
                p50_ms=round(middle, 2),
                p99_ms=round(slow, 2),
            )
    await plain.close()


async def failover(cluster: Cluster, lease_seconds: float, report: Report) -> None:
    """Seconds from kill -9 of the owner to the first delivery of a message that waited there."""
    address = cluster.url(f"FAILOVER{int(lease_seconds * 10)}")
    times = []
    configuration = ClusterConfiguration("client", lease_seconds, owns_queues=False)
    nodes: dict[str, subprocess.Popen[bytes]] = {}
    command = [sys.executable, "-m", "mpreg_mq.cli", "cluster", "run", address, "--lease-seconds", str(lease_seconds)]
    try:
        async with ClusterQueueManager(address, configuration) as client:
            for number in range(FAILOVERS):
                for name in ("a", "b"):
                    if name not in nodes:
                        nodes[name] = await asyncio.to_thread(
                            subprocess.Popen,
                            [*command, "--node-id", name],
                            stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                        )
                while len(client.node.directory.candidates()) < 2:
                    await asyncio.sleep(0.02)
                await client.create_queue(f"q{number}")
                await client.send_message(f"q{number}", "t", number)
                owner = client.owner_of(f"q{number}")
                assert owner is not None
                nodes.pop(owner).kill()
                start = time.perf_counter()
                while not await client.receive_messages(f"q{number}", "w", 1, 5.0):
                    continue
                times.append(time.perf_counter() - start)
    finally:
        for node in nodes.values():
            node.kill()
    report(
        "failover",
        servers=len(cluster.servers),
        lease_seconds=lease_seconds,
        runs=len(times),
        median_seconds=round(statistics.median(times), 2),
        longest_seconds=round(max(times), 2),
    )


def own(address: str, number: int, seconds: float, start: Any, results: Any) -> None:
    """One process that owns a queue and works on it."""

    async def work() -> None:
        configuration = ClusterConfiguration(f"owner{number}", 10.0)
        async with ClusterQueueManager(address, configuration) as manager:
            names = [f"q{number}-{attempt}" for attempt in range(40)]
            start.wait()
            await asyncio.sleep(2.0)
            # A queue of its own, whose owner this process is by the hash.
            for name in names:
                await manager.create_queue(name, QueueConfiguration(name, max_size=1_000_000))
                if manager.owner_of(name) == f"owner{number}":
                    break
            start.wait()
            results.put(await rate(seconds, Ours(manager, name).batch))
            start.wait()

    asyncio.run(work())


def scale(cluster: Cluster, owners: int, seconds: float, report: Report) -> None:
    """Messages a second of several owner processes together, each with a queue and its client."""
    address = cluster.url(f"SCALE{owners}")
    open_log(address).close()
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(owners), context.Queue()
    processes = [
        context.Process(target=own, args=(address, number, seconds, start, results), daemon=True)
        for number in range(owners)
    ]
    for process in processes:
        process.start()
    rates = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
        process.kill()
    report("scaling", servers=len(cluster.servers), owners=owners, messages_per_second=round(sum(rates)))


def main() -> None:
    """Run what is asked for and print a line of JSON for each result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each measurement takes")
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--only", choices=["throughput", "failover", "scaling"], nargs="+")
    options = parser.parse_args()

    def report(kind: str, **fields: Any) -> None:
        print(json.dumps({"kind": kind, **fields}), flush=True)

    chosen = options.only or ["throughput", "failover", "scaling"]
    for size in options.servers:
        with nats_cluster(size) as cluster:
            if "throughput" in chosen:
                asyncio.run(compare(cluster, options.seconds, report))
            if "failover" in chosen:
                for lease_seconds in LEASES_SECONDS:
                    asyncio.run(failover(cluster, lease_seconds, report))
            if "scaling" in chosen:
                for owners in OWNERS:
                    scale(cluster, owners, options.seconds, report)


if __name__ == "__main__":
    main()
