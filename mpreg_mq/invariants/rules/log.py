"""Rules about the log itself: I2, I3 and I4. I1 is the checker's own, because it spans the streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.rule import Rule
from mpreg_mq.projections import QueueState

_ENDS = (e.MessageCompleted, e.MessageDeadLettered, e.MessageFailed, e.MessageExpired, e.MessageDropped)


class Accounts(Rule):
    """I2: every accepted message is finished once, or pending, or leased; nothing else is ever finished."""

    id = "I2"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        **dict.fromkeys(_ENDS, "_on_ended"),
        e.MessageAcknowledged: "_on_acknowledged",
        e.MessagesPurged: "_on_purged",
    }

    def _on_ended(self, record: RecordedEvent, event: Any) -> None:
        self._check(record, event.message_id)

    def _on_acknowledged(self, record: RecordedEvent, event: e.MessageAcknowledged) -> None:
        if event.completes:
            self._check(record, event.message_id)

    def _on_purged(self, record: RecordedEvent, event: e.MessagesPurged) -> None:
        if len(set(event.message_ids)) != len(event.message_ids):
            self.violated(record, "a message is purged twice at once")
        for message_id in event.message_ids:
            self._check(record, message_id)

    def _check(self, record: RecordedEvent, message_id: str) -> None:
        facts = self.facts
        if message_id in facts.messages:
            return
        ended = facts.finished.get(message_id)
        if ended is not None:
            self.violated(record, f"message {message_id} is finished a second time", ended, message_id=message_id)
        elif facts.complete:
            self.violated(record, f"message {message_id} is finished and was never accepted", message_id=message_id)


class Lifecycle(Rule):
    """I3: what happens to a message happens between its acceptance and its end, in a queue that exists.

    Keeps, like the facts, the last event of the latest 65,536 finished messages.
    """

    id = "I3"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        **dict.fromkeys(
            (
                e.AudienceFixed,
                e.AudienceMemberLeft,
                e.MessageDelivered,
                e.MessageAcknowledged,
                e.DeliveryFailed,
                e.LeaseExpired,
                e.LeaseExtended,
                e.MessageRequeued,
                e.QuorumMissed,
            ),
            "_on_message",
        ),
        e.QueueCreated: "_on_created",
        e.QueueDeleted: "_on_deleted",
        e.MessageEnqueued: "_on_enqueued",
        e.SubscriberJoined: "_on_joined",
        e.SubscriberLeft: "_on_left",
    }

    def _on_message(self, record: RecordedEvent, event: Any) -> None:
        facts = self.facts
        if facts.message is not None:
            return
        name = type(event).__name__
        ended = facts.finished.get(event.message_id)
        if ended is not None:
            self.violated(record, f"{name} of {event.message_id} after its end", ended)
        elif facts.complete:
            self.violated(record, f"{name} of {event.message_id}, which is not there: never accepted, or finished")

    def _on_created(self, record: RecordedEvent, event: e.QueueCreated) -> None:
        if self.facts.created is not None and self.facts.deleted is None:
            self.violated(record, "the queue is created while it exists", self.facts.created)

    def _on_deleted(self, record: RecordedEvent, event: e.QueueDeleted) -> None:
        if self.facts.messages and self.facts.complete:
            left = next(iter(self.facts.messages.values()))
            self.violated(record, f"the queue is deleted and {left.id} is not purged", left.record, message_id=left.id)

    def _on_enqueued(self, record: RecordedEvent, event: e.MessageEnqueued) -> None:
        if self.facts.deleted is not None:
            self.violated(record, "a deleted queue accepts a message", self.facts.deleted)

    def _on_joined(self, record: RecordedEvent, event: e.SubscriberJoined) -> None:
        subscriber = self.facts.subscribers.by_id.get(event.subscriber_id)
        joined = None if subscriber is None else subscriber.subscriptions.get(event.subscription_id)
        if joined is not None:
            self.violated(record, f"subscription {event.subscription_id} begins twice", joined)

    def _on_left(self, record: RecordedEvent, event: e.SubscriberLeft) -> None:
        subscriber = self.facts.subscribers.by_id.get(event.subscriber_id)
        if (subscriber is None or event.subscription_id not in subscriber.subscriptions) and self.facts.complete:
            self.violated(
                record,
                f"subscription {event.subscription_id} of {event.subscriber_id} ends and is not there",
                self.facts.subscribers.departed.get(event.subscriber_id),
            )


class Fold(Rule):
    """I4: the projections take every event, and come to what the events say.

    The only rule that uses the projections. At the end it compares the fold with the facts that were gathered
    independently: who is pending in which order, leased, dead, subscribed, and the counts.
    """

    id = "I4"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = dict.fromkeys(e.EVENT_TYPES, "_on_event")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state: QueueState | None = None
        self.snapshots: dict[int, bytes] = {}
        """Snapshots that have to be what is folded, by version; none unless a derived rule knows some."""
        self._last: RecordedEvent | None = None

    def begin(self) -> QueueState | None:
        """What to fold the first event into; None where there is nothing, because it is not the first of its queue."""
        return QueueState() if self.facts.complete else None

    def _on_event(self, record: RecordedEvent, event: e.Event) -> None:
        if self._last is None:
            self.state = self.begin()
        self._last = record
        state = self.state
        if state is None:
            return
        try:
            state.apply(event)
        # A projection that meets what it does not expect may fail in any way.
        except Exception as error:
            self.state = None
            reason = str(error) if isinstance(error, MessageQueueError) else repr(error)
            self.violated(record, f"the projections cannot take {type(event).__name__}: {reason}", self.facts.previous)
            return
        if record.version in self.snapshots:
            self._compare_snapshot(state, record, self.snapshots.pop(record.version))

    def _compare_snapshot(self, state: QueueState, record: RecordedEvent, body: bytes) -> None:
        try:
            kept = QueueState.restore(body)
        # A body that is not what was dumped may raise anything.
        except Exception as error:
            self.violated(record, f"the snapshot after it cannot be read: {type(error).__name__}: {error}")
            return
        if kept is None:
            return
        before, after = kept.describe(), state.describe()
        parts = ", ".join(part for part in after if before[part] != after[part])
        if parts:
            self.violated(record, f"the snapshot after it and the fold of the events differ in {parts}")

    def finish(self) -> None:
        """Compare the fold with the facts."""
        self.check()
        if self.state is not None and self._last is not None and self.facts.complete:
            self.compare(self.state, self._last)

    def check(self) -> None:
        """Report where the projections do not agree with each other; O(size of the state)."""
        if self.state is not None and self._last is not None:
            try:
                self.state.check()
            except AssertionError as error:
                self.violated(self._last, f"the projections are not consistent at the end: {error or 'a check failed'}")

    def compare(self, state: QueueState, last: RecordedEvent) -> None:
        """Report each part of ``state`` that is not what the events say; O(n log n)."""
        facts = self.facts
        folded, gathered = describe_state(state), facts.describe()
        for part, expected in gathered.items():
            if folded[part] != expected:
                self.violated(last, f"{part}: the projections say {folded[part]!r}, the events say {expected!r}")


def describe_state(state: QueueState) -> dict[str, Any]:
    """What a state says about the parts that :meth:`QueueFacts.describe` knows."""
    described = state.describe()
    counts = described["statistics"]
    return {
        "version": described["version"],
        "paused": described["paused"],
        "pending": described["pending"],
        "leases": {
            message_id: leases
            for message_id, slots in described["messages"].items()
            if (leases := sorted(slot["lease"] for slot in slots if slot["lease"] is not None))
        },
        "attempts": {
            message_id: sum(slot["attempts"] for slot in slots) for message_id, slots in described["messages"].items()
        },
        "dead letters": [entry.enqueued.message_id for entry in described["dead_letters"]],
        "subscribers": {
            subscriber_id: (subscriptions, held, failures, circuit)
            for subscriber_id, (subscriptions, held, failures, circuit) in described["subscribers"].items()
        },
        "counts": {
            name: counts[name]
            for name in ("messages_sent", "messages_expired", "messages_dropped", "messages_purged", "messages_failed")
        },
    }
