"""What an event log is: append-only streams of events with versions, in one global order.

Versions count from 1 within a stream, without gaps (I1). Positions rise over the whole log; in memory and in SQLite
they count from 1 without gaps, in a replicated log they have gaps. Retention may take events away at the beginning,
never elsewhere; a snapshot of each stream then stands for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, cast, runtime_checkable

import msgspec

from mpreg_mq.errors import EventLogError, VersionConflictError
from mpreg_mq.events.types import Event

EVENTS_AT_ONCE = 512
"""About so many events :func:`read_events` gives at a time."""


class Append(msgspec.Struct, frozen=True, gc=False):
    """Events for the end of one stream, which must be at ``expected_version`` (0: the stream is new)."""

    stream: str
    expected_version: int
    events: Sequence[Event]


class RecordedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event where the log holds it."""

    position: int
    stream: str
    version: int
    event: Event


class Snapshot(msgspec.Struct, frozen=True):
    """What the fold of a stream's events up to ``version`` is, as bytes that the log does not look into."""

    stream: str
    version: int
    body: bytes


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
        """Whether the log was opened for reading alone; every change is refused then."""

    @property
    def location(self) -> str:
        """Where the log is, as :func:`~mpreg_mq.events.opening.open_log` takes it."""

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""

    # --- events -------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        """Add all events of the batch in one transaction, or none; O(events).

        Several appends for one stream apply in their order, each expecting the version the one before leaves.
        An empty batch does nothing; an append without events only checks its version.

        Raises:
            VersionConflictError: a stream is at another version than expected.
            LogFullError: there is no room for the events.
            EventLogError: the events could not be stored.
        """

    def stream_version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where it never had one."""

    def streams(self) -> list[str]:
        """Names of the streams that have, or had, events, sorted."""

    def last_position(self) -> int:
        """Position of the log's last event; 0 where it never had one."""

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``, as far as it goes now; appends may go on meanwhile."""

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``, as far as the log goes now; appends may go on meanwhile."""

    # --- the end ------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything appended survives a power cut, as far as the log can promise that."""

    def close(self) -> None:
        """Release what the log holds; calling it again does nothing."""


@runtime_checkable
class RetainingLog(EventLog, Protocol):
    """A log that keeps snapshots, and whose first events can be taken away.

    What :meth:`read_stream` and :meth:`read_all` give then begins after the base; the first event read tells.
    """

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; the newest two of a stream are kept, and the one at its base.

        Raises:
            EventLogError: its version is above the stream's or below its base, or it could not be stored.
        """

    def snapshots(self, stream: str) -> list[Snapshot]:
        """The snapshots of a stream, newest first; damaged ones are left out, with a warning."""

    def base_position(self) -> int:
        """Position up to which events were truncated; 0 where all are there."""

    def base_version(self, stream: str) -> int:
        """Version up to which a stream's events were truncated; 0 where all are there."""

    def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Take away the events up to ``position``, in one transaction, and keep ``bases`` in their place.

        Each stream with events that go needs a base at the version of the last of these. The space comes back
        with :meth:`reclaim`. Iterators that have not come so far raise at their next step.

        Raises:
            EventLogError: ``position`` is below the base or above the last position, a base is missing or at
                another version, or the change could not be stored.
        """

    def record_end(self, position: int) -> int:
        """The last position at or below ``position`` at which the log can be truncated; at least its base.

        It is on the disk: what a :class:`QuickWriter` has written and not yet synced may turn out not to be there, and
        must not be in what stands for events that were truncated.
        """

    def reclaim(self) -> bool:
        """Free a little of the space of truncated events, in a few milliseconds; whether there is more to do."""

    def size_bytes(self) -> int:
        """Space the log takes, roughly; 0 for a log in memory."""

    def adopt(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Begin an empty log at ``position``, as if the events up to it had been truncated (for an import).

        A log that has positions of its own begins there: SQLite's have no gaps, as those of chosen streams may have.

        Raises:
            EventLogError: the log is not empty, or the change could not be stored.
        """

    def has_room(self) -> bool:
        """Whether an append of new messages is worth trying, after one that raised LogFullError."""


class QuickWriter(Protocol):
    """Writes to a log without waiting for its disk unless it is asked to, and without its ``append``.

    A batch is written, its sync is begun and ends, and only then is it as safe as :meth:`EventLog.append` makes one;
    meanwhile the next may be written. Readers may see a batch a little before. It may be used from any thread, but
    from one at a time.
    """

    @property
    def descriptor(self) -> int:
        """Becomes readable, for an event loop that watches it, when a sync has ended."""

    @property
    def most_under_way(self) -> int:
        """Up to so many syncs may be under way at once; it changes with what the disk does, so ask before each."""

    def write(self, batch: Sequence[Append]) -> bool:
        """Add all events of the batch in one transaction, or none; False, with nothing done, where it had to wait.

        Raises:
            VersionConflictError: a stream is at another version than expected; nothing was done.
            EventLogError: the events could not be stored, or may have been: :meth:`settle` tells.
        """

    def begin_sync(self) -> None:
        """Have the disk take what was written; once after each batch that was; returns at once.

        Raises:
            OSError: that cannot be asked for now; :meth:`settle` tells what became of the batch.
        """

    @property
    def waits(self) -> bool:
        """Whether the disk is, and may be, waited for: :meth:`sync_here` is then the better way while none is begun."""

    def sync_here(self) -> None:
        """Put on disk what was written, and return then; :meth:`end_sync` tells of it. Only while no sync is begun.

        Raises:
            OSError: the disk refused; :meth:`settle` tells what became of the batch.
        """

    def end_sync(self, *, wait: bool) -> int:
        """How many of the oldest batches are on disk by now that were not before; ``wait`` for a sync to end.

        Raises:
            OSError: the disk refused; :meth:`settle` tells what became of all batches that are not on disk.
        """

    def heard(self) -> None:
        """Make the descriptor unreadable until another sync has ended."""

    def settle(self) -> int:
        """After an error: how many of the oldest batches that were written are in the log and on disk; waits.

        The others are not in it and never will be, and nothing is under way any more.

        Raises:
            EventLogError: that cannot be found out now, and is not asked again: the batches are forgotten here.
        """

    @property
    def untidy(self) -> bool:
        """Whether it is time to :meth:`tidy`."""

    def tidy(self) -> None:
        """Do what writing has put off, for a thread that may wait; others may write meanwhile, most of the time."""

    def close(self) -> None:
        """Give the descriptor back; the log stays open."""


def quick_writer(log: EventLog) -> QuickWriter | None:
    """What writes to the log without waiting for its disk, where the log has such a thing; close it after use.

    A log that wraps another to see what is appended, and passes on what it does not have itself, needs a
    ``quick_writer`` of its own as well.
    """
    make = getattr(log, "quick_writer", None)
    return None if make is None else cast("QuickWriter | None", make())


def retaining(log: EventLog) -> RetainingLog | None:
    """The log, if it keeps snapshots and can be truncated; else None."""
    return cast(RetainingLog, log) if callable(getattr(log, "save_snapshot", None)) else None


def base_version(log: EventLog, stream: str) -> int:
    """Version up to which a stream's events are not there any more; 0 for a log that keeps them all."""
    kept = retaining(log)
    return 0 if kept is None else kept.base_version(stream)


def each_snapshot(log: RetainingLog, stream: str, version: int | None = None) -> Iterator[Snapshot]:
    """What ``log.snapshots(stream)`` gives, or only the one at ``version``; read one by one where the log can do that.

    For who needs one of them: each takes as much memory as what the queue holds.
    """
    one_by_one = getattr(log, "each_snapshot", None)
    found = log.snapshots(stream) if one_by_one is None else one_by_one(stream, version)
    return (snapshot for snapshot in found if version is None or snapshot.version == version)


def read_events(log: EventLog, stream: str, after_version: int = 0) -> Iterator[Sequence[Event]]:
    """The events that ``log.read_stream(stream, after_version)`` gives, without their places and many at a time.

    For who folds a stream. Some logs have a ``read_events`` that is much faster than ``read_stream``; it stops where
    that does, but looks only between two sequences whether the log was closed or truncated. From any other log the
    events are gathered, so that those just before one that cannot be read may not be given either.
    """
    faster = getattr(log, "read_events", None)
    if faster is not None:
        return cast("Iterator[Sequence[Event]]", faster(stream, after_version))
    return _gathered(log.read_stream(stream, after_version))


def _gathered(records: Iterator[RecordedEvent]) -> Iterator[Sequence[Event]]:
    while events := [record.event for record in islice(records, EVENTS_AT_ONCE)]:
        yield events


def version_conflict(append: Append, version: int) -> VersionConflictError:
    """The error for an append to a stream that is at ``version``."""
    return VersionConflictError(
        f"append: stream {append.stream!r} is at version {version}, the append expected "
        f"{append.expected_version}; read what was added in between and decide again"
    )


def truncated_below(what: str, after: int, base: int) -> EventLogError:
    """The error of a reader whose next events have been truncated."""
    return EventLogError(
        f"read {what}: the events after {after} were truncated meanwhile, up to {base}; read again from there"
    )


def check_bases(
    position: int, base: int, last: int, versions: Mapping[str, int], bases: Mapping[str, Snapshot]
) -> None:
    """Raise unless a log from ``base`` to ``last`` can be truncated at ``position``.

    ``versions`` are those that the streams with events that go have at ``position``.
    """
    if not base <= position <= last:
        raise EventLogError(f"truncate: got position {position}, expected {base} to {last}")
    for stream, version in versions.items():
        snapshot = bases.get(stream)
        if snapshot is None or snapshot.version != version or snapshot.stream != stream:
            found = "none" if snapshot is None else f"one at version {snapshot.version} of {snapshot.stream!r}"
            raise EventLogError(
                f"truncate: got {found} as the base of {stream!r}, expected a snapshot at version {version}"
            )
