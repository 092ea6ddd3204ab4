"""The queues of a whole cluster, with the names and arguments of :class:`~mpreg_mq.manager.MessageQueueManager`."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from mpreg_mq._validation import describe, queue_name_problem, seconds, storable, whole
from mpreg_mq.actors import commands as c
from mpreg_mq.arguments import (
    DeadReference,
    MessageReference,
    check_receive,
    check_subscription,
    dead_letter_ids,
    id_text,
    id_texts,
)
from mpreg_mq.clock import Clock
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.callbacks import Callbacks
from mpreg_mq.cluster.configuration import ClusterConfiguration
from mpreg_mq.cluster.directory import SeenQueue
from mpreg_mq.cluster.node import Node
from mpreg_mq.cluster.placement import wanted_owner
from mpreg_mq.cluster.routing import Router
from mpreg_mq.cluster.transport import Transport
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration
from mpreg_mq.ending import Ending
from mpreg_mq.errors import (
    EventLogError,
    InvalidOptionError,
    MessageQueueError,
    QueueClosedError,
    QueueNotFoundError,
)
from mpreg_mq.events.nats import NatsTarget
from mpreg_mq.model import (
    Callback,
    DeadLetter,
    DeliveryGuarantee,
    DeliveryResult,
    MessageId,
    QueuedMessage,
    QueueManagerStatistics,
    QueueStatistics,
)
from mpreg_mq.named_queues import add_counts
from mpreg_mq.options import require
from mpreg_mq.sending import batch_entries, failed_result, send_command

logger = logging.getLogger("mpreg_mq")


class ClusterQueueManager:
    """Named queues on several nodes: every node takes sends, receives and acknowledgments for all of them.

    Each queue has one owner among the nodes; a request that arrives elsewhere goes there. When the owner ends, another
    node replays the queue and goes on: delays, attempts, deduplication and the leases of subscribers hold.

    A subscription's callback runs on the node that subscribed. A callback of a queue that changes its owner goes on
    undisturbed. What differs from a manager on one node: statistics and pausing are coroutines, a fire-and-forget send
    does not say to whom it was delivered, and a send whose answer was lost is refused as a store error unless it can be
    repeated, which it can on a queue that deduplicates.

    Args:
        log: ``nats://host:4222/STREAM``; the same for all nodes.
        cluster: this node's part.
        config: defaults and limits for queues that are created here, and how often queues that this node owns are
            saved. Replies always wait for the log, whatever durability a queue asks for.
        clock: where the queues' time comes from.
        fabric: how to reach other nodes where that works, before NATS; see
            :class:`~mpreg_mq.cluster.fabric.FabricTransport`.

    Raises:
        ConfigurationError: the address or a configuration is bad.
    """

    def __init__(
        self,
        log: str,
        cluster: ClusterConfiguration | None = None,
        config: QueueManagerConfiguration | None = None,
        *,
        clock: Clock | None = None,
        fabric: Transport | None = None,
    ) -> None:
        self.config = QueueManagerConfiguration.coerce(config)
        self.node = Node(
            NatsTarget.parse(log),
            cluster or ClusterConfiguration(),
            clock,
            fabric,
            self.config.snapshot_every_events,
        )
        self._router = Router(self.node)
        self._callbacks = Callbacks(self._router, self.node)
        self._started = False
        self._closed = False
        self._ending = Ending()

    # --- beginning and end --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the cluster.

        Raises:
            EventLogError: the servers do not answer, or the stream is another program's.
        """
        self.node.on_fire_and_forget = self._callbacks.fire
        await self.node.start()
        self._started = True

    async def drain(self) -> None:
        """Give all queues of this node to others, and take none until it ends. Requests are still forwarded."""
        await self.node.drain()

    async def shutdown(self) -> None:
        """End the subscriptions of this node, hand its queues over, and leave.

        Running callbacks get ``shutdown_timeout_seconds``. It comes to its end although whoever waits for it is
        cancelled; calling it again waits for that.
        """
        self._closed = True
        if self._started:
            await self._ending.reach(self._end)

    async def _end(self) -> None:
        await self._callbacks.stop(self.config.shutdown_timeout_seconds)
        await self.node.stop()

    async def __aenter__(self) -> ClusterQueueManager:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    def _check_open(self) -> None:
        if self._closed or not self._started:
            raise QueueClosedError("the cluster manager is not running; use 'async with', or call start()")

    # --- queues -------------------------------------------------------------------------------------------

    @property
    def queue_configs(self) -> dict[str, QueueConfiguration]:
        """The configurations of all queues of the cluster by name, as of the last look; a copy."""
        return {name: seen.record.configuration for name, seen in self.node.directory.queues.items()}

    def list_queues(self) -> list[str]:
        """The names of all queues of the cluster, as of the last look."""
        return sorted(self.node.directory.queues)

    def owner_of(self, queue_name: str) -> str | None:
        """The node id of a queue's owner; None while it has none."""
        owner = self.node.directory.owner(queue_name)
        return None if owner is None else owner.partition(".")[0]

    async def create_queue(self, name: str, config: QueueConfiguration | None = None) -> bool:
        """Create a queue on the node that should own it; False if it exists, and then nothing about it changes.

        Raises:
            ConfigurationError: the name or the configuration is bad, or ``config`` names another queue.
            EventLogError: no node could store it in time.
        """
        self._check_open()
        configuration = self.config.new_queue_configuration(name, config)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.node.configuration.request_timeout_seconds
        directory = self.node.directory
        error: MessageQueueError = EventLogError(f"create queue {name!r}: no node takes queues now")
        while loop.time() < deadline:
            if name in directory.queues and await self._router.has(name):
                return False
            candidates = directory.candidates()
            node = wanted_owner(name, candidates)
            if node is not None:
                try:
                    created: bool = await self._router.ask_member(candidates[node], name, c.Open(configuration))
                    if await self.node.hears_of(name) or created:
                        return created
                    # It was deleted meanwhile, and there is room for another one.
                except EventLogError as failed:
                    error = failed
            self.node.look_soon()
            await directory.changed(self.node.configuration.look_seconds)
        raise error

    async def delete_queue(self, name: str) -> bool:
        """Delete a queue with all that is in it; False if there is none."""
        self._check_open()
        try:
            await self._router.ask(name, c.Delete())
        except (QueueNotFoundError, QueueClosedError):
            return False
        return True

    # --- sending ------------------------------------------------------------------------------------------

    async def send_message(
        self,
        queue_name: str,
        topic: str,
        payload: Any,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> DeliveryResult:
        """Send to a queue, which is created if ``enable_auto_queue_creation`` says so; never raises for bad input.

        The result is a success once the owner's log has the message. Where no answer came and it cannot be repeated the
        rejection is ``STORE_ERROR``, and the message may have been accepted.
        """
        try:
            self._check_open()
            send = send_command(await self._configuration(queue_name), topic, payload, delivery_guarantee, options)
            result: DeliveryResult = await self._router.ask(queue_name, send, repeatable=send.fingerprint is not None)
        except MessageQueueError as error:
            return failed_result(error)
        return result

    async def send_messages(
        self,
        queue_name: str,
        messages: Iterable[Mapping[str, Any] | tuple[str, Any]],
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> list[DeliveryResult]:
        """Send a batch in one commit; one result per message, in order (S5).

        Raises:
            InvalidOptionError: the batch is too long, or an entry is neither a pair nor a mapping.
        """
        entries = batch_entries(messages)
        results: list[DeliveryResult | None] = []
        sends: list[c.Send] = []
        try:
            self._check_open()
            configuration = await self._configuration(queue_name)
            for topic, payload, own in entries:
                try:
                    sends.append(send_command(configuration, topic, payload, delivery_guarantee, {**options, **own}))
                    results.append(None)
                except MessageQueueError as error:
                    results.append(failed_result(error))
            accepted = iter(
                await self._router.ask(queue_name, c.SendBatch(tuple(sends)), repeatable=False) if sends else ()
            )
        except MessageQueueError as error:
            failed = failed_result(error)
            return [failed if result is None else result for result in results or [None] * len(entries)]
        return [next(accepted) if result is None else result for result in results]

    def _seen(self, queue_name: Any) -> SeenQueue | None:
        return self.node.directory.queues.get(queue_name) if isinstance(queue_name, str) else None

    async def _configuration(self, queue_name: str) -> QueueConfiguration:
        seen = self._seen(queue_name)
        if seen is not None:
            return seen.record.configuration
        if not self.config.enable_auto_queue_creation or queue_name_problem(queue_name) is not None:
            raise QueueNotFoundError(f"Queue {describe(queue_name)} does not exist; create it first")
        await self.create_queue(queue_name)
        seen = self._seen(queue_name)
        if seen is None:
            raise QueueNotFoundError(f"Queue {describe(queue_name)} was deleted by somebody else just now; send again")
        return seen.record.configuration

    # --- subscribing --------------------------------------------------------------------------------------

    def subscribe_to_queue(
        self,
        queue_name: str,
        subscriber_id: str,
        topic_pattern: str,
        callback: Callback | None = None,
        auto_acknowledge: bool = True,
        *,
        max_in_flight: int | None = None,
        blocking: bool = False,
        **metadata: str,
    ) -> str | None:
        """Subscribe a callback of this process; None if there is no such queue.

        The owner hears of it soon after. Without a callback use :meth:`receive_messages`.

        Raises:
            InvalidTopicError: the pattern is malformed.
            InvalidOptionError: another argument is bad, or there is no callback.
            QueueClosedError: the manager does not run.
        """
        self._check_open()
        check_subscription(subscriber_id, topic_pattern, auto_acknowledge, max_in_flight, blocking, metadata)
        if not callable(callback):
            raise InvalidOptionError(
                f"callback: got {describe(callback)}, expected a function of one message; fetch with receive_messages"
            )
        seen = self._seen(queue_name)
        if seen is None:
            logger.error("cannot subscribe %s: queue %s does not exist", subscriber_id, queue_name)
            return None
        configuration = seen.record.configuration
        most = max_in_flight or (1 if blocking else configuration.default_max_in_flight)
        subscription_id = str(uuid.uuid4())
        self._callbacks.add(
            queue_name,
            wire.SubscribeRequest(
                subscriber_id,
                subscription_id,
                topic_pattern,
                self.node.member,
                most,
                auto_acknowledge,
                metadata,
            ),
            callback,
            max_in_flight=most,
            blocking=blocking,
        )
        return subscription_id

    def unsubscribe_from_queue(self, queue_name: str, subscription_id: str) -> bool:
        """End a subscription of this node, soon; whether there was one. What its callback works on may finish."""
        return self._callbacks.remove(queue_name, subscription_id, self.config.shutdown_timeout_seconds)

    # --- receiving and settling ---------------------------------------------------------------------------

    async def receive_messages(
        self,
        queue_name: str,
        subscriber_id: str,
        max_messages: int = 1,
        wait_seconds: float = 0.0,
        *,
        visibility_timeout_seconds: float | None = None,
        topic_pattern: str = "#",
    ) -> list[QueuedMessage]:
        """Fetch messages and lease them; see :meth:`mpreg_mq.queue.MessageQueue.receive_messages`.

        The lease is in the log before this returns, so the next owner honours it. Payloads of more than 8 MiB together
        take several requests.

        Raises:
            QueueNotFoundError: there is no such queue.
            EventLogError: no owner could be found in time.
        """
        self._check_open()
        check_receive(subscriber_id, max_messages, wait_seconds, visibility_timeout_seconds)
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_seconds
        while True:
            left = max(0.0, end - loop.time())
            # Waiting in short stretches, so that an owner that is gone costs little.
            stretch = min(left, 5.0)
            messages: list[QueuedMessage] = await self._router.ask(
                queue_name,
                wire.ReceiveRequest(subscriber_id, max_messages, stretch, visibility_timeout_seconds, topic_pattern),
                waits=stretch,
            )
            if messages or loop.time() >= end:
                return messages

    async def acknowledge_message(self, queue_name: str, message_id: MessageReference, subscriber_id: str) -> bool:
        """Acknowledge (L2); False if there is no such queue."""
        (counted,) = await self._settle(
            queue_name, wire.AcknowledgeMany((c.Acknowledge(id_text(message_id), subscriber_id),)), [False]
        )
        return bool(counted)

    async def acknowledge_messages(
        self, queue_name: str, message_ids: Iterable[MessageReference], subscriber_id: str
    ) -> list[bool]:
        """Acknowledge several messages in one request and one commit; which of them counted (L2).

        Raises:
            InvalidOptionError: ``message_ids`` is a single one.
        """
        many = tuple(c.Acknowledge(message_id, subscriber_id) for message_id in id_texts(message_ids))
        counted: list[bool] = await self._settle(queue_name, wire.AcknowledgeMany(many), [False] * len(many))
        return counted

    async def negative_acknowledge(
        self,
        queue_name: str,
        message_id: MessageReference,
        subscriber_id: str,
        reason: str = "negatively acknowledged",
        delay_seconds: float = 0.0,
    ) -> bool:
        """Give a message back (L3); False if there is no such queue."""
        require("delay_seconds", seconds(0.0), delay_seconds)
        command = c.NegativeAcknowledge(id_text(message_id), subscriber_id, storable(str(reason)), delay_seconds)
        return bool(await self._settle(queue_name, command, False))

    async def extend_lease(
        self, queue_name: str, message_id: MessageReference, subscriber_id: str, seconds_from_now: float
    ) -> bool:
        """Keep a message for longer (L3); False if there is no such queue."""
        require("seconds_from_now", seconds(0.0, exclusive=True), seconds_from_now)
        text = id_text(message_id)
        extended = bool(await self._settle(queue_name, c.ExtendLease(text, subscriber_id, seconds_from_now), False))
        if extended:
            self._callbacks.extended(queue_name, subscriber_id, text, seconds_from_now)
        return extended

    async def _settle(self, queue_name: str, asked: Any, otherwise: Any) -> Any:
        self._check_open()
        try:
            return await self._router.ask(queue_name, asked)
        except (QueueNotFoundError, QueueClosedError):
            return otherwise

    # --- administration -----------------------------------------------------------------------------------

    async def pause_queue(self, queue_name: str) -> bool:
        """Stop delivering; whether that changed anything."""
        return bool(await self._router.ask(queue_name, c.Pause()))

    async def resume_queue(self, queue_name: str) -> bool:
        """Go on delivering; whether that changed anything."""
        return bool(await self._router.ask(queue_name, c.Resume()))

    async def purge_queue(self, queue_name: str) -> int:
        """Remove every unfinished message; how many."""
        return int(await self._router.ask(queue_name, c.Purge()))

    async def list_dead_letters(self, queue_name: str) -> list[DeadLetter]:
        """The dead letters of a queue, oldest first (D1)."""
        listed: wire.ListedDeadLetters = await self._router.ask(queue_name, wire.DeadLetters())
        return listed.as_they_were()

    async def redrive_dead_letters(
        self, queue_name: str, message_ids: Iterable[DeadReference] | None = None, *, limit: int | None = None
    ) -> list[MessageId]:
        """Accept dead letters again in their queue, all or those named, at most ``limit`` (D1)."""
        require("limit", whole(1, 1_000_000_000, optional=True), limit)
        ids = dead_letter_ids(message_ids)
        pairs = await self._router.ask(queue_name, c.Redrive(ids, limit), repeatable=False)
        return [MessageId(new, source_node=queue_name) for _, new in pairs]

    async def purge_dead_letters(self, queue_name: str, message_ids: Iterable[DeadReference] | None = None) -> int:
        """Remove dead letters, all or those named; how many."""
        ids = dead_letter_ids(message_ids)
        return int(await self._router.ask(queue_name, c.PurgeDeadLetters(ids)))

    async def get_queue_statistics(self, queue_name: str) -> QueueStatistics | None:
        """Counts of one queue, from its owner; None if there is no such queue."""
        try:
            statistics: QueueStatistics = await self._router.ask(queue_name, wire.Statistics())
        except QueueNotFoundError:
            return None
        return statistics

    def get_global_statistics(self) -> QueueManagerStatistics:
        """Sums over the queues that this node owns; ``total_queues`` is the whole cluster's. O(queues)."""
        total = QueueManagerStatistics(total_queues=len(self.node.directory.queues))
        owned = {} if self.node.ownership is None else self.node.ownership.queues
        for one in owned.values():
            add_counts(total, one.queue.get_statistics())
            total.active_subscriptions += len(one.queue.subscriptions)
        return total

    def metrics(self) -> dict[str, float]:
        """This node's counters and gauges by name; see :class:`~mpreg_mq.cluster.metrics.ClusterMetrics`."""
        owned = 0 if self.node.ownership is None else len(self.node.ownership.queues)
        return self.node.metrics.snapshot(self.node.lease_age_seconds, owned)
