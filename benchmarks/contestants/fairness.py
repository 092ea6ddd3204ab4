"""What a queue under full load does to the messages of another one at the same manager."""

from __future__ import annotations

import asyncio
import time

from benchmarks.compare_mpreg import accepted
from benchmarks.harness.model import Context, Values
from benchmarks.harness.statistics import percentile
from mpreg_mq import MessageQueueManager, QueueConfiguration, QueuedMessage

SENDERS = 64
PAUSE_SECONDS = 0.005
WARM_UP_MESSAGES = 5
LEAST_MESSAGES = 20


class Fairness:
    """64 tasks send to the busy queue as fast as they can; the quiet one gets a message every 5 ms."""

    def __init__(self, context: Context, log: str) -> None:
        self._context = context
        self._log = log

    async def prepare(self) -> None:
        """Two queues with a subscriber each."""
        target = self._context.directory / "queues.db" if self._log == "sqlite" else self._log
        self._manager = MessageQueueManager(log=target)
        for name in ("busy", "quiet"):
            await self._manager.create_queue(name, QueueConfiguration(name, max_size=1_000_000))
        self._manager.subscribe_to_queue("busy", "worker", "#", callback=self._count)
        self._manager.subscribe_to_queue("quiet", "worker", "#", callback=self._arrive)

    def _count(self, message: QueuedMessage) -> None:
        self._busy_done += 1

    def _arrive(self, message: QueuedMessage) -> None:
        self._latencies.append(time.perf_counter() - message.payload)

    async def measure(self) -> Values:
        """Milliseconds from send to callback of the quiet queue's messages, and how busy the busy one was."""
        self._latencies: list[float] = []
        self._busy_done = 0
        messages = self._context.payloads.messages
        loaded = True

        async def load() -> None:
            while loaded:
                for message in messages:
                    await accepted(self._manager.send_message("busy", *message))
                    if not loaded:
                        return

        senders = [asyncio.create_task(load()) for _ in range(SENDERS)]
        begun = time.perf_counter()
        while time.perf_counter() - begun < self._context.seconds or len(self._latencies) < LEAST_MESSAGES:
            await asyncio.sleep(PAUSE_SECONDS)
            await accepted(self._manager.send_message("quiet", "ping", time.perf_counter()))
        spent = time.perf_counter() - begun
        busy_rate = self._busy_done / spent
        loaded = False
        await asyncio.gather(*senders)
        settled = self._latencies[WARM_UP_MESSAGES:]
        return {"p50": 1e3 * percentile(settled, 0.5), "p99": 1e3 * percentile(settled, 0.99), "load": busy_rate}

    async def close(self) -> None:
        """Shut the manager down."""
        await self._manager.shutdown()
