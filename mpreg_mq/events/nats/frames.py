"""What one append of one stream becomes on the wire: a frame of events with a chained checksum.

A frame is one JetStream message, or several consecutive ones (parts) where it is larger than the server takes. Its
header says where it belongs, so that the end of a stream is known from the stream's last message alone. Its
checksum covers that and the events, and goes on from the checksum of the frame before it in its stream.

A frame without events is a record of ownership: from there on appends carry its epoch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import attrs
import msgspec

from mpreg_mq.errors import CorruptLogError, UnknownEventError
from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.types import Event

FORMAT = 1
HEADER = "Mpreg-Mq-Frame"

EVENTS_PER_FRAME = 100_000
"""Above what a frame may hold. A position is its frame's sequence times this, plus the event's place from 1."""

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(tuple[str, list[bytes]]).decode


@attrs.frozen
class Head:
    """The end of a stream: the sequence of its last message (0: none), and what that message's header says.

    ``version`` is that of the stream's last event, ``checksum`` that of its last frame, ``epoch`` the ownership's.
    """

    sequence: int = 0
    version: int = 0
    checksum: int = 0
    epoch: int = 0


NO_HEAD = Head()


@attrs.frozen
class Label:
    """The header of a frame, or of one part of it."""

    first_version: int
    count: int
    epoch: int
    previous: int
    checksum: int
    part: int = 1
    parts: int = 1

    @property
    def last_version(self) -> int:
        """Version of the stream after this frame."""
        return self.first_version + self.count - 1

    def __str__(self) -> str:
        return (
            f"{FORMAT} {self.first_version} {self.count} {self.epoch} "
            f"{self.previous:08x} {self.checksum:08x} {self.part}/{self.parts}"
        )

    @classmethod
    def parse(cls, text: str, where: str) -> Label:
        """The label that ``str`` gave.

        Raises:
            CorruptLogError: it is none.
            UnknownEventError: a newer release wrote it.
        """
        words = text.split(" ")
        try:
            if int(words[0]) > FORMAT:
                raise UnknownEventError(f"read {where}: frame format {words[0]}, this release reads {FORMAT}; upgrade")
            first, count, epoch, previous, checksum, parts = words[1:]
            part, of = parts.split("/")
            return cls(int(first), int(count), int(epoch), int(previous, 16), int(checksum, 16), int(part), int(of))
        except (ValueError, IndexError):
            raise CorruptLogError(f"read {where}: {HEADER}: {text!r} is no frame's label; restore the log") from None

    def head(self, sequence: int) -> Head:
        """The end of the stream, where this is the label of its last message."""
        return Head(sequence, self.last_version, self.checksum, self.epoch)


def checksum_of(label: Label, body: bytes) -> int:
    """CRC-32 of a frame's place and body, going on from the frame before it; O(size)."""
    place = f"{label.first_version} {label.count} {label.epoch}".encode()
    return zlib.crc32(body, zlib.crc32(place, label.previous))


@attrs.frozen
class Piece:
    """Some events of one append, encoded together."""

    count: int
    body: bytes


def encode_pieces(events: Sequence[Event]) -> list[Piece]:
    """Events as pieces, each of which fits into a frame; O(size).

    Raises:
        EventLogError: an event cannot be stored.
    """
    most = EVENTS_PER_FRAME - 1
    some = (events[start : start + most] for start in range(0, len(events), most))
    return [Piece(len(part), CODEC.encode_many(part)) for part in some]


def encode_frame(
    head: Head, pieces: Sequence[Piece], epoch: int, owner: str, part_bytes: int
) -> list[tuple[Label, bytes]]:
    """The parts of the frame that puts the events of ``pieces`` after ``head``; O(size).

    Args:
        head: the end of the stream as it is.
        pieces: none for a record of ownership.
        epoch: of the ownership under which they are appended.
        owner: the node's name in a record of ownership, else empty.
        part_bytes: most bytes of a part.
    """
    body = _ENCODE((owner, [piece.body for piece in pieces]))
    label = Label(head.version + 1, sum(piece.count for piece in pieces), epoch, head.checksum, 0)
    label = attrs.evolve(label, checksum=checksum_of(label, body))
    if len(body) <= part_bytes:
        return [(label, body)]
    parts = [body[start : start + part_bytes] for start in range(0, len(body), part_bytes)]
    return [(attrs.evolve(label, part=number, parts=len(parts)), part) for number, part in enumerate(parts, start=1)]


@attrs.frozen
class Frame:
    """A whole frame as it was read; ``sequence`` is that of its last message."""

    stream: str
    sequence: int
    label: Label
    owner: str
    events: list[Event]


def decode_frame(stream: str, sequence: int, label: Label, body: bytes) -> Frame:
    """The frame of these bytes.

    Raises:
        CorruptLogError: they are not what was written.
        UnknownEventError: a newer release wrote an event.
    """
    where = f"stream {stream!r}, message {sequence}"
    found = checksum_of(label, body)
    if found != label.checksum:
        raise CorruptLogError(
            f"read {where}: the checksum of versions {label.first_version} to {label.last_version} is {found:08x}, "
            f"expected {label.checksum:08x}; restore the log from a copy"
        )
    try:
        owner, pieces = _DECODE(body)
    except msgspec.MsgspecError as error:
        raise CorruptLogError(f"read {where}: the frame cannot be decoded: {error}; restore the log") from error
    events = [event for piece in pieces for event in CODEC.decode_many(piece)]
    if len(events) != label.count:
        raise CorruptLogError(f"read {where}: found {len(events)} events, expected {label.count}; restore the log")
    return Frame(stream, sequence, label, owner, events)
