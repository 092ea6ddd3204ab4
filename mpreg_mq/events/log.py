"""What an event log is: append-only streams of events with versions, in one global order.

Versions count from 1 within a stream, without gaps (I1). Positions rise over the whole log; in memory and in SQLite
they count from 1 without gaps, in a replicated log they have gaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from mpreg_mq.errors import VersionConflictError
from mpreg_mq.events.types import Event


class Append(msgspec.Struct, frozen=True):
    """Events for the end of one stream, which must be at ``expected_version`` (0: the stream is new)."""

    stream: str
    expected_version: int
    events: Sequence[Event]


class RecordedEvent(msgspec.Struct, frozen=True):
    """An event where the log holds it."""

    position: int
    stream: str
    version: int
    event: Event


class EventLog(Protocol):
    """Where events are kept. Every method may be called from any thread.

    After :meth:`close` every method but ``close`` raises :class:`~mpreg_mq.errors.EventLogError`, and so does
    the next step of an iterator that is still open.
    """

    @property
    def blocking(self) -> bool:
        """Whether an append may wait for a disk; such a log is written through the journal actor."""

    @property
    def read_only(self) -> bool:
        """Whether the log was opened for reading alone; every append is refused then."""

    @property
    def location(self) -> str:
        """Where the log is, as :func:`~mpreg_mq.events.opening.open_log` takes it."""

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""

    def append(self, batch: Sequence[Append]) -> None:
        """Add all events of the batch in one transaction, or none; O(events).

        Several appends for one stream apply in their order, each expecting the version the one before leaves.
        An empty batch does nothing; an append without events only checks its version.

        Raises:
            VersionConflictError: a stream is at another version than expected.
            EventLogError: the events could not be stored.
        """

    def stream_version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where it has none."""

    def streams(self) -> list[str]:
        """Names of the streams that have events, sorted."""

    def last_position(self) -> int:
        """Position of the log's last event; 0 where it has none."""

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``, as far as it goes now; appends may go on meanwhile."""

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``, as far as the log goes now; appends may go on meanwhile."""

    def sync(self) -> None:
        """Return when everything appended survives a power cut, as far as the log can promise that."""

    def close(self) -> None:
        """Release what the log holds; calling it again does nothing."""


def version_conflict(append: Append, version: int) -> VersionConflictError:
    """The error for an append to a stream that is at ``version``."""
    return VersionConflictError(
        f"append: stream {append.stream!r} is at version {version}, the append expected "
        f"{append.expected_version}; read what was added in between and decide again"
    )
