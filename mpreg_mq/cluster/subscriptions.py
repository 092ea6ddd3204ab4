"""A subscription with a callback: asks the queue's owner for messages, wherever that is, and runs the callback here.

What the callback is working on survives a change of the owner: its lease is in the log, and the acknowledgment goes to
whoever owns the queue then.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from mpreg_mq.actors import commands as c
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.routing import Router
from mpreg_mq.errors import MessageQueueError, QueueNotFoundError
from mpreg_mq.model import Callback, QueuedMessage
from mpreg_mq.topics import matches

logger = logging.getLogger("mpreg_mq")

WAIT_SECONDS = 5.0
"""How long one request for messages waits at the owner."""

MAX_AT_ONCE = 500
LEAST_PAUSE_SECONDS = 0.05


class CallbackSubscription:
    """One callback's subscription, from its creation to :meth:`stop`."""

    def __init__(
        self,
        router: Router,
        queue: str,
        request: wire.SubscribeRequest,
        callback: Callback,
        *,
        max_in_flight: int,
        lease_seconds: float,
        blocking: bool,
    ) -> None:
        self.queue = queue
        self.request = request
        self._router = router
        self._callback = callback
        self._lease_seconds = lease_seconds
        self._blocking = blocking
        self._room = asyncio.Semaphore(max_in_flight)
        self._max_in_flight = max_in_flight
        self._running: set[asyncio.Task[None]] = set()
        self._acknowledgments: list[c.Acknowledge] = []
        self._acknowledging: asyncio.Task[None] | None = None
        self._stopped = False
        self._fetching = asyncio.get_running_loop().create_task(self._fetch())

    @property
    def running(self) -> int:
        """How many messages the callback is working on."""
        return len(self._running)

    # --- fetching -----------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        subscribed = False
        pause = LEAST_PAUSE_SECONDS
        while not self._stopped:
            try:
                if not subscribed:
                    await self._router.ask(self.queue, self.request)
                    subscribed = True
                await self._room.acquire()
                self._room.release()
                free = min(self._max_in_flight - len(self._running), MAX_AT_ONCE)
                messages = await self._router.ask(
                    self.queue,
                    wire.ReceiveRequest(
                        self.request.subscriber_id,
                        max(1, free),
                        WAIT_SECONDS,
                        self._lease_seconds,
                        self.request.topic_pattern,
                    ),
                    waits=WAIT_SECONDS,
                )
            except QueueNotFoundError:
                logger.info("subscription %s: queue %s is gone", self.request.subscription_id, self.queue)
                return
            except MessageQueueError as error:
                logger.info("subscription %s: %s", self.request.subscription_id, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
                subscribed = False
                continue
            pause = LEAST_PAUSE_SECONDS
            for message in messages:
                await self._room.acquire()
                task = asyncio.get_running_loop().create_task(self._run(message))
                self._running.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()

    # --- running ------------------------------------------------------------------------------------------

    async def _run(self, message: QueuedMessage) -> None:
        error = await self._call(message)
        subscriber = self.request.subscriber_id
        if error is not None:
            await self._try(c.NegativeAcknowledge(message.id.id, subscriber, error, None, message.delivery_attempt))
        elif self.request.auto_acknowledge:
            self._acknowledgments.append(c.Acknowledge(message.id.id, subscriber, message.delivery_attempt))
            if self._acknowledging is None:
                self._acknowledging = asyncio.get_running_loop().create_task(self._acknowledge())

    async def _call(self, message: QueuedMessage) -> str | None:
        """Run the callback; what went wrong, or None."""
        try:
            if self._blocking:
                await asyncio.to_thread(self._callback, message)
            else:
                outcome = self._callback(message)
                if inspect.isawaitable(outcome):
                    await asyncio.wait_for(outcome, self._lease_seconds)
        # User code may raise anything; it is a failed attempt.
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    async def _acknowledge(self) -> None:
        """Acknowledge what is done, as many as there are at once, until there is no more."""
        try:
            while self._acknowledgments:
                ready = tuple(self._acknowledgments[:MAX_AT_ONCE])
                del self._acknowledgments[: len(ready)]
                await self._try(wire.AcknowledgeMany(ready))
        finally:
            self._acknowledging = None

    async def _try(self, asked: Any) -> None:
        try:
            await self._router.ask(self.queue, asked)
        except MessageQueueError as error:
            logger.warning(
                "subscription %s: an outcome could not be recorded, the lease will run out: %s",
                self.request.subscription_id,
                error,
            )

    async def fire(self, message: QueuedMessage) -> None:
        """Take a fire-and-forget message, if its topic is one of this subscription's."""
        if matches(self.request.topic_pattern, message.topic):
            error = await self._call(message)
            if error is not None:
                logger.warning("subscription %s: fire-and-forget failed: %s", self.request.subscription_id, error)

    # --- the end ------------------------------------------------------------------------------------------

    async def stop(self, timeout_seconds: float, *, unsubscribe: bool) -> None:
        """Fetch no more, give running callbacks this long, and end the subscription at the owner."""
        self._stopped = True
        self._fetching.cancel()
        await asyncio.wait([self._fetching])
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout_seconds)
        for task in set(self._running):
            task.cancel()
        if self._acknowledging is not None:
            await asyncio.wait([self._acknowledging], timeout=timeout_seconds)
        subscription_id = self.request.subscription_id
        ending: Any = (
            c.Unsubscribe(subscription_id)
            if unsubscribe
            else wire.DetachRequest((subscription_id,), "the process that had it ended")
        )
        try:
            async with asyncio.timeout(timeout_seconds + 1.0):
                await self._router.ask(self.queue, ending)
        except (MessageQueueError, TimeoutError) as error:
            logger.info("subscription %s: ends without the owner knowing: %s", subscription_id, error)
