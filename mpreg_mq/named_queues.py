"""Queues by name: the verbs of :class:`~mpreg_mq.queue.MessageQueue`, with the name of the queue in front."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import attrs

from mpreg_mq._validation import describe
from mpreg_mq.arguments import DeadReference, MessageReference
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import QueueClosedError, QueueNotFoundError
from mpreg_mq.model import Callback, DeadLetter, MessageId, QueuedMessage, QueueManagerStatistics, QueueStatistics
from mpreg_mq.queue import MessageQueue

logger = logging.getLogger("mpreg_mq")


def add_counts(total: QueueManagerStatistics, counts: QueueStatistics) -> None:
    """Add the counts of one queue to the sums over several."""
    total.total_messages_sent += counts.messages_sent
    total.total_messages_received += counts.messages_received
    total.total_messages_acknowledged += counts.messages_acknowledged
    total.total_messages_failed += counts.messages_failed


class _Queues(dict[str, MessageQueue]):
    """Queues by name. What can be no name, such as a list, finds none."""

    def get(self, name: Any, default: None = None, /) -> MessageQueue | None:  # type: ignore[override]
        return super().get(name) if isinstance(name, str) else default


class NamedQueues:
    """The part of :class:`~mpreg_mq.manager.MessageQueueManager` that finds a queue and has it do the rest."""

    def __init__(self) -> None:
        self._queues = _Queues()
        self._retired = QueueManagerStatistics()
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosedError("the queue manager is closed; make a new one")

    # --- the table ----------------------------------------------------------------------------------------

    @property
    def queues(self) -> dict[str, MessageQueue]:
        """The queues by name; a copy of the table."""
        return dict(self._queues)

    @property
    def queue_configs(self) -> dict[str, QueueConfiguration]:
        """The configurations by queue name; a copy."""
        return {name: queue.config for name, queue in self.queues.items()}

    def queue(self, name: str) -> MessageQueue:
        """The queue of this name.

        Raises:
            QueueNotFoundError: there is none.
        """
        queue = self._queues.get(name)
        if queue is None:
            raise QueueNotFoundError(
                f"Queue {describe(name)} does not exist; create it first, or list_queues() to see those that do"
            )
        return queue

    def list_queues(self) -> list[str]:
        """The names of all queues."""
        return list(self._queues)

    def get_queue_info(self, queue_name: str) -> dict[str, Any] | None:
        """Configuration and statistics of a queue as plain data, as MPREG reports them; None if there is none."""
        queue = self._queues.get(queue_name)
        if queue is None:
            return None
        config, stats = queue.config, queue.get_statistics()
        return {
            "name": queue_name,
            "config": {
                "queue_type": config.queue_type.value,
                "max_size": config.max_size,
                "default_visibility_timeout_seconds": config.default_visibility_timeout_seconds,
                "default_acknowledgment_timeout_seconds": config.default_acknowledgment_timeout_seconds,
                "enable_dead_letter_queue": config.enable_dead_letter_queue,
                "enable_deduplication": config.enable_deduplication,
            },
            "statistics": {**attrs.asdict(stats), "success_rate": stats.success_rate()},
            "subscriptions": len(queue.subscriptions),
            "paused": queue.paused,
        }

    # --- messages -----------------------------------------------------------------------------------------

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
        """Subscribe to a queue; None if it does not exist. See :meth:`MessageQueue.subscribe`.

        Raises:
            InvalidTopicError: the pattern is malformed.
            InvalidOptionError: another argument is bad.
            QueueClosedError: the manager is closed.
        """
        self._check_open()
        queue = self._queues.get(queue_name)
        if queue is None:
            logger.error("cannot subscribe %s: queue %s does not exist", subscriber_id, queue_name)
            return None
        return queue.subscribe(
            subscriber_id,
            topic_pattern,
            callback,
            auto_acknowledge,
            max_in_flight=max_in_flight,
            blocking=blocking,
            **metadata,
        )

    def unsubscribe_from_queue(self, queue_name: str, subscription_id: str) -> bool:
        """End a subscription; False if there is no such queue or subscription."""
        queue = self._queues.get(queue_name)
        return queue is not None and queue.unsubscribe(subscription_id)

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
        """Fetch messages; see :meth:`MessageQueue.receive_messages`.

        Raises:
            QueueNotFoundError: there is no such queue.
        """
        return await self.queue(queue_name).receive_messages(
            subscriber_id,
            max_messages,
            wait_seconds,
            visibility_timeout_seconds=visibility_timeout_seconds,
            topic_pattern=topic_pattern,
        )

    async def acknowledge_message(self, queue_name: str, message_id: MessageReference, subscriber_id: str) -> bool:
        """Acknowledge (L2); False if there is no such queue."""
        queue = self._queues.get(queue_name)
        return queue is not None and await queue.acknowledge_message(message_id, subscriber_id)

    async def negative_acknowledge(
        self,
        queue_name: str,
        message_id: MessageReference,
        subscriber_id: str,
        reason: str = "negatively acknowledged",
        delay_seconds: float = 0.0,
    ) -> bool:
        """Give a message back (L3); False if there is no such queue."""
        queue = self._queues.get(queue_name)
        return queue is not None and await queue.negative_acknowledge(message_id, subscriber_id, reason, delay_seconds)

    async def extend_lease(
        self, queue_name: str, message_id: MessageReference, subscriber_id: str, seconds_from_now: float
    ) -> bool:
        """Keep a message for longer (L3); False if there is no such queue."""
        queue = self._queues.get(queue_name)
        return queue is not None and await queue.extend_lease(message_id, subscriber_id, seconds_from_now)

    def list_dead_letters(self, queue_name: str) -> list[DeadLetter]:
        """Copies of a queue's dead letters, oldest first (D1).

        Raises:
            QueueNotFoundError: there is no such queue.
        """
        return self.queue(queue_name).list_dead_letters()

    async def redrive_dead_letters(
        self,
        queue_name: str,
        message_ids: Iterable[DeadReference] | None = None,
        *,
        limit: int | None = None,
        target_queue: str | None = None,
        dry_run: bool = False,
    ) -> list[MessageId]:
        """Accept dead letters again, here or in another queue (D1); see :meth:`MessageQueue.redrive_dead_letters`.

        Raises:
            QueueNotFoundError: either queue does not exist.
        """
        target = None if target_queue is None else self.queue(target_queue)
        return await self.queue(queue_name).redrive_dead_letters(
            message_ids, limit=limit, target=target, dry_run=dry_run
        )

    async def purge_dead_letters(self, queue_name: str, message_ids: Iterable[DeadReference] | None = None) -> int:
        """Remove dead letters of a queue, all or those named; how many.

        Raises:
            QueueNotFoundError: there is no such queue.
        """
        return await self.queue(queue_name).purge_dead_letters(message_ids)

    async def purge_queue(self, queue_name: str) -> int:
        """Remove every unfinished message of a queue; how many.

        Raises:
            QueueNotFoundError: there is no such queue.
        """
        return await self.queue(queue_name).purge_queue()

    def pause_queue(self, queue_name: str) -> bool:
        """Stop delivering from a queue; whether that changed anything.

        Raises:
            QueueNotFoundError: there is no such queue.
        """
        return self.queue(queue_name).pause_queue()

    def resume_queue(self, queue_name: str) -> bool:
        """Go on delivering; whether that changed anything.

        Raises:
            QueueNotFoundError: there is no such queue.
        """
        return self.queue(queue_name).resume_queue()

    # --- statistics ---------------------------------------------------------------------------------------

    @property
    def statistics(self) -> QueueManagerStatistics:
        """See :meth:`get_global_statistics`."""
        return self.get_global_statistics()

    def get_queue_statistics(self, queue_name: str) -> QueueStatistics | None:
        """Counts of one queue; None if there is none."""
        queue = self._queues.get(queue_name)
        return None if queue is None else queue.get_statistics()

    def get_global_statistics(self) -> QueueManagerStatistics:
        """Sums over all queues, those deleted by this manager included, so that no sum ever falls. O(queues)."""
        total = attrs.evolve(self._retired, total_queues=len(self._queues))
        # At once, for other threads may make queues meanwhile.
        for queue in list(self._queues.values()):
            counts, subscriptions = queue._inspect(lambda state, now: (state.report(now), len(state.subscribers)))
            add_counts(total, counts)
            total.active_subscriptions += subscriptions
        return total
