"""The event types: one immutable fact each, in the past tense.

Every queue has one stream, ``queue:<name>``; the topic routes of a manager are in ``routes:topics``. ``at`` is
seconds since the epoch and never falls within a stream. Payloads are the encoded bytes of the send. A field added
later needs a default, so that old logs still read; any other change needs a new schema version and an upcaster (see
:mod:`mpreg_mq.events.codec`).

Events are frozen msgspec Structs, which are made and stored in a fraction of the time that attrs classes take. attrs
knows them as classes of its own: ``attrs.fields``, ``attrs.asdict`` and ``attrs.evolve`` work on them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events.shown_to_attrs import show_to_attrs
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, MessageOptions, OverflowPolicy, RejectionReason


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of all events."""

    __attrs_attrs__: ClassVar[Any]

    at: float


# --- the queue itself -------------------------------------------------------------------------------------


class QueueCreated(Event, frozen=True, omit_defaults=True, gc=False):
    """The queue exists from here on."""

    name: str
    configuration: QueueConfiguration


class QueueReconfigured(Event, frozen=True, omit_defaults=True, gc=False):
    """Later decisions follow another configuration."""

    configuration: QueueConfiguration


class QueueDeleted(Event, frozen=True, omit_defaults=True, gc=False):
    """The queue is gone; what was pending or leased went with it."""


class QueuePaused(Event, frozen=True, omit_defaults=True, gc=False):
    """Nothing is delivered until the queue is resumed; sends are still accepted."""


class QueueResumed(Event, frozen=True, omit_defaults=True, gc=False):
    """Deliveries go on."""


# --- subscribers ------------------------------------------------------------------------------------------


class SubscriberJoined(Event, frozen=True, omit_defaults=True, gc=False):
    """A subscription began. ``pull`` is true for subscribers that fetch with ``receive_messages``."""

    subscriber_id: str
    subscription_id: str
    topic_pattern: str
    max_in_flight: int
    pull: bool = False
    auto_acknowledge: bool = True
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class SubscriberLeft(Event, frozen=True, omit_defaults=True, gc=False):
    """A subscription ended.

    ``unsubscribed`` is false when it ended with its process: its places in broadcast audiences then wait for
    the same subscriber to come back.
    """

    subscriber_id: str
    subscription_id: str
    unsubscribed: bool = True


class CircuitOpened(Event, frozen=True, omit_defaults=True, gc=False):
    """A subscriber failed ``failures`` times in a row and gets nothing before ``until`` (R3)."""

    subscriber_id: str
    failures: int
    until: float


class CircuitHalfOpened(Event, frozen=True, omit_defaults=True, gc=False):
    """The recovery time has passed; one message may probe the subscriber (R3)."""

    subscriber_id: str


class CircuitClosed(Event, frozen=True, omit_defaults=True, gc=False):
    """The probe succeeded, or the queue has no circuit breakers any more (R3)."""

    subscriber_id: str


# --- sending ----------------------------------------------------------------------------------------------


class MessageEnqueued(Event, frozen=True, omit_defaults=True, gc=False):
    """A message was accepted (S1). ``deduplication_key`` is None where the queue does not deduplicate.

    ``redriven_from`` is ``<queue>/<message id>`` of the dead letter this message was made from (D1).
    """

    message_id: str
    topic: str
    payload: bytes
    guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE
    options: MessageOptions = DEFAULT_OPTIONS
    deduplication_key: str | None = None
    redriven_from: str | None = None


class FireAndForgetSent(Event, frozen=True, omit_defaults=True, gc=False):
    """A fire-and-forget message had its one attempt (G1); its payload is not kept."""

    message_id: str
    topic: str
    delivered_to: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    deduplication_key: str | None = None


class DuplicateRejected(Event, frozen=True, omit_defaults=True, gc=False):
    """A send was refused because its key belongs to ``duplicate_of`` (U1)."""

    topic: str
    deduplication_key: str
    duplicate_of: str


class MessageRejected(Event, frozen=True, omit_defaults=True, gc=False):
    """A send was refused for another reason (S2); nothing else changed."""

    topic: str
    reason: RejectionReason
    detail: str


# --- delivering -------------------------------------------------------------------------------------------


class AudienceFixed(Event, frozen=True, omit_defaults=True, gc=False):
    """Subscribers entered the audience of a broadcast or quorum message (G3, G4)."""

    message_id: str
    subscriber_ids: tuple[str, ...]


class AudienceMemberLeft(Event, frozen=True, omit_defaults=True, gc=False):
    """A subscriber left the audience of a message, because it unsubscribed (G3)."""

    message_id: str
    subscriber_id: str


class MessageDelivered(Event, frozen=True, omit_defaults=True, gc=False):
    """A lease for (message, subscriber) opened, until ``deadline`` (L1). ``attempt`` counts from 1."""

    message_id: str
    subscriber_id: str
    subscription_id: str
    attempt: int
    deadline: float
    pull: bool = False


class MessageAcknowledged(Event, frozen=True, omit_defaults=True, gc=False):
    """A subscriber acknowledged (L2). ``completes`` says that this finished an at-least-once message."""

    message_id: str
    subscriber_id: str
    completes: bool = False


class DeliveryFailed(Event, frozen=True, omit_defaults=True, gc=False):
    """An attempt failed: the callback raised, or the subscriber refused the message (L3, L4)."""

    message_id: str
    subscriber_id: str
    attempt: int
    error: str


class LeaseExpired(Event, frozen=True, omit_defaults=True, gc=False):
    """A lease ended without an answer: its deadline passed, or its process ended (L1).

    ``process_ended`` says that it was the latter, or that nobody waited for the message any more, which tells nothing
    about the subscriber's health (R3).
    """

    message_id: str
    subscriber_id: str
    attempt: int
    reason: str
    process_ended: bool = False


class LeaseExtended(Event, frozen=True, omit_defaults=True, gc=False):
    """A subscriber asked for more time (L3)."""

    message_id: str
    subscriber_id: str
    deadline: float


class MessageRequeued(Event, frozen=True, omit_defaults=True, gc=False):
    """The message, or its copy for one audience member, waits for another attempt from ``due_at`` on (R2)."""

    message_id: str
    due_at: float
    subscriber_id: str | None = None


class QuorumMissed(Event, frozen=True, omit_defaults=True, gc=False):
    """Everybody in the audience has answered and the quorum is not met; wait for newcomers until ``due_at``."""

    message_id: str
    acknowledgments: int
    required: int
    due_at: float


# --- the ends of a message --------------------------------------------------------------------------------


class MessageCompleted(Event, frozen=True, omit_defaults=True, gc=False):
    """A broadcast or quorum message has all the acknowledgments it needs (G3, G4)."""

    message_id: str


class MessageDeadLettered(Event, frozen=True, omit_defaults=True, gc=False):
    """Attempts are used up; the message waits in the dead letter queue (D1)."""

    message_id: str
    reason: str
    error: str | None
    attempts: int
    subscriber_id: str | None


class MessageFailed(Event, frozen=True, omit_defaults=True, gc=False):
    """Attempts are used up and the dead letter queue is disabled (D1)."""

    message_id: str
    reason: str
    error: str | None
    attempts: int
    subscriber_id: str | None


class MessageExpired(Event, frozen=True, omit_defaults=True, gc=False):
    """Its time to live passed while it was not leased (T1)."""

    message_id: str


class MessageDropped(Event, frozen=True, omit_defaults=True, gc=False):
    """It was the oldest of a full queue with the drop-oldest policy (C1)."""

    message_id: str


class MessagesPurged(Event, frozen=True, omit_defaults=True, gc=False):
    """Somebody emptied the queue of these messages."""

    message_ids: tuple[str, ...]


# --- dead letters -----------------------------------------------------------------------------------------


class DeadLetterRedriven(Event, frozen=True, omit_defaults=True, gc=False):
    """A dead letter was accepted again as ``new_message_id`` in ``target_queue`` (D1)."""

    message_id: str
    new_message_id: str
    target_queue: str


class DeadLettersPurged(Event, frozen=True, omit_defaults=True, gc=False):
    """Somebody removed these dead letters."""

    message_ids: tuple[str, ...]


# --- topic routes -----------------------------------------------------------------------------------------


class TopicRouteAdded(Event, frozen=True, omit_defaults=True, gc=False):
    """Messages of the topic exchange go to a queue from here on, or go with other options than before."""

    topic_pattern: str
    queue_name: str
    guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE
    options: MessageOptions = DEFAULT_OPTIONS
    overflow_policy: OverflowPolicy = OverflowPolicy.REJECT
    max_buffered: int = 10_000


class TopicRouteRemoved(Event, frozen=True, omit_defaults=True, gc=False):
    """A route ended; what it sent stays in the queue."""

    topic_pattern: str
    queue_name: str


EVENT_TYPES: frozenset[type[Event]] = frozenset(Event.__subclasses__())
"""Every event there is."""

show_to_attrs((Event, *EVENT_TYPES))
