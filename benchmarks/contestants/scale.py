"""What a message costs while a queue holds few or many of something: the figure should not depend on it.

A queue is filled by opening it on a log in memory that already holds what is to be held, which is the same state in
a tenth of the time.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from benchmarks.compare_mpreg import accepted
from benchmarks.harness.model import Context, Values
from mpreg_mq import MessageQueue, QueueConfiguration
from mpreg_mq.events import Append, Event, MemoryEventLog
from mpreg_mq.events.types import FireAndForgetSent, MessageEnqueued, QueueCreated, SubscriberJoined
from mpreg_mq.payload import encode_payload

COST = "microseconds a message"
TRIAL_MESSAGES = 300
WINDOW_SECONDS = 86_400.0
ROOM = 10_000_000
QUICK_HELD = 10_000
STREAM = "queue:bench"


class Filled(ABC):
    """A queue in memory that holds ``held`` of something; its subscribers fetch."""

    def __init__(self, context: Context, held: int) -> None:
        self._context = context
        self.held = min(held, QUICK_HELD) if context.quick else held
        self._sent = 0

    async def prepare(self) -> None:
        """Fill it, and find how many messages make a round."""
        configuration = QueueConfiguration("bench", max_size=ROOM, max_subscribers=ROOM, **self.settings())
        # Half of the time would go into looking for garbage among millions of new objects.
        gc.disable()
        log = MemoryEventLog()
        now = time.time()
        log.append((Append(STREAM, 0, [QueueCreated(now, "bench", configuration), *self.events(now)]),))
        self.queue = MessageQueue(configuration, log=log)
        gc.enable()
        self._count = TRIAL_MESSAGES
        microseconds = (await self.measure())[COST]
        self._count = max(TRIAL_MESSAGES, int(self._context.seconds * 1e6 / microseconds))

    def settings(self) -> dict[str, Any]:
        """Further settings of the queue."""
        return {}

    @abstractmethod
    def events(self, now: float) -> Iterator[Event]:
        """What puts in what is held."""

    async def measure(self) -> Values:
        """Mean microseconds for one message, from its send to its acknowledgment, one after the other."""
        begun = time.perf_counter()
        for number in range(self._sent, self._sent + self._count):
            topic, subscriber_id = self.whither(number)
            await accepted(self.queue.send_message(topic, number))
            (message,) = await self.queue.receive_messages(subscriber_id)
            if not await self.queue.acknowledge_message(message.id, subscriber_id):
                raise RuntimeError("an acknowledgment did not count")
        self._sent += self._count
        return {COST: 1e6 * (time.perf_counter() - begun) / self._count}

    def whither(self, number: int) -> tuple[str, str]:
        """The topic of a message, and who fetches it."""
        return "order.paid", "worker"

    async def close(self) -> None:
        """Shut the queue down."""
        await self.queue.shutdown()


class PendingMessages(Filled):
    """Messages that wait; each measured one joins them, and the first of them is fetched and acknowledged."""

    def events(self, now: float) -> Iterator[Event]:
        """They were sent."""
        for number in range(self.held):
            yield MessageEnqueued(now, f"{number}-filled", "order.paid", encode_payload(number))


class DeduplicationKeys(Filled):
    """Keys of messages that were sent within the window; each measured message adds one."""

    def settings(self) -> dict[str, Any]:
        """Deduplication by fingerprint, within a day."""
        return {"enable_deduplication": True, "deduplication_window_seconds": WINDOW_SECONDS}

    def events(self, now: float) -> Iterator[Event]:
        """They were sent to nobody."""
        for number in range(self.held):
            yield FireAndForgetSent(now, f"f{number}-filled", "order.paid", (), (), f"{number:032x}")


class Patterns(Filled):
    """Subscribers with a pattern each, of which one matches."""

    def events(self, now: float) -> Iterator[Event]:
        """They subscribed."""
        for number in range(self.held):
            name, pattern = f"worker-{number}", f"device.{number}.*"
            yield SubscriberJoined(now, name, f"subscription-{number}", pattern, 1, pull=True)

    def whither(self, number: int) -> tuple[str, str]:
        """One subscriber after the other gets a message."""
        device = number % self.held
        return f"device.{device}.paid", f"worker-{device}"
