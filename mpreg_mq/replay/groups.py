"""From the events of a queue to its decisions: which events were recorded together, by one decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpreg_mq.events import RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState

FOLLOWERS = (
    e.AudienceMemberLeft,
    e.CircuitOpened,
    e.CircuitClosed,
    e.MessageRequeued,
    e.QuorumMissed,
    e.MessageCompleted,
    e.MessageDeadLettered,
    e.MessageFailed,
)
"""Events that are a consequence of the one before them, where that began a decision at the same time."""

_LEADERS = (e.SubscriberLeft, e.MessageAcknowledged, e.DeliveryFailed, e.LeaseExpired)
Group = list[RecordedEvent]

Enters = Callable[[e.AudienceFixed], bool]
"""Whether it is an audience that is there already and that somebody enters."""


def groups(records: Iterable[RecordedEvent], enters: Enters) -> Iterator[Group]:
    """The records of one stream, divided into the decisions that recorded them; each is given when the next begins.

    What one receive brought is a decision for each message, as if they had been fetched one by one: that decides the
    same, and several receives at one moment cannot be told apart.

    ``enters`` is asked of an audience that may have come with a subscriber, once all decisions before were given.
    """
    group: Group = []
    for record in records:
        if group and not _belongs(group, record.event, enters):
            yield group
            group = []
        group.append(record)
    if group:
        yield group


def whole_decisions(records: Iterable[RecordedEvent], position: int, enters: Enters) -> Iterator[RecordedEvent]:
    """The records of one stream up to a position, and on to the end of the decision that the position is within."""
    for group in groups(records, enters):
        if group[0].position > position:
            return
        yield from group


def is_entered(state: QueueState, event: e.AudienceFixed) -> bool:
    """Whether this is an audience that a newcomer enters, and none that its coming let be fixed (G4)."""
    message = state.messages.get(event.message_id)
    return message is not None and message.members is not None


def _belongs(group: Group, event: Any, enters: Enters) -> bool:
    first: Any = group[0].event
    last: Any = group[-1].event
    if event.at != first.at:
        return False
    if isinstance(first, _LEADERS):
        if isinstance(event, FOLLOWERS):
            return _same_subject(first, event)
        ends_with_process = isinstance(event, e.SubscriberLeft) and not event.unsubscribed
        return ends_with_process and isinstance(first, e.SubscriberLeft) and not first.unsubscribed
    if isinstance(first, e.SubscriberJoined):
        newcomer = (first.subscriber_id,)
        return isinstance(event, e.AudienceFixed) and event.subscriber_ids == newcomer and enters(event)
    if isinstance(first, e.QueueReconfigured):
        return isinstance(event, e.CircuitClosed)
    if isinstance(last, e.MessageDropped):
        return isinstance(event, e.MessageDropped) or (
            isinstance(event, e.MessageEnqueued) and event.redriven_from is None
        )
    if isinstance(last, e.MessagesPurged):
        return isinstance(event, e.QueueDeleted)
    if isinstance(last, e.MessageEnqueued):
        return isinstance(event, e.DeadLetterRedriven) and event.new_message_id == last.message_id
    if isinstance(last, e.AudienceFixed):
        return isinstance(event, e.MessageDelivered) and event.pull and bool(event.message_id == last.message_id)
    return False


def _same_subject(first: Any, event: Any) -> bool:
    if isinstance(first, e.SubscriberLeft):
        return not isinstance(event, e.CircuitOpened | e.CircuitClosed | e.MessageRequeued)
    if isinstance(event, e.CircuitOpened | e.CircuitClosed):
        return bool(event.subscriber_id == first.subscriber_id)
    return bool(event.message_id == first.message_id)
