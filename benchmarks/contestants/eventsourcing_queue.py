"""A queue written with ``eventsourcing``, as its documentation writes aggregates; where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from benchmarks.harness.payloads import Message


class Queue(Aggregate):
    """What is pending and leased; less state than ours keeps, so that it has less to do."""

    @event("Created")
    def __init__(self) -> None:
        self.pending: dict[str, Any] = {}
        self.leased: dict[str, str] = {}
        self.acknowledged = 0

    @event("Enqueued")
    def enqueue(self, message_id: str, topic: str, payload: Any) -> None:
        """A message was accepted."""
        self.pending[message_id] = (topic, payload)

    @event("Delivered")
    def deliver(self, message_id: str, subscriber_id: str) -> None:
        """A lease opened."""
        self.leased[message_id] = subscriber_id

    @event("Acknowledged")
    def acknowledge(self, message_id: str, subscriber_id: str) -> None:
        """The message is done."""
        del self.leased[message_id]
        del self.pending[message_id]
        self.acknowledged += 1


class QueueApplication(Application[UUID]):
    """Stores such queues."""

    def live(self, messages: Sequence[Message], events_per_commit: int) -> UUID:
        """A queue through which these messages have gone, saved every ``events_per_commit`` events."""
        queue = Queue()
        events = 0
        for number, (topic, payload) in enumerate(messages):
            message_id = str(number)
            queue.enqueue(message_id, topic, payload)
            queue.deliver(message_id, "worker")
            queue.acknowledge(message_id, "worker")
            events += 3
            if events >= events_per_commit:
                self.save(queue)
                events = 0
        self.save(queue)
        queue_id: UUID = queue.id
        return queue_id
