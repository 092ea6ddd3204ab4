"""A queue that this node owns: carries out requests, and answers only what the log has confirmed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import msgspec

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.futures import LoopFuture, settle_future
from mpreg_mq.actors.messages import BeginClose
from mpreg_mq.actors.store import Store
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.wire import Outcome, Reply
from mpreg_mq.errors import EventLogError, MessageQueueError, QueueClosedError
from mpreg_mq.events.types import Event, MessageAcknowledged
from mpreg_mq.latest import Latest
from mpreg_mq.model import CircuitState, DeliveryGuarantee, DeliveryResult, QueuedMessage, RejectionReason
from mpreg_mq.queue import MessageQueue
from mpreg_mq.receives import Receives

logger = logging.getLogger("mpreg_mq")

ACKNOWLEDGMENTS_REMEMBERED = 10_000
"""The latest acknowledgments that an owner recognises when somebody asks again."""

RECEIVES_REMEMBERED = 400
"""Of how many of the latest receives an owner knows what they leased, or that they were withdrawn."""

RECEIVED_BYTES = 8 * 1024 * 1024
"""Most bytes of payloads that one receive leases, so that they arrive while their leases hold."""

OnFired = Callable[[str, c.Send, dict[str, list[str]]], None]
"""Called with the queue, a fire-and-forget message, and by member the subscriptions whose callbacks are to get it."""


class _GoneError(Exception):
    """This node does not own the queue any more, or is about to give it away."""


class OwnedQueue:
    """One queue under one ownership. When that ends, everybody who waits here is sent on to the next owner."""

    def __init__(self, name: str, queue: MessageQueue, store: Store, epoch: int, on_fired: OnFired) -> None:
        self.queue = queue
        self.name = name
        self.epoch = epoch
        self._store = store
        self._on_fired = on_fired
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running: set[asyncio.Task[Any]] = set()
        self._receives: Receives[str, QueuedMessage] = Receives(
            RECEIVES_REMEMBERED, lambda message: (message.id.id, message.delivery_attempt)
        )
        self._acknowledged: Latest[tuple[str, str], None] = Latest(ACKNOWLEDGMENTS_REMEMBERED)

    # --- requests -----------------------------------------------------------------------------------------

    async def carry_out(self, asked: msgspec.Struct) -> Reply:
        """What comes of a request. Nothing is answered as done before the log has confirmed it."""
        if self._ended.done():
            return Reply(Outcome.MOVED)
        work = asyncio.get_running_loop().create_task(self._answer(asked))
        either: set[asyncio.Future[Any]] = {work, self._ended}
        self._running.add(work)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # Whether it was done is decided by the log, and the next owner will read that.
                work.cancel()
                return Reply(Outcome.UNAVAILABLE, self.epoch, detail=f"queue {self.name!r} changed its owner")
            return work.result()
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            self._running.discard(work)

    async def _answer(self, asked: msgspec.Struct) -> Reply:
        try:
            answer = await self._handlers[type(asked)](self, asked)
        except (_GoneError, QueueClosedError):
            return Reply(Outcome.MOVED)
        except EventLogError as error:
            return Reply(Outcome.UNAVAILABLE, self.epoch, detail=str(error))
        except MessageQueueError as error:
            return wire.refused(error)
        except Exception as error:
            logger.exception("queue %s: a request failed", self.name)
            return wire.refused(MessageQueueError(f"{type(error).__name__}: {error}"))
        return wire.done(self.epoch, answer)

    async def _committed(self) -> None:
        """Return when the log has confirmed everything this queue has decided so far.

        Raises:
            EventLogError: it has not; somebody else may own the queue.
        """
        loop = asyncio.get_running_loop()
        confirmed: asyncio.Future[None] = loop.create_future()
        actor = self.queue._actor
        # An append without events comes after those before it, and fails where they failed.
        actor.send_off()
        self._store.submit(actor.stream, actor.state.version, (), partial(settle_future, confirmed, None), loop)
        await confirmed

    async def _ask(self, command: Any) -> Any:
        answer = await self.queue._ask(command)
        if not answer:
            # What made this superfluous may not be confirmed yet.
            await self._committed()
        return answer

    async def _exists(self, command: c.Open) -> bool:
        """A queue that is there is not made; what it is stays what it was."""
        # Who makes it may be told that it could not be stored.
        await self._committed()
        if self.queue._actor.state.deleted:
            raise _GoneError
        return False

    async def _ask_in_order(self, command: Any) -> Any:
        answer = await self.queue._ask(command)
        await self._committed()
        return answer

    async def _send(self, send: c.Send) -> DeliveryResult:
        result: DeliveryResult = await self.queue._ask(send)
        self._check(result)
        if result.rejection is RejectionReason.DUPLICATE:
            # The first one may be a try of this very send, which is not confirmed yet.
            await self._committed()
        self._fire(send, result)
        return result

    def _fire(self, send: c.Send, result: DeliveryResult) -> None:
        """Have a fire-and-forget message called out at one callback of each subscriber that matches (G1)."""
        state = self.queue._actor.state
        if send.guarantee is not DeliveryGuarantee.FIRE_AND_FORGET or not result.success or state.paused:
            return
        subscribers = state.subscribers
        chosen: dict[str, list[str]] = {}
        for subscriber_id in subscribers.audience(send.topic):
            subscriber = subscribers.get(subscriber_id)
            if subscriber is None or subscriber.circuit is CircuitState.OPEN:
                continue
            members = {
                joined.subscription_id: joined.metadata[c.MEMBER]
                for joined in subscriber.subscriptions.values()
                if c.MEMBER in joined.metadata
            }
            subscription_id = subscribers.subscription_among(subscriber, send.topic, members)
            if subscription_id is not None:
                chosen.setdefault(members[subscription_id], []).append(subscription_id)
        self._on_fired(self.name, send, chosen)

    async def _send_batch(self, batch: c.SendBatch) -> list[DeliveryResult]:
        if batch.sends and batch.sends[0].guarantee is DeliveryGuarantee.FIRE_AND_FORGET:
            # These are never pending (G1).
            return [await self._send(send) for send in batch.sends]
        results: list[DeliveryResult] = await self.queue._ask(batch)
        for result in results:
            self._check(result)
        return results

    @staticmethod
    def _check(result: DeliveryResult) -> None:
        if result.rejection is RejectionReason.CLOSING:
            raise _GoneError
        if result.rejection is RejectionReason.STORE_ERROR:
            raise EventLogError(result.error_message or "the log did not confirm")

    async def _receive(self, request: wire.ReceiveRequest) -> list[QueuedMessage]:
        command = c.Receive(
            request.subscriber_id,
            request.max_messages,
            request.wait_seconds,
            request.visibility_timeout_seconds,
            RECEIVED_BYTES,
            request.member,
        )
        if request.member is None:
            await self.queue._join(request.subscriber_id, request.topic_pattern)
        else:
            self._check_subscribed(request.subscriber_id, request.member)
        fetching = partial(self.queue._fetch, command)
        messages = await self._receives.fetch(request.request_id or None, request.subscriber_id, fetching)
        if not messages and self.queue._actor._closing:
            raise _GoneError
        if messages:
            # A lease that the log does not have would let two nodes hand out one message.
            await self._committed()
        return messages

    async def _cancel_receive(self, cancel: wire.CancelReceive) -> bool:
        ended = await self._receives.withdraw(cancel.request_id, self.queue)
        await self._committed()
        return ended

    def _check_subscribed(self, subscriber_id: str, member: str) -> None:
        subscriber = self.queue._actor.state.subscribers.get(subscriber_id)
        subscriptions = () if subscriber is None else subscriber.subscriptions.values()
        if not any(joined.metadata.get(c.MEMBER) == member for joined in subscriptions):
            raise MessageQueueError(
                f"cluster: {subscriber_id!r} has no subscription of {member} on queue {self.name!r}; subscribe again"
            )

    async def _acknowledge(self, many: wire.AcknowledgeMany) -> list[wire.Acknowledged]:
        actor = self.queue._actor
        replies = [actor.call(one) for one in many.acknowledgments]
        outcomes = []
        for one, reply in zip(many.acknowledgments, replies, strict=True):
            counted = await reply if isinstance(reply, LoopFuture) else reply
            if counted:
                self._acknowledged.note((one.message_id, one.subscriber_id), None)
                outcomes.append(wire.Acknowledged.COUNTED)
                continue
            # It may be an earlier try of this very acknowledgment, under way, that made it superfluous.
            await self._committed()
            before = (one.message_id, one.subscriber_id) in self._acknowledged
            outcomes.append(wire.Acknowledged.BEFORE if before else wire.Acknowledged.NO)
        return outcomes

    def remember(self, recent: Iterable[Event]) -> None:
        """Note the acknowledgments among the events before this ownership: their senders may ask again."""
        for event in recent:
            if type(event) is MessageAcknowledged:
                self._acknowledged.note((event.message_id, event.subscriber_id), None)

    async def _subscribe(self, request: wire.SubscribeRequest) -> str:
        actor = self.queue._actor
        if actor.state.subscribers.subscription(request.subscription_id) is None:
            actor.call_now(
                c.Subscribe(
                    request.subscriber_id,
                    request.subscription_id,
                    request.topic_pattern,
                    None,
                    request.auto_acknowledge,
                    request.max_in_flight,
                    False,
                    {**request.metadata, c.MEMBER: request.member},
                )
            )
            await self._committed()
        return request.subscription_id

    async def _detach(self, request: wire.DetachRequest) -> int:
        count = self.detach(request.subscription_ids, request.reason)
        await self._committed()
        return count

    async def _statistics(self, request: wire.Statistics) -> Any:
        return self.queue.get_statistics()

    async def _dead_letters(self, request: wire.DeadLetters) -> Any:
        return wire.ListedDeadLetters.of(self.queue.list_dead_letters())

    _handlers: ClassVar[dict[type[Any], Callable[[Any, Any], Awaitable[Any]]]] = {
        c.Send: _send,
        c.SendBatch: _send_batch,
        wire.ReceiveRequest: _receive,
        wire.CancelReceive: _cancel_receive,
        wire.AcknowledgeMany: _acknowledge,
        c.NegativeAcknowledge: _ask,
        c.ExtendLease: _ask,
        wire.SubscribeRequest: _subscribe,
        c.Unsubscribe: _ask_in_order,
        wire.DetachRequest: _detach,
        c.Pause: _ask_in_order,
        c.Resume: _ask_in_order,
        c.Purge: _ask,
        c.Redrive: _ask,
        c.AcceptRedriven: _ask,
        c.RecordRedriven: _ask,
        c.PurgeDeadLetters: _ask,
        c.Open: _exists,
        c.Delete: _ask,
        wire.Statistics: _statistics,
        wire.DeadLetters: _dead_letters,
    }

    # --- subscribers of other nodes -----------------------------------------------------------------------

    def detach(self, subscription_ids: Iterable[str], reason: str) -> int:
        """End subscriptions whose process ended, and the leases of subscribers that have no other; how many."""
        actor = self.queue._actor
        subscribers = actor.state.subscribers
        known = [one for one in subscription_ids if subscribers.subscription(one) is not None]
        if not known:
            return 0
        holders = {joined.subscriber_id for one in known if (joined := subscribers.subscription(one)) is not None}
        for holder in holders:
            subscriber = subscribers.get(holder)
            if subscriber is not None and set(subscriber.subscriptions) <= set(known):
                for message_id in list(subscriber.held):
                    actor.call_now(c.EndLease(message_id, holder, reason))
        count: int = actor.call_now(c.Detach(tuple(known)))
        return count

    def detach_members(self, gone: Callable[[str], bool]) -> int:
        """End the subscriptions whose callbacks ran on members that are gone; how many."""
        orphans = [
            subscription_id
            for subscriber in self.queue._actor.state.subscribers
            for subscription_id, joined in subscriber.subscriptions.items()
            if c.MEMBER in joined.metadata and gone(joined.metadata[c.MEMBER])
        ]
        return self.detach(orphans, "the node that ran its callback is gone")

    # --- the end ------------------------------------------------------------------------------------------

    def status(self) -> wire.OwnedStatus:
        """The queue's sizes."""
        state = self.queue._actor.state
        return wire.OwnedStatus(
            self.name,
            self.epoch,
            state.version,
            state.messages.pending_count,
            state.messages.leased_count,
            len(state.dead_letters),
        )

    async def hand_over(self) -> None:
        """Take no more, let what was taken be answered, and leave leases as they are: the next owner honours them."""
        actor = self.queue._actor
        try:
            actor.call(BeginClose())
            running = set(self._running)
            if running:
                await asyncio.wait(running, timeout=5.0)
            await self._committed()
        except (MessageQueueError, EventLogError) as error:
            logger.info("queue %s: handing over without the last confirmation: %s", self.name, error)
        self.end()

    def end(self) -> None:
        """End the actor at once, and send everybody who waits to the next owner."""
        if self._ended.done():
            return
        self._ended.set_result(None)
        self.queue._closed = True
        actor = self.queue._actor
        with contextlib.suppress(MessageQueueError):
            actor.call(BeginClose())
        actor.actor_ref.stop(block=False)
