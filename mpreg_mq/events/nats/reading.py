"""Reading a log from JetStream in pieces of about a megabyte, each checked against the one before."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mpreg_mq.errors import CorruptLogError
from mpreg_mq.events.nats.appending import head_of, label_of
from mpreg_mq.events.nats.engine import Engine, Stored
from mpreg_mq.events.nats.frames import EVENTS_PER_FRAME, Frame, Head, Label, decode_frame
from mpreg_mq.events.nats.subjects import all_events_subject, event_stream_of, events_subject

CHUNK_BYTES = 1 << 20
NEAR_MESSAGES = 64
"""A search for a version ends when it is as near as this; the rest is read."""

SUBJECTS_PER_REQUEST = 500


def position_of(sequence: int, place: int) -> int:
    """The position of the ``place``-th event (from 1) of the frame whose last message is ``sequence``."""
    return sequence * EVENTS_PER_FRAME + place


@attrs.define
class Assembler:
    """Puts parts together to frames, and checks that each frame follows the one before in its stream."""

    location: str
    _parts: list[Stored] = attrs.field(factory=list)
    _last: dict[str, Label] = attrs.field(factory=dict)

    def frames(self, messages: Sequence[Stored]) -> list[Frame]:
        """The frames that these messages complete.

        Raises:
            CorruptLogError: a part or a frame is missing, or is not what was written.
            UnknownEventError: a newer release wrote it.
        """
        frames = []
        for message in messages:
            label = label_of(message)
            if label.part != len(self._parts) + 1:
                raise CorruptLogError(
                    f"read {self.location}: message {message.sequence} is part {label.part} of {label.parts}, "
                    f"expected part {len(self._parts) + 1}; restore the log from a copy"
                )
            self._parts.append(message)
            if label.part == label.parts:
                body = b"".join(part.payload for part in self._parts) if label.parts > 1 else message.payload
                self._parts.clear()
                stream = event_stream_of(message.subject)
                frames.append(self._checked(decode_frame(stream, message.sequence, label, body)))
        return frames

    def _checked(self, frame: Frame) -> Frame:
        label, before = frame.label, self._last.get(frame.stream)
        if before is not None and (
            label.first_version != before.last_version + 1
            or label.previous != before.checksum
            or label.epoch < before.epoch
        ):
            raise CorruptLogError(
                f"read {self.location}: stream {frame.stream!r} goes on from version {before.last_version} (checksum "
                f"{before.checksum:08x}, epoch {before.epoch}) with version {label.first_version} (after checksum "
                f"{label.previous:08x}, epoch {label.epoch}); events are missing; restore the log from a copy"
            )
        self._last[frame.stream] = label
        return frame


class Reader:
    """Coroutines of the engine's loop that find and fetch messages."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- the whole log ------------------------------------------------------------------------------------

    async def last_sequence(self) -> int:
        """Sequence of the stream's last message."""
        info = await self._engine.api_patiently(f"STREAM.INFO.{self._engine.stream}", {})
        return int(info["state"]["last_seq"])

    async def heads(self) -> dict[str, Head]:
        """The ends of all streams; O(streams)."""
        subjects = await self._subjects()
        heads: dict[str, Head] = {}
        while subjects:
            request = {"multi_last": subjects[:SUBJECTS_PER_REQUEST], "batch": SUBJECTS_PER_REQUEST}
            found = await self._engine.direct_patiently(request)
            for stored in found:
                heads[event_stream_of(stored.subject)] = head_of(stored)
            answered = {stored.subject for stored in found}
            # A reply is cut off when it grows too large; what is left is asked for again.
            subjects = [subject for subject in subjects if subject not in answered]
        return heads

    async def _subjects(self) -> list[str]:
        subjects: list[str] = []
        while True:
            request = {"subjects_filter": all_events_subject(self._engine.stream), "offset": len(subjects)}
            info = await self._engine.api_patiently(f"STREAM.INFO.{self._engine.stream}", request)
            found = info["state"].get("subjects") or {}
            subjects += found
            if not found or len(subjects) >= int(info.get("total", 0)):
                return subjects

    async def last_position(self) -> int:
        """The position that no event is above; 0 in an empty log."""
        sequence = await self.last_sequence()
        stored = await self._engine.next(all_events_subject(self._engine.stream), sequence) if sequence else None
        return 0 if stored is None else position_of(stored.sequence, label_of(stored).count)

    async def start(self, after_position: int) -> int:
        """From which sequence to read to see every event above a position."""
        sequence, place = divmod(after_position, EVENTS_PER_FRAME)
        if sequence == 0:
            return 1
        stored = await self._engine.next(all_events_subject(self._engine.stream), sequence)
        if stored is None:
            return sequence
        label = label_of(stored)
        if stored.sequence == sequence and place >= label.count:
            return sequence + 1
        # The parts of a frame are consecutive; start with its first.
        return stored.sequence - label.part + 1

    async def chunk_of_all(self, sequence: int, up_to: int) -> list[Stored]:
        """The next messages of the log, or none at its end."""
        return await self._engine.chunk(all_events_subject(self._engine.stream), sequence, up_to, CHUNK_BYTES)

    # --- one stream ---------------------------------------------------------------------------------------

    async def chunk(self, stream: str, sequence: int, up_to: int) -> list[Stored]:
        """The next messages of a stream, or none at its end."""
        return await self._engine.chunk(events_subject(self._engine.stream, stream), sequence, up_to, CHUNK_BYTES)

    async def first_above(self, stream: str, version: int, head: Head) -> int:
        """Sequence of the first message of the frame that goes beyond a version; of the last message, if none does."""
        sequence = await self.find(stream, version, head)
        while sequence <= head.sequence:
            messages = await self.chunk(stream, sequence, head.sequence)
            if not messages:
                break
            for message in messages:
                label = label_of(message)
                if label.last_version > version:
                    return message.sequence - label.part + 1
            sequence = messages[-1].sequence + 1
        return head.sequence

    async def find(self, stream: str, after_version: int, head: Head) -> int:
        """A sequence from which reading a stream gives every event above a version; O(log messages) requests."""
        if after_version <= 0:
            return 1
        subject = events_subject(self._engine.stream, stream)
        low, high = 1, head.sequence
        while high - low > NEAR_MESSAGES:
            middle = (low + high) // 2
            stored = await self._engine.next(subject, middle)
            label = None if stored is None else label_of(stored)
            if stored is None or label is None or label.first_version > after_version + 1:
                high = middle - 1
            else:
                # The parts of a frame are consecutive; start with its first.
                low = stored.sequence - label.part + 1
                if low >= high:
                    break
        return low
