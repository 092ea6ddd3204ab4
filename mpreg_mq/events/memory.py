"""The event log in memory: as fast as a list, gone with its process."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.chunks import Chunks
from mpreg_mq.events.log import (
    Append,
    RecordedEvent,
    Snapshot,
    check_bases,
    truncated_below,
    version_conflict,
)
from mpreg_mq.events.memory_stream import Span, Stream
from mpreg_mq.events.types import Event

T = TypeVar("T")

_Reader = Callable[[Stream, Iterator[Span], Chunks], Iterator[T]]
"""Reads spans of a stream from all events."""


class MemoryEventLog:
    """A :class:`~mpreg_mq.events.log.RetainingLog` that keeps the event objects themselves.

    Nothing is encoded, and ``sync`` has nothing to do. A record exists only while it is read: what is kept for an event
    is its place in the order of all, and a few numbers where a run begins, which are events of one stream with none of
    another's in between. The garbage collector walks neither, however long the log is (see
    :class:`~mpreg_mq.events.chunks.Chunks`; the numbers are in arrays).

    What holds them only grows; truncating puts something new in its place. So a reader takes what is there when it
    begins, and needs no lock to read what it held then.
    """

    blocking = False
    read_only = False
    location = "memory:"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._events = Chunks.begin(0)
        self._base = 0
        """Position of the last event that was truncated, and with that the one before the first that is there."""
        self._streams: dict[str, Stream] = {}
        self._numbered: list[Stream] = []
        """The streams by their numbers."""
        self._run_streams = array("q")
        """The number of each run's stream."""
        self._run_positions = array("q")
        """The position before each run, in order."""
        self._latest: Stream | None = None
        """The stream whose run goes on."""
        self._snapshots: dict[str, list[Snapshot]] = {}

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def append(self, batch: Sequence[Append]) -> None:
        """Add all events of the batch, or none; see :meth:`mpreg_mq.events.log.EventLog.append`."""
        # Acquired by hand: a with statement would be a third of what an append costs.
        self._lock.acquire()
        try:
            if self._closed:
                raise self._closed_error()
            events = self._events
            tail = events.tail
            if len(batch) > 1:
                self._check(batch)
            for append in batch:
                name = append.stream
                try:
                    stream = self._streams[name]
                except KeyError:
                    stream = Stream(name, len(self._numbered))
                version = stream.version
                if append.expected_version != version:
                    raise version_conflict(append, version)
                added = append.events
                if not added:
                    continue
                if stream is not self._latest:
                    if stream.number == len(self._numbered):
                        self._register(stream)
                    self._begin_run(stream, events.start + len(tail))
                tail += added
                stream.version = version + len(added)
            if len(tail) >= events.size:
                self._events = events.sealed()
        finally:
            self._lock.release()

    def append_next(self, stream: str, version: int, events: Sequence[Event]) -> None:
        """:meth:`append` of one append, by the shortest way for what a queue does again and again."""
        self._lock.acquire()
        try:
            latest = self._latest
            if latest is None or latest.name != stream or latest.version != version or self._closed:
                latest = self._of_next_run(stream, version, events)
            if latest is not None:
                chunks = self._events
                tail = chunks.tail
                tail += events
                latest.version = version + len(events)
                if len(tail) >= chunks.size:
                    self._events = chunks.sealed()
                return
        finally:
            self._lock.release()
        self.append((Append(stream, version, events),))

    def _of_next_run(self, name: str, version: int, events: Sequence[Event]) -> Stream | None:
        """The stream that these events begin a run of; None where they do not, or cannot be appended."""
        stream = self._streams.get(name)
        if stream is None or stream.version != version or not events or self._closed:
            return None
        self._begin_run(stream, self._events.start + len(self._events.tail))
        return stream

    def _begin_run(self, stream: Stream, position: int) -> None:
        self._run_streams.append(stream.number)
        self._run_positions.append(position)
        runs = stream.runs
        runs.append(stream.version)
        runs.append(position)
        self._latest = stream

    def _register(self, stream: Stream) -> None:
        self._streams[stream.name] = stream
        self._numbered.append(stream)

    def _check(self, batch: Sequence[Append]) -> None:
        """Raise before the first change if any append of the batch does not fit."""
        versions: dict[str, int] = {}
        for append in batch:
            version = versions.get(append.stream)
            if version is None:
                version = self._version(append.stream)
            if append.expected_version != version:
                raise version_conflict(append, version)
            versions[append.stream] = version + len(append.events)

    def stream_version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where it has none."""
        with self._lock:
            self._check_open()
            return self._version(stream)

    def _version(self, stream: str) -> int:
        found = self._streams.get(stream)
        return 0 if found is None else found.version

    def streams(self) -> list[str]:
        """Names of the streams that have, or had, events, sorted."""
        with self._lock:
            self._check_open()
            return sorted(self._streams)

    def last_position(self) -> int:
        """Position of the log's last event; 0 where it never had one."""
        with self._lock:
            self._check_open()
            return self._last_position()

    def _last_position(self) -> int:
        return self._events.start + len(self._events.tail)

    # --- reading ------------------------------------------------------------------------------------------

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``; O(log(runs)) to start."""
        return self._read(self._stream_records, stream, after_version)

    def _read(self, read: _Reader[T], stream: str, after_version: int) -> Iterator[T]:
        """Read a stream as it is now, where there is one."""
        with self._lock:
            self._check_open()
            found = self._streams.get(stream)
            if found is None:
                return iter(())
            return read(found, found.spans(after_version), self._events)

    def _stream_records(self, stream: Stream, spans: Iterator[Span], events: Chunks) -> Iterator[RecordedEvent]:
        name = stream.name
        for position, version, count in spans:
            end = position + count
            while position < end:
                for event in events.part(position, end):
                    if self._closed or position < self._base:
                        raise self._stopped(truncated_below(name, version, stream.base))
                    position += 1
                    version += 1
                    yield RecordedEvent(position, name, version, event)

    def read_events(self, stream: str, after_version: int = 0) -> Iterator[Sequence[Event]]:
        """The events alone, many at a time; see :func:`mpreg_mq.events.log.read_events`. O(log(runs)) to start."""
        return self._read(self._stream_events, stream, after_version)

    def _stream_events(self, stream: Stream, spans: Iterator[Span], events: Chunks) -> Iterator[Sequence[Event]]:
        for position, version, count in spans:
            end = position + count
            while position < end:
                part = events.part(position, end)
                if self._closed or position < self._base:
                    raise self._stopped(truncated_below(stream.name, version, stream.base))
                yield part
                position += len(part)
                version += len(part)

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``; O(log(runs)) to start."""
        with self._lock:
            self._check_open()
            after = max(after_position, self._base)
            runs = self._run_streams, self._run_positions
            return self._all_records(after, self._last_position(), *runs, self._events)

    def _all_records(
        self,
        after: int,
        last: int,
        streams: Sequence[int],
        positions: Sequence[int],
        events: Chunks,
    ) -> Iterator[RecordedEvent]:
        versions: dict[str, int] = {}
        run = bisect_right(positions, after) - 1
        end = after
        while after < last:
            for event in events.part(after, last):
                if after == end:
                    stream = self._numbered[streams[run]]
                    run += 1
                    end = positions[run] if run < len(positions) else last
                    name = stream.name
                    known = versions.get(name)
                    version = self._version_at(stream, after) if known is None else known
                    versions[name] = version + end - after
                if self._closed or after < self._base:
                    raise self._stopped(truncated_below("all", after, self._base))
                after += 1
                version += 1
                yield RecordedEvent(after, name, version, event)

    def _version_at(self, stream: Stream, position: int) -> int:
        with self._lock:
            self._check_open()
            if position < self._base:
                raise truncated_below("all", position, self._base)
            return stream.version_at(position)

    # --- snapshots and retention --------------------------------------------------------------------------

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.save_snapshot`."""
        with self._lock:
            self._check_open()
            stream = snapshot.stream
            base, version = self._base_version(stream), self._version(stream)
            if not base <= snapshot.version <= version or not version:
                raise EventLogError(
                    f"snapshot of {stream!r}: got version {snapshot.version}, expected {base} to {version}"
                )
            kept = [one for one in self._snapshots.get(stream, []) if one.version != snapshot.version]
            kept = sorted([snapshot, *kept], key=lambda one: -one.version)
            self._snapshots[stream] = kept[:2] + [one for one in kept[2:] if one.version == base]

    def snapshots(self, stream: str) -> list[Snapshot]:
        """The snapshots of a stream, newest first."""
        with self._lock:
            self._check_open()
            return list(self._snapshots.get(stream, ()))

    def base_position(self) -> int:
        """Position up to which events were truncated; 0 where all are there."""
        with self._lock:
            self._check_open()
            return self._base

    def base_version(self, stream: str) -> int:
        """Version up to which a stream's events were truncated; 0 where all are there."""
        with self._lock:
            self._check_open()
            return self._base_version(stream)

    def _base_version(self, stream: str) -> int:
        found = self._streams.get(stream)
        return 0 if found is None else found.base

    def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.truncate`; O(runs that remain and chunks)."""
        with self._lock:
            self._check_open()
            going = self._versions_at(position)
            versions = {stream.name: version for stream, version in going.items()}
            check_bases(position, self._base, self._last_position(), versions, bases)
            for stream, version in going.items():
                stream.truncate(version)
                self._begin_at(bases[stream.name])
            # The last run stays even if all of its events go: it may go on.
            run = bisect_right(self._run_positions, position) - 1
            self._run_streams = self._run_streams[run:]
            self._run_positions = self._run_positions[run:]
            self._events = self._events.above(position)
            self._base = position

    def _versions_at(self, position: int) -> dict[Stream, int]:
        """The versions at a position of the streams that have events up to there; O(runs)."""
        versions: dict[Stream, int] = {}
        bounds = pairwise([*self._run_positions, self._last_position()])
        for number, (before, end) in zip(self._run_streams, bounds, strict=True):
            after = max(before, self._base)
            if after >= position:
                break
            # Of a run that was cut away whole nothing is left to go.
            if end > after:
                stream = self._numbered[number]
                versions[stream] = versions.get(stream, stream.base) + min(end, position) - after
        return versions

    def _begin_at(self, base: Snapshot) -> None:
        newer = [one for one in self._snapshots.get(base.stream, []) if one.version > base.version]
        self._snapshots[base.stream] = [*newer, base]

    def record_end(self, position: int) -> int:
        """``position``, within the log: it can be truncated anywhere."""
        with self._lock:
            self._check_open()
            return max(self._base, min(position, self._last_position()))

    def reclaim(self) -> bool:
        """Do nothing: :meth:`truncate` frees what it takes away."""
        self._check_open()
        return False

    def size_bytes(self) -> int:
        """0: what the events take in memory is not counted."""
        self._check_open()
        return 0

    def adopt(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.adopt`."""
        with self._lock:
            self._check_open()
            if self._streams:
                raise EventLogError("adopt memory: found a log with events, expected an empty one")
            self._base = position
            self._events = Chunks.begin(position)
            for name, base in bases.items():
                self._register(Stream(name, len(self._numbered), base.version))
                self._begin_at(base)

    # --- the end ------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """True, as far as this log knows."""
        return not self._closed

    def sync(self) -> None:
        """Do nothing: memory is as durable as it gets."""
        self._check_open()

    def close(self) -> None:
        """Refuse further use; calling it again does nothing."""
        with self._lock:
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _stopped(self, error: EventLogError) -> EventLogError:
        """What ends a reader: that the log is closed, or else the error."""
        return self._closed_error() if self._closed else error

    def _closed_error(self) -> EventLogError:
        return EventLogError("the event log memory: is closed; open a new one")
