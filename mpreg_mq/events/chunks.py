"""A long sequence of events that the garbage collector does not walk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mpreg_mq.events.log import EVENTS_AT_ONCE
from mpreg_mq.events.types import Event

EVENTS_IN_CHUNK: int = 4096
"""Few enough that a chunk is made in 13 µs, many enough that a log of 1.5 million events is 400 of them."""


class Chunks:
    """The events of a log from a position on, in order.

    A full garbage collection looks at each entry of each list, even if none can be part of a cycle: for a log of 1.5
    million events that is 20 ms or more, in which nothing else happens. But a tuple that holds nothing the collector
    tracks, and events are such, is not tracked either: from the start on CPython 3.14, after the first collection
    before that. So all events but the last are in tuples of a fixed number, the chunks; a list, the tail, holds only
    those since.

    A reader keeps the object it began with and needs no lock: the list of chunks and the tail only grow, and what
    would change anything else, :meth:`sealed` and :meth:`above`, makes another object.
    """

    __slots__ = ("_full", "_origin", "size", "start", "tail")

    def __init__(self, origin: int, full: list[tuple[Event, ...]], tail: list[Event], size: int) -> None:
        self._origin: Final = origin
        """Position before the first chunk."""
        self._full: Final = full
        self.start: Final = origin + len(full) * size
        """Position before the tail."""
        self.tail: Final = tail
        """Whoever adds events adds them here, and goes on with :meth:`sealed` once there are ``size`` or more."""
        self.size: Final = size
        """Number of events in a chunk."""

    @classmethod
    def begin(cls, position: int) -> Chunks:
        """No events yet; the first comes after a position."""
        return cls(position, [], [], EVENTS_IN_CHUNK)

    def sealed(self) -> Chunks:
        """The same events, with as many of the tail in chunks as fill some; O(events in the tail)."""
        full, tail, size = self._full, self.tail, self.size
        end = len(tail) - len(tail) % size
        full += [tuple(tail[at : at + size]) for at in range(0, end, size)]
        return Chunks(self._origin, full, tail[end:], size)

    def above(self, position: int) -> Chunks:
        """The events above a position at or after the first; O(chunks), at worst."""
        if position >= self.start:
            return Chunks(position, [], self.tail[position - self.start :], self.size)
        chunk, gone = divmod(position - self._origin, self.size)
        full = self._full[chunk:]
        # Chunks are found by their number, so the first keeps its length: its first event stands for those that went.
        full[0] = full[0][gone : gone + 1] * gone + full[0][gone:]
        return Chunks(self._origin + chunk * self.size, full, self.tail, self.size)

    def part(self, after: int, last: int) -> Sequence[Event]:
        """The first of the events above one position up to another: one to ``EVENTS_AT_ONCE``, of one chunk; O(1)."""
        count = last - after
        if count > EVENTS_AT_ONCE:
            count = EVENTS_AT_ONCE
        at = after - self.start
        if at >= 0:
            return self.tail[at : at + count]
        before, size = after - self._origin, self.size
        at = before % size
        return self._full[before // size][at : at + count]
