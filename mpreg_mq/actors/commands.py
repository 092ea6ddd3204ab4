"""What a queue actor can be asked to do. Commands are immutable; their arguments were checked where they entered.

They are msgspec Structs, which are made in a sixth of the time that attrs classes take: one is made for each message.
"""

from __future__ import annotations

from contextvars import Context
from typing import Any

import msgspec

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events.types import MessageEnqueued
from mpreg_mq.model import DEFAULT_OPTIONS, Callback, DeliveryGuarantee, MessageOptions


class Send(msgspec.Struct, frozen=True, gc=False):
    """Accept or reject one message (S1). ``fingerprint`` is the key it would claim (U1), or None."""

    topic: str
    payload: bytes
    guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE
    options: MessageOptions = DEFAULT_OPTIONS
    fingerprint: str | None = None


class SendBatch(msgspec.Struct, frozen=True):
    """Accept or reject several messages in one commit (S5)."""

    sends: tuple[Send, ...]


class SendEach(msgspec.Struct, frozen=True):
    """Accept the first of several messages, of senders of their own, as far as no rule has to look at them closely."""

    sends: tuple[Send, ...]


class RecordRejection(msgspec.Struct, frozen=True):
    """Log a send that was refused before it could become a command (S2)."""

    topic: str
    reason: Any
    detail: str


class Subscribe(msgspec.Struct, frozen=True):
    """Start a subscription; without a callback the subscriber pulls."""

    subscriber_id: str
    subscription_id: str
    topic_pattern: str
    callback: Callback | None = None
    auto_acknowledge: bool = True
    max_in_flight: int | None = None
    blocking: bool = False
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    context: Context | None = None
    """Where the callback runs; an empty one where this is None."""


MEMBER = "mpreg-mq-member"
"""Metadata of a subscription whose callback runs on a node of a cluster: which member that is."""


class Unsubscribe(msgspec.Struct, frozen=True):
    """End a subscription; its places in audiences go with it (G3)."""

    subscription_id: str


class Receive(msgspec.Struct, frozen=True):
    """Lease up to ``max_messages`` to a pull subscriber (L1).

    Waits up to ``wait_seconds`` for the first. With ``max_bytes`` their payloads have that size together at most, or
    there is one only. With ``member`` it is for the callbacks that the subscriber has on that node: what these match,
    for the acknowledgment timeout.
    """

    subscriber_id: str
    max_messages: int = 1
    wait_seconds: float = 0.0
    visibility_timeout_seconds: float | None = None
    max_bytes: int | None = None
    member: str | None = None


class Acknowledge(msgspec.Struct, frozen=True):
    """The subscriber is done with the message (L2)."""

    message_id: str
    subscriber_id: str
    attempt: int | None = None


class NegativeAcknowledge(msgspec.Struct, frozen=True):
    """The attempt failed. ``delay_seconds`` of None means the backoff of R2; 0 returns it at once (L3)."""

    message_id: str
    subscriber_id: str
    error: str
    delay_seconds: float | None = None
    attempt: int | None = None


class ExtendLease(msgspec.Struct, frozen=True):
    """Move the lease's deadline to ``seconds`` from now (L3)."""

    message_id: str
    subscriber_id: str
    seconds: float


class EndLease(msgspec.Struct, frozen=True):
    """An open lease ends because its process does (C3), or because nobody waits for its message."""

    message_id: str
    subscriber_id: str
    reason: str
    attempt: int | None = None


WITHDRAWN = "the receiver was cancelled"
"""Why the leases of a receive end that nobody waits for any more."""


class Detach(msgspec.Struct, frozen=True):
    """Subscriptions end with their process; audiences keep their places (C3).

    ``subscription_ids`` of None means all push subscriptions: those of a process that ran the queue itself.
    """

    subscription_ids: tuple[str, ...] | None = None


class Pause(msgspec.Struct, frozen=True):
    """Stop delivering."""


class Resume(msgspec.Struct, frozen=True):
    """Go on delivering."""


class Purge(msgspec.Struct, frozen=True):
    """Remove every unfinished message."""


class Delete(msgspec.Struct, frozen=True):
    """End the queue."""


class Open(msgspec.Struct, frozen=True):
    """Create the queue, or follow another configuration from now on if it exists."""

    configuration: QueueConfiguration


class Redrive(msgspec.Struct, frozen=True):
    """Accept dead letters of this queue again, in this queue (D1). ``message_ids`` of None means all."""

    message_ids: tuple[str, ...] | None = None
    limit: int | None = None


class AcceptRedriven(msgspec.Struct, frozen=True):
    """Accept dead letters of another queue here (D1)."""

    entries: tuple[MessageEnqueued, ...]
    source_queue: str


class RecordRedriven(msgspec.Struct, frozen=True):
    """Dead letters of this queue were accepted elsewhere: (dead id, new id) pairs (D1)."""

    pairs: tuple[tuple[str, str], ...]
    target_queue: str


class PurgeDeadLetters(msgspec.Struct, frozen=True):
    """Remove dead letters. ``message_ids`` of None means all."""

    message_ids: tuple[str, ...] | None = None
