"""What can be seen of a queue: its configuration, counts, messages, subscriptions and dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mpreg_mq.actors.messages import Inspect
from mpreg_mq.actors.queue_actor import QueueActor
from mpreg_mq.actors.views import dead_letter, in_flight_message, shown_message
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.dead_letters import DeadLetterQueue
from mpreg_mq.errors import QueueClosedError
from mpreg_mq.model import DeadLetter, InFlightMessage, QueuedMessage, QueueStatistics, QueueSubscription
from mpreg_mq.projections import QueueState

T = TypeVar("T")

REPORT = Inspect(lambda state, now: state.report(now))
"""Asks a queue for its :class:`QueueStatistics`, for who can wait while it reads its log again after a failure."""


class QueueInspection:
    """The part of :class:`~mpreg_mq.queue.MessageQueue` that changes nothing; it still answers when that is closed.

    What it returns is a copy of this moment, taken between two decisions. A payload that cannot be decoded is an
    :class:`~mpreg_mq.UndecodablePayload` there.
    """

    _actor: QueueActor

    @property
    def config(self) -> QueueConfiguration:
        """The configuration in force."""
        return self._actor.state.configuration

    @property
    def paused(self) -> bool:
        """Whether deliveries are paused."""
        return self._actor.state.paused

    @property
    def statistics(self) -> QueueStatistics:
        """See :meth:`get_statistics`."""
        return self.get_statistics()

    def get_statistics(self) -> QueueStatistics:
        """Counts and sizes of this moment; a copy."""
        return self._inspect(lambda state, now: state.report(now))

    @property
    def pending_messages(self) -> list[QueuedMessage]:
        """Copies of the messages without an open lease, in queue order; O(n log n)."""
        return self._inspect(
            lambda state, _: [shown_message(message.event, state.configuration) for message in state.messages.pending()]
        )

    @property
    def in_flight_messages(self) -> dict[str, InFlightMessage]:
        """Messages with an open lease, by id; copies; O(n)."""
        return self._inspect(
            lambda state, _: {
                message.id: in_flight_message(message, state.configuration) for message in state.messages.leased()
            }
        )

    @property
    def subscriptions(self) -> dict[str, QueueSubscription]:
        """Subscriptions by id; copies."""
        attachments = self._actor.callbacks()

        def look(state: QueueState, _: float) -> dict[str, QueueSubscription]:
            return {
                subscription_id: QueueSubscription(
                    joined.subscriber_id,
                    joined.topic_pattern,
                    attachments.get(subscription_id),
                    joined.auto_acknowledge,
                    subscription_id,
                    joined.at,
                    dict(joined.metadata),
                    joined.max_in_flight,
                )
                for subscriber in state.subscribers
                for subscription_id, joined in subscriber.subscriptions.items()
            }

        return self._inspect(look)

    @property
    def dead_letter_queue(self) -> DeadLetterQueue:
        """The dead letters (D1)."""
        return DeadLetterQueue(self)

    def list_dead_letters(self) -> list[DeadLetter]:
        """Copies of all dead letters, oldest first."""
        return self._inspect(lambda state, _: [dead_letter(entry, state.configuration) for entry in state.dead_letters])

    def _inspect(self, function: Callable[[QueueState, float], T]) -> T:
        """Look at the state between two decisions; still possible after the queue was closed."""
        try:
            found: T = self._actor.call_now(Inspect(function))
        except QueueClosedError:
            return function(self._actor.state, self._actor.state.last_at)
        return found
