"""Unfinished messages: pending in queue order, leases, and every deadline (SEMANTICS O1-O3, L1, T1, G3, G4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

from sortedcontainers import SortedList

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.projections.base import Handled, Projection, contradiction
from mpreg_mq.projections.deadlines import Deadline, DeadlineKind, Deadlines
from mpreg_mq.projections.dumps import MessagesDump, decode_events, encode_events
from mpreg_mq.projections.lanes import Lanes
from mpreg_mq.projections.message import NO_SLOT, Defaults, Message, Slot
from mpreg_mq.projections.message_checks import check_messages
from mpreg_mq.projections.message_dumps import (
    Timers,
    dump_message,
    dump_timer,
    is_parked,
    restore_message,
    slots_with_dumps,
    timer_until_due,
)
from mpreg_mq.projections.reordering import reorder
from mpreg_mq.projections.subscribers import Subscribers
from mpreg_mq.projections.unfinished import Unfinished


class Messages(Unfinished, Projection):
    """The messages of a queue that are not finished.

    Enqueueing, delivering and finishing are O(log n) in the number of unfinished messages.
    """

    HANDLED: ClassVar[Handled] = {
        e.QueueCreated: "_on_configured",
        e.QueueReconfigured: "_on_reconfigured",
        e.QueueDeleted: "_on_deleted",
        e.MessageEnqueued: "_on_enqueued",
        e.AudienceFixed: "_on_audience_fixed",
        e.AudienceMemberLeft: "_on_audience_member_left",
        e.MessageDelivered: "_on_delivered",
        e.MessageAcknowledged: "_on_acknowledged",
        e.DeliveryFailed: "_on_delivery_failed",
        e.LeaseExpired: "_on_lease_expired",
        e.LeaseExtended: "_on_lease_extended",
        e.MessageRequeued: "_on_requeued",
        e.QuorumMissed: "_on_quorum_missed",
        e.MessageCompleted: "_on_finished",
        e.MessageDeadLettered: "_on_finished",
        e.MessageFailed: "_on_finished",
        e.MessageExpired: "_on_finished",
        e.MessageDropped: "_on_finished",
        e.MessagesPurged: "_on_purged",
        e.SubscriberJoined: "_on_subscriptions_changed",
        e.SubscriberLeft: "_on_subscriptions_changed",
        e.CircuitOpened: "_on_circuit_opened",
        e.CircuitHalfOpened: "_on_circuit_passable",
        e.CircuitClosed: "_on_circuit_passable",
    }

    __slots__ = (
        "_circuits",
        "_group_holders",
        "_groups",
        "_subscribers",
        "accepted_count",
        "audiences",
        "deadlines",
        "finished_count",
        "leased_count",
        "next_seq",
        "pending_count",
        "version",
    )

    def __init__(self, subscribers: Subscribers | None = None, on_doubt: Callable[[], None] | None = None) -> None:
        self.deadlines = Deadlines()
        self._subscribers = subscribers if subscribers is not None else Subscribers()
        super().__init__(Lanes(self._subscribers), on_doubt)
        self.version = 0
        self.next_seq = 1
        self.pending_count = 0
        """Unfinished messages without an open lease, delayed ones included (C1)."""
        self.leased_count = 0
        self.accepted_count = 0
        self.finished_count = 0
        self.audiences: dict[str, Message] = {}
        self._groups: dict[str, SortedList[tuple[float, int, Message]]] = {}
        self._group_holders: dict[str, Message] = {}
        self._circuits: dict[str, Deadline] = {}

    def pending(self) -> list[Message]:
        """Messages without an open lease, in queue order; O(n log n)."""
        return sorted((message for message in self if not message.live), key=lambda m: (m.rank, m.seq))

    def leased(self) -> list[Message]:
        """Messages with an open lease, in order of acceptance; O(n)."""
        return [message for message in self if message.live]

    def pending_by_age(self) -> Iterator[Message]:
        """Messages without an open lease, oldest acceptance first; the first costs only the leased ones before it."""
        return (message for message in self if not message.live)

    def group_head(self, group_id: str) -> Message | None:
        """The message of a group that holds the others back: the started one, else the first in order (O1)."""
        holder = self._group_holders.get(group_id)
        if holder is not None:
            return holder
        group = self._groups.get(group_id)
        return group[0][2] if group else None

    def promote(self, now: float) -> None:
        """Make the slots ready whose due time has come. Derived from time alone, so it is no event."""
        deadlines = self.deadlines
        while (first := deadlines.first()) is not None and first.when <= now and first.kind is DeadlineKind.DUE:
            slot: Slot = first.target
            deadlines.remove(first)
            slot.timer = None
            self._lanes.place(slot)

    def wait_again(self, slot: Slot) -> None:
        """Let a ready slot wait whose due time is still to come: the clock was put back after it was made ready."""
        self._lanes.remove(slot)
        slot.timer = self.deadlines.add(slot.due_at, DeadlineKind.DUE, slot)

    def park(self, slot: Slot) -> None:
        """Take a ready slot out of its lane that must not be delivered any more, nor end while others are leased."""
        self._lanes.remove(slot)

    def _on_configured(self, event: e.QueueCreated | e.QueueReconfigured) -> None:
        self._defaults = Defaults(event.configuration)
        self.quick_lane = None

    def _on_reconfigured(self, event: e.QueueReconfigured) -> None:
        before = self._defaults
        self._on_configured(event)
        if before is not None and before.queue_type is not event.configuration.queue_type:
            reorder(self, Defaults(event.configuration), event.at)

    def _on_deleted(self, event: e.QueueDeleted) -> None:
        self.accepted_count = 0
        self.finished_count = 0
        self._by_id.clear()
        self.unplaced = {}
        self._groups.clear()
        self._group_holders.clear()
        self._circuits.clear()
        self.audiences.clear()
        self.deadlines.clear()
        self._lanes.clear()
        self.pending_count = 0
        self.leased_count = 0

    def _on_enqueued(self, event: e.MessageEnqueued) -> None:
        defaults = self._defaults
        if defaults is None:
            raise contradiction(event, "the queue was not created")
        by_id = self._by_id
        message_id = event.message_id
        if message_id in by_id:
            raise contradiction(event, "the message exists")
        seq = self.next_seq
        by_id[message_id] = message = defaults.message(event, seq, self.version)
        self.next_seq = seq + 1
        self.accepted_count += 1
        self.pending_count += 1
        if message.expires_at is not None:
            message.ttl_timer = self.deadlines.add(message.expires_at, DeadlineKind.TTL, message)
        if message.group_id is None:
            slot = message.slot
            if slot.due_at > event.at:
                slot.timer = self.deadlines.add(slot.due_at, DeadlineKind.DUE, slot)
            else:
                self._lanes.place(slot)
        else:
            self._join_group(message, message.group_id, event.at)

    def _on_audience_fixed(self, event: e.AudienceFixed) -> None:
        message = self._known(event, event.message_id)
        self._withdraw(message.slot)
        if message.members is None:
            message.members = {}
            message.started = True
            if message.group_id is not None:
                self._group_holders[message.group_id] = message
            self.audiences[message.id] = message
        for subscriber_id in event.subscriber_ids:
            if subscriber_id in message.members:
                raise contradiction(event, f"{subscriber_id} is in the audience")
            slot = message.members[subscriber_id] = Slot(message, subscriber_id, event.at)
            self._queue(slot, event.at)

    def _on_audience_member_left(self, event: e.AudienceMemberLeft) -> None:
        message = self._known(event, event.message_id)
        slot = message.members.pop(event.subscriber_id, None) if message.members is not None else None
        if slot is None:
            raise contradiction(event, "the subscriber is not in the audience")
        if slot.exhausted:
            message.exhausted -= 1
        self._end_lease(slot)
        self._withdraw(slot)
        if not message.members:
            message.members = None
            del self.audiences[message.id]
            self._queue(message.slot, event.at)

    def _on_delivered(self, event: e.MessageDelivered) -> None:
        message = self._by_id.get(event.message_id) or self._known(event, event.message_id)
        members = message.members
        slot = message.slot if members is None else members.get(event.subscriber_id)
        if slot is None:
            raise contradiction(event, "the subscriber is not in the audience")
        if slot.lease is not None:
            raise contradiction(event, "the message is leased")
        if slot.lane is not None:
            slot.lane.drop(slot)
        if slot.timer is not None:
            self.deadlines.remove(slot.timer)
        slot.attempts = event.attempt
        slot.last_subscriber = event.subscriber_id
        slot.lease = event
        slot.deadline = deadline = event.deadline
        slot.timer = self.deadlines.add(deadline, DeadlineKind.LEASE, slot)
        if not message.started:
            message.started = True
            if message.group_id is not None:
                self._group_holders[message.group_id] = message
        message.live += 1
        if message.live == 1:
            self.leased_count += 1
            self.pending_count -= 1
            if message.ttl_timer is not None:
                self.deadlines.remove(message.ttl_timer)
                message.ttl_timer = None

    def _on_acknowledged(self, event: e.MessageAcknowledged) -> None:
        message = self._by_id.get(event.message_id) or self._known(event, event.message_id)
        if event.completes and message.members is None and message.group_id is None:
            lease = message.slot.lease
            if lease is not None and lease.subscriber_id == event.subscriber_id:
                # As _finish, in place, for what most messages are at their end: of no group, and leased to one.
                timer = message.slot.timer
                assert timer is not None, "a lease has a deadline"
                self.deadlines.remove(timer)
                del self._by_id[message.id]
                self.leased_count -= 1
                self.finished_count += 1
                message.slot = NO_SLOT
                lanes = self._lanes
                if event.subscriber_id in lanes.starved:
                    lanes.wake(event.subscriber_id)
                return
        slot = message.slot_for(event.subscriber_id)
        if slot is None:
            raise contradiction(event, "the message is not the subscriber's")
        if event.completes:
            self._finish(message, event.at)
            return
        if slot.acknowledged:
            raise contradiction(event, "the subscriber has acknowledged it already")
        self._end_lease(slot)
        self._withdraw(slot)
        if slot.exhausted:
            slot.exhausted = False
            message.exhausted -= 1
        slot.acknowledged = True
        message.acknowledgments += 1

    def _on_delivery_failed(self, event: e.DeliveryFailed) -> None:
        self._attempt_failed(event, event.error)

    def _on_lease_expired(self, event: e.LeaseExpired) -> None:
        self._attempt_failed(event, event.reason)

    def _attempt_failed(self, event: e.DeliveryFailed | e.LeaseExpired, error: str) -> None:
        message = self._known(event, event.message_id)
        slot = message.slot_for(event.subscriber_id)
        if slot is None or slot.lease is None:
            raise contradiction(event, "the subscriber has no lease on the message")
        self._end_lease(slot)
        slot.last_error = error
        if slot.attempts >= message.max_attempts:
            slot.exhausted = True
            message.exhausted += 1

    def _on_lease_extended(self, event: e.LeaseExtended) -> None:
        message = self._known(event, event.message_id)
        slot = message.slot_for(event.subscriber_id)
        if slot is None or slot.lease is None:
            raise contradiction(event, "the subscriber has no lease on the message")
        self._withdraw(slot)
        slot.deadline = event.deadline
        slot.timer = self.deadlines.add(event.deadline, DeadlineKind.LEASE, slot)

    def _on_requeued(self, event: e.MessageRequeued) -> None:
        message = self._known(event, event.message_id)
        slot: Slot | None = message.slot
        if message.members is not None:
            slot = message.members.get(event.subscriber_id) if event.subscriber_id is not None else None
        if slot is None or slot.subscriber_id != event.subscriber_id:
            raise contradiction(event, "the subscriber is not in the audience")
        if slot.lease is not None:
            raise contradiction(event, "the message is leased")
        self._withdraw(slot)
        slot.due_at = event.due_at
        self._queue(slot, event.at)

    def _on_quorum_missed(self, event: e.QuorumMissed) -> None:
        message = self._known(event, event.message_id)
        self._withdraw(message.slot)
        # Else it is the wait that was under way, which goes on.
        if event.due_at != message.slot.due_at or event.due_at <= event.at:
            message.missed += 1
        message.slot.due_at = event.due_at
        message.slot.timer = self.deadlines.add(event.due_at, DeadlineKind.QUORUM, message.slot)

    def _on_finished(
        self,
        event: e.MessageCompleted | e.MessageDeadLettered | e.MessageFailed | e.MessageExpired | e.MessageDropped,
    ) -> None:
        self._finish(self._known(event, event.message_id), event.at)

    def _on_purged(self, event: e.MessagesPurged) -> None:
        for message_id in event.message_ids:
            self._finish(self._known(event, message_id), event.at)

    def _on_subscriptions_changed(self, event: e.SubscriberJoined | e.SubscriberLeft) -> None:
        self._lanes.subscriptions_changed()
        self.quick_lane = None
        subscriber = self._subscribers.get(event.subscriber_id)
        if subscriber is None or not subscriber.present:
            self._forget_circuit(event.subscriber_id)

    def _on_circuit_opened(self, event: e.CircuitOpened) -> None:
        self._forget_circuit(event.subscriber_id)
        self._circuits[event.subscriber_id] = self.deadlines.add(event.until, DeadlineKind.CIRCUIT, event.subscriber_id)

    def _on_circuit_passable(self, event: e.CircuitHalfOpened | e.CircuitClosed) -> None:
        self._forget_circuit(event.subscriber_id)
        self._lanes.wake(event.subscriber_id)

    def _forget_circuit(self, subscriber_id: str) -> None:
        timer = self._circuits.pop(subscriber_id, None)
        if timer is not None:
            self.deadlines.remove(timer)

    def _known(self, event: e.Event, message_id: str) -> Message:
        message = self._by_id.get(message_id)
        if message is None:
            raise contradiction(event, f"no unfinished message has the id {message_id!r}")
        return message

    def _queue(self, slot: Slot, now: float) -> None:
        """Make a slot ready, or let it wait for its due time."""
        if slot.due_at > now:
            slot.timer = self.deadlines.add(slot.due_at, DeadlineKind.DUE, slot)
        else:
            self._lanes.place(slot)

    def _withdraw(self, slot: Slot) -> None:
        """Take a slot out of its lane and off its timer."""
        if slot.lane is not None:
            self._lanes.remove(slot)
        if slot.timer is not None:
            self.deadlines.remove(slot.timer)
            slot.timer = None

    def _end_lease(self, slot: Slot) -> None:
        lease = slot.lease
        if lease is None:
            return
        message = slot.message
        assert slot.timer is not None, "a lease has a deadline"
        self.deadlines.remove(slot.timer)
        slot.timer = None
        slot.lease = None
        message.live -= 1
        if not message.live:
            self.leased_count -= 1
            self.pending_count += 1
            if message.expires_at is not None:
                message.ttl_timer = self.deadlines.add(message.expires_at, DeadlineKind.TTL, message)
        lanes = self._lanes
        if lease.subscriber_id in lanes.starved:
            lanes.wake(lease.subscriber_id)

    def _finish(self, message: Message, now: float) -> None:
        self._stop(message.slot)
        if message.members is not None:
            for slot in message.members.values():
                self._stop(slot)
            del self.audiences[message.id]
        if message.ttl_timer is not None:
            self.deadlines.remove(message.ttl_timer)
            message.ttl_timer = None
        del self._by_id[message.id]
        self.finished_count += 1
        self.pending_count -= 1
        if message.group_id is not None:
            self._leave_group(message, message.group_id, now)
        message.let_go()

    def _stop(self, slot: Slot) -> None:
        """Nothing more happens to this slot."""
        if slot.lease is not None:
            self._end_lease(slot)
        elif slot.lane is not None or slot.timer is not None:
            self._withdraw(slot)

    def _join_group(self, message: Message, group_id: str, now: float) -> None:
        group = self._groups.setdefault(group_id, SortedList())
        before = self.group_head(group_id)
        group.add((message.rank, message.seq, message))
        if self.group_head(group_id) is message:
            if before is not None:
                self._withdraw(before.slot)
            self._queue(message.slot, now)

    def _leave_group(self, message: Message, group_id: str, now: float) -> None:
        group = self._groups[group_id]
        group.remove((message.rank, message.seq, message))
        if self._group_holders.get(group_id) is message:
            del self._group_holders[group_id]
        head = self.group_head(group_id)
        if head is None:
            del self._groups[group_id]
        elif not head.started and head.slot.lane is None and head.slot.timer is None:
            self._queue(head.slot, now)

    def dump(self) -> MessagesDump:
        """The messages as plain data; O(n)."""
        return MessagesDump(
            encode_events(message.event for message in self),
            [dump_message(message) for message in self],
            {subscriber_id: dump_timer(timer) for subscriber_id, timer in self._circuits.items()},
            self.next_seq,
            self.accepted_count,
            self.finished_count,
        )

    def restore(
        self, dump: MessagesDump, version: int, last_at: float, configuration: QueueConfiguration | None
    ) -> None:
        """Become what the events up to this version imply, the last of which was at ``last_at``.

        Only for a new projection, after that of the subscribers.
        """
        if configuration is not None:
            self._defaults = Defaults(configuration)
        self.version = version
        self.next_seq = dump.next_seq
        self.accepted_count = dump.accepted_count
        self.finished_count = dump.finished_count
        timers: Timers = []
        for event, dumped in zip(decode_events(dump.events), dump.messages, strict=True):
            assert isinstance(event, e.MessageEnqueued)
            message = restore_message(event, dumped, timers)
            self._by_id[message.id] = message
            self.leased_count += message.live > 0
            if message.members is not None:
                self.audiences[message.id] = message
            if message.group_id is not None:
                group = self._groups.setdefault(message.group_id, SortedList())
                group.add((message.rank, message.seq, message))
                if message.started:
                    self._group_holders[message.group_id] = message
        self.pending_count = len(self) - self.leased_count
        for subscriber_id, timer in dump.circuits.items():
            timers.append((timer, subscriber_id, partial(self._circuits.__setitem__, subscriber_id)))
        ready = []
        for message, dumped in zip(self, dump.messages, strict=True):
            for slot, dumped_slot in slots_with_dumps(message, dumped):
                if not dumped_slot.ready and not is_parked(slot, dumped_slot):
                    continue
                if slot.due_at <= last_at:
                    ready.append(slot)
                else:
                    timers.append(timer_until_due(slot))
        for timer, target, keep in sorted(timers, key=lambda entry: entry[0].ordinal):
            keep(self.deadlines.add(timer.when, DeadlineKind(timer.kind), target))
        for slot in sorted(ready, key=lambda slot: (slot.message.rank, slot.message.seq)):
            self._lanes.place(slot)

    def check(self) -> None:
        """Assert that counts, groups, lanes, leases and deadlines agree (I2)."""
        check_messages(self)
