"""Rules about order and time: O1, O2, O3 and T1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.messages import SlotFacts
from mpreg_mq.invariants.rule import Rule
from mpreg_mq.model import QueueType


class _Order(Rule):
    QUEUE_TYPE: ClassVar[QueueType]
    AS: ClassVar[str]
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageDelivered: "_on_delivered"}

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        slot = self.facts.slot
        if slot is None or not slot.token or self.configuration.queue_type is not self.QUEUE_TYPE:
            return
        self.facts.ready.advance(event.at)
        first = self.facts.ready.overtaken(slot, event.subscriber_id, event.at)
        if first is None or (first.message.group_id is not None and not self.facts.complete):
            # A message that was not seen to be accepted may hold back the others of its group.
            return
        self.violated(
            record,
            f"{event.message_id} is delivered to {event.subscriber_id} before {first.message.id}, {self.AS}",
            first.message.record,
            first.scheduled,
            slot.message.record,
        )


class Fifo(_Order):
    """O1: deliveries follow send order, a returned message has its own place, a group goes one after another.

    A message overtakes another where the same subscriber could have been given that one.
    """

    id = "O1"
    QUEUE_TYPE = QueueType.FIFO
    AS = "which was sent earlier"

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        super()._on_delivered(record, event)
        message = self.facts.message
        if message is None or message.group_id is None:
            return
        group = self.facts.ready.groups.get(message.group_id)
        head = group.head() if group is not None else None
        if head is not None and head is not message:
            self.violated(
                record,
                f"{message.id} of group {message.group_id!r} is delivered while {head.id} is not finished",
                head.record,
                head.started,
                message.record,
            )


class Priority(_Order):
    """O2: higher priority first, ties in send order."""

    id = "O2"
    QUEUE_TYPE = QueueType.PRIORITY
    AS = "which has a higher priority, or the same and was sent earlier"


class Delay(_Order):
    """O3: never before its delay is over, whatever the queue's type; a DELAY queue goes by due time."""

    id = "O3"
    QUEUE_TYPE = QueueType.DELAY
    AS = "which was due earlier"

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        super()._on_delivered(record, event)
        message = self.facts.message
        if message is not None and event.at < message.due_at:
            self.violated(record, f"{message.id} is delivered {message.due_at - event.at:g} s early", message.record)


class TimeToLive(Rule):
    """T1: never delivered once its time to live is over; expired only then, and not while it is leased."""

    id = "T1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDelivered: "_on_delivered",
        e.MessageExpired: "_on_expired",
    }

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message = self.facts.message
        if message is not None and message.expires_at is not None and event.at >= message.expires_at:
            self.violated(
                record,
                f"{message.id} is delivered {event.at - message.expires_at:g} s after it expired",
                message.record,
            )

    def _on_expired(self, record: RecordedEvent, event: e.MessageExpired) -> None:
        message = self.facts.message
        if message is None:
            return
        if message.expires_at is None:
            self.violated(record, f"{message.id} expires and has no time to live", message.record)
        elif event.at < message.expires_at:
            self.violated(record, f"{message.id} expires {message.expires_at - event.at:g} s early", message.record)
        held: list[SlotFacts] = [slot for slot in message.slots() if slot.lease is not None]
        if held:
            self.violated(record, f"{message.id} expires while it is leased", message.record, held[0].lease)
