"""One message and its slots to plain data and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mpreg_mq.events import types as e
from mpreg_mq.projections.deadlines import Deadline, DeadlineKind
from mpreg_mq.projections.dumps import MessageDump, SlotDump, TimerDump, decode_events, encode_events
from mpreg_mq.projections.message import Message, Slot

Timers = list[tuple[TimerDump, Any, Callable[[Deadline], None]]]
"""Deadlines that are to be registered: what each is, its target, and who keeps the entry."""

_NO_EVENTS = encode_events(())


def dump_timer(timer: Deadline) -> TimerDump:
    """A deadline as plain data."""
    return TimerDump(timer.when, timer.ordinal, int(timer.kind))


def _dump_slot(slot: Slot) -> SlotDump:
    return SlotDump(
        slot.subscriber_id,
        slot.due_at,
        slot.attempts,
        _NO_EVENTS if slot.lease is None else encode_events((slot.lease,)),
        slot.deadline,
        slot.last_subscriber,
        slot.last_error,
        slot.acknowledged,
        slot.exhausted,
        slot.lane is not None,
        None if slot.timer is None else dump_timer(slot.timer),
    )


def dump_message(message: Message) -> MessageDump:
    """A message as plain data, without its event."""
    return MessageDump(
        message.seq,
        message.version,
        message.rank,
        message.max_attempts,
        message.expires_at,
        _dump_slot(message.slot),
        None if message.members is None else [_dump_slot(slot) for slot in message.members.values()],
        message.acknowledgments,
        message.exhausted,
        message.missed,
        message.started,
        None if message.ttl_timer is None else dump_timer(message.ttl_timer),
    )


def _restore_slot(message: Message, dump: SlotDump, timers: Timers) -> Slot:
    slot = Slot(
        message,
        dump.subscriber_id,
        dump.due_at,
        dump.attempts,
        None,
        dump.deadline,
        dump.last_subscriber,
        dump.last_error,
        dump.acknowledged,
        dump.exhausted,
    )
    for lease in decode_events(dump.lease) if dump.lease != _NO_EVENTS else ():
        assert isinstance(lease, e.MessageDelivered)
        slot.lease = lease
        message.live += 1
    if dump.timer is not None:
        timers.append((dump.timer, slot, partial(setattr, slot, "timer")))
    return slot


def restore_message(event: e.MessageEnqueued, dump: MessageDump, timers: Timers) -> Message:
    """The message of this event; its deadlines go to ``timers``."""
    message = Message(
        event,
        event.message_id,
        event.topic,
        event.guarantee,
        dump.seq,
        dump.version,
        dump.rank,
        dump.max_attempts,
        event.options.group_id,
        dump.expires_at,
        acknowledgments=dump.acknowledgments,
        exhausted=dump.exhausted,
        missed=dump.missed,
        started=dump.started,
    )
    message.slot = _restore_slot(message, dump.slot, timers)
    if dump.members is not None:
        slots = [_restore_slot(message, member, timers) for member in dump.members]
        message.members = {slot.subscriber_id: slot for slot in slots if slot.subscriber_id is not None}
    if dump.ttl_timer is not None:
        timers.append((dump.ttl_timer, message, partial(setattr, message, "ttl_timer")))
    return message


def slots_with_dumps(message: Message, dump: MessageDump) -> Iterator[tuple[Slot, SlotDump]]:
    """Each slot with what it was restored from."""
    yield message.slot, dump.slot
    if message.members is not None and dump.members is not None:
        yield from zip(message.members.values(), dump.members, strict=True)


def is_parked(slot: Slot, dump: SlotDump) -> bool:
    """Whether a slot that is not ready would be, had the message not expired by the clock while others had leases.

    That was no event, and by a clock that was put back the message may be delivered.
    """
    return (
        slot.subscriber_id is not None
        and slot.message.expires_at is not None
        and dump.timer is None
        and not slot.acknowledged
        and not slot.exhausted
    )


def timer_until_due(slot: Slot) -> tuple[TimerDump, Slot, Callable[[Deadline], None]]:
    """For a slot that was ready by the clock alone, which was no event: it waits for its due time, as it did before.

    It was the first of all deadlines then, so it comes before those that are left.
    """
    return TimerDump(slot.due_at, 0, DeadlineKind.DUE), slot, partial(setattr, slot, "timer")
