"""What a history says about the subscribers of a queue, by its events alone."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.messages import SlotFacts
from mpreg_mq.model import CircuitState
from mpreg_mq.topics import TopicTrie, matches

REMEMBERED_DEPARTURES = 4096
"""How many subscribers that left are remembered, for attempts that were under way when they did."""

MOST_AUDIENCES = 65_536
"""How many topics have those who match them remembered."""

MOST_MATCHES = 65_536
"""How many pairs of pattern and topic have remembered whether they match."""

pattern_matches = lru_cache(MOST_MATCHES)(matches)


class SubscriberFacts:
    """A subscriber that has a subscription, or still holds a lease. ``failures`` counts in a row (R3)."""

    __slots__ = (
        "circuit",
        "circuit_set",
        "failures",
        "held",
        "id",
        "last_delivery",
        "max_in_flight",
        "pull",
        "subscriptions",
        "until",
    )

    def __init__(self, subscriber_id: str) -> None:
        self.id = subscriber_id
        self.subscriptions: dict[str, RecordedEvent] = {}
        self.max_in_flight = 0
        self.pull = False
        self.held: dict[str, SlotFacts] = {}
        self.last_delivery: RecordedEvent | None = None
        self.failures = 0
        self.circuit = CircuitState.CLOSED
        self.circuit_set: RecordedEvent | None = None
        self.until = 0.0

    def subscription_matches(self, subscription_id: str, topic: str) -> bool:
        """Whether this subscription of it matches the topic (G6)."""
        joined: e.SubscriberJoined = self.subscriptions[subscription_id].event  # type: ignore[assignment]
        return pattern_matches(joined.topic_pattern, topic)

    def matches(self, topic: str) -> bool:
        """Whether any of its subscriptions matches the topic (G6)."""
        return any(self.subscription_matches(subscription_id, topic) for subscription_id in self.subscriptions)

    def can_take(self) -> bool:
        """Whether another message may be leased to it (C2, R3)."""
        if not self.subscriptions or len(self.held) >= self.max_in_flight:
            return False
        return self.circuit is CircuitState.CLOSED or (self.circuit is CircuitState.HALF_OPEN and not self.probing())

    def probing(self) -> bool:
        """Whether a message delivered since its circuit is half open has not been settled (R3)."""
        since = self.circuit_set.position if self.circuit_set is not None else 0
        return any(slot.lease is not None and slot.lease.position > since for slot in self.held.values())

    @property
    def last_position(self) -> int:
        """Position of the latest delivery to it; 0 where there is none."""
        return 0 if self.last_delivery is None else self.last_delivery.position


def _how_busy(subscriber: SubscriberFacts) -> tuple[int, int, str]:
    return len(subscriber.held), subscriber.last_position, subscriber.id


class SubscriberTable:
    """The subscribers of one queue by id, and who matches a topic."""

    def __init__(self) -> None:
        self.by_id: dict[str, SubscriberFacts] = {}
        self.departed: OrderedDict[str, RecordedEvent] = OrderedDict()
        self.changes = 0
        """How often subscriptions began or ended."""
        self._patterns: TopicTrie[tuple[str, str]] = TopicTrie()
        self._audiences: dict[str, frozenset[str]] = {}

    def audience(self, topic: str) -> frozenset[str]:
        """Ids of the present subscribers that match the topic; cached until subscriptions change."""
        found = self._audiences.get(topic)
        if found is None:
            if len(self._audiences) >= MOST_AUDIENCES:
                self._audiences.clear()
            found = frozenset(subscriber_id for subscriber_id, _ in self._patterns.match(topic))
            self._audiences[topic] = found
        return found

    def less_busy(self, chosen: SubscriberFacts, topic: str) -> SubscriberFacts | None:
        """The called subscriber that should have been given a message on this topic instead, or None (G2).

        It holds fewer messages than the chosen one, or as many and was used less recently; O(those who match).
        """
        audience = self.audience(topic)
        if len(audience) < 2:
            return None
        held, used = len(chosen.held), chosen.last_position
        found = None
        for subscriber_id in audience:
            other = self.by_id[subscriber_id]
            count = len(other.held)
            if count > held or (count == held and other.last_position >= used):
                continue
            if other is not chosen and not other.pull and other.can_take():
                # In no order of a set, so that the same history is always told in the same words.
                found = other if found is None else min(found, other, key=_how_busy)
        return found

    def join(self, record: RecordedEvent, event: e.SubscriberJoined) -> None:
        """A subscription began."""
        subscriber = self.by_id.get(event.subscriber_id)
        if subscriber is None:
            subscriber = self.by_id[event.subscriber_id] = SubscriberFacts(event.subscriber_id)
        subscriber.subscriptions[event.subscription_id] = record
        subscriber.max_in_flight = event.max_in_flight
        subscriber.pull = event.pull
        self._patterns.add(event.topic_pattern, (event.subscriber_id, event.subscription_id))
        self.changes += 1
        self._audiences.clear()

    def leave(self, record: RecordedEvent, event: e.SubscriberLeft) -> None:
        """A subscription ended."""
        subscriber = self.by_id.get(event.subscriber_id)
        joined = subscriber.subscriptions.pop(event.subscription_id, None) if subscriber is not None else None
        if subscriber is None or joined is None:
            return
        pattern = joined.event.topic_pattern  # type: ignore[attr-defined]
        self._patterns.remove(pattern, (event.subscriber_id, event.subscription_id))
        self.changes += 1
        self._audiences.clear()
        self.departed[event.subscriber_id] = record
        self.departed.move_to_end(event.subscriber_id)
        if len(self.departed) > REMEMBERED_DEPARTURES:
            self.departed.popitem(last=False)
        if subscriber.subscriptions:
            latest = next(reversed(subscriber.subscriptions.values())).event
            subscriber.max_in_flight = latest.max_in_flight  # type: ignore[attr-defined]
        else:
            subscriber.failures = 0
            subscriber.circuit = CircuitState.CLOSED
        self.forget_if_gone(subscriber)

    def forget_if_gone(self, subscriber: SubscriberFacts) -> None:
        """Drop who has neither a subscription nor a lease, so that memory follows what is live."""
        if not subscriber.subscriptions and not subscriber.held:
            self.by_id.pop(subscriber.id, None)

    def clear(self) -> None:
        """The queue was deleted."""
        self.by_id.clear()
        self.departed.clear()
        self._audiences.clear()
        self._patterns = TopicTrie()
