"""Counts of a queue, folded from its events."""

from __future__ import annotations

from typing import ClassVar

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.model import QueueStatistics
from mpreg_mq.projections.base import Handled, Projection, contradiction
from mpreg_mq.projections.dumps import StatisticsDump


class Statistics(Projection):
    """What :class:`QueueStatistics` reports, except the sizes that other projections know.

    The average processing time is from the latest delivery of a message to its acknowledgment.
    """

    HANDLED: ClassVar[Handled] = {
        e.QueueCreated: "_on_created",
        e.MessageEnqueued: "_on_enqueued",
        e.FireAndForgetSent: "_on_fire_and_forget",
        e.DuplicateRejected: "_on_duplicate",
        e.MessageRejected: "_on_rejected",
        e.MessageDelivered: "_on_delivered",
        e.MessageAcknowledged: "_on_acknowledged",
        e.DeliveryFailed: "_on_delivery_failed",
        e.LeaseExpired: "_on_lease_expired",
        e.MessageRequeued: "_on_requeued",
        e.MessageCompleted: "_on_completed",
        e.MessageDeadLettered: "_on_dead_lettered",
        e.MessageFailed: "_on_failed",
        e.MessageExpired: "_on_expired",
        e.MessageDropped: "_on_dropped",
        e.MessagesPurged: "_on_purged",
        e.DeadLetterRedriven: "_on_redriven",
        e.CircuitOpened: "_on_circuit_opened",
    }

    __slots__ = (
        "_delivered_at",
        "_processed",
        "_processing_seconds",
        "counts",
    )

    def __init__(self) -> None:
        self.counts = QueueStatistics(last_reset_time=0.0)
        self._delivered_at: dict[str, float] = {}
        self._processing_seconds = 0.0
        self._processed = 0

    def _on_created(self, event: e.QueueCreated) -> None:
        self.counts = QueueStatistics(last_reset_time=event.at)
        self._delivered_at.clear()
        self._processing_seconds = 0.0
        self._processed = 0

    def _on_enqueued(self, event: e.MessageEnqueued) -> None:
        self.counts.messages_sent += 1

    def _on_fire_and_forget(self, event: e.FireAndForgetSent) -> None:
        counts = self.counts
        counts.messages_sent += 1
        if event.delivered_to:
            counts.messages_received += len(event.delivered_to)
            counts.messages_acknowledged += 1
        if event.failed:
            counts.delivery_failures += len(event.failed)

    def _on_duplicate(self, event: e.DuplicateRejected) -> None:
        self.counts.messages_duplicate += 1
        self.counts.messages_rejected += 1

    def _on_rejected(self, event: e.MessageRejected) -> None:
        self.counts.messages_rejected += 1

    def _on_delivered(self, event: e.MessageDelivered) -> None:
        self.counts.messages_received += 1
        self._delivered_at[event.message_id] = event.at

    def _on_acknowledged(self, event: e.MessageAcknowledged) -> None:
        delivered_at = self._delivered_at.get(event.message_id)
        if delivered_at is None:
            raise contradiction(event, "the message was not delivered")
        self._processing_seconds += event.at - delivered_at
        self._processed += 1
        if event.completes:
            del self._delivered_at[event.message_id]
            self.counts.messages_acknowledged += 1

    def _on_delivery_failed(self, event: e.DeliveryFailed) -> None:
        self.counts.delivery_failures += 1

    def _on_lease_expired(self, event: e.LeaseExpired) -> None:
        self.counts.leases_expired += 1

    def _on_requeued(self, event: e.MessageRequeued) -> None:
        self.counts.messages_requeued += 1

    def _on_completed(self, event: e.MessageCompleted) -> None:
        self._finish(event.message_id)
        self.counts.messages_acknowledged += 1

    def _on_dead_lettered(self, event: e.MessageDeadLettered) -> None:
        self._finish(event.message_id)
        self.counts.messages_failed += 1
        self.counts.messages_dead_lettered += 1

    def _on_failed(self, event: e.MessageFailed) -> None:
        self._finish(event.message_id)
        self.counts.messages_failed += 1

    def _on_expired(self, event: e.MessageExpired) -> None:
        self._finish(event.message_id)
        self.counts.messages_expired += 1

    def _on_dropped(self, event: e.MessageDropped) -> None:
        self._finish(event.message_id)
        self.counts.messages_dropped += 1

    def _on_purged(self, event: e.MessagesPurged) -> None:
        for message_id in event.message_ids:
            self._finish(message_id)
        self.counts.messages_purged += len(event.message_ids)

    def _on_redriven(self, event: e.DeadLetterRedriven) -> None:
        self.counts.messages_redriven += 1

    def _on_circuit_opened(self, event: e.CircuitOpened) -> None:
        self.counts.circuits_opened += 1

    def _finish(self, message_id: str) -> None:
        self._delivered_at.pop(message_id, None)

    def average_processing_seconds(self) -> float:
        """Mean time from delivery to acknowledgment; 0.0 before the first."""
        return self._processing_seconds / self._processed if self._processed else 0.0

    def dump(self) -> StatisticsDump:
        """This projection as plain data; O(leased messages)."""
        counts = attrs.evolve(self.counts)
        return StatisticsDump(counts, dict(self._delivered_at), self._processing_seconds, self._processed)

    def restore(self, dump: StatisticsDump) -> None:
        """Become what was dumped."""
        self.counts = dump.counts
        self._delivered_at = dump.delivered_at
        self._processing_seconds = dump.processing_seconds
        self._processed = dump.processed

    def check(self) -> None:
        """Assert that no count is negative and that duplicates are among the rejected."""
        counts = self.counts
        assert counts.messages_duplicate <= counts.messages_rejected
        assert counts.messages_dead_lettered <= counts.messages_failed
        assert self._processing_seconds >= 0.0
