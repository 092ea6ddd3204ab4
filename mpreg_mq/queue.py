"""One queue: MPREG's ``MessageQueue`` with the same names, arguments and results, and more verbs.

Sends and the other coroutines answer with values; what cannot be an answer (a malformed pattern, a callback that
is none) is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from os import PathLike
from typing import Any

import msgspec
import pykka

from mpreg_mq import topics
from mpreg_mq._validation import describe, flag, seconds, whole
from mpreg_mq.actors import commands as c
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.messages import Abandon, Inspect, Join, Recover, Start, Stored
from mpreg_mq.actors.queue_actor import QueueActor, make_actor
from mpreg_mq.actors.store import DEFAULT_BUFFERED_MILLISECONDS, Store
from mpreg_mq.arguments import (
    DeadReference,
    MessageReference,
    check_fetches,
    check_receive,
    check_subscription,
    dead_letter_ids,
    id_text,
)
from mpreg_mq.clock import Clock, clock_of
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.dead_letters import redrive, would_redrive
from mpreg_mq.errors import InvalidOptionError, MessageQueueError, QueueClosedError
from mpreg_mq.events import EventLog, open_log
from mpreg_mq.model import Callback, DeliveryGuarantee, DeliveryResult, Durability, MessageId, QueuedMessage
from mpreg_mq.options import guarantee_of, require, required_identifier
from mpreg_mq.projections import QueueState
from mpreg_mq.queue_closing import ClosableQueue
from mpreg_mq.queue_inspection import QueueInspection, T
from mpreg_mq.sending import among_senders, failed_result, let_others, rejection_of, send_command, send_commands


class MessageQueue(ClosableQueue, QueueInspection):
    """A queue with delivery guarantees, an actor behind it and an event log under it.

    It can be made, subscribed to, inspected and closed with :meth:`shutdown_sync` while no event loop runs; sends
    and the other coroutines belong to the loop that first runs one.

    Args:
        config: how it behaves; MPREG's own configuration object will do.
        log: ``"memory:"``, ``"sqlite:///orders.db"``, a path, or an :class:`~mpreg_mq.events.EventLog`. None means
            memory. What the log already holds of this queue is taken up again.
        autostart: with False nothing is delivered before :meth:`start_workers`.
        clock: where the time comes from.

    Raises:
        ConfigurationError: the configuration, the log's address or the clock is bad.
        InvalidOptionError: ``autostart`` is neither true nor false.
        EventLogError: the log cannot be opened or read.
    """

    def __init__(
        self,
        config: QueueConfiguration,
        *,
        log: str | PathLike[str] | EventLog | None = None,
        autostart: bool = True,
        clock: Clock | None = None,
    ) -> None:
        configuration = QueueConfiguration.coerce(config)
        require("autostart", flag, autostart)
        ticking = clock_of(clock)
        durability = configuration.durability or Durability.COMMITTED
        opened = open_log("memory:" if log is None or durability is Durability.MEMORY else log)
        store = Store.open(opened).at(durability, DEFAULT_BUFFERED_MILLISECONDS)
        self._owns_log = opened is not log
        try:
            actor = make_actor(configuration.name, store, ticking)
            actor.started = autostart
            self._begin(actor, store)
            actor.call_now(c.Open(configuration))
            actor.call_now(Recover())
        except BaseException:
            # A log that cannot be taken up must not stay locked by who could not.
            self._own_store: Store | None = store
            self._close_store()
            raise

    @classmethod
    def of_actor(cls, actor: QueueActor) -> MessageQueue:
        """The façade of an actor whose log somebody else owns (the manager)."""
        queue = cls.__new__(cls)
        queue._owns_log = False
        queue._begin(actor, None)
        return queue

    # --- sending ------------------------------------------------------------------------------------------

    async def send_message(
        self,
        topic: str,
        payload: Any,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> DeliveryResult:
        """Send one message (S1-S4). Never raises for bad input: the result says why it was refused.

        Args:
            topic: levels split at ``.``, without wildcards.
            payload: anything msgspec encodes; it is encoded before this returns, so later changes to it do not matter.
            delivery_guarantee: G1-G4.
            **options: ``priority``, ``delay_seconds``, ``visibility_timeout_seconds``,
                ``acknowledgment_timeout_seconds``, ``max_retries``, ``required_acknowledgments``, ``headers``,
                ``message_ttl_seconds``, ``deduplication_id``, ``group_id``. None means the queue's default.

        Cost per send is O(log n) in the messages held.
        """
        actor = self._actor
        try:
            send = send_command(actor.state.configuration, topic, payload, delivery_guarantee, options)
        except MessageQueueError as error:
            return self._refused(topic, error)
        yielded = False
        while actor.sends_ahead >= actor.sends_before_look and actor.has_to_yield(yielded):
            before = actor.deliveries
            # Also has it plan its turn here, where the loop it was planned on is no more.
            is_here = actor.in_own_thread()
            await asyncio.sleep(0)
            yielded = True
            # Where many queues have much to deliver, its turn may come later.
            if actor.deliveries == before and not (is_here and actor.waits_for_turn):
                break
        try:
            reply = actor.try_send(send)
            if type(reply) is DeliveryResult:
                return reply
            if isinstance(reply, asyncio.Future):
                try:
                    # Elsewhere nobody asks who else sends.
                    reply = among_senders(reply, actor.turns) if actor.commits_at_once else reply
                    result: DeliveryResult = await reply
                except asyncio.CancelledError:
                    self._abandon(send)
                    raise
                return result
            if type(reply) is Stored:
                return await let_others(reply, actor.turns)
            if reply is BUSY:
                reply = actor.call(send)
            result = await self._reply(reply, send)
        except MessageQueueError as error:
            return failed_result(error)
        return result

    async def send_once(
        self,
        key: str,
        topic: str,
        payload: Any,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> DeliveryResult:
        """Send one message unless ``key`` was sent within the deduplication window, on any queue (U1).

        As :meth:`send_message`, with this key, a string of 1 to 256 characters, in the place of the queue's own.
        """
        try:
            send = send_command(self.config, topic, payload, delivery_guarantee, options)
            send = msgspec.structs.replace(send, fingerprint=required_identifier("key", key))
        except MessageQueueError as error:
            return self._refused(topic, error)
        try:
            result: DeliveryResult = await self._ask(send)
        except MessageQueueError as error:
            return failed_result(error)
        return result

    async def send_messages(
        self,
        messages: Iterable[Mapping[str, Any] | tuple[str, Any]],
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> list[DeliveryResult]:
        """Send a batch in one commit; one result per message, in order (S5). Fire-and-forget is one after another.

        Args:
            messages: ``(topic, payload)`` pairs, or mappings with ``topic``, ``payload`` and options of their own,
                which go before the common ``options``. At most 10,000.

        Raises:
            InvalidOptionError: the batch is too long or none, an entry is neither form, or there is no such guarantee.
        """
        fires = guarantee_of(delivery_guarantee) is DeliveryGuarantee.FIRE_AND_FORGET
        sends, refused = send_commands(self.config, messages, delivery_guarantee, options)
        refusals = [self._refused(topic, error) for _, topic, error in refused]
        results = await (self._fire(sends) if fires else self._send_batch(sends))
        for (place, _, _), refusal in zip(refused, refusals, strict=True):
            results.insert(place, refusal)
        return results

    async def _send_batch(self, sends: list[c.Send]) -> list[DeliveryResult]:
        try:
            results: list[DeliveryResult] = await self._ask(c.SendBatch(tuple(sends))) if sends else []
        except MessageQueueError as error:
            return [failed_result(error)] * len(sends)
        return results

    async def _fire(self, sends: list[c.Send]) -> list[DeliveryResult]:
        results: list[DeliveryResult] = []
        for send in sends:
            try:
                results.append(await self._ask(send))
            except MessageQueueError as error:
                results.append(failed_result(error))
        return results

    def _refused(self, topic: Any, error: MessageQueueError) -> DeliveryResult:
        """Log a send that was refused before it became a command, and answer with the reason (S2)."""
        reason = rejection_of(error)
        shown = topic if isinstance(topic, str) and len(topic) <= topics.MAX_TOPIC_LENGTH else describe(topic)
        try:
            reply = self._actor.call(c.RecordRejection(shown, reason, str(error)))
        except MessageQueueError as failure:
            return failed_result(failure)
        if isinstance(reply, DeliveryResult):
            return reply
        return DeliveryResult(False, None, error_message=str(error), rejection=reason)

    # --- subscribing --------------------------------------------------------------------------------------

    def subscribe(
        self,
        subscriber_id: str,
        topic_pattern: str,
        callback: Callback | None = None,
        auto_acknowledge: bool = True,
        *,
        max_in_flight: int | None = None,
        blocking: bool = False,
        **metadata: str,
    ) -> str:
        """Subscribe to the topics that match a pattern (G6); returns the subscription id.

        Args:
            subscriber_id: who receives; several subscriptions of one subscriber count as one in G2-G4.
            topic_pattern: ``*`` is one level, ``#`` zero or more.
            callback: a function or coroutine function of one message. A function runs on the event loop. Both run in
                the context (:mod:`contextvars`) of this call, whoever sends the message. Without a callback the
                subscriber fetches with :meth:`receive_messages`.
            auto_acknowledge: acknowledge when the callback has come to its end (L4).
            max_in_flight: most messages leased to it at once (C2); default of the queue, or 1 where blocking.
            blocking: run the callback on a thread of its own.
            **metadata: strings to keep with the subscription, under names that are unlike those above.

        Raises:
            InvalidTopicError: the pattern is malformed.
            InvalidOptionError: another argument is bad.
            QueueClosedError: the queue is closed.
        """
        check_subscription(subscriber_id, topic_pattern, auto_acknowledge, max_in_flight, blocking, metadata)
        if callback is not None and not callable(callback):
            raise InvalidOptionError(f"callback: got {describe(callback)}, expected a function of one message, or None")
        subscription_id = str(uuid.uuid4())
        self._actor.call_now(
            c.Subscribe(
                subscriber_id,
                subscription_id,
                topic_pattern,
                callback,
                auto_acknowledge,
                max_in_flight,
                blocking,
                metadata,
                copy_context(),
            )
        )
        return subscription_id

    def unsubscribe(self, subscription_id: str) -> bool:
        """End a subscription; whether there was one. The subscriber leaves the audiences it was in (G3)."""
        # What can be no id, such as a list of them, is that of no subscription.
        if self._closed or not isinstance(subscription_id, str):
            return False
        done: bool = self._actor.call_now(c.Unsubscribe(subscription_id))
        return done

    @staticmethod
    def _topic_matches_pattern(topic: str, pattern: str) -> bool:
        """Kept because programs and tests written for MPREG's queue call it."""
        return topics.matches(pattern, topic)

    async def receive_messages(
        self,
        subscriber_id: str,
        max_messages: int = 1,
        wait_seconds: float = 0.0,
        *,
        visibility_timeout_seconds: float | None = None,
        topic_pattern: str = "#",
    ) -> list[QueuedMessage]:
        """Fetch messages and lease them for the visibility timeout (L1); acknowledge them when done.

        A subscriber that has no subscription yet gets one for ``topic_pattern``; one that has fetches what its
        subscriptions match. With ``wait_seconds`` it waits that long for the first message.

        Raises:
            InvalidTopicError: the pattern is malformed.
            InvalidOptionError: an argument is bad, or the subscriber has a callback, or patterns but not this one.
            QueueClosedError: the queue is closed.
        """
        check_receive(subscriber_id, max_messages, wait_seconds, visibility_timeout_seconds)
        await self._join(subscriber_id, topic_pattern)
        return await self._fetch(c.Receive(subscriber_id, max_messages, wait_seconds, visibility_timeout_seconds))

    async def _join(self, subscriber_id: str, topic_pattern: str) -> None:
        subscriber = self._actor.state.subscribers.get(subscriber_id)
        if subscriber is None or not subscriber.present:
            topics.check_pattern(topic_pattern)
            subscription_id, context = str(uuid.uuid4()), copy_context()
            # Unlike subscribe, it can wait: for another loop, or until the queue has read its log again.
            await self._ask(
                Join(c.Subscribe(subscriber_id, subscription_id, topic_pattern, None, True, None, False, {}, context))
            )
        else:
            check_fetches(subscriber, topic_pattern)

    async def _fetch(self, command: c.Receive) -> list[QueuedMessage]:
        reply = self._actor.call(command)
        if not isinstance(reply, LoopFuture):
            taken: list[QueuedMessage] = reply
            return taken
        try:
            messages: list[QueuedMessage] = await self._reply(reply, command)
        except asyncio.CancelledError:
            if reply.done():
                for message in reply.get():
                    end = c.EndLease(message.id.id, command.subscriber_id, c.WITHDRAWN, message.delivery_attempt)
                    self._actor.call(end)
            raise
        return messages

    # --- settling -----------------------------------------------------------------------------------------

    async def acknowledge_message(self, message_id: MessageReference, subscriber_id: str) -> bool:
        """Acknowledge (L2): False from a stranger, a second time, or for a message that is finished."""
        return await self._settle(c.Acknowledge(id_text(message_id), subscriber_id))

    async def negative_acknowledge(
        self,
        message_id: MessageReference,
        subscriber_id: str,
        reason: str = "negatively acknowledged",
        delay_seconds: float = 0.0,
    ) -> bool:
        """Give a message back as a failed attempt, at once or after ``delay_seconds`` (L3).

        Raises:
            InvalidOptionError: ``delay_seconds`` is out of range.
        """
        require("delay_seconds", seconds(0.0), delay_seconds)
        return await self._settle(c.NegativeAcknowledge(id_text(message_id), subscriber_id, str(reason), delay_seconds))

    async def extend_lease(self, message_id: MessageReference, subscriber_id: str, seconds_from_now: float) -> bool:
        """Keep a message for longer (L3): its lease ends ``seconds_from_now`` from now.

        Raises:
            InvalidOptionError: ``seconds_from_now`` is out of range.
        """
        require("seconds_from_now", seconds(0.0, exclusive=True), seconds_from_now)
        return await self._settle(c.ExtendLease(id_text(message_id), subscriber_id, seconds_from_now))

    async def _settle(self, command: c.Acknowledge | c.NegativeAcknowledge | c.ExtendLease) -> bool:
        try:
            counted: bool = await self._ask(command)
        except QueueClosedError:
            return False
        return counted

    # --- dead letters, purging, pausing -------------------------------------------------------------------

    async def redrive_dead_letters(
        self,
        message_ids: Iterable[DeadReference] | None = None,
        *,
        limit: int | None = None,
        target: MessageQueue | None = None,
        dry_run: bool = False,
    ) -> list[MessageId]:
        """Accept dead letters again, here or in ``target``; the ids of the new messages (D1).

        All of them, or those named, oldest first, at most ``limit``, and as many as the target has room for. What is
        beyond the target's limits is refused there, as a send would be, is not counted, and stays a dead letter here.
        With ``dry_run`` nothing changes and the answer is the ids that would be redriven. What another queue is
        accepting is nobody else's to redrive or purge, and whoever stops waiting for that does not stop it.

        Raises:
            InvalidOptionError: ``limit`` is out of range, ``message_ids`` is a single one, or ``target`` is no queue.
            EventLogError: the new messages could not be stored, and nothing was redriven; or the other queue has them,
                and that they are no dead letters here any more could not be stored.
        """
        require("limit", whole(1, 1_000_000_000, optional=True), limit)
        require("dry_run", flag, dry_run)
        if target is not None and not isinstance(target, MessageQueue):
            raise InvalidOptionError(
                f"target: got {describe(target)}, expected a MessageQueue; manager.queue(name) is the one of that name"
            )
        ids = dead_letter_ids(message_ids)
        if dry_run:
            return await would_redrive(self, target or self, ids, limit)
        return await redrive(self, target or self, ids, limit)

    async def purge_dead_letters(self, message_ids: Iterable[DeadReference] | None = None) -> int:
        """Remove dead letters, all or those named, except what another queue is accepting; how many.

        Raises:
            InvalidOptionError: ``message_ids`` is a single one, or holds something else than dead letters.
        """
        ids = dead_letter_ids(message_ids)
        count: int = await self._ask(c.PurgeDeadLetters(ids))
        return count

    async def purge_queue(self) -> int:
        """Remove every message that is not finished, leased ones included; how many."""
        count: int = await self._ask(c.Purge())
        return count

    def pause_queue(self) -> bool:
        """Stop delivering; sends are still accepted. Whether that changed anything."""
        changed: bool = self._actor.call_now(c.Pause())
        return changed

    def resume_queue(self) -> bool:
        """Go on delivering. Whether that changed anything."""
        changed: bool = self._actor.call_now(c.Resume())
        return changed

    # --- beginning and end --------------------------------------------------------------------------------

    def start_workers(self) -> None:
        """Start delivering, where the queue was made with ``autostart=False``."""
        self._actor.call_now(Start())

    async def _ask(self, message: Any) -> Any:
        return await self._reply(self._actor.call(message), message)

    async def _look(self, function: Callable[[QueueState, float], T]) -> T:
        """As ``_inspect``, for what can wait: for another loop, or until the queue has read its log again."""
        try:
            found: T = await self._ask(Inspect(function))
        except QueueClosedError:
            return function(self._actor.state, self._actor.state.last_at)
        return found

    async def _reply(self, reply: Any, command: Any) -> Any:
        """The reply, once it is there. Whoever stops waiting is struck off the queue's lists."""
        if not isinstance(reply, LoopFuture):
            return reply
        try:
            return await reply
        except pykka.ActorDeadError:
            raise self._actor.closed_error() from None
        except asyncio.CancelledError:
            self._abandon(command)
            raise

    def _abandon(self, command: Any) -> None:
        # Whoever was cancelled is to hear of that and of nothing else.
        with contextlib.suppress(MessageQueueError):
            self._actor.call(Abandon(command))
