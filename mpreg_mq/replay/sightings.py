"""What a queue's state does not remember but an explanation should say: since when, and who was there before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.latest import Latest
from mpreg_mq.projections import Subscriber
from mpreg_mq.projections.base import Handled, Projection

MAX_DEPARTED = 1000
"""Subscriptions that ended and are remembered, the latest ones."""


@attrs.frozen
class Departed:
    """A subscription that ended."""

    subscriber_id: str
    topic_pattern: str
    at: float
    unsubscribed: bool


class Sightings(Projection):
    """Times that explain a state; bounded by the subscribers there are, and :data:`MAX_DEPARTED`."""

    HANDLED: ClassVar[Handled] = {
        e.QueuePaused: "_on_paused",
        e.SubscriberJoined: "_on_joined",
        e.SubscriberLeft: "_on_left",
        e.CircuitOpened: "_on_circuit_opened",
        e.DeliveryFailed: "_on_failed",
        e.LeaseExpired: "_on_expired",
    }

    def __init__(self, subscribers: Iterable[Subscriber] = ()) -> None:
        """``subscribers`` were there before the first event."""
        self.paused_at: float | None = None
        self.circuit_opened_at: dict[str, float] = {}
        self.last_error: dict[str, str] = {}
        self.departed: Latest[str, Departed] = Latest(MAX_DEPARTED)
        self._patterns = {
            subscription_id: joined.topic_pattern
            for subscriber in subscribers
            for subscription_id, joined in subscriber.subscriptions.items()
        }

    def _on_paused(self, event: e.QueuePaused) -> None:
        self.paused_at = event.at

    def _on_joined(self, event: e.SubscriberJoined) -> None:
        self._patterns[event.subscription_id] = event.topic_pattern
        for subscription_id, departed in list(self.departed.items()):
            if (departed.subscriber_id, departed.topic_pattern) == (event.subscriber_id, event.topic_pattern):
                del self.departed[subscription_id]

    def _on_left(self, event: e.SubscriberLeft) -> None:
        pattern = self._patterns.pop(event.subscription_id)
        departed = Departed(event.subscriber_id, pattern, event.at, event.unsubscribed)
        self.departed.note(event.subscription_id, departed)
        self.last_error.pop(event.subscriber_id, None)

    def _on_circuit_opened(self, event: e.CircuitOpened) -> None:
        self.circuit_opened_at[event.subscriber_id] = event.at

    def _on_failed(self, event: e.DeliveryFailed) -> None:
        self.last_error[event.subscriber_id] = event.error

    def _on_expired(self, event: e.LeaseExpired) -> None:
        self.last_error[event.subscriber_id] = event.reason
