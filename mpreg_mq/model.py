"""The vocabulary: guarantees, queue types, messages, options, results and statistics.

Names and fields are those of MPREG's queue, so that a program changes its imports and keeps its code. Fields
that MPREG does not have come last and have defaults. Times are seconds since the epoch.

What is made for each message (its id, its result, its copy for a callback) is a msgspec Struct, which costs a
sixth of what an attrs class does; everything else is attrs.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import attrs
import msgspec

Callback = Callable[["QueuedMessage"], Any]
"""What a subscriber gives: a function or coroutine function of one message."""


class DeliveryGuarantee(Enum):
    """What an accepted message is promised (SEMANTICS G1-G4)."""

    FIRE_AND_FORGET = "fire_and_forget"
    AT_LEAST_ONCE = "at_least_once"
    BROADCAST = "broadcast"
    QUORUM = "quorum"


class QueueType(Enum):
    """In which order a queue first delivers (SEMANTICS O1-O3)."""

    FIFO = "fifo"
    PRIORITY = "priority"
    DELAY = "delay"


class QueueMessageStatus(Enum):
    """Where a message is in its life."""

    PENDING = "pending"
    IN_FLIGHT = "in_flight"
    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"
    EXPIRED = "expired"
    DEAD_LETTERED = "dead_lettered"
    DROPPED = "dropped"
    PURGED = "purged"


class OverflowPolicy(Enum):
    """What a send to a full queue does (SEMANTICS C1)."""

    REJECT = "reject"
    DROP_OLDEST = "drop_oldest"
    WAIT = "wait"


class Durability(Enum):
    """What an acknowledged send or acknowledgment has survived when its caller hears of it (SEMANTICS S1).

    It matters on a log that is on a disk. ``COMMITTED``: it is in the log. ``BUFFERED``: it is on its way there, and is
    lost if the process ends first; what is at risk is at most what was answered within ``buffered_milliseconds``
    since the disk last kept up. ``MEMORY``: it is in this process; the queue, its configuration included, is never
    written to the log and gone with the process.
    """

    COMMITTED = "committed"
    BUFFERED = "buffered"
    MEMORY = "memory"


class RejectionReason(Enum):
    """Why a send was refused (SEMANTICS S2)."""

    CAPACITY = "capacity"
    DUPLICATE = "duplicate"
    DEDUPLICATION_TABLE_FULL = "deduplication_table_full"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    PAYLOAD_NOT_ENCODABLE = "payload_not_encodable"
    INVALID_TOPIC = "invalid_topic"
    INVALID_OPTION = "invalid_option"
    UNKNOWN_QUEUE = "unknown_queue"
    CLOSING = "closing"
    STORE_ERROR = "store_error"


class CircuitState(Enum):
    """State of a subscriber's circuit breaker (SEMANTICS R3)."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class MessageId(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Identifier of a message; equal and hashed by ``id`` alone.

    Raises:
        ValueError: ``id`` is empty or ``created_at`` negative.
    """

    id: str = msgspec.field(default_factory=lambda: str(uuid.uuid4()))
    created_at: float = msgspec.field(default_factory=time.time)
    source_node: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("MessageId.id: got an empty string, expected at least one character")
        if self.created_at < 0:
            raise ValueError(f"MessageId.created_at: got {self.created_at}, expected 0 or more")

    @classmethod
    def generate(cls, source_node: str = "") -> MessageId:
        """A new random identifier, created now."""
        return cls(source_node=source_node)

    @classmethod
    def from_string(cls, id_str: str, source_node: str = "") -> MessageId:
        """The identifier whose text is ``id_str``."""
        return cls(id=id_str, source_node=source_node)

    def age_seconds(self) -> float:
        """Seconds since the identifier was made."""
        return time.time() - self.created_at

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, MessageId) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id


@attrs.frozen
class MessageOptions:
    """The options of one send (SEMANTICS S4); ``None`` means the queue's default.

    Values are checked where they enter (see :mod:`mpreg_mq.options`), so that decoding a log costs nothing.
    """

    priority: int | None = None
    delay_seconds: float | None = None
    visibility_timeout_seconds: float | None = None
    acknowledgment_timeout_seconds: float | None = None
    max_retries: int | None = None
    required_acknowledgments: int | None = None
    headers: dict[str, str] | None = None
    message_ttl_seconds: float | None = None
    deduplication_id: str | None = None
    group_id: str | None = None


DEFAULT_OPTIONS = MessageOptions()


class QueuedMessage(msgspec.Struct):
    """A message as a callback or a receiver sees it; a copy of its own for each delivery (S3)."""

    id: MessageId
    topic: str
    payload: Any
    delivery_guarantee: DeliveryGuarantee
    priority: int = 0
    delay_seconds: float = 0.0
    visibility_timeout_seconds: float = 30.0
    max_retries: int = 3
    acknowledgment_timeout_seconds: float = 300.0
    required_acknowledgments: int = 1
    created_at: float = msgspec.field(default_factory=time.time)
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    delivery_attempt: int = 1
    message_ttl_seconds: float | None = None
    deduplication_id: str | None = None
    group_id: str | None = None
    redriven_from: str | None = None
    lease_deadline: float | None = None

    def is_ready_for_delivery(self) -> bool:
        """Whether its delay has passed (O3)."""
        return time.time() - self.created_at >= self.delay_seconds

    def is_expired(self, ttl_seconds: float | None = None) -> bool:
        """Whether ``ttl_seconds`` (or else its own TTL) has passed since it was sent (T1)."""
        ttl = self.message_ttl_seconds if ttl_seconds is None else ttl_seconds
        return ttl is not None and time.time() - self.created_at >= ttl


@attrs.frozen
class DeadLetter:
    """A message whose attempts are used up, with the reason (SEMANTICS D1).

    ``failure_reason`` is a sentence, ``last_error`` what the last failed attempt said, ``subscriber_id`` who
    had it last.
    """

    message: QueuedMessage
    failure_reason: str
    last_error: str | None
    attempts: int
    subscriber_id: str | None
    dead_lettered_at: float

    @property
    def id(self) -> MessageId:
        """Identifier of the dead message."""
        return self.message.id

    @property
    def topic(self) -> str:
        """Topic of the dead message."""
        return self.message.topic

    @property
    def payload(self) -> Any:
        """Payload of the dead message."""
        return self.message.payload

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the dead message."""
        return self.message.headers


@attrs.frozen
class InFlightMessage:
    """A message with at least one open lease."""

    message: QueuedMessage
    delivery_attempt: int
    delivered_at: float
    delivered_to: frozenset[str] = frozenset()
    acknowledged_by: frozenset[str] = frozenset()
    status: QueueMessageStatus = QueueMessageStatus.IN_FLIGHT
    lease_deadline: float = 0.0

    def is_acknowledgment_expired(self) -> bool:
        """Whether the latest lease has run out."""
        return time.time() >= self.lease_deadline

    def is_fully_acknowledged(self) -> bool:
        """Whether the acknowledgments so far would complete it (G2-G4)."""
        guarantee = self.message.delivery_guarantee
        if guarantee is DeliveryGuarantee.QUORUM:
            return len(self.acknowledged_by) >= self.message.required_acknowledgments
        if guarantee is DeliveryGuarantee.BROADCAST:
            return len(self.acknowledged_by) >= len(self.delivered_to)
        return bool(self.acknowledged_by)


@attrs.frozen
class QueueSubscription:
    """One subscription of one subscriber to one queue."""

    subscriber_id: str
    topic_pattern: str
    callback: Callback | None = None
    auto_acknowledge: bool = True
    subscription_id: str = attrs.field(factory=lambda: str(uuid.uuid4()))
    created_at: float = attrs.field(factory=time.time)
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    max_in_flight: int = 1000
    blocking: bool = False


class DeliveryResult(msgspec.Struct, frozen=True, gc=False):
    """What became of a send.

    ``delivered_to`` and ``failed_deliveries`` are filled for fire-and-forget: whose function has run, or whose
    coroutine or thread is under way, and whose function raised.
    ``rejection`` names the reason when ``success`` is false; ``duplicate_of`` the first message then (U1).
    ``message_id`` is None only where no message was made: the queue does not exist or is closed.
    """

    success: bool
    message_id: MessageId | None
    delivered_to: frozenset[str] = frozenset()
    failed_deliveries: frozenset[str] = frozenset()
    error_message: str | None = None
    delivery_timestamp: float = msgspec.field(default_factory=time.time)
    rejection: RejectionReason | None = None
    duplicate_of: MessageId | None = None


@attrs.define
class QueueStatistics:
    """Counts of one queue, rebuilt from its events; a copy, not a live view.

    ``messages_acknowledged`` counts finished messages as MPREG does, not single acknowledgments (a broadcast
    to five subscribers counts once). ``messages_failed`` counts messages that ended dead-lettered or failed.
    ``messages_sent`` is the sum of the acknowledged, failed, expired, dropped and purged ones, ``current_queue_size``,
    ``current_in_flight_count``, and the fire-and-forget messages that reached nobody, which are counted nowhere else. A
    redriven message is sent again.
    """

    messages_sent: int = 0
    messages_received: int = 0
    messages_acknowledged: int = 0
    messages_failed: int = 0
    messages_expired: int = 0
    messages_requeued: int = 0
    current_queue_size: int = 0
    current_in_flight_count: int = 0
    average_processing_time_seconds: float = 0.0
    last_reset_time: float = attrs.field(factory=time.time)
    messages_rejected: int = 0
    messages_duplicate: int = 0
    messages_dead_lettered: int = 0
    messages_dropped: int = 0
    messages_purged: int = 0
    messages_redriven: int = 0
    delivery_failures: int = 0
    leases_expired: int = 0
    circuits_opened: int = 0
    current_dead_letter_count: int = 0
    current_deduplication_key_count: int = 0

    def success_rate(self) -> float:
        """Acknowledged messages as a share of acknowledged and failed ones; 0.0 before the first."""
        total = self.messages_acknowledged + self.messages_failed
        return self.messages_acknowledged / total if total else 0.0


@attrs.define
class QueueManagerStatistics:
    """Counts over all queues of a manager; a copy, not a live view."""

    total_queues: int = 0
    total_messages_sent: int = 0
    total_messages_received: int = 0
    total_messages_acknowledged: int = 0
    total_messages_failed: int = 0
    active_subscriptions: int = 0

    def overall_success_rate(self) -> float:
        """Acknowledged messages as a share of acknowledged and failed ones; 0.0 before the first."""
        total = self.total_messages_acknowledged + self.total_messages_failed
        return self.total_messages_acknowledged / total if total else 0.0


@attrs.frozen
class TopicRouting:
    """A route from a topic pattern of the topic exchange to a queue.

    ``options`` go with every message that takes the route. ``overflow_policy`` says what becomes of messages that the
    queue has no room for: REJECT refuses them, WAIT keeps up to ``max_buffered`` of them for later and then refuses
    new ones, DROP_OLDEST gives up the oldest of those instead, but nothing that is on its way into the queue just then.
    """

    topic_pattern: str
    queue_name: str
    delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE
    created_at: float = attrs.field(factory=time.time)
    options: MessageOptions = DEFAULT_OPTIONS
    overflow_policy: OverflowPolicy = OverflowPolicy.REJECT
    max_buffered: int = 10_000


@attrs.define
class TopicRouteStatistics:
    """What came of the messages that matched a route, since this process began; a copy, not a live view.

    ``received`` is the sum of all that follow down to ``buffered``. ``looped`` messages came from the queue they would
    have entered; ``overlapping`` ones go there by an older route to the same queue, or are there already.
    """

    received: int = 0
    routed: int = 0
    duplicates: int = 0
    refused: int = 0
    dropped: int = 0
    looped: int = 0
    overlapping: int = 0
    buffered: int = 0
    last_error: str | None = None
