"""The way of routed messages into one queue: in order, in batches, and back-pressure when the queue is full.

A publisher never waits and never hears of it: what cannot go on is kept, refused or dropped by the route's policy,
and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

import attrs

from mpreg_mq.clock import Clock, pause
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.exchange.routes import Route, RouteKey
from mpreg_mq.model import (
    DeliveryGuarantee,
    DeliveryResult,
    OverflowPolicy,
    QueueStatistics,
    RejectionReason,
    TopicRouteStatistics,
)
from mpreg_mq.queue import MessageQueue
from mpreg_mq.queue_inspection import REPORT
from mpreg_mq.sending import failed_result

logger = logging.getLogger("mpreg_mq")

MAX_BATCH = 1000
"""Most routed messages in one commit."""

FIRST_WAIT_SECONDS = 0.01
LAST_WAIT_SECONDS = 1.0
"""Bounds of the wait before a full queue is looked at again."""

CLOSED = "the queue manager is closed, or the queue is gone"
"""Why a message is refused that comes after the end."""


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs on this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def background(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task of the running loop that begins with the loop's next turn, in an empty context: it is nobody's callback.

    It is made without the loop's task factory, because MPREG's client sets one whose tasks begin at once.
    """
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), context=Context())


@attrs.frozen(eq=False)
class RoutedMessage:
    """A message on its way into a queue."""

    message_id: str
    route: Route
    entry: dict[str, Any]


@attrs.define(eq=False)
class QueueFeed:
    """The messages that wait to enter one queue. Everything here runs on the thread of the router's loop."""

    queue_name: str
    _find: Callable[[str], MessageQueue | None]
    _clock: Clock
    _lost: Callable[[str], None]
    """Is told the id of each message that was to enter the queue and did not."""
    counts: dict[RouteKey, TopicRouteStatistics] = attrs.field(factory=dict)
    _waiting: deque[RoutedMessage] = attrs.field(factory=deque)
    _task: asyncio.Task[None] | None = None
    _closing: asyncio.Event = attrs.field(factory=asyncio.Event)
    _complained: set[RouteKey] = attrs.field(factory=set)
    _sending: Counter[RouteKey] = attrs.field(factory=Counter)
    _removed: set[RouteKey] = attrs.field(factory=set)
    """Routes that are no more, and of which messages still wait."""
    _why: str = "the queue manager was closed"
    _closed: bool = False

    def begin(self, key: RouteKey) -> None:
        """A route has been made."""
        self._removed.discard(key)

    def end(self, key: RouteKey) -> None:
        """A route is no more; its counts go with the last message that waits of it."""
        self._removed.add(key)
        self._forget_if_done(key)

    def _forget_if_done(self, key: RouteKey) -> None:
        counts = self.counts.get(key)
        if key in self._removed and (counts is None or not counts.buffered):
            self._removed.discard(key)
            self._complained.discard(key)
            self.counts.pop(key, None)

    def statistics(self, route: Route) -> TopicRouteStatistics:
        """The counts of a route into this queue; live."""
        counts = self.counts.get(route.key)
        if counts is None:
            counts = self.counts[route.key] = TopicRouteStatistics()
        return counts

    def put(self, message: RoutedMessage) -> None:
        """Take a message; O(1) but where an old one is dropped for it, which is O(waiting)."""
        route = message.route
        counts = self.statistics(route)
        most = route.routing.max_buffered
        if self._closed:
            self._lose(message, CLOSED)
            return
        if counts.buffered >= most:
            if route.routing.overflow_policy is not OverflowPolicy.DROP_OLDEST:
                self._lose(message, f"max_buffered={most} messages are waiting already")
                return
            self._drop_above(route, most - 1)
        counts.buffered += 1
        self._waiting.append(message)
        if self._task is None or not self._task.get_loop().is_running():
            self._task = background(self._drain())

    def _drop_above(self, route: Route, most: int) -> None:
        """Drop the oldest that wait of a route, until so many are left.

        What is being sent does not wait: it is in the queue already, or about to come back.
        """
        counts = self.statistics(route)
        for _ in range(counts.buffered - self._sending[route.key] - most):
            index = next(index for index, waiting in enumerate(self._waiting) if waiting.route.key == route.key)
            self._lost(self._waiting[index].message_id)
            del self._waiting[index]
            counts.buffered -= 1
            counts.dropped += 1
            self._complain(route, "the oldest waiting message was dropped")

    def refuse(self, route: Route, reason: str) -> None:
        """Count a message of this route as lost, with the reason; it is not among those that wait."""
        counts = self.statistics(route)
        counts.refused += 1
        counts.last_error = reason
        self._complain(route, reason)

    def _lose(self, message: RoutedMessage, reason: str) -> None:
        """Refuse a message that was to enter the queue."""
        self._lost(message.message_id)
        self.refuse(message.route, reason)

    def _complain(self, route: Route, reason: str) -> None:
        """Say it once for each route until something gets through again; the rest is counted."""
        if route.key not in self._complained:
            self._complained.add(route.key)
            logger.warning("route %s -> %s: message lost: %s", *route.key, reason)

    async def _drain(self) -> None:
        wait = FIRST_WAIT_SECONDS
        try:
            while self._waiting:
                batch = await self._next_batch()
                if batch and await self._send(batch):
                    wait = FIRST_WAIT_SECONDS
                    continue
                if not await self._pause(wait):
                    return
                wait = min(wait * 2, LAST_WAIT_SECONDS)
        finally:
            self._task = None

    async def _next_batch(self) -> list[RoutedMessage]:
        """The messages to send now: all of one guarantee, as many as the queue has room for where they can wait."""
        room = await self._room()
        batch: list[RoutedMessage] = []
        while self._waiting and len(batch) < MAX_BATCH:
            message = self._waiting[0]
            routing = message.route.routing
            if batch and routing.delivery_guarantee is not batch[0].route.routing.delivery_guarantee:
                break
            if routing.overflow_policy is not OverflowPolicy.REJECT and len(batch) >= room:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _room(self) -> int:
        """How many messages to send that can wait; so that a full queue logs no rejection for each look at it."""
        queue = self._find(self.queue_name)
        guarantee = self._waiting[0].route.routing.delivery_guarantee
        if (
            queue is None
            or guarantee is DeliveryGuarantee.FIRE_AND_FORGET
            or queue.config.overflow_policy is OverflowPolicy.DROP_OLDEST
        ):
            return MAX_BATCH
        try:
            counts: QueueStatistics = await queue._ask(REPORT)
        except MessageQueueError:
            # It will say so to what is sent.
            return MAX_BATCH
        return queue.config.max_size - counts.current_queue_size

    async def _send(self, batch: list[RoutedMessage]) -> bool:
        """Send a batch; whether all of it is settled. What has to be tried again waits at the front, in order."""
        self._sending.update(message.route.key for message in batch)
        try:
            results = await self._results(batch)
        except asyncio.CancelledError:
            for message in batch:
                self.statistics(message.route).buffered -= 1
                self._lose(message, f"{self._why} while this was being sent")
            raise
        finally:
            self._sending.clear()
        again = [message for message, result in zip(batch, results, strict=True) if not self._settle(message, result)]
        self._waiting.extendleft(reversed(again))
        for route in {message.route.key: message.route for message in again}.values():
            # While these were being sent others took their places.
            if route.routing.overflow_policy is OverflowPolicy.DROP_OLDEST:
                self._drop_above(route, route.routing.max_buffered)
        return not again

    async def _results(self, batch: list[RoutedMessage]) -> list[DeliveryResult]:
        """What the queue says to each message of a batch."""
        queue = self._find(self.queue_name)
        if queue is None:
            failed = DeliveryResult(
                False,
                None,
                error_message=f"queue {self.queue_name!r} is gone",
                rejection=RejectionReason.UNKNOWN_QUEUE,
            )
            return [failed] * len(batch)
        try:
            return await queue.send_messages(
                [message.entry for message in batch], batch[0].route.routing.delivery_guarantee
            )
        except MessageQueueError as error:
            failed = failed_result(error)
        # Whatever it is, it must neither end the feed nor be tried for ever.
        except Exception as error:
            logger.exception("queue %s: routed messages could not be sent", self.queue_name)
            failed = DeliveryResult(False, None, error_message=f"{type(error).__name__}: {error}")
        return [failed] * len(batch)

    def _settle(self, message: RoutedMessage, result: DeliveryResult) -> bool:
        route = message.route
        counts = self.statistics(route)
        keeps = route.routing.overflow_policy is not OverflowPolicy.REJECT
        if keeps and result.rejection in (RejectionReason.CAPACITY, RejectionReason.STORE_ERROR):
            counts.last_error = result.error_message
            return False
        counts.buffered -= 1
        if result.success:
            counts.routed += 1
            self._complained.discard(route.key)
        elif result.rejection is RejectionReason.DUPLICATE:
            counts.duplicates += 1
        else:
            self._lose(message, result.error_message or "the queue refused it")
        if self._removed:
            self._forget_if_done(route.key)
        return True

    async def _pause(self, seconds: float) -> bool:
        """Wait; False when the feed is closing."""
        return not self._closing.is_set() and await pause(self._clock, seconds, self._closing)

    async def delete(self) -> None:
        """Refuse what still waits: the queue is no more."""
        self._why = "the queue was deleted"
        await self.close(0.0)

    async def close(self, timeout_seconds: float) -> None:
        """Send what still waits, without waiting for room, for at most this long; the rest is refused and counted."""
        task = self._task
        # What a loop before this one sends stands still with that, and finds nothing that waits if it goes on.
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            self._closing.set()
            await asyncio.wait([task], timeout=timeout_seconds)
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.abandon()

    def abandon(self) -> None:
        """Refuse everything that still waits, and what comes from now on."""
        self._closed = True
        while self._waiting:
            message = self._waiting.popleft()
            self.statistics(message.route).buffered -= 1
            self._lose(message, f"{self._why} before there was room")
