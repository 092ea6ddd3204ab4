"""One unfinished message and what is delivered of it (SEMANTICS L1, G3, G4, O1-O3).

Structs, because two of them are made for each message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import msgspec

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, QueueType
from mpreg_mq.projections.deadlines import Deadline
from mpreg_mq.projections.lanes import Lane


class Slot(msgspec.Struct, eq=False):
    """One thing to be delivered: the message to anybody, or its copy to one member of its audience.

    ``lease`` is the delivery that opened the lease it is under (L1), and ``deadline`` when that runs out. At most one
    of ``lane`` (ready), ``timer`` (waiting, or leased until then) and neither (held back by its group, or finished)
    applies.
    """

    message: Message
    subscriber_id: str | None
    due_at: float
    attempts: int = 0
    lease: e.MessageDelivered | None = None
    deadline: float = 0.0
    last_subscriber: str | None = None
    last_error: str | None = None
    acknowledged: bool = False
    exhausted: bool = False
    lane: Lane | None = None
    ticket: int = 0
    timer: Deadline | None = None


NO_SLOT = cast(Slot, None)
"""What a message has in the place of its slot before and after its life."""


class Message(msgspec.Struct, eq=False):
    """An accepted, unfinished message. ``members`` is its audience once that is fixed (G3, G4)."""

    event: e.MessageEnqueued
    id: str
    topic: str
    guarantee: DeliveryGuarantee
    seq: int
    version: int
    rank: float
    max_attempts: int
    group_id: str | None
    expires_at: float | None
    # None only before and after its life: message and slot refer to each other.
    slot: Slot = NO_SLOT
    members: dict[str, Slot] | None = None
    acknowledgments: int = 0
    exhausted: int = 0
    missed: int = 0
    live: int = 0
    started: bool = False
    ttl_timer: Deadline | None = None

    @property
    def required(self) -> int:
        """Acknowledgments that complete a quorum message (G4)."""
        return self.event.options.required_acknowledgments or 1

    def slots(self) -> Iterator[Slot]:
        """The slots that deliveries go to: the members' once the audience is fixed, else its own."""
        if self.members is None:
            yield self.slot
        else:
            yield from self.members.values()

    def slot_for(self, subscriber_id: str) -> Slot | None:
        """The slot whose latest lease is, or would be, this subscriber's."""
        if self.members is not None:
            return self.members.get(subscriber_id)
        return self.slot if self.slot.last_subscriber == subscriber_id else None

    def let_go(self) -> None:
        """It is finished. Without the cycle of message and slot its memory is free at once, with no collector."""
        self.slot = NO_SLOT
        self.members = None


PLAIN_RANK = 0.0
"""Of a message without options, where its place does not depend on its time."""


def plain_message(event: e.MessageEnqueued, seq: int, version: int, max_attempts: int) -> Message:
    """The message of an event that asks for nothing, in a queue in which messages neither wait nor expire."""
    message = Message(
        event, event.message_id, event.topic, event.guarantee, seq, version, PLAIN_RANK, max_attempts, None, None
    )
    message.slot = Slot(message, None, event.at)
    return message


class Defaults:
    """What messages take from the configuration, looked up once."""

    __slots__ = ("configuration", "max_attempts", "plain", "queue_type", "ttl_seconds")

    def __init__(self, configuration: QueueConfiguration) -> None:
        self.configuration = configuration
        self.queue_type = configuration.queue_type
        self.ttl_seconds = configuration.message_ttl_seconds
        self.max_attempts = configuration.max_attempts
        self.plain = self.ttl_seconds is None and self.queue_type is not QueueType.DELAY

    def message(self, event: e.MessageEnqueued, seq: int, version: int) -> Message:
        """The message that this event accepted as the queue's ``seq``-th, at ``version`` of its stream."""
        options = event.options
        due_at = event.at
        rank = PLAIN_RANK
        ttl = self.ttl_seconds
        max_attempts = self.max_attempts
        group_id = None
        if options is not DEFAULT_OPTIONS:
            if options.delay_seconds:
                due_at += options.delay_seconds
            if self.queue_type is QueueType.PRIORITY:
                rank = -float(options.priority or 0)
            if options.message_ttl_seconds is not None:
                ttl = options.message_ttl_seconds
            if options.max_retries is not None:
                max_attempts = self.configuration.attempts_for(options.max_retries)
            group_id = options.group_id
        if self.queue_type is QueueType.DELAY:
            rank = due_at
        expires_at = None if ttl is None else event.at + ttl
        message = Message(
            event,
            event.message_id,
            event.topic,
            event.guarantee,
            seq,
            version,
            rank,
            max_attempts,
            group_id,
            expires_at,
        )
        message.slot = Slot(message, None, due_at)
        return message
