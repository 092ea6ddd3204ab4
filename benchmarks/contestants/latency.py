"""How long a message takes from its send to the subscriber, at a steady rate that nobody's answer slows down."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.contestants.base import AsyncQueue
from benchmarks.harness import metronome
from benchmarks.harness.model import Values
from benchmarks.harness.payloads import Message, small_payload
from benchmarks.harness.statistics import percentile

MESSAGES_PER_SECOND = 5_000
WARM_UP_SHARE = 0.2
_MOST_TICKS = 512
FIRST_NUMBER = small_payload(0)["order"]


class PacedQueue:
    """Sends when a message is due, whether or not earlier ones have been answered.

    The clock of a message starts when it is due, so that neither a queue that falls behind is flattered nor a loop that
    something has held up.
    """

    def __init__(self, queue: AsyncQueue) -> None:
        self._queue = queue
        self._senders = queue.load.senders

    async def prepare(self) -> None:
        """Connect, and try it once."""
        await self._queue.connect()
        self._queue.handle = self._arrived
        await self._paced(max(0.2, 0.3 * self._queue.context.seconds))

    async def measure(self) -> Values:
        """Milliseconds that 50 and 99 of 100 messages take at most."""
        latencies = await self._paced(self._queue.context.seconds)
        settled = latencies[int(WARM_UP_SHARE * len(latencies)) :]
        return {"p50": 1e3 * percentile(settled, 0.5), "p99": 1e3 * percentile(settled, 0.99)}

    async def _paced(self, seconds: float) -> Sequence[float]:
        count = int(MESSAGES_PER_SECOND * seconds)
        messages: list[Message] = [("order.paid", small_payload(number)) for number in range(count)]
        self._due = [0.0] * count
        self._latencies = [0.0] * count
        await self._queue.begin(count)
        await self._send_when_due(messages)
        await self._queue.finished()
        await self._queue.end()
        return self._latencies

    async def _send_when_due(self, messages: Sequence[Message]) -> None:
        loop = asyncio.get_running_loop()
        all_sent = loop.create_future()
        tasks: set[asyncio.Task[None]] = set()
        ticking = metronome.start(MESSAGES_PER_SECOND, len(messages))
        assert ticking.stdout is not None
        ticks = ticking.stdout.fileno()
        sent = 0

        def tick() -> None:
            nonlocal sent
            for due in metronome.ticks_in(os.read(ticks, _MOST_TICKS * metronome.TICK_BYTES)):
                self._due[sent] = due
                task = loop.create_task(self._queue.send(sent % self._senders, messages[sent]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            if sent == len(messages) and not all_sent.done():
                loop.remove_reader(ticks)
                all_sent.set_result(None)

        loop.add_reader(ticks, tick)
        await all_sent
        await asyncio.gather(*tasks)
        ticking.stdout.close()
        ticking.wait()

    def _arrived(self, payload: Any) -> None:
        number = payload["order"] - FIRST_NUMBER
        self._latencies[number] = time.perf_counter() - self._due[number]

    async def close(self) -> None:
        """Close the queue's connections."""
        await self._queue.close()
