"""What callers see of a message: copies made from the state, with defaults filled in (S3, S4)."""

from __future__ import annotations

import msgspec

from mpreg_mq.actors.commands import Send
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import PayloadError
from mpreg_mq.events.types import MessageEnqueued
from mpreg_mq.model import DEFAULT_OPTIONS, DeadLetter, InFlightMessage, MessageId, QueuedMessage
from mpreg_mq.payload import UndecodablePayload, decode, decode_payload, encode
from mpreg_mq.projections import DeadEntry, Message

_NOTHING = encode(None)


def queued_message(
    event: MessageEnqueued,
    configuration: QueueConfiguration,
    attempt: int = 1,
    deadline: float | None = None,
    id_: MessageId | None = None,
) -> QueuedMessage:
    """A message with a payload of its own.

    Raises:
        PayloadError: the stored payload cannot be decoded.
    """
    options = event.options
    if id_ is None:
        id_ = MessageId(event.message_id, event.at, configuration.name)
    try:
        payload = decode(event.payload)
    except Exception:
        payload = decode_payload(event.payload)
    if options is DEFAULT_OPTIONS:
        # The same with nothing to look up, for what most messages are.
        return QueuedMessage(
            id_,
            event.topic,
            payload,
            event.guarantee,
            0,
            0.0,
            configuration.default_visibility_timeout_seconds,
            configuration.max_retries,
            configuration.default_acknowledgment_timeout_seconds,
            1,
            event.at,
            {},
            attempt,
            configuration.message_ttl_seconds,
            None,
            None,
            event.redriven_from,
            deadline,
        )
    return QueuedMessage(
        id_,
        event.topic,
        payload,
        event.guarantee,
        options.priority or 0,
        options.delay_seconds or 0.0,
        options.visibility_timeout_seconds or configuration.default_visibility_timeout_seconds,
        configuration.max_retries if options.max_retries is None else options.max_retries,
        options.acknowledgment_timeout_seconds or configuration.default_acknowledgment_timeout_seconds,
        options.required_acknowledgments or 1,
        event.at,
        dict(options.headers) if options.headers else {},
        attempt,
        configuration.message_ttl_seconds if options.message_ttl_seconds is None else options.message_ttl_seconds,
        options.deduplication_id,
        options.group_id,
        event.redriven_from,
        deadline,
    )


def shown_message(
    event: MessageEnqueued, configuration: QueueConfiguration, attempt: int = 1, deadline: float | None = None
) -> QueuedMessage:
    """A message to be listed among others: what cannot be decoded is an :class:`UndecodablePayload` in its place."""
    try:
        return queued_message(event, configuration, attempt, deadline)
    except PayloadError as error:
        message = queued_message(msgspec.structs.replace(event, payload=_NOTHING), configuration, attempt, deadline)
        message.payload = UndecodablePayload(str(error), event.payload)
        return message


def fired_message(send: Send, id_: MessageId, configuration: QueueConfiguration) -> QueuedMessage:
    """A message that is delivered without having been accepted, with a payload of its own (G1).

    Raises:
        PayloadError: the payload cannot be decoded.
    """
    if send.options is not DEFAULT_OPTIONS:
        sent = MessageEnqueued(id_.created_at, id_.id, send.topic, send.payload, send.guarantee, send.options)
        return queued_message(sent, configuration, id_=id_)
    # As queued_message, without an event that would be made for this alone.
    try:
        payload = decode(send.payload)
    except Exception:
        payload = decode_payload(send.payload)
    return QueuedMessage(
        id_,
        send.topic,
        payload,
        send.guarantee,
        0,
        0.0,
        configuration.default_visibility_timeout_seconds,
        configuration.max_retries,
        configuration.default_acknowledgment_timeout_seconds,
        1,
        id_.created_at,
        {},
        1,
        configuration.message_ttl_seconds,
    )


def dead_letter(entry: DeadEntry, configuration: QueueConfiguration) -> DeadLetter:
    """A dead letter with a payload of its own."""
    ended = entry.ended
    return DeadLetter(
        shown_message(entry.enqueued, configuration, max(1, ended.attempts)),
        ended.reason,
        ended.error,
        ended.attempts,
        ended.subscriber_id,
        ended.at,
    )


def in_flight_message(message: Message, configuration: QueueConfiguration) -> InFlightMessage:
    """A message with an open lease, and who has it."""
    leases = [(slot.lease, slot.deadline) for slot in message.slots() if slot.lease is not None]
    latest, deadline = max(leases, key=lambda lease: lease[0].at)
    return InFlightMessage(
        shown_message(message.event, configuration, latest.attempt, deadline),
        latest.attempt,
        latest.at,
        frozenset(slot.last_subscriber for slot in message.slots() if slot.last_subscriber is not None),
        frozenset(
            slot.subscriber_id for slot in message.slots() if slot.acknowledged and slot.subscriber_id is not None
        ),
        lease_deadline=deadline,
    )
