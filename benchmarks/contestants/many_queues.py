"""Ten thousand queues at one manager: making them, keeping them, sending to all of them."""

from __future__ import annotations

import asyncio
import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from benchmarks.compare_mpreg import MPREG, accepted, resident_bytes
from benchmarks.contestants.base import Countdown
from benchmarks.contestants.queue_api import load_api
from benchmarks.harness.model import Context, Values
from benchmarks.harness.payloads import Message
from mpreg_mq import MessageQueueManager, QueueConfiguration, QueueManagerConfiguration

CREATE, BYTES, IDLE, SPREAD = "seconds to create", "bytes a queue", "% of a core idle", "cost over all"
QUEUES, QUICK_QUEUES = 10_000, 200
IDLE_SECONDS = 2.0
SENDERS = 64
MESSAGES_A_QUEUE = 1
CREATING_AT_ONCE = 1_000


def queues_for(context: Context) -> int:
    """How many queues: few in a quick run."""
    return QUICK_QUEUES if context.quick else QUEUES


async def idle_share(seconds: float) -> float:
    """Percent of a core that this process uses while its loop has nothing to do."""
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    return 100.0 * (time.process_time() - cpu) / (time.perf_counter() - wall)


class Traffic(ABC):
    """Messages sent to one queue, and to many."""

    _left: Countdown

    @abstractmethod
    def subscribe(self, name: str) -> None:
        """Have :meth:`delivered` called for each message of a queue."""

    @abstractmethod
    async def send(self, name: str, message: Message) -> None:
        """Send one message to a queue."""

    def delivered(self, _: Any) -> None:
        """A callback."""
        self._left.count(1)

    async def spread(self, names: Sequence[str], messages: Sequence[Message]) -> float:
        """How many times as much a message costs over all these queues as in the one named "one"."""
        for name in ("one", *names):
            self.subscribe(name)
        # The first message of a queue looks its topic up and makes room; that is not what is compared.
        await self._traffic(["one"], messages)
        await self._traffic(names, messages)
        # Nor is what the collector still has to do about all that was made; what the traffic gives it to do is.
        gc.collect()
        one = all_of_them = 0.0
        # By turns, so that what grows with every event (the log) grows for both.
        for _ in range(2):
            one += await self._traffic(["one"], messages)
            all_of_them += await self._traffic(names, messages)
        return all_of_them / one

    async def _traffic(self, names: Sequence[str], messages: Sequence[Message]) -> float:
        """Seconds for these messages, sent to the queues in turn by 64 senders, until all are delivered."""
        self._left = Countdown(len(messages))

        async def sender(first: int) -> None:
            for number in range(first, len(messages), SENDERS):
                await self.send(names[number % len(names)], messages[number])

        begun = time.perf_counter()
        await asyncio.gather(*(sender(number) for number in range(SENDERS)))
        await self._left.wait()
        return time.perf_counter() - begun


class ManyQueues(Traffic):
    """Ours, on a log in memory or in an SQLite file."""

    def __init__(self, context: Context, log: str) -> None:
        self._context = context
        self._log = log

    async def prepare(self) -> None:
        """Start a manager."""
        self._count = queues_for(self._context)
        target = self._context.directory / "queues.db" if self._log == "sqlite" else self._log
        # One more, for the traffic that is compared with.
        self._manager = MessageQueueManager(QueueManagerConfiguration(max_queues=self._count + 1), log=target)
        await self._create(["one"])

    async def _create(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), CREATING_AT_ONCE):
            part = names[start : start + CREATING_AT_ONCE]
            # On a file they share commits; in memory one after the other is quicker.
            if self._log == "sqlite":
                made = await asyncio.gather(*(self._manager.create_queue(name, self._settings(name)) for name in part))
            else:
                made = [await self._manager.create_queue(name, self._settings(name)) for name in part]
            if not all(made):
                raise RuntimeError("a queue could not be created")

    def _settings(self, name: str) -> QueueConfiguration:
        return QueueConfiguration(name, max_size=1_000_000)

    async def measure(self) -> Values:
        """Seconds, bytes, percent and a ratio."""
        names = [f"queue-{number}" for number in range(self._count)]
        gc.collect()
        before, begun = resident_bytes(), time.perf_counter()
        await self._create(names)
        created = time.perf_counter() - begun
        gc.collect()
        size = (resident_bytes() - before) / self._count
        await asyncio.sleep(0.2)  # what creation left to do is not idling
        idle = await idle_share(IDLE_SECONDS * min(1.0, self._context.seconds))
        messages = self._context.payloads.take(MESSAGES_A_QUEUE * len(names))
        return {CREATE: created, BYTES: size, IDLE: idle, SPREAD: await self.spread(names, messages)}

    def subscribe(self, name: str) -> None:
        """As one worker."""
        self._manager.subscribe_to_queue(name, "worker", "#", callback=self.delivered)

    async def send(self, name: str, message: Message) -> None:
        """As somebody who looks at the answer."""
        await accepted(self._manager.send_message(name, *message))

    async def close(self) -> None:
        """Leave it to the end of the process: to shut all of them down would take longer than what is measured."""


class ManyMpregQueues:
    """MPREG's, without traffic: it delivers ten messages a second and queue."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def prepare(self) -> None:
        """Import it."""
        self._api = load_api(MPREG, self._context)

    async def measure(self) -> Values:
        """Seconds, bytes and percent."""
        count = queues_for(self._context)
        gc.collect()
        before, begun = resident_bytes(), time.perf_counter()
        self._manager = await self._api.idle_queues(count)
        created = time.perf_counter() - begun
        await asyncio.sleep(0.5)  # its workers have started
        gc.collect()
        size = (resident_bytes() - before) / count
        idle = await idle_share(IDLE_SECONDS * min(1.0, self._context.seconds))
        return {CREATE: created, BYTES: size, IDLE: idle}

    async def close(self) -> None:
        """Leave it to the end of the process, as ours does."""
