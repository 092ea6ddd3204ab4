"""Whether the parts of the projection of messages agree (I2); for tests and for :meth:`QueueState.check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpreg_mq.projections.deadlines import DeadlineKind

if TYPE_CHECKING:
    from mpreg_mq.projections.messages import Messages


def check_messages(messages: Messages) -> None:
    """Assert that counts, groups, lanes, leases and deadlines agree; O(n log n)."""
    messages.deadlines.check()
    messages.lanes.check()
    assert messages.accepted_count == messages.finished_count + len(messages)
    assert messages.leased_count == sum(1 for message in messages if message.live)
    assert messages.pending_count == len(messages) - messages.leased_count
    assert messages.audiences.keys() == {message.id for message in messages if message.members is not None}
    timers = 0
    for message in messages:
        slots = list(message.slots())
        timers += sum(slot.timer is not None for slot in slots) + (message.ttl_timer is not None)
        if message.members is not None:
            timers += message.slot.timer is not None
            assert message.acknowledgments == sum(slot.acknowledged for slot in slots)
            assert message.exhausted == sum(slot.exhausted for slot in slots)
        assert message.live == sum(slot.lease is not None for slot in slots)
        assert (message.ttl_timer is not None) == (message.expires_at is not None and not message.live)
        for slot in slots:
            assert slot.lane is None or slot.timer is None
            assert slot.lease is None or (slot.timer is not None and slot.timer.kind is DeadlineKind.LEASE)
            assert not (slot.acknowledged and (slot.lane or slot.timer or slot.exhausted))
    assert timers + len(messages._circuits) == len(messages.deadlines)
    grouped = [entry[2] for group in messages._groups.values() for entry in group]
    assert {id(message) for message in grouped} == {id(m) for m in messages if m.group_id is not None}
    for group_id, group in messages._groups.items():
        started = [message for _, _, message in group if message.started]
        assert [message.id for message in started] == [
            holder.id for key, holder in messages._group_holders.items() if key == group_id
        ]
