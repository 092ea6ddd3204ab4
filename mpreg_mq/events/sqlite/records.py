"""Records: the unit in which the SQLite store keeps, checksums and loses events.

A record holds what was appended to one stream without another stream's events in between, at most
:data:`MOST_EVENTS`. Its checksum covers where it stands, its stream, its events and the checksum of the record
before it, whatever stream that is of: so a record that was changed, moved, swapped or taken away shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b, sha256
from struct import Struct
from typing import NamedTuple, Protocol

from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.log import Append
from mpreg_mq.events.types import Event

CHECKSUM_BYTES = 16
FIRST_CHECKSUM = bytes(CHECKSUM_BYTES)
"""What the first record of a log takes for the checksum before it."""

MOST_EVENTS = 512
MOST_BYTES = 1 << 20
"""A record of more events or bytes is split, so that a reader needs little memory and damage costs little."""

_LARGE_BYTES = 1 << 14

_PLACE = Struct("<QQI").pack


class _Sum(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class Head(NamedTuple):
    """The end of a log: the position of its last event, and the checksum of its last record."""

    position: int
    checksum: bytes


EMPTY = Head(0, FIRST_CHECKSUM)


class Block(NamedTuple):
    """Events that are to become a record."""

    stream: str
    version: int
    """Version of the last event."""
    events: int
    """How many events there are."""
    body: bytes


def checksum(before: bytes, position: int, version: int, count: int, stream: str, body: bytes) -> bytes:
    """The checksum of a record whose last event has this position and version: the first half of its SHA-256."""
    return _sum_of(sha256, before, position, version, count, stream, body)[:CHECKSUM_BYTES]


def old_checksum(before: bytes, position: int, version: int, count: int, stream: str, body: bytes) -> bytes:
    """The checksum that a record got in a log of schema version 2: BLAKE2b-128 of the same content, which is slower."""
    return _sum_of(_blake2b_128, before, position, version, count, stream, body)


_blake2b_128 = partial(blake2b, digest_size=CHECKSUM_BYTES)


def _sum_of(
    made: Callable[[bytes], _Sum], before: bytes, position: int, version: int, count: int, stream: str, body: bytes
) -> bytes:
    place = b"".join((before, _PLACE(position, version, count), stream.encode(), b"\0"))
    if len(body) < _LARGE_BYTES:
        return made(place + body).digest()
    # Not copied, which would be done under the interpreter's lock; hashing so much is done without it.
    content = made(place)
    content.update(body)
    return content.digest()


def blocks(batch: Sequence[Append]) -> list[Block]:
    """The batch's events as blocks, in order.

    Raises:
        EventLogError: an event cannot be encoded.
    """
    found: list[Block] = []
    stream = ""
    version = 0
    gathered: list[Event] = []
    for append in batch:
        events = append.events
        if not events:
            continue
        if gathered and (append.stream != stream or len(gathered) + len(events) > MOST_EVENTS):
            found += _encoded(stream, version, gathered)
            gathered = []
        stream = append.stream
        version = append.expected_version + len(events)
        gathered += events
    if gathered:
        found += _encoded(stream, version, gathered)
    return found


def _encoded(stream: str, version: int, events: Sequence[Event]) -> Iterator[Block]:
    count = len(events)
    if count <= MOST_EVENTS:
        body = CODEC.encode_many(events)
        if len(body) <= MOST_BYTES or count == 1:
            yield Block(stream, version, count, body)
            return
    half = count // 2
    yield from _encoded(stream, version - count + half, events[:half])
    yield from _encoded(stream, version, events[half:])
