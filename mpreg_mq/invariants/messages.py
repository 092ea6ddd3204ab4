"""What a history says about one message, by its events alone.

Written from docs/semantics.md and from nothing else: no projection and no decider is asked, because a rule that
borrows their bookkeeping would borrow their mistakes.

Structs, because two of them are made for each message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import msgspec

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, QueueType


class SlotFacts(msgspec.Struct, eq=False):
    """One thing to be delivered: the message to anybody who matches, or its copy to one member of its audience.

    ``delivered`` is the latest delivery, ``lease`` the same while that lease is open, ``failure`` the latest failed
    attempt until it is answered by a requeue, ``scheduled`` what set ``due_at``. ``token`` is the ordinal of its entry
    among what is ready, 0 where it has none.
    """

    message: MessageFacts
    subscriber_id: str | None
    due_at: float
    scheduled: RecordedEvent
    attempts: int = 0
    delivered: RecordedEvent | None = None
    lease: RecordedEvent | None = None
    deadline: float = 0.0
    deadline_set: RecordedEvent | None = None
    failure: RecordedEvent | None = None
    last_failure: RecordedEvent | None = None
    acknowledged: RecordedEvent | None = None
    exhausted: bool = False
    token: int = 0

    @property
    def answered(self) -> bool:
        """Whether it is acknowledged, or its attempts are used up."""
        return self.acknowledged is not None or self.exhausted


_NO_SLOT = cast(SlotFacts, None)


class MessageFacts(msgspec.Struct, eq=False):
    """An accepted message that is not finished. ``members`` is its audience once that is fixed (G3, G4).

    ``acknowledgments``, ``exhausted`` and ``answered`` count the slots that have acknowledged, used up their attempts
    and not acknowledged since, and done either. ``timeout_seconds`` is what its sender asked for. ``missed`` is how
    often it has waited for newcomers, and ``missed_until`` the end of the latest wait.
    """

    record: RecordedEvent
    event: e.MessageEnqueued
    id: str
    seq: int
    alone: bool
    due_at: float
    rank: float
    expires_at: float | None
    max_attempts: int
    group_id: str | None
    timeout_seconds: float | None
    # None only before and after its life: message and slot refer to each other.
    slot: SlotFacts = _NO_SLOT
    members: dict[str, SlotFacts] | None = None
    fixed: RecordedEvent | None = None
    missed: int = 0
    missed_until: float = 0.0
    leases: int = 0
    acknowledgments: int = 0
    exhausted: int = 0
    answered: int = 0
    started: RecordedEvent | None = None
    finished: bool = False

    def goes_on_waiting(self, event: e.QuorumMissed) -> bool:
        """Whether it only goes on with the wait for newcomers that is under way (G4)."""
        return event.at < event.due_at == self.missed_until

    @property
    def required(self) -> int:
        """Acknowledgments that complete it where it needs a quorum (G4)."""
        return self.event.options.required_acknowledgments or 1

    def slots(self) -> Iterable[SlotFacts]:
        """What can be delivered now: one slot for each member once the audience is fixed, else its own."""
        return (self.slot,) if self.members is None else self.members.values()

    def slot_of(self, subscriber_id: str) -> SlotFacts | None:
        """What a delivery to this subscriber would use; None where it is not in the audience."""
        return self.slot if self.members is None else self.members.get(subscriber_id)

    @property
    def everybody_answered(self) -> bool:
        """Whether each member has acknowledged or used up its attempts."""
        return self.answered == (1 if self.members is None else len(self.members))

    def settle(self, slot: SlotFacts, acknowledged: RecordedEvent | None, exhausted: bool) -> None:
        """One of its slots has acknowledged, or has used up its attempts or not; keeps the counts."""
        was_acknowledged, was_exhausted = slot.acknowledged is not None, slot.exhausted
        is_acknowledged = acknowledged is not None
        slot.acknowledged = acknowledged
        slot.exhausted = exhausted
        self.acknowledgments += is_acknowledged - was_acknowledged
        self.exhausted += exhausted - was_exhausted
        self.answered += (is_acknowledged or exhausted) - (was_acknowledged or was_exhausted)

    def recount(self) -> None:
        """Count anew, after a member left; O(members)."""
        slots = self.slots()
        self.acknowledgments = sum(slot.acknowledged is not None for slot in slots)
        self.exhausted = sum(slot.exhausted for slot in slots)
        self.answered = sum(slot.answered for slot in slots)

    def let_go(self) -> None:
        """It is finished, and nothing of it is ready any more.

        Without the cycle of message and slots its memory is free at once, with no collector.
        """
        self.finished = True
        self.slot.token = 0
        self.slot = _NO_SLOT
        if self.members is not None:
            for slot in self.members.values():
                slot.token = 0
            self.members = None


class MessageMaker:
    """Makes the facts of accepted messages; what they take from the configuration is looked up once."""

    def __init__(self, configuration: QueueConfiguration) -> None:
        self._ttl_seconds = configuration.message_ttl_seconds
        self._attempts = configuration.max_retries + 1
        self._cap = configuration.dead_letter_max_receives
        self._max_attempts = self._capped(self._attempts)
        self._queue_type = configuration.queue_type

    def _capped(self, attempts: int) -> int:
        return attempts if self._cap is None else min(attempts, self._cap)

    def message(self, record: RecordedEvent, event: e.MessageEnqueued, seq: int) -> MessageFacts:
        """The facts of the message that was accepted as the ``seq``-th of its queue."""
        at = due_at = event.at
        rank = 0.0
        ttl = self._ttl_seconds
        max_attempts = self._max_attempts
        group_id = timeout = None
        options = event.options
        if options is not DEFAULT_OPTIONS:
            due_at += options.delay_seconds or 0.0
            if options.message_ttl_seconds is not None:
                ttl = options.message_ttl_seconds
            if options.max_retries is not None:
                max_attempts = self._capped(options.max_retries + 1)
            group_id = options.group_id
            timeout = options.acknowledgment_timeout_seconds
            if self._queue_type is QueueType.PRIORITY:
                rank = -float(options.priority or 0)
        if self._queue_type is QueueType.DELAY:
            rank = due_at
        message = MessageFacts(
            record,
            event,
            event.message_id,
            seq,
            event.guarantee is DeliveryGuarantee.AT_LEAST_ONCE,
            due_at,
            rank,
            None if ttl is None else at + ttl,
            max_attempts,
            group_id,
            timeout,
        )
        message.slot = SlotFacts(message, None, due_at, record)
        return message
