"""The facts of one queue that its events state, for the rules to judge the next event by.

Rules look before an event is taken in. Nothing here raises or reports: an event that makes no sense leaves the facts
as they were, and the rule whose business it is says so.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.messages import MessageFacts, MessageMaker, SlotFacts
from mpreg_mq.invariants.ready import Ready
from mpreg_mq.invariants.subscribers import SubscriberFacts, SubscriberTable
from mpreg_mq.model import CircuitState

REMEMBERED_ENDS = 65_536
"""How many finished messages are remembered by their last event alone, to say what ended them."""


@attrs.define(eq=False)
class DeadFacts:
    """A dead letter: the record of its acceptance, and of its end."""

    enqueued: RecordedEvent
    ended: RecordedEvent


@attrs.define(eq=False)
class LogFacts:
    """What rules need to know of the other queues of the log."""

    queues: dict[str, QueueFacts] = attrs.field(factory=dict)
    """By queue name."""


Taking = Callable[["QueueFacts", RecordedEvent, Any], None]
"""Takes an event of one type in."""


def _nothing(facts: QueueFacts, record: RecordedEvent, event: e.Event) -> None:
    """The event says nothing that rules need to know later."""


class QueueFacts:
    """One queue as its events tell it.

    ``message``, ``slot`` and ``subscriber`` are those that the event at hand names, None where there is none such.
    ``complete`` is false for a stream whose beginning is missing: what happened before is not known then, and rules
    keep silent about what they did not see begin.
    """

    def __init__(self, stream: str, log: LogFacts) -> None:
        self.stream = stream
        self.log = log
        self.name = ""
        self.complete = True
        self.configuration: QueueConfiguration | None = None
        self.created: RecordedEvent | None = None
        self.deleted: RecordedEvent | None = None
        self.paused: RecordedEvent | None = None
        self.previous: RecordedEvent | None = None
        self.messages: dict[str, MessageFacts] = {}
        self.audiences: dict[str, MessageFacts] = {}
        self.leased = 0
        self.finished: OrderedDict[str, RecordedEvent] = OrderedDict()
        self.dead: dict[str, DeadFacts] = {}
        self.subscribers = SubscriberTable()
        self.ready = Ready(self.subscribers)
        self.ends: Counter[type[e.Event]] = Counter()
        self.sent = 0
        self.purged = 0
        self.version = 0
        self.message: MessageFacts | None = None
        self.slot: SlotFacts | None = None
        self.subscriber: SubscriberFacts | None = None
        self._seq = 0
        self._maker: MessageMaker | None = None

    @property
    def pending(self) -> int:
        """Unfinished messages without an open lease (C1)."""
        return len(self.messages) - self.leased

    def describe(self) -> dict[str, Any]:
        """Who is where, as plain data; O(n log n)."""
        ends = self.ends
        messages = self.messages.values()
        pending = sorted((message.rank, message.seq, message.id) for message in messages if not message.leases)
        return {
            "version": self.version,
            "paused": self.paused is not None,
            "pending": [message_id for _, _, message_id in pending],
            "leases": {
                message.id: sorted(_lease(slot) for slot in message.slots() if slot.lease is not None)
                for message in messages
                if message.leases
            },
            "attempts": {message.id: sum(slot.attempts for slot in message.slots()) for message in messages},
            "dead letters": list(self.dead),
            "subscribers": {
                subscriber.id: (
                    sorted(subscriber.subscriptions),
                    sorted(subscriber.held),
                    subscriber.failures,
                    subscriber.circuit.value,
                )
                for subscriber in self.subscribers.by_id.values()
            },
            "counts": {
                "messages_sent": self.sent,
                "messages_expired": ends[e.MessageExpired],
                "messages_dropped": ends[e.MessageDropped],
                "messages_purged": self.purged,
                "messages_failed": ends[e.MessageDeadLettered] + ends[e.MessageFailed],
            },
        }

    # --- looking at the event at hand ---------------------------------------------------------------------

    def focus(self, event: Any) -> None:
        """Find what a message event is about."""
        message = self.message = self.messages.get(event.message_id)
        subscriber_id = getattr(event, "subscriber_id", None)
        if subscriber_id is None:
            self.subscriber = None
            self.slot = None if message is None else message.slot
        else:
            self.subscriber = self.subscribers.by_id.get(subscriber_id)
            self.slot = None if message is None else message.slot_of(subscriber_id)

    # --- taking it in -------------------------------------------------------------------------------------

    @classmethod
    def taking(cls, kind: type[e.Event]) -> Taking:
        """What takes in events of this type, after the rules have seen them.

        Whoever calls it counts ``version`` and keeps the record as ``previous``.
        """
        return cls._handlers.get(kind, _nothing)

    def _on_created(self, record: RecordedEvent, event: e.QueueCreated) -> None:
        self.name = event.name
        self.log.queues[event.name] = self
        self.ends.clear()
        self.sent = 0
        self.purged = 0
        self._configure(event.configuration)
        self.created = record
        self.deleted = None

    def _on_reconfigured(self, record: RecordedEvent, event: e.QueueReconfigured) -> None:
        before = self.configuration
        if before is not None and event.configuration.queue_type is not before.queue_type:
            maker = MessageMaker(event.configuration)
            for message in self.messages.values():
                message.rank = maker.message(message.record, message.event, message.seq).rank
            self.ready.reorder(event.at)
        self._configure(event.configuration)

    def _configure(self, configuration: QueueConfiguration) -> None:
        self.configuration = configuration
        self._maker = MessageMaker(configuration)

    def _on_deleted(self, record: RecordedEvent, event: e.QueueDeleted) -> None:
        self.deleted = record
        self.paused = None
        self.messages.clear()
        self.audiences.clear()
        self.dead.clear()
        self.leased = 0
        self.subscribers.clear()
        self.ready = Ready(self.subscribers)

    def _on_paused(self, record: RecordedEvent, event: e.QueuePaused) -> None:
        self.paused = record

    def _on_resumed(self, record: RecordedEvent, event: e.QueueResumed) -> None:
        self.paused = None

    def _on_joined(self, record: RecordedEvent, event: e.SubscriberJoined) -> None:
        self.subscribers.join(record, event)

    def _on_left(self, record: RecordedEvent, event: e.SubscriberLeft) -> None:
        self.subscribers.leave(record, event)

    def _on_circuit(
        self, record: RecordedEvent, event: e.CircuitOpened | e.CircuitHalfOpened | e.CircuitClosed
    ) -> None:
        subscriber = self.subscribers.by_id.get(event.subscriber_id)
        if subscriber is None:
            return
        subscriber.circuit_set = record
        if isinstance(event, e.CircuitOpened):
            subscriber.circuit = CircuitState.OPEN
            subscriber.until = event.until
        elif isinstance(event, e.CircuitHalfOpened):
            subscriber.circuit = CircuitState.HALF_OPEN
        else:
            subscriber.circuit = CircuitState.CLOSED

    def _on_enqueued(self, record: RecordedEvent, event: e.MessageEnqueued) -> None:
        self.sent += 1
        message_id = event.message_id
        if self._maker is None or message_id in self.messages:
            return
        self._seq += 1
        message = self.messages[message_id] = self._maker.message(record, event, self._seq)
        self.ready.enter(message, event.at)

    def _on_sent_at_once(self, record: RecordedEvent, event: e.FireAndForgetSent) -> None:
        self.sent += 1

    def _on_audience_fixed(self, record: RecordedEvent, event: e.AudienceFixed) -> None:
        message = self.message
        if message is None:
            return
        self.ready.withdraw(message.slot)
        if message.members is None:
            message.members = {}
            message.acknowledgments = message.exhausted = message.answered = 0
            message.fixed = record
            self.audiences[message.id] = message
            self._start(message, record)
        for subscriber_id in event.subscriber_ids:
            if subscriber_id not in message.members:
                slot = message.members[subscriber_id] = SlotFacts(message, subscriber_id, event.at, record)
                self.ready.wait(slot, event.at)

    def _on_member_left(self, record: RecordedEvent, event: e.AudienceMemberLeft) -> None:
        message, slot = self.message, self.slot
        if message is None or message.members is None or slot is None:
            return
        del message.members[event.subscriber_id]
        self.ready.withdraw(slot)
        self._end_lease(slot)
        if not message.members:
            message.members = None
            message.fixed = None
            del self.audiences[message.id]
            self.ready.wait(message.slot, event.at)
        message.recount()

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message, slot = self.message, self.slot
        if message is None or slot is None:
            return
        if message.started is None:
            self._start(message, record)
        slot.token = 0
        if slot.lease is None:
            message.leases += 1
            if message.leases == 1:
                self.leased += 1
        slot.attempts = event.attempt
        slot.delivered = slot.lease = slot.deadline_set = record
        slot.deadline = event.deadline
        slot.failure = None
        subscriber = self.subscriber
        if subscriber is not None:
            subscriber.held[event.message_id] = slot
            subscriber.last_delivery = record

    def _on_acknowledged(self, record: RecordedEvent, event: e.MessageAcknowledged) -> None:
        message, slot = self.message, self.slot
        if self.subscriber is not None:
            self.subscriber.failures = 0
        if message is None or slot is None:
            return
        self._end_lease(slot)
        if event.completes:
            self._finish(message, record)
            return
        self.ready.withdraw(slot)
        message.settle(slot, record, False)
        slot.failure = None

    def _on_failed(self, record: RecordedEvent, event: e.DeliveryFailed | e.LeaseExpired) -> None:
        message, slot = self.message, self.slot
        if message is None or slot is None:
            return
        subscriber = self.subscriber
        if subscriber is not None and subscriber.subscriptions and not getattr(event, "process_ended", False):
            subscriber.failures += 1
        self._end_lease(slot)
        slot.failure = slot.last_failure = record
        message.settle(slot, slot.acknowledged, slot.attempts >= message.max_attempts)

    def _on_extended(self, record: RecordedEvent, event: e.LeaseExtended) -> None:
        if self.slot is not None:
            self.slot.deadline = event.deadline
            self.slot.deadline_set = record

    def _on_requeued(self, record: RecordedEvent, event: e.MessageRequeued) -> None:
        message = self.message
        slot = None if message is None else self.requeued_slot(message, event)
        if slot is not None:
            slot.failure = None
            slot.due_at = event.due_at
            slot.scheduled = record
            self.ready.wait(slot, event.at)

    @staticmethod
    def requeued_slot(message: MessageFacts, event: e.MessageRequeued) -> SlotFacts | None:
        """What a requeue is about: the message, or the copy of the member it names; None where it fits neither."""
        if message.members is None:
            return message.slot if event.subscriber_id is None else None
        return None if event.subscriber_id is None else message.members.get(event.subscriber_id)

    def _on_quorum_missed(self, record: RecordedEvent, event: e.QuorumMissed) -> None:
        message = self.message
        if message is not None and not message.goes_on_waiting(event):
            message.missed += 1
            message.missed_until = event.due_at

    def _on_dead_lettered(self, record: RecordedEvent, event: e.MessageDeadLettered) -> None:
        self.ends[e.MessageDeadLettered] += 1
        if self.message is not None:
            self.dead[event.message_id] = DeadFacts(self.message.record, record)
            self._finish(self.message, record)

    def _on_ended(self, record: RecordedEvent, event: e.Event) -> None:
        self.ends[type(event)] += 1
        if self.message is not None:
            self._finish(self.message, record)

    def _on_purged(self, record: RecordedEvent, event: e.MessagesPurged) -> None:
        self.purged += len(event.message_ids)
        for message_id in event.message_ids:
            message = self.messages.get(message_id)
            if message is not None:
                self._finish(message, record)

    def _on_redriven(self, record: RecordedEvent, event: e.DeadLetterRedriven) -> None:
        self.dead.pop(event.message_id, None)

    def _on_dead_purged(self, record: RecordedEvent, event: e.DeadLettersPurged) -> None:
        for message_id in event.message_ids:
            self.dead.pop(message_id, None)

    def _start(self, message: MessageFacts, record: RecordedEvent) -> None:
        message.started = record
        self.ready.start(message)

    def _end_lease(self, slot: SlotFacts) -> None:
        lease: Any = slot.lease
        if lease is None:
            return
        slot.lease = None
        message = slot.message
        message.leases -= 1
        if not message.leases:
            self.leased -= 1
        subscriber = self.subscribers.by_id.get(lease.event.subscriber_id)
        if subscriber is not None:
            subscriber.held.pop(message.id, None)
            self.subscribers.forget_if_gone(subscriber)

    def _finish(self, message: MessageFacts, record: RecordedEvent) -> None:
        if message.leases:
            for slot in message.slots():
                self._end_lease(slot)
        del self.messages[message.id]
        if message.fixed is not None:
            del self.audiences[message.id]
        message.let_go()
        if message.group_id is not None:
            self.ready.leave(message, record.event.at)
        finished = self.finished
        finished[message.id] = record
        if len(finished) > REMEMBERED_ENDS:
            finished.popitem(last=False)

    _handlers: ClassVar[dict[type[e.Event], Taking]] = {
        e.QueueCreated: _on_created,
        e.QueueReconfigured: _on_reconfigured,
        e.QueueDeleted: _on_deleted,
        e.QueuePaused: _on_paused,
        e.QueueResumed: _on_resumed,
        e.SubscriberJoined: _on_joined,
        e.SubscriberLeft: _on_left,
        e.CircuitOpened: _on_circuit,
        e.CircuitHalfOpened: _on_circuit,
        e.CircuitClosed: _on_circuit,
        e.MessageEnqueued: _on_enqueued,
        e.FireAndForgetSent: _on_sent_at_once,
        e.AudienceFixed: _on_audience_fixed,
        e.AudienceMemberLeft: _on_member_left,
        e.MessageDelivered: _on_delivered,
        e.MessageAcknowledged: _on_acknowledged,
        e.DeliveryFailed: _on_failed,
        e.LeaseExpired: _on_failed,
        e.LeaseExtended: _on_extended,
        e.MessageRequeued: _on_requeued,
        e.QuorumMissed: _on_quorum_missed,
        e.MessageCompleted: _on_ended,
        e.MessageDeadLettered: _on_dead_lettered,
        e.MessageFailed: _on_ended,
        e.MessageExpired: _on_ended,
        e.MessageDropped: _on_ended,
        e.MessagesPurged: _on_purged,
        e.DeadLetterRedriven: _on_redriven,
        e.DeadLettersPurged: _on_dead_purged,
    }


def _lease(slot: SlotFacts) -> tuple[str, int, float]:
    lease: Any = slot.lease
    return lease.event.subscriber_id, slot.attempts, slot.deadline
