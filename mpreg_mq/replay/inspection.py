"""A queue's state as rows of plain data: what ``mpreg-mq replay`` shows of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from mpreg_mq.model import CircuitState
from mpreg_mq.projections import DeadEntry, Message, QueueState, Slot, Subscriber

Row = dict[str, Any]


def queue_row(state: QueueState, now: float) -> Row:
    """The queue itself: its counts, and what of its configuration is not the default."""
    configuration = state.configuration
    changed = {
        field.name: _plain(getattr(configuration, field.name))
        for field in attrs.fields(type(configuration))
        if field.name != "name" and getattr(configuration, field.name) != field.default
    }
    return {
        "kind": "queue",
        "queue": configuration.name,
        "type": configuration.queue_type.value,
        "version": state.version,
        "last_at": state.last_at,
        "paused": state.paused,
        "deleted": state.deleted,
        "configuration": changed,
        "statistics": attrs.asdict(state.report(now)),
    }


def pending_rows(state: QueueState, now: float) -> Iterator[Row]:
    """Messages without an open lease, in the order of the queue; O(n log n)."""
    for place, message in enumerate(state.messages.pending(), 1):
        slot = message.slot
        yield {
            "kind": "pending",
            "queue": state.configuration.name,
            "place": place,
            "message_id": message.id,
            "topic": message.topic,
            "guarantee": message.guarantee.value,
            "sent_at": message.event.at,
            "standing": standing(state, message, now),
            "due_at": _due(message),
            "attempts": max((other.attempts for other in message.slots()), default=0),
            "max_attempts": message.max_attempts,
            "last_error": next((other.last_error for other in message.slots() if other.last_error), slot.last_error),
            "group_id": message.group_id,
            "expires_at": message.expires_at,
            "audience": _audience(message),
        }


def standing(state: QueueState, message: Message, now: float) -> str:
    """Where an unfinished message stands, in a word or two."""
    slots = [slot for slot in message.slots() if not slot.acknowledged and not slot.exhausted]
    if message.live:
        return "leased"
    if message.members is not None and message.slot.timer is not None:
        return "quorum short"
    if any(slot.lane is not None for slot in slots):
        return "paused" if state.paused else _ready(state, [slot for slot in slots if slot.lane is not None])
    waits = [slot for slot in slots if slot.timer is not None]
    if waits:
        first = min(waits, key=lambda slot: slot.due_at)
        return "backoff" if first.attempts else "delayed"
    head = None if message.group_id is None else state.messages.group_head(message.group_id)
    return "held by its group" if head is not None and head is not message else "expiring"


def _ready(state: QueueState, slots: list[Slot]) -> str:
    names = {
        name
        for slot in slots
        for name in ((slot.subscriber_id,) if slot.subscriber_id else state.subscribers.audience(slot.message.topic))
    }
    takers = [subscriber for subscriber in map(state.subscribers.get, names) if subscriber and subscriber.present]
    if not takers:
        return "no subscriber"
    return "ready" if any(subscriber.can_take() for subscriber in takers) else "no subscriber free"


def _due(message: Message) -> float:
    return min((slot.due_at for slot in message.slots() if not slot.acknowledged), default=message.slot.due_at)


def _audience(message: Message) -> Row | None:
    if message.members is None:
        return None
    return {name: _member(slot) for name, slot in message.members.items()}


def _member(slot: Slot) -> str:
    if slot.acknowledged:
        return "acknowledged"
    if slot.exhausted:
        return "attempts used up"
    if slot.lease is not None:
        return "leased"
    return "waiting" if slot.timer is not None else "ready"


def lease_rows(state: QueueState) -> Iterator[Row]:
    """Open leases, in order of acceptance of their messages; O(n)."""
    for message in state.messages.leased():
        for slot in message.slots():
            lease = slot.lease
            if lease is not None:
                yield {
                    "kind": "lease",
                    "queue": state.configuration.name,
                    "message_id": message.id,
                    "topic": message.topic,
                    "subscriber_id": lease.subscriber_id,
                    "attempt": lease.attempt,
                    "delivered_at": lease.at,
                    "deadline": slot.deadline,
                    "pull": lease.pull,
                }


def dead_letter_row(queue: str, entry: DeadEntry) -> Row:
    """A dead letter without its payload."""
    ended = entry.ended
    return {
        "kind": "dead_letter",
        "queue": queue,
        "message_id": ended.message_id,
        "topic": entry.enqueued.topic,
        "sent_at": entry.enqueued.at,
        "dead_at": ended.at,
        "reason": ended.reason,
        "error": ended.error,
        "attempts": ended.attempts,
        "subscriber_id": ended.subscriber_id,
        "redriven_from": entry.enqueued.redriven_from,
    }


def dead_letter_rows(state: QueueState) -> Iterator[Row]:
    """Dead letters, oldest first."""
    return (dead_letter_row(state.configuration.name, entry) for entry in state.dead_letters)


def deduplication_rows(state: QueueState, now: float) -> Iterator[Row]:
    """Keys that a send would still meet, the next to expire first."""
    for key, (until, message_id) in sorted(state.deduplication.keys().items(), key=lambda item: item[1]):
        if now < until:
            yield {
                "kind": "deduplication_key",
                "queue": state.configuration.name,
                "key": key,
                "message_id": message_id,
                "until": until,
            }


def subscriber_rows(state: QueueState) -> Iterator[Row]:
    """Subscribers with what they hold and their breakers."""
    return (_subscriber_row(state.configuration.name, subscriber) for subscriber in state.subscribers)


def _subscriber_row(queue: str, subscriber: Subscriber) -> Row:
    return {
        "kind": "subscriber",
        "queue": queue,
        "subscriber_id": subscriber.id,
        "patterns": [joined.topic_pattern for joined in subscriber.subscriptions.values()],
        "pull": subscriber.pull,
        "in_flight": len(subscriber.held),
        "max_in_flight": subscriber.max_in_flight,
        "failures": subscriber.failures,
        "circuit": subscriber.circuit.value,
        "circuit_open_until": subscriber.open_until if subscriber.circuit is CircuitState.OPEN else None,
    }


def rows(state: QueueState, now: float) -> Iterator[Row]:
    """Everything the state holds: the queue, then its parts."""
    yield queue_row(state, now)
    yield from pending_rows(state, now)
    yield from lease_rows(state)
    yield from dead_letter_rows(state)
    yield from deduplication_rows(state, now)
    yield from subscriber_rows(state)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
