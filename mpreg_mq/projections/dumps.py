"""What a state is as plain data, for snapshots.

A dump holds what the events up to its version imply, and nothing of how the projections index it: lanes, tries and
heaps are built again, and what a clock had said without any event is taken back (see :class:`SlotDump`). Events in it
are encoded like those of the log, so that an older dump is read through the upcasters. :data:`FORMAT` rises when a
field changes its meaning, or when the fold does; a dump of another format is not read, and the state is folded from the
log.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.types import Event
from mpreg_mq.model import CircuitState, QueueStatistics

FORMAT = 1


class SubscriberDump(msgspec.Struct, array_like=True):
    """A subscriber. ``subscriptions`` are its SubscriberJoined events."""

    id: str
    subscriptions: bytes
    max_in_flight: int
    pull: bool
    last_used: int
    failures: int
    circuit: CircuitState
    open_until: float
    probe: str | None
    held: list[str]


class SubscribersDump(msgspec.Struct, array_like=True):
    """All subscribers, and who holds each leased message."""

    subscribers: list[SubscriberDump]
    holders: dict[str, list[str]]
    deliveries: int


class TimerDump(msgspec.Struct, array_like=True):
    """A deadline; those of one moment come in the order of ``ordinal``."""

    when: float
    ordinal: int
    kind: int


class SlotDump(msgspec.Struct, array_like=True):
    """Something to be delivered. ``lease`` is a list of no or one MessageDelivered event.

    ``ready`` is as the clock had it: also where the slot is due after the last event, and not where its message had
    expired while others held leases of it.
    """

    subscriber_id: str | None
    due_at: float
    attempts: int
    lease: bytes
    deadline: float
    last_subscriber: str | None
    last_error: str | None
    acknowledged: bool
    exhausted: bool
    ready: bool
    timer: TimerDump | None


class MessageDump(msgspec.Struct, array_like=True):
    """An unfinished message, without its event."""

    seq: int
    version: int
    rank: float
    max_attempts: int
    expires_at: float | None
    slot: SlotDump
    members: list[SlotDump] | None
    acknowledgments: int
    exhausted: int
    missed: int
    started: bool
    ttl_timer: TimerDump | None


class MessagesDump(msgspec.Struct, array_like=True):
    """Unfinished messages in order of acceptance, with their MessageEnqueued events beside them."""

    events: bytes
    messages: list[MessageDump]
    circuits: dict[str, TimerDump]
    next_seq: int
    accepted_count: int
    finished_count: int


class StatisticsDump(msgspec.Struct, array_like=True):
    """Counts, and since when the messages that are leased have been processed."""

    counts: QueueStatistics
    delivered_at: dict[str, float]
    processing_seconds: float
    processed: int


class DeadLettersDump(msgspec.Struct, array_like=True):
    """Entries, oldest first: the events that accepted them, and those that ended them."""

    accepted: bytes
    ended: bytes


class DeduplicationDump(msgspec.Struct, array_like=True):
    """Keys that are held."""

    window_seconds: float
    held: dict[str, tuple[float, str]]


class StateDump(msgspec.Struct, array_like=True):
    """The whole state of a queue."""

    version: int
    last_at: float
    created: bool
    deleted: bool
    paused: bool
    configuration: QueueConfiguration | None
    subscribers: SubscribersDump
    messages: MessagesDump
    statistics: StatisticsDump
    dead_letters: DeadLettersDump
    deduplication: DeduplicationDump


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StateDump).decode
_decode_wrapper = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode


def encode_dump(dump: StateDump) -> bytes:
    """A dump as bytes; O(size)."""
    return _encode((FORMAT, dump))


def decode_dump(body: bytes) -> StateDump | None:
    """The dump of these bytes, or None if another release wrote it.

    Raises:
        ValueError: the bytes are no dump.
    """
    format_, dump = _decode_wrapper(body)
    return _decode(dump) if format_ == FORMAT else None


def encode_events(events: Iterable[Event]) -> bytes:
    """Events inside a dump."""
    return CODEC.encode_many(events)


def decode_events(body: bytes) -> list[Event]:
    """Events inside a dump, brought to the current schema."""
    return CODEC.decode_many(body)
