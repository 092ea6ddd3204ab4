"""The state of one queue: the projections a decision is made from, folded together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn

import attrs

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import types as e
from mpreg_mq.model import QueueStatistics
from mpreg_mq.projections.base import Handled, Projection
from mpreg_mq.projections.dead_letters import DeadLetters
from mpreg_mq.projections.deduplication import DeduplicationWindow
from mpreg_mq.projections.dumps import StateDump, decode_dump, encode_dump
from mpreg_mq.projections.everyday import (
    acknowledged,
    delivered,
    delivered_and_acknowledged,
    enqueued,
    enqueued_in_a_row,
)
from mpreg_mq.projections.message import Slot
from mpreg_mq.projections.messages import Messages
from mpreg_mq.projections.statistics import Statistics
from mpreg_mq.projections.subscribers import Subscribers

_Handlers = tuple[str | None, tuple[tuple[int, str], ...]]

_HANDLERS: dict[type[e.Event], _Handlers] = {}
"""For each event type the method of the state itself, and the places and methods of the projections that handle it.

Names for all states: bound methods would be a fifth of what an idle queue takes.
"""


NO_VERSION = -(1 << 62)
"""However much is folded in on top of it."""


class NotCreated:
    """Stands for the configuration until there is one: a descriptor that an instance's own attribute hides."""

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise ProjectionError("the queue has no configuration: its stream does not begin with QueueCreated")


class QueueState(Projection):
    """Fold of a queue's stream; the live queue, recovery and replay all use this class.

    ``version`` is the number of events folded in, ``last_at`` the time of the latest. ``configuration``, the one in
    force, raises :class:`ProjectionError` where the stream does not begin with QueueCreated.
    """

    configuration: QueueConfiguration = NotCreated()  # type: ignore[assignment]

    HANDLED: ClassVar[Handled] = {
        e.QueueCreated: "_on_created",
        e.QueueReconfigured: "_on_reconfigured",
        e.QueueDeleted: "_on_deleted",
        e.QueuePaused: "_on_paused",
        e.QueueResumed: "_on_resumed",
    }

    def __init__(self) -> None:
        self.version = 0
        self.last_at = 0.0
        self.created = False
        self.deleted = False
        self.paused = False
        self.subscribers = Subscribers()
        self.messages = Messages(self.subscribers, self._doubt)
        self.statistics = Statistics()
        self.dead_letters = DeadLetters(self.messages.accepted)
        self.deduplication = DeduplicationWindow()
        # Subscribers come before messages, whose dispatch index asks them who is free; dead letters too, because
        # they ask the messages for one that is about to end.
        self.projections: tuple[Projection, ...] = (
            self.subscribers,
            self.dead_letters,
            self.messages,
            self.statistics,
            self.deduplication,
        )

    def _doubt(self) -> None:
        """A change ended half way: be at no version that a log has, so that nobody goes on with this state."""
        self.version = NO_VERSION

    def apply(self, event: e.Event) -> None:
        """Fold one event into every projection.

        Raises:
            ProjectionError: the event contradicts what came before.
        """
        self.version += 1
        at = event.at
        if at > self.last_at:
            self.last_at = at
        # What every message has comes first and in place: a call that is always the same one costs half as much.
        told: Any = event
        kind = type(event)
        if kind is e.MessageEnqueued:
            enqueued(self, told)
        elif kind is e.MessageDelivered:
            delivered(self, told)
        elif kind is e.MessageAcknowledged:
            acknowledged(self, told)
        elif kind is e.FireAndForgetSent:
            self.statistics._on_fire_and_forget(told)
            if told.deduplication_key is not None:
                self.deduplication._on_accepted(told)
        else:
            messages = self.messages
            if messages.unplaced:
                messages.place_all()
            messages.version = self.version
            own, others = _HANDLERS.get(kind) or self._find_handlers(kind)
            if own is not None:
                getattr(self, own)(told)
            projections = self.projections
            for place, name in others:
                getattr(projections[place], name)(told)

    def apply_fired(self, event: e.FireAndForgetSent) -> None:
        """:meth:`apply`, for this one by the shortest way."""
        self.version += 1
        if event.at > self.last_at:
            self.last_at = event.at
        self.statistics._on_fire_and_forget(event)
        if event.deduplication_key is not None:
            self.deduplication._on_accepted(event)

    def apply_all(self, events: Iterable[e.Event]) -> None:
        """Fold events in, as :meth:`apply` does one after another, in two thirds of the time.

        Of a run of events nobody sees the states in between: a delivery whose acknowledgment comes right after it,
        which is how most messages end, opens no lease.

        Raises:
            ProjectionError: an event contradicts what came before; those before it are folded in.
        """
        apply, messages = self.apply, self.messages
        held: Any = None
        before: type[e.Event] | None = None
        following = iter(events)
        try:
            for event in following:
                told: Any = event
                kind = type(event)
                if held is not None:
                    delivery, held = held, None
                    if (
                        kind is e.MessageAcknowledged
                        and told.message_id == delivery.message_id
                        and told.subscriber_id == delivery.subscriber_id
                        and delivered_and_acknowledged(self, delivery, told)
                    ):
                        continue
                    apply(delivery)
                if kind is e.MessageDelivered:
                    held = told
                elif kind is before and kind is e.MessageEnqueued and messages.quick_lane is not None:
                    # Where there are two there are more.
                    after = enqueued_in_a_row(self, told, following)
                    if type(after) is e.MessageDelivered:
                        held = after
                    elif after is not None:
                        apply(after)
                else:
                    apply(event)
                before = kind
        finally:
            # Also where the events end with an error of whoever reads them.
            if held is not None:
                apply(held)

    def _find_handlers(self, kind: type[e.Event]) -> _Handlers:
        if kind not in e.EVENT_TYPES:
            raise ProjectionError(f"got a {kind.__name__}, expected one of the events of mpreg_mq.events")
        # Of those that handle it here: dead letters have less to remember than by themselves.
        others = tuple(
            (place, projection.HANDLED[kind])
            for place, projection in enumerate(self.projections)
            if projection.handler(kind) is not None
        )
        found = _HANDLERS[kind] = (self.HANDLED.get(kind), others)
        return found

    def _on_created(self, event: e.QueueCreated) -> None:
        self.created = True
        self.deleted = False
        self.configuration = event.configuration

    def _on_reconfigured(self, event: e.QueueReconfigured) -> None:
        self.configuration = event.configuration

    def _on_deleted(self, event: e.QueueDeleted) -> None:
        self.deleted = True
        self.paused = False

    def _on_paused(self, event: e.QueuePaused) -> None:
        self.paused = True

    def _on_resumed(self, event: e.QueueResumed) -> None:
        self.paused = False

    def report(self, now: float) -> QueueStatistics:
        """Counts and sizes at ``now``; a copy. O(log n)."""
        return attrs.evolve(
            self.statistics.counts,
            average_processing_time_seconds=self.statistics.average_processing_seconds(),
            current_queue_size=self.messages.pending_count,
            current_in_flight_count=self.messages.leased_count,
            current_dead_letter_count=len(self.dead_letters),
            current_deduplication_key_count=self.deduplication.live_count(now),
        )

    def describe(self) -> dict[str, Any]:
        """Everything the state holds, as plain data: two states are equal when their descriptions are (I4).

        O(n log n); for comparing a live queue with the fold of its log, and for debugging.
        """
        return {
            "version": self.version,
            "deleted": self.deleted,
            "paused": self.paused,
            "configuration": self.configuration if self.created else None,
            "statistics": attrs.asdict(self.statistics.counts),
            "average_processing_seconds": self.statistics.average_processing_seconds(),
            "pending": [message.id for message in self.messages.pending()],
            "messages": {message.id: [_describe_slot(slot) for slot in message.slots()] for message in self.messages},
            "dead_letters": list(self.dead_letters),
            "deduplication": self.deduplication.keys(),
            "subscribers": {
                subscriber.id: (
                    sorted(subscriber.subscriptions),
                    sorted(subscriber.held),
                    subscriber.failures,
                    subscriber.circuit.value,
                )
                for subscriber in self.subscribers
            },
        }

    def dump(self) -> bytes:
        """The state as the body of a snapshot; O(size of the state)."""
        return encode_dump(
            StateDump(
                self.version,
                self.last_at,
                self.created,
                self.deleted,
                self.paused,
                self.configuration if self.created else None,
                self.subscribers.dump(),
                self.messages.dump(),
                self.statistics.dump(),
                self.dead_letters.dump(),
                self.deduplication.dump(),
            )
        )

    @classmethod
    def restore(cls, body: bytes) -> QueueState | None:
        """The state that was dumped; None if another release did that, in a format that this one does not read.

        Raises:
            Exception: of any kind, where the body is not what :meth:`dump` gives.
        """
        dump = decode_dump(body)
        if dump is None:
            return None
        state = cls()
        state.version = dump.version
        state.last_at = dump.last_at
        state.created = dump.created
        state.deleted = dump.deleted
        state.paused = dump.paused
        if dump.configuration is not None:
            state.configuration = dump.configuration
        state.subscribers.restore(dump.subscribers)
        state.messages.restore(dump.messages, dump.version, dump.last_at, dump.configuration)
        state.statistics.restore(dump.statistics)
        state.dead_letters.restore(dump.dead_letters)
        state.deduplication.restore(dump.deduplication)
        return state

    def check(self) -> None:
        """Check every projection, and that they agree with each other (I2)."""
        for projection in self.projections:
            projection.check()
        counts = self.statistics.counts
        assert self.messages.accepted_count == self.messages.finished_count + len(self.messages)
        assert counts.messages_sent >= self.messages.accepted_count
        for message in self.messages:
            for slot in message.slots():
                if slot.lease is not None:
                    holder = self.subscribers.get(slot.lease.subscriber_id)
                    assert holder is not None
                    assert message.id in holder.held
        leases = sum(1 for message in self.messages for slot in message.slots() if slot.lease is not None)
        assert leases == sum(len(subscriber.held) for subscriber in self.subscribers)


def _describe_slot(slot: Slot) -> dict[str, Any]:
    lease = slot.lease
    return {
        "subscriber": slot.subscriber_id,
        "attempts": slot.attempts,
        "due_at": slot.due_at,
        "acknowledged": slot.acknowledged,
        "exhausted": slot.exhausted,
        "last_error": slot.last_error,
        "lease": None if lease is None else (lease.subscriber_id, lease.attempt, slot.deadline),
    }
