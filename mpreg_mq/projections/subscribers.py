"""Who is subscribed to what, how busy each subscriber is, and its circuit breaker (SEMANTICS C2, R3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import ClassVar

from mpreg_mq.events import types as e
from mpreg_mq.model import CircuitState
from mpreg_mq.projections.base import Handled, Projection, contradiction
from mpreg_mq.projections.dumps import SubscriberDump, SubscribersDump, decode_events, encode_events
from mpreg_mq.topics import TopicTrie

_MAX_CACHED_TOPICS = 10_000


class Subscriber:
    """One subscriber of a queue with its subscriptions; mutable, changed by :class:`Subscribers` alone.

    ``failures`` counts in a row. ``only_subscription`` is its subscription where it has one only. ``held`` are the ids
    of the messages leased to it. ``last_used`` is the ordinal of its latest delivery, for "least recently used".
    ``probe`` is the message that tests a half-open circuit. ``alone`` are the holders of a message that only it has.
    """

    __slots__ = (
        "alone",
        "circuit",
        "failures",
        "held",
        "id",
        "last_used",
        "max_in_flight",
        "only_subscription",
        "open_until",
        "probe",
        "pull",
        "subscriptions",
    )

    def __init__(self, subscriber_id: str) -> None:
        self.id = subscriber_id
        self.alone = (subscriber_id,)
        self.subscriptions: dict[str, e.SubscriberJoined] = {}
        self.only_subscription: str | None = None
        self.max_in_flight = 0
        self.pull = False
        self.held: set[str] = set()
        self.last_used = 0
        self.failures = 0
        self.circuit = CircuitState.CLOSED
        self.open_until = 0.0
        self.probe: str | None = None

    def count_subscriptions(self) -> None:
        """Its subscriptions changed."""
        self.only_subscription = next(iter(self.subscriptions)) if len(self.subscriptions) == 1 else None

    @property
    def present(self) -> bool:
        """Whether it has a subscription."""
        return bool(self.subscriptions)

    def can_take(self) -> bool:
        """Whether another message may be leased to it now (C2, R3). O(1)."""
        if not self.subscriptions or len(self.held) >= self.max_in_flight:
            return False
        if self.circuit is CircuitState.CLOSED:
            return True
        return self.circuit is CircuitState.HALF_OPEN and self.probe is None


class Subscribers(Projection):
    """Subscribers by id, and the topic trie that answers who matches a topic."""

    HANDLED: ClassVar[Handled] = {
        e.SubscriberJoined: "_on_joined",
        e.SubscriberLeft: "_on_left",
        e.AudienceMemberLeft: "_on_audience_member_left",
        e.MessageDelivered: "_on_delivered",
        e.MessageAcknowledged: "_on_acknowledged",
        e.DeliveryFailed: "_on_attempt_failed",
        e.LeaseExpired: "_on_lease_expired",
        e.CircuitOpened: "_on_circuit_opened",
        e.CircuitHalfOpened: "_on_circuit_half_opened",
        e.CircuitClosed: "_on_circuit_closed",
        e.MessageCompleted: "_on_finished",
        e.MessageDeadLettered: "_on_finished",
        e.MessageFailed: "_on_finished",
        e.MessageExpired: "_on_finished",
        e.MessageDropped: "_on_finished",
        e.MessagesPurged: "_on_purged",
        e.QueueDeleted: "_on_deleted",
    }

    __slots__ = (
        "_audiences",
        "_by_id",
        "_by_subscription",
        "_deliveries",
        "_holders",
        "_patterns",
        "get",
    )

    def __init__(self) -> None:
        self._by_id: dict[str, Subscriber] = {}
        self.get: Callable[[str], Subscriber | None] = self._by_id.get
        """The subscriber of an id, present or with leases left over; None if unknown."""
        self._by_subscription: dict[str, Subscriber] = {}
        self._patterns: TopicTrie[str] = TopicTrie()
        self._audiences: dict[str, tuple[str, ...]] = {}
        self._holders: dict[str, tuple[str, ...]] = {}
        self._deliveries = 0

    def __len__(self) -> int:
        """Subscriptions, as MPREG counts them."""
        return len(self._by_subscription)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._by_id.values())

    def subscription(self, subscription_id: str) -> e.SubscriberJoined | None:
        """The subscription, or None."""
        owner = self._by_subscription.get(subscription_id)
        return owner.subscriptions[subscription_id] if owner is not None else None

    def audience(self, topic: str) -> tuple[str, ...]:
        """Ids of the present subscribers that match the topic, sorted (G6).

        For a topic that was not asked for since the subscriptions changed it costs the topic's levels and the
        matching patterns, not the patterns that do not match.
        """
        audience = self._audiences.get(topic)
        if audience is None:
            matched = self._patterns.match(topic)
            if len(matched) == 1:
                audience = self._by_subscription[matched.pop()].alone
            else:
                audience = tuple(sorted({self._by_subscription[subscription_id].id for subscription_id in matched}))
            if len(self._audiences) >= _MAX_CACHED_TOPICS:
                self._audiences.clear()
            self._audiences[topic] = audience
        return audience

    def subscription_for(self, subscriber: Subscriber, topic: str) -> str:
        """The subscription whose callback gets the topic: the subscriber's oldest one that matches, else its oldest.

        Where it has one only, ``only_subscription`` is it, with nothing to look up.
        """
        own = subscriber.subscriptions
        return self.subscription_among(subscriber, topic, own) or next(iter(own))

    def subscription_among(self, subscriber: Subscriber, topic: str, some: Collection[str]) -> str | None:
        """The oldest that matches, of some of the subscriber's subscriptions; None where none of these does."""
        matched = self._patterns.match(topic)
        # Not a generator, which would cost more than the few steps that it saves here.
        for subscription_id in subscriber.subscriptions:
            if subscription_id in matched and subscription_id in some:
                return subscription_id
        return None

    def _on_joined(self, event: e.SubscriberJoined) -> None:
        if event.subscription_id in self._by_subscription:
            raise contradiction(event, "the subscription exists")
        subscriber = self._by_id.get(event.subscriber_id)
        if subscriber is None:
            subscriber = self._by_id[event.subscriber_id] = Subscriber(event.subscriber_id)
        subscriber.subscriptions[event.subscription_id] = event
        subscriber.count_subscriptions()
        subscriber.max_in_flight = event.max_in_flight
        subscriber.pull = event.pull
        self._by_subscription[event.subscription_id] = subscriber
        self._patterns.add(event.topic_pattern, event.subscription_id)
        self._audiences.clear()

    def _on_left(self, event: e.SubscriberLeft) -> None:
        subscriber = self._by_subscription.get(event.subscription_id)
        if subscriber is None or subscriber.id != event.subscriber_id:
            raise contradiction(event, "the subscriber has no such subscription")
        del self._by_subscription[event.subscription_id]
        joined = subscriber.subscriptions.pop(event.subscription_id)
        subscriber.count_subscriptions()
        self._patterns.remove(joined.topic_pattern, event.subscription_id)
        self._audiences.clear()
        if subscriber.subscriptions:
            subscriber.max_in_flight = next(reversed(subscriber.subscriptions.values())).max_in_flight
        else:
            subscriber.circuit = CircuitState.CLOSED
            subscriber.failures = 0
        self._forget_if_gone(subscriber)

    def _on_audience_member_left(self, event: e.AudienceMemberLeft) -> None:
        self._release(event.message_id, event.subscriber_id)

    def _on_delivered(self, event: e.MessageDelivered) -> None:
        subscriber = self._by_id.get(event.subscriber_id)
        if subscriber is None:
            raise contradiction(event, "there is no such subscriber")
        self._deliveries += 1
        subscriber.last_used = self._deliveries
        subscriber.held.add(event.message_id)
        if subscriber.circuit is CircuitState.HALF_OPEN:
            subscriber.probe = event.message_id
        holders = self._holders
        message_id = event.message_id
        if message_id in holders:
            holders[message_id] = (*holders[message_id], event.subscriber_id)
        else:
            holders[message_id] = subscriber.alone

    def _on_acknowledged(self, event: e.MessageAcknowledged) -> None:
        subscriber = self._by_id.get(event.subscriber_id)
        if subscriber is not None:
            subscriber.failures = 0
            message_id = event.message_id
            if (
                self._holders.get(message_id) is subscriber.alone
                and subscriber.subscriptions
                and subscriber.probe is None
            ):
                # The same as releasing it, where nothing else depends on that.
                del self._holders[message_id]
                subscriber.held.discard(message_id)
                return
        self._release(event.message_id, event.subscriber_id)

    def _on_lease_expired(self, event: e.LeaseExpired) -> None:
        if event.process_ended:
            self._release(event.message_id, event.subscriber_id)
        else:
            self._on_attempt_failed(event)

    def _on_attempt_failed(self, event: e.DeliveryFailed | e.LeaseExpired) -> None:
        subscriber = self._known(event)
        if subscriber.subscriptions:
            subscriber.failures += 1
        self._release(event.message_id, event.subscriber_id)

    def _on_circuit_opened(self, event: e.CircuitOpened) -> None:
        subscriber = self._known(event)
        subscriber.circuit = CircuitState.OPEN
        subscriber.open_until = event.until
        subscriber.probe = None

    def _on_circuit_half_opened(self, event: e.CircuitHalfOpened) -> None:
        self._known(event).circuit = CircuitState.HALF_OPEN

    def _on_circuit_closed(self, event: e.CircuitClosed) -> None:
        self._known(event).circuit = CircuitState.CLOSED

    def _on_finished(
        self,
        event: e.MessageCompleted | e.MessageDeadLettered | e.MessageFailed | e.MessageExpired | e.MessageDropped,
    ) -> None:
        self._release_all(event.message_id)

    def _on_purged(self, event: e.MessagesPurged) -> None:
        for message_id in event.message_ids:
            self._release_all(message_id)

    def _on_deleted(self, event: e.QueueDeleted) -> None:
        self._by_id.clear()
        self._by_subscription.clear()
        self._holders.clear()
        self._audiences.clear()
        self._patterns = TopicTrie()

    def _known(
        self, event: e.DeliveryFailed | e.LeaseExpired | e.CircuitOpened | e.CircuitHalfOpened | e.CircuitClosed
    ) -> Subscriber:
        subscriber = self._by_id.get(event.subscriber_id)
        if subscriber is None:
            raise contradiction(event, "there is no such subscriber")
        return subscriber

    def _release_all(self, message_id: str) -> None:
        for subscriber_id in self._holders.get(message_id, ()):
            self._release(message_id, subscriber_id)

    def _release(self, message_id: str, subscriber_id: str) -> None:
        holders = self._holders.get(message_id, ())
        if subscriber_id not in holders:
            return
        if len(holders) == 1:
            del self._holders[message_id]
        else:
            self._holders[message_id] = tuple(holder for holder in holders if holder != subscriber_id)
        subscriber = self._by_id[subscriber_id]
        subscriber.held.discard(message_id)
        if subscriber.probe == message_id:
            subscriber.probe = None
        if not subscriber.subscriptions:
            self._forget_if_gone(subscriber)

    def _forget_if_gone(self, subscriber: Subscriber) -> None:
        if not subscriber.subscriptions and not subscriber.held:
            del self._by_id[subscriber.id]

    def dump(self) -> SubscribersDump:
        """This projection as plain data; O(n)."""
        subscribers = [
            SubscriberDump(
                one.id,
                encode_events(one.subscriptions.values()),
                one.max_in_flight,
                one.pull,
                one.last_used,
                one.failures,
                one.circuit,
                one.open_until,
                one.probe,
                sorted(one.held),
            )
            for one in self
        ]
        holders = {message_id: list(subscriber_ids) for message_id, subscriber_ids in self._holders.items()}
        return SubscribersDump(subscribers, holders, self._deliveries)

    def restore(self, dump: SubscribersDump) -> None:
        """Become what was dumped; only for a new projection."""
        for one in dump.subscribers:
            for event in decode_events(one.subscriptions):
                assert isinstance(event, e.SubscriberJoined)
                self._on_joined(event)
            subscriber = self._by_id.setdefault(one.id, Subscriber(one.id))
            subscriber.max_in_flight = one.max_in_flight
            subscriber.pull = one.pull
            subscriber.last_used = one.last_used
            subscriber.failures = one.failures
            subscriber.circuit = one.circuit
            subscriber.open_until = one.open_until
            subscriber.probe = one.probe
            subscriber.held.update(one.held)
        self._holders = {key: tuple(value) for key, value in dump.holders.items()}
        self._deliveries = dump.deliveries

    def check(self) -> None:
        """Assert that the indexes agree with the subscribers."""
        self._patterns.check()
        for topic, audience in self._audiences.items():
            matched = self._patterns.match(topic)
            assert audience == tuple(sorted({self._by_subscription[subscription_id].id for subscription_id in matched}))
        assert len(self._patterns) == len(self._by_subscription)
        for subscriber_id, subscriber in self._by_id.items():
            assert subscriber.id == subscriber_id
            assert subscriber.subscriptions or subscriber.held
            assert all(self._by_subscription[key] is subscriber for key in subscriber.subscriptions)
            assert all(subscriber_id in self._holders[message_id] for message_id in subscriber.held)
        assert sum(len(subscriber.held) for subscriber in self) == sum(map(len, self._holders.values()))
