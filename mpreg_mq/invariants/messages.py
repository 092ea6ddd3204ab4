"""What a history says about one message, by its events alone.

Written from docs/semantics.md and from nothing else: no projection and no decider is asked, because a rule that
borrows their bookkeeping would borrow their mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.model import DeliveryGuarantee, QueueType


class SlotFacts:
    """One thing to be delivered: the message to anybody who matches, or its copy to one member of its audience.

    ``delivered`` is the latest delivery, ``lease`` the same while that lease is open, ``failure`` the latest failed
    attempt until it is answered by a requeue, ``scheduled`` what set ``due_at``. ``token`` is the ordinal of its entry
    among what is ready, 0 where it has none.
    """

    __slots__ = (
        "acknowledged",
        "attempts",
        "deadline",
        "deadline_set",
        "delivered",
        "due_at",
        "exhausted",
        "failure",
        "last_failure",
        "lease",
        "message",
        "scheduled",
        "subscriber_id",
        "token",
    )

    def __init__(self, message: MessageFacts, subscriber_id: str | None, due_at: float, record: RecordedEvent) -> None:
        self.message = message
        self.subscriber_id = subscriber_id
        self.due_at = due_at
        self.scheduled = record
        self.attempts = 0
        self.delivered: RecordedEvent | None = None
        self.lease: RecordedEvent | None = None
        self.deadline = 0.0
        self.deadline_set: RecordedEvent | None = None
        self.failure: RecordedEvent | None = None
        self.last_failure: RecordedEvent | None = None
        self.acknowledged: RecordedEvent | None = None
        self.exhausted = False
        self.token = 0


class MessageFacts:
    """An accepted message that is not finished. ``members`` is its audience once that is fixed (G3, G4)."""

    __slots__ = (
        "alone",
        "due_at",
        "event",
        "expires_at",
        "finished",
        "fixed",
        "group_id",
        "id",
        "leases",
        "max_attempts",
        "members",
        "missed",
        "rank",
        "record",
        "required",
        "seq",
        "slot",
        "started",
    )

    def __init__(
        self, record: RecordedEvent, event: e.MessageEnqueued, seq: int, configuration: QueueConfiguration
    ) -> None:
        options = event.options
        self.record = record
        self.event = event
        self.id = event.message_id
        self.seq = seq
        self.alone = event.guarantee is DeliveryGuarantee.AT_LEAST_ONCE
        self.due_at = event.at + (options.delay_seconds or 0.0)
        self.rank = 0.0
        if configuration.queue_type is QueueType.PRIORITY:
            self.rank = -float(options.priority or 0)
        elif configuration.queue_type is QueueType.DELAY:
            self.rank = self.due_at
        ttl = configuration.message_ttl_seconds if options.message_ttl_seconds is None else options.message_ttl_seconds
        self.expires_at = None if ttl is None else event.at + ttl
        attempts = (configuration.max_retries if options.max_retries is None else options.max_retries) + 1
        cap = configuration.dead_letter_max_receives
        self.max_attempts = attempts if cap is None else min(attempts, cap)
        self.required = options.required_acknowledgments or 1
        self.group_id = options.group_id
        self.slot = SlotFacts(self, None, self.due_at, record)
        self.members: dict[str, SlotFacts] | None = None
        self.fixed: RecordedEvent | None = None
        self.missed = 0
        self.leases = 0
        self.started: RecordedEvent | None = None
        self.finished = False

    def slots(self) -> Iterator[SlotFacts]:
        """What can be delivered now: one slot for each member once the audience is fixed, else its own."""
        return iter((self.slot,)) if self.members is None else iter(self.members.values())

    def slot_of(self, subscriber_id: str) -> SlotFacts | None:
        """What a delivery to this subscriber would use; None where it is not in the audience."""
        return self.slot if self.members is None else self.members.get(subscriber_id)

    @property
    def acknowledgments(self) -> int:
        """Members that have acknowledged; O(members)."""
        return sum(slot.acknowledged is not None for slot in self.slots())

    @property
    def exhausted(self) -> int:
        """Members that have used up their attempts and not acknowledged since; O(members)."""
        return sum(slot.exhausted for slot in self.slots())

    @property
    def everybody_answered(self) -> bool:
        """Whether each member has acknowledged or used up its attempts; O(members)."""
        return all(slot.acknowledged is not None or slot.exhausted for slot in self.slots())
