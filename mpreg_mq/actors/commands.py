"""What a queue actor can be asked to do. Commands are immutable; their arguments were checked where they entered."""

from __future__ import annotations

from typing import Any

import attrs

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events.types import MessageEnqueued
from mpreg_mq.model import DEFAULT_OPTIONS, Callback, DeliveryGuarantee, MessageOptions


@attrs.frozen
class Send:
    """Accept or reject one message (S1). ``fingerprint`` is the key it would claim (U1), or None."""

    topic: str
    payload: bytes
    guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE
    options: MessageOptions = DEFAULT_OPTIONS
    fingerprint: str | None = None


@attrs.frozen
class SendBatch:
    """Accept or reject several messages in one commit (S5)."""

    sends: tuple[Send, ...]


@attrs.frozen
class RecordRejection:
    """Log a send that was refused before it could become a command (S2)."""

    topic: str
    reason: Any
    detail: str


@attrs.frozen
class Subscribe:
    """Start a subscription; without a callback the subscriber pulls."""

    subscriber_id: str
    subscription_id: str
    topic_pattern: str
    callback: Callback | None = None
    auto_acknowledge: bool = True
    max_in_flight: int | None = None
    blocking: bool = False
    metadata: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Unsubscribe:
    """End a subscription; its places in audiences go with it (G3)."""

    subscription_id: str


@attrs.frozen
class Receive:
    """Lease up to ``max_messages`` to a pull subscriber (L1).

    Waits up to ``wait_seconds`` for the first.
    """

    subscriber_id: str
    max_messages: int = 1
    wait_seconds: float = 0.0
    visibility_timeout_seconds: float | None = None


@attrs.frozen
class Acknowledge:
    """The subscriber is done with the message (L2)."""

    message_id: str
    subscriber_id: str
    attempt: int | None = None


@attrs.frozen
class NegativeAcknowledge:
    """The attempt failed. ``delay_seconds`` of None means the backoff of R2; 0 returns it at once (L3)."""

    message_id: str
    subscriber_id: str
    error: str
    delay_seconds: float | None = None
    attempt: int | None = None


@attrs.frozen
class ExtendLease:
    """Move the lease's deadline to ``seconds`` from now (L3)."""

    message_id: str
    subscriber_id: str
    seconds: float


@attrs.frozen
class EndLease:
    """An open lease ends because its process does (C3)."""

    message_id: str
    subscriber_id: str
    reason: str


@attrs.frozen
class Detach:
    """All push subscriptions end with their process; audiences keep their places (C3)."""


@attrs.frozen
class Pause:
    """Stop delivering."""


@attrs.frozen
class Resume:
    """Go on delivering."""


@attrs.frozen
class Purge:
    """Remove every unfinished message."""


@attrs.frozen
class Delete:
    """End the queue."""


@attrs.frozen
class Open:
    """Create the queue, or follow another configuration from now on if it exists."""

    configuration: QueueConfiguration


@attrs.frozen
class Redrive:
    """Accept dead letters of this queue again, in this queue (D1). ``message_ids`` of None means all."""

    message_ids: tuple[str, ...] | None = None
    limit: int | None = None


@attrs.frozen
class AcceptRedriven:
    """Accept dead letters of another queue here (D1)."""

    entries: tuple[MessageEnqueued, ...]
    source_queue: str


@attrs.frozen
class RecordRedriven:
    """Dead letters of this queue were accepted elsewhere: (dead id, new id) pairs (D1)."""

    pairs: tuple[tuple[str, str], ...]
    target_queue: str


@attrs.frozen
class PurgeDeadLetters:
    """Remove dead letters. ``message_ids`` of None means all."""

    message_ids: tuple[str, ...] | None = None
