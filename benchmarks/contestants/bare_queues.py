"""The least queues that Python makes, to see what a message costs over ten thousand objects of any kind."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from benchmarks.contestants.life import SUBSCRIBER, SUBSCRIPTION
from benchmarks.contestants.many_queues import MESSAGES_A_QUEUE, SPREAD, Traffic, queues_for
from benchmarks.harness.model import Context, Values
from benchmarks.harness.payloads import Message
from mpreg_mq.events import types as e
from mpreg_mq.payload import encode_payload

LONGEST_RUN = 64
"""Messages to one queue before it delivers: more would be sent while nothing but the sending is in the caches."""


class BareQueue:
    """A deque, a dictionary by id, a callback and a list of events: no options, no rules, nothing that could fail."""

    __slots__ = ("_by_id", "_events", "_is_planned", "_loop", "_pending", "callback")

    def __init__(self) -> None:
        self._pending: deque[e.MessageEnqueued] = deque()
        self._by_id: dict[str, e.MessageEnqueued] = {}
        self._events: list[e.Event] = []
        self._is_planned = False
        self._loop = asyncio.get_running_loop()
        self.callback: Callable[[e.MessageEnqueued], None] = lambda _: None

    def send(self, message: Message) -> bool:
        """Keep a message, and plan to deliver it; whether the sender should let that happen."""
        topic, payload = message
        enqueued = e.MessageEnqueued(time.time(), f"{len(self._events)}", topic, encode_payload(payload))
        self._events.append(enqueued)
        self._by_id[enqueued.message_id] = enqueued
        self._pending.append(enqueued)
        if not self._is_planned:
            self._is_planned = True
            self._loop.call_soon(self._deliver)
        return len(self._pending) >= LONGEST_RUN

    def _deliver(self) -> None:
        self._is_planned = False
        pending, events = self._pending, self._events
        while pending:
            enqueued = pending.popleft()
            message_id, now = enqueued.message_id, time.time()
            events.append(e.MessageDelivered(now, message_id, SUBSCRIBER, SUBSCRIPTION, 1, now + 300.0))
            self.callback(enqueued)
            events.append(e.MessageAcknowledged(time.time(), message_id, SUBSCRIBER, completes=True))
            del self._by_id[message_id]


class ManyBareQueues(Traffic):
    """As many of them as there are of ours."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def prepare(self) -> None:
        """Make them."""
        self._names = [f"queue-{number}" for number in range(queues_for(self._context))]
        self._queues = {name: BareQueue() for name in ("one", *self._names)}

    async def measure(self) -> Values:
        """A ratio."""
        messages = self._context.payloads.take(MESSAGES_A_QUEUE * len(self._names))
        return {SPREAD: await self.spread(self._names, messages)}

    def subscribe(self, name: str) -> None:
        """See :class:`Traffic`."""
        self._queues[name].callback = self.delivered

    async def send(self, name: str, message: Message) -> None:
        """See :class:`Traffic`."""
        if self._queues[name].send(message):
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Nothing is open."""
