"""What a message costs while a queue holds few or many of something: the figure should not depend on it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Any

from benchmarks.compare_mpreg import accepted
from benchmarks.harness.model import Context, Values
from mpreg_mq import DeliveryGuarantee, MessageQueue, QueueConfiguration, QueuedMessage

COST = "microseconds a message"
FILL_BATCH = 10_000
TRIAL_MESSAGES = 300
WINDOW_SECONDS = 86_400.0
MANY = 2_000_000
QUICK_HELD = 10_000


class Filled(ABC):
    """A queue in memory that holds ``held`` of something."""

    def __init__(self, context: Context, held: int) -> None:
        self._context = context
        self.held = min(held, QUICK_HELD) if context.quick else held
        self._sent = 0

    async def prepare(self) -> None:
        """Fill it, and find how many messages make a round."""
        self.queue = MessageQueue(QueueConfiguration("bench", max_size=MANY, max_subscribers=MANY, **self.settings()))
        await self.fill()
        self._count = TRIAL_MESSAGES
        microseconds = (await self.measure())[COST]
        self._count = max(TRIAL_MESSAGES, int(self._context.seconds * 1e6 / microseconds))

    def settings(self) -> dict[str, Any]:
        """Further settings of the queue."""
        return {}

    @abstractmethod
    async def fill(self) -> None:
        """Put in what is held."""

    async def measure(self) -> Values:
        """Mean microseconds for one message, from its send to its acknowledgment, one after the other."""
        begun = time.perf_counter()
        for number in range(self._sent, self._sent + self._count):
            await self.one(number)
        self._sent += self._count
        return {COST: 1e6 * (time.perf_counter() - begun) / self._count}

    @abstractmethod
    async def one(self, number: int) -> None:
        """One message, sent, delivered and acknowledged."""

    async def close(self) -> None:
        """Shut the queue down."""
        await self.queue.shutdown()


class PendingMessages(Filled):
    """Messages that wait; each measured one joins them, and the first of them is fetched and acknowledged."""

    async def fill(self) -> None:
        """Send them in batches."""
        for start in range(0, self.held, FILL_BATCH):
            numbers = range(start, min(self.held, start + FILL_BATCH))
            await self.queue.send_messages([("order.paid", number) for number in numbers])

    async def one(self, number: int) -> None:
        """Send one, fetch one, acknowledge it."""
        await accepted(self.queue.send_message("order.paid", number))
        (message,) = await self.queue.receive_messages("worker")
        if not await self.queue.acknowledge_message(message.id, "worker"):
            raise RuntimeError("an acknowledgment did not count")


class Pushed(Filled):
    """Messages that a callback gets; it is waited for, so that one is under way at a time."""

    def arrive(self, message: QueuedMessage) -> None:
        """The callback."""
        self._arrived.set()

    async def one(self, number: int) -> None:
        """Send one and wait until it has been delivered."""
        self._arrived = asyncio.Event()
        await accepted(self.queue.send_message(self.topic(number), number))
        await self._arrived.wait()

    def topic(self, number: int) -> str:
        """The topic of a message."""
        return "order.paid"


class DeduplicationKeys(Pushed):
    """Keys of messages that were sent within the window; each measured message adds one."""

    def settings(self) -> dict[str, Any]:
        """Deduplication by fingerprint, within a day."""
        return {"enable_deduplication": True, "deduplication_window_seconds": WINDOW_SECONDS}

    async def fill(self) -> None:
        """Send to nobody, at once."""
        for number in range(self.held):
            await accepted(self.queue.send_message("order.paid", -number - 1, DeliveryGuarantee.FIRE_AND_FORGET))
        self.queue.subscribe("worker", "#", callback=self.arrive)


class Patterns(Pushed):
    """Subscribers with a pattern each, of which one matches."""

    async def fill(self) -> None:
        """Subscribe them all."""
        for number in range(self.held):
            self.queue.subscribe(f"worker-{number}", f"device.{number}.*", callback=self.arrive)

    def topic(self, number: int) -> str:
        """A topic that one subscriber gets."""
        return f"device.{number % self.held}.paid"
