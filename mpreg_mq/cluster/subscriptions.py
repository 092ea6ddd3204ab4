"""Callbacks of a subscriber on this node: asks the queue's owner for messages, wherever that is, and runs them here.

What a callback is working on survives a change of the owner: its lease is in the log, and the acknowledgment goes to
whoever owns the queue then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any

import attrs

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.attachments import Attachment
from mpreg_mq.actors.subscriber_actor import Later, Outcome, Settled
from mpreg_mq.clock import Clock, TimerHandle
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.routing import Router
from mpreg_mq.ending import Tasks
from mpreg_mq.errors import MessageQueueError, QueueNotFoundError
from mpreg_mq.model import Callback, QueuedMessage
from mpreg_mq.topics import matches

logger = logging.getLogger("mpreg_mq")

WAIT_SECONDS = 5.0
"""How long one request for messages waits at the owner."""

MAX_AT_ONCE = 500
LEAST_PAUSE_SECONDS = 0.05
MOST_PAUSE_SECONDS = 5.0


@attrs.define
class _Running:
    """A message that a callback is working on. One that was sent to be forgotten has no lease, and is attempt 0."""

    attempt: int
    subscription_id: str
    timer: TimerHandle | None = None

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class CallbackSubscriber:
    """One subscriber's callbacks on this node, from the first one to :meth:`stop`."""

    def __init__(
        self,
        router: Router,
        clock: Clock,
        queue: str,
        subscriber_id: str,
        member: str,
        on_gone: Callable[[CallbackSubscriber, tuple[str, ...]], None],
    ) -> None:
        self.queue = queue
        self.subscriber_id = subscriber_id
        self._router = router
        self._clock = clock
        self._member = member
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._attachment = Attachment(subscriber_id, self._report, None)
        self._requests: dict[str, wire.SubscribeRequest] = {}
        self._missing: dict[str, None] = {}
        """Subscriptions that the owner may not know."""
        self._untold: dict[str, None] = {}
        """Subscriptions that are over, which the owner may not know."""
        self._ending: dict[str, wire.SubscribeRequest] = {}
        """Subscriptions that are over, for which the fetch under way may still bring messages."""
        self._fetched = asyncio.Event()
        """No fetch is under way."""
        self._fetched.set()
        self._subscribing = asyncio.Lock()
        self._max_in_flight = 1
        self._running: dict[str, _Running] = {}
        self._ended = asyncio.Event()
        self._acknowledgments: list[c.Acknowledge] = []
        self._acknowledging: asyncio.Task[None] | None = None
        self._background = Tasks()
        self.stopped = False
        """It has no subscription here any more, or no queue."""
        self._over = False
        self._telling: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None

    # --- subscribing --------------------------------------------------------------------------------------

    def add(self, request: wire.SubscribeRequest, callback: Callback, *, max_in_flight: int, blocking: bool) -> None:
        """Begin a subscription; the owner hears of it soon after."""
        self._attachment.attach(
            c.Subscribe(
                self.subscriber_id,
                request.subscription_id,
                request.topic_pattern,
                callback,
                request.auto_acknowledge,
                max_in_flight,
                blocking,
                context=copy_context(),
            )
        )
        self._requests[request.subscription_id] = request
        self._missing[request.subscription_id] = None
        self._max_in_flight = max_in_flight
        if self._fetching is None:
            self._fetching = self._loop.create_task(self._fetch())
        else:
            # What the owner waits with for messages is for this one, too, as soon as it knows of it.
            self._background.begin(self._subscribe_soon())

    async def _subscribe(self) -> None:
        """Have the owner know which subscriptions there are, and which are over."""
        async with self._subscribing:
            for subscription_id in list(self._untold):
                await self._router.ask(self.queue, c.Unsubscribe(subscription_id))
                self._untold.pop(subscription_id, None)
            for subscription_id in list(self._missing):
                request = self._requests.get(subscription_id)
                if request is not None:
                    await self._router.ask(self.queue, request)
                self._missing.pop(subscription_id, None)

    async def _subscribe_soon(self) -> None:
        try:
            await self._subscribe()
        except MessageQueueError as error:
            logger.info("subscriber %s: subscribing will be tried again: %s", self.subscriber_id, error)

    async def remove(self, subscription_id: str, timeout_seconds: float) -> None:
        """End a subscription, and give what its callback works on so long. With the last one here all ends."""
        request = self._requests.pop(subscription_id, None)
        if request is None:
            return
        self._ending[subscription_id] = request
        self._missing.pop(subscription_id, None)
        self._untold[subscription_id] = None
        await self._tell_owner(self._subscribe(), timeout_seconds)
        if not self._requests:
            self._stop_fetching()
        # What the owner has leased before it heard of that may still be on its way; the next fetch comes after it.
        await self._fetched.wait()
        del self._ending[subscription_id]
        await self._wait_for_callbacks(timeout_seconds, subscription_id)
        self._attachment.detach(subscription_id, {one.subscription_id for one in self._running.values()})
        if self.stopped:
            await self._finish(timeout_seconds)
            await self._tell_until_heard()

    async def _tell_owner(self, asking: Coroutine[Any, Any, Any], timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds + 1.0):
                await asking
        except (MessageQueueError, TimeoutError) as error:
            logger.info("subscriber %s: the owner has not heard of an end: %s", self.subscriber_id, error)

    async def _tell_until_heard(self) -> None:
        """Nothing is fetched any more, so nothing else would tell the owner; :meth:`stop` ends it."""
        if self._untold and self._telling is None:
            self._telling = self._loop.create_task(self._keep_telling())
            await asyncio.wait([self._telling])

    async def _keep_telling(self) -> None:
        pause = LEAST_PAUSE_SECONDS
        while self._untold:
            try:
                await self._subscribe()
            except QueueNotFoundError:
                return
            except MessageQueueError as error:
                logger.info("subscriber %s: its end will be told again: %s", self.subscriber_id, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, MOST_PAUSE_SECONDS)

    # --- fetching -----------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        pause = LEAST_PAUSE_SECONDS
        while not self.stopped:
            try:
                await self._subscribe()
                while (free := self._max_in_flight - self._leased) <= 0:
                    await self._something_ended()
                asked = wire.ReceiveRequest(
                    self.subscriber_id, min(free, MAX_AT_ONCE), WAIT_SECONDS, member=self._member
                )
                self._fetched.clear()
                try:
                    messages = await self._router.ask(self.queue, asked, waits=WAIT_SECONDS)
                finally:
                    # Who waits for it goes on after what has come was begun.
                    self._fetched.set()
            except QueueNotFoundError:
                logger.info("subscriber %s: queue %s is gone", self.subscriber_id, self.queue)
                # One that is made of that name has subscribers of its own.
                self.stopped = True
                gone = tuple(self._requests)
                self._requests, self._missing, self._untold = {}, {}, {}
                self._on_gone(self, gone)
                return
            except MessageQueueError as error:
                if self.stopped:
                    return
                logger.info("subscriber %s: %s", self.subscriber_id, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, MOST_PAUSE_SECONDS)
                self._missing.update(dict.fromkeys(self._requests))
                continue
            pause = LEAST_PAUSE_SECONDS
            for message in messages:
                self._begin(message)

    @property
    def _leased(self) -> int:
        """How many of those that run have a lease."""
        return sum(running.attempt > 0 for running in self._running.values())

    def _wanted_by(self, topic: str) -> str | None:
        """The oldest subscription that matches, as at the owner (G6), before those that are over."""
        known = (*self._requests.items(), *self._ending.items())
        return next((one for one, request in known if matches(request.topic_pattern, topic)), None)

    # --- running ------------------------------------------------------------------------------------------

    def _begin(self, message: QueuedMessage) -> None:
        message_id, attempt = message.id.id, message.delivery_attempt
        self._give_up(message_id)
        subscription_id = self._wanted_by(message.topic)
        if subscription_id is None:
            self._give_back(message_id, attempt, "its subscription was over", 0.0)
            return
        outcome = self._attachment.deliver(message, subscription_id, attempt)
        if outcome is not Later.REPORTED:
            self._settle(message_id, attempt, subscription_id, outcome)
            return
        # No two nodes' clocks are compared: the lease lasts that long from here, too.
        self._run(message, _Running(attempt, subscription_id))

    def _run(self, message: QueuedMessage, running: _Running) -> None:
        """A callback goes on with a message for so long as that allows."""
        self._running[message.id.id] = running
        self._end_after(message.id.id, running, message.acknowledgment_timeout_seconds)

    def _end_after(self, message_id: str, running: _Running, seconds: float) -> None:
        running.cancel_timer()
        running.timer = self._clock.call_at(self._loop, self._clock.now() + seconds, partial(self._give_up, message_id))

    def extended(self, message_id: str, seconds: float) -> None:
        """The lease of a message ends so long from now."""
        running = self._running.get(message_id)
        if running is not None and running.attempt:
            self._end_after(message_id, running, seconds)

    def _give_up(self, message_id: str) -> None:
        """The time is up: cancel the callback's coroutine, or leave its thread behind for a new one (L1)."""
        running = self._running.get(message_id)
        if running is None:
            return
        self._pop(message_id)
        self._attachment.give_up(running.subscription_id, message_id, running.attempt)
        # Where the owner has not seen that yet.
        error = "the callback did not end within the acknowledgment timeout"
        self._settle(message_id, running.attempt, running.subscription_id, error)

    def _pop(self, message_id: str) -> None:
        self._running.pop(message_id).cancel_timer()
        self._ended.set()

    def _report(self, settled: Settled) -> None:
        """Called from any thread when a callback that went on is over."""
        try:
            self._loop.call_soon_threadsafe(self._take, settled)
        except RuntimeError:
            logger.info("the loop is closed; the outcome of message %s comes too late", settled.message_id)

    def _take(self, settled: Settled) -> None:
        running = self._running.get(settled.message_id)
        if running is not None and running.attempt == settled.attempt:
            self._pop(settled.message_id)
            self._settle(settled.message_id, settled.attempt, settled.subscription_id, settled.outcome)

    def _settle(self, message_id: str, attempt: int, subscription_id: str, outcome: Outcome) -> None:
        if self._over:
            # Its lease ends with the subscriptions.
            return
        if not attempt:
            if outcome is not None:
                logger.warning("subscriber %s: fire-and-forget failed: %s", self.subscriber_id, outcome)
        elif outcome is not None:
            self._give_back(message_id, attempt, outcome, None)
        elif self._acknowledges(subscription_id):
            self._acknowledgments.append(c.Acknowledge(message_id, self.subscriber_id, attempt))
            if self._acknowledging is None:
                self._acknowledging = self._loop.create_task(self._acknowledge())

    def _acknowledges(self, subscription_id: str) -> bool:
        subscribe = self._attachment.subscriptions.get(subscription_id)
        if subscribe is None:
            return self._attachment.acknowledges_ended(subscription_id)
        return subscribe.auto_acknowledge

    def _give_back(self, message_id: str, attempt: int, error: str, delay_seconds: float | None) -> None:
        self._background.begin(
            self._try(c.NegativeAcknowledge(message_id, self.subscriber_id, error, delay_seconds, attempt))
        )

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
                "subscriber %s: an outcome could not be recorded, the lease will run out: %s",
                self.subscriber_id,
                error,
            )

    def fire(self, subscription_id: str, message: QueuedMessage) -> None:
        """Call a subscription's callback with a fire-and-forget message, if it is still there (G1)."""
        if subscription_id not in self._requests or self.stopped:
            return
        outcome = self._attachment.deliver(message, subscription_id, 0)
        if outcome is Later.REPORTED:
            self._run(message, _Running(0, subscription_id))
        else:
            self._settle(message.id.id, 0, subscription_id, outcome)

    async def _something_ended(self) -> None:
        self._ended.clear()
        await self._ended.wait()

    async def _wait_for_callbacks(self, timeout_seconds: float | None, subscription_id: str | None = None) -> None:
        """Wait for those of one subscription, or for all; not longer than that, if it is given."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while any(subscription_id in (None, one.subscription_id) for one in self._running.values()):
                    await self._something_ended()
        except TimeoutError:
            logger.info("subscriber %s: ends before %d callbacks do", self.subscriber_id, len(self._running))

    # --- the end ------------------------------------------------------------------------------------------

    async def stop(self, timeout_seconds: float) -> None:
        """Fetch no more, give running callbacks this long, and end the subscriptions at the owner."""
        self._stop_fetching()
        await self._finish(timeout_seconds)
        known = (*self._requests, *self._untold)
        self._untold.clear()
        if self._telling is not None:
            self._telling.cancel()
        if known:
            ended = wire.DetachRequest(known, "the process that had it ended")
            await self._tell_owner(self._router.ask(self.queue, ended), timeout_seconds)

    async def outlive_queue(self) -> None:
        """End with the last callback that runs; each has a time limit."""
        await self._wait_for_callbacks(None)
        await self._finish(0.0)

    def _stop_fetching(self) -> None:
        self.stopped = True
        if self._fetching is not None:
            self._fetching.cancel()

    async def _finish(self, timeout_seconds: float) -> None:
        if self._fetching is not None:
            await asyncio.wait([self._fetching])
        await self._wait_for_callbacks(timeout_seconds)
        self._over = True
        for message_id in list(self._running):
            self._pop(message_id)
        self._attachment.cancel_all()
        self._attachment.stop()
        settling = {*self._background, *([] if self._acknowledging is None else [self._acknowledging])}
        if settling:
            await asyncio.wait(settling, timeout=timeout_seconds)
