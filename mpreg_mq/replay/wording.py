"""Every event in words, and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec

from mpreg_mq.errors import PayloadError
from mpreg_mq.events import RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.model import MessageOptions
from mpreg_mq.payload import decode_payload
from mpreg_mq.replay.formats import format_seconds, format_time, plural, printable, some


def _options(options: MessageOptions) -> str:
    given = ", ".join(f"{name}={value}" for name, value in attrs.asdict(options).items() if value is not None)
    return f" ({given})" if given else ""


def _enqueued(event: e.MessageEnqueued) -> str:
    origin = f", redriven from {event.redriven_from}" if event.redriven_from else ""
    return f"accepted on {event.topic}, {event.guarantee.value}, {len(event.payload):,} bytes{origin}" + _options(
        event.options
    )


def _delivered(event: e.MessageDelivered) -> str:
    how = "fetched by" if event.pull else "delivered to"
    return f"{how} {event.subscriber_id}, attempt {event.attempt}, leased for {_until(event, event.deadline)}"


def _until(event: e.Event, moment: float) -> str:
    return format_seconds(moment - event.at)


def _requeued(event: e.MessageRequeued) -> str:
    copy = f"copy for {event.subscriber_id} " if event.subscriber_id else ""
    waits = event.due_at - event.at
    return (
        f"{copy}waits {format_seconds(waits)} for another attempt" if waits > 0 else f"{copy}goes back into the queue"
    )


def _dead(event: e.MessageDeadLettered | e.MessageFailed) -> str:
    end = "dead letter" if isinstance(event, e.MessageDeadLettered) else "failed (no dead letter queue)"
    who = f", last at {event.subscriber_id}" if event.subscriber_id else ""
    return f"{end} after {plural(event.attempts, 'attempt')}{who}: {event.reason}"


def _left(event: e.SubscriberLeft) -> str:
    return f"{event.subscriber_id} left: it {'unsubscribed' if event.unsubscribed else 'ended with its process'}"


def _joined(event: e.SubscriberJoined) -> str:
    how = "fetches" if event.pull else "is called with"
    return f"{event.subscriber_id} joined and {how} {event.topic_pattern}, at most {event.max_in_flight} in flight"


WORDS: Mapping[type[e.Event], Callable[[Any], str]] = {
    e.QueueCreated: lambda x: f"queue {x.name} created ({x.configuration.queue_type.value})",
    e.QueueReconfigured: lambda x: "the queue follows another configuration",
    e.QueueDeleted: lambda x: "queue deleted",
    e.QueuePaused: lambda x: "paused: nothing is delivered",
    e.QueueResumed: lambda x: "resumed",
    e.SubscriberJoined: _joined,
    e.SubscriberLeft: _left,
    e.CircuitOpened: lambda x: (
        f"circuit of {x.subscriber_id} opened after {plural(x.failures, 'failure')} in a row, for {_until(x, x.until)}"
    ),
    e.CircuitHalfOpened: lambda x: f"circuit of {x.subscriber_id} half open: one message may probe it",
    e.CircuitClosed: lambda x: f"circuit of {x.subscriber_id} closed: it is given messages as before",
    e.MessageEnqueued: _enqueued,
    e.FireAndForgetSent: lambda x: (
        f"fired on {x.topic} at {some(x.delivered_to)}" + (f", failed at {some(x.failed)}" if x.failed else "")
    ),
    e.DuplicateRejected: lambda x: (
        f"send on {x.topic} refused: its key {x.deduplication_key} belongs to {x.duplicate_of}"
    ),
    e.MessageRejected: lambda x: f"send on {x.topic} refused, {x.reason.value}: {x.detail}",
    e.AudienceFixed: lambda x: f"audience: {some(x.subscriber_ids)}",
    e.AudienceMemberLeft: lambda x: f"{x.subscriber_id} left the audience",
    e.MessageDelivered: _delivered,
    e.MessageAcknowledged: lambda x: (
        f"acknowledged by {x.subscriber_id}" + (", which completes it" if x.completes else "")
    ),
    e.DeliveryFailed: lambda x: f"attempt {x.attempt} failed at {x.subscriber_id}: {x.error}",
    e.LeaseExpired: lambda x: f"lease of {x.subscriber_id} (attempt {x.attempt}) ended: {x.reason}",
    e.LeaseExtended: lambda x: f"lease of {x.subscriber_id} extended for {_until(x, x.deadline)}",
    e.MessageRequeued: _requeued,
    e.QuorumMissed: lambda x: (
        f"quorum missed, {x.acknowledgments} of {x.required}: waits {_until(x, x.due_at)} for newcomers"
    ),
    e.MessageCompleted: lambda x: "completed: it has all the acknowledgments it needs",
    e.MessageDeadLettered: _dead,
    e.MessageFailed: _dead,
    e.MessageExpired: lambda x: "expired: its time to live passed",
    e.MessageDropped: lambda x: "dropped: it was the oldest of a full queue",
    e.MessagesPurged: lambda x: f"{plural(len(x.message_ids), 'message')} purged",
    e.DeadLetterRedriven: lambda x: f"redriven as {x.new_message_id} in {x.target_queue}",
    e.TopicRouteAdded: lambda x: f"topics {x.topic_pattern} go to queue {x.queue_name}, {x.guarantee.value}",
    e.TopicRouteRemoved: lambda x: f"topics {x.topic_pattern} go to queue {x.queue_name} no more",
    e.DeadLettersPurged: lambda x: f"{plural(len(x.message_ids), 'dead letter')} purged",
}
"""What each type of event says, by type."""


def in_words(event: e.Event) -> str:
    """One line that says what happened."""
    return printable(WORDS[type(event)](event))


def message_ids(event: e.Event) -> tuple[str, ...]:
    """The messages that an event is about."""
    one = getattr(event, "message_id", None)
    if one is not None:
        return (one,)
    many: tuple[str, ...] = getattr(event, "message_ids", ())
    return many


def subject(event: e.Event) -> str:
    """What an event is about, for the column of a table: the message, the subscriber, or nothing."""
    ids = message_ids(event)
    return ids[0] if len(ids) == 1 else str(getattr(event, "subscriber_id", ""))


def payload_as_data(payload: bytes) -> Any:
    """The payload as Python data; what cannot be decoded is described."""
    try:
        return decode_payload(payload)
    except PayloadError as error:
        return f"<{error}>"


def event_fields(event: e.Event) -> dict[str, Any]:
    """The fields of an event as plain data, its payload decoded."""
    fields: dict[str, Any] = msgspec.to_builtins(event, builtin_types=(bytes,))
    if isinstance(event, e.MessageEnqueued):
        fields["payload"] = payload_as_data(event.payload)
    return fields


def record_fields(record: RecordedEvent) -> dict[str, Any]:
    """A recorded event as plain data: where it is, what it is, and its fields."""
    return {
        "position": record.position,
        "stream": record.stream,
        "version": record.version,
        "type": type(record.event).__name__,
        "time": format_time(record.event.at),
        "event": event_fields(record.event),
    }
