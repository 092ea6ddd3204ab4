"""The event log in memory: as fast as lists, gone with its process."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import Append, RecordedEvent, Snapshot, check_bases, truncated_below, version_conflict
from mpreg_mq.events.types import Event


class MemoryEventLog:
    """A :class:`~mpreg_mq.events.log.RetainingLog` that keeps the event objects themselves.

    Nothing is encoded, and ``sync`` has nothing to do. A record exists only while it is read: what is kept for
    an event is the event, a reference to its stream's name and its position among the stream's.
    """

    blocking = False
    read_only = False
    location = "memory:"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._events: list[Event] = []
        self._names: list[str] = []
        self._positions: dict[str, list[int]] = {}
        # Truncated events are gone from the lists: these say how many they were.
        self._base = 0
        self._base_versions: dict[str, int] = {}
        self._snapshots: dict[str, list[Snapshot]] = {}

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def append(self, batch: Sequence[Append]) -> None:
        """Add all events of the batch, or none; see :meth:`mpreg_mq.events.log.EventLog.append`."""
        # Acquired by hand: a with statement would be a fifth of what an append costs.
        self._lock.acquire()
        try:
            if self._closed:
                raise self._closed_error()
            if len(batch) > 1:
                self._check(batch)
            events = self._events
            base = self._base
            for append in batch:
                stream = append.stream
                positions = self._positions.get(stream)
                version = 0 if positions is None else len(positions)
                if base:
                    version += self._base_versions.get(stream, 0)
                if append.expected_version != version:
                    raise version_conflict(append, version)
                added = append.events
                if not added:
                    continue
                if positions is None:
                    positions = self._positions[stream] = []
                first = len(events) + base + 1
                events += added
                if len(added) == 1:
                    self._names.append(stream)
                    positions.append(first)
                else:
                    self._names += [stream] * len(added)
                    positions += range(first, first + len(added))
        finally:
            self._lock.release()

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
        return len(self._positions.get(stream, ())) + self._base_versions.get(stream, 0)

    def streams(self) -> list[str]:
        """Names of the streams that have events, sorted."""
        with self._lock:
            self._check_open()
            return sorted(self._positions)

    def last_position(self) -> int:
        """Position of the log's last event; 0 where it has none."""
        with self._lock:
            self._check_open()
            return len(self._events) + self._base

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``; O(1) to start."""
        with self._lock:
            self._check_open()
            versions = range(max(after_version, self._base_versions.get(stream, 0)) + 1, self._version(stream) + 1)
        return self._stream_records(stream, versions)

    def _stream_records(self, stream: str, versions: range) -> Iterator[RecordedEvent]:
        for version in versions:
            with self._lock:
                self._check_open()
                at = version - self._base_versions.get(stream, 0) - 1
                if at < 0:
                    raise truncated_below(stream, version - 1, self._base_versions[stream])
                position = self._positions[stream][at]
                event = self._events[position - self._base - 1]
            yield RecordedEvent(position, stream, version, event)

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``; O(streams * log(events)) to start."""
        with self._lock:
            self._check_open()
            after_position = max(self._base, after_position)
            versions = {
                name: self._base_versions.get(name, 0) + bisect_right(positions, after_position)
                for name, positions in self._positions.items()
            }
            wanted = range(after_position + 1, len(self._events) + self._base + 1)
        return self._all_records(wanted, versions)

    def _all_records(self, wanted: range, versions: dict[str, int]) -> Iterator[RecordedEvent]:
        for position in wanted:
            with self._lock:
                self._check_open()
                at = position - self._base - 1
                if at < 0:
                    raise truncated_below("all", position - 1, self._base)
                stream, event = self._names[at], self._events[at]
            versions[stream] += 1
            yield RecordedEvent(position, stream, versions[stream], event)

    # --- snapshots and retention --------------------------------------------------------------------------

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.save_snapshot`."""
        with self._lock:
            self._check_open()
            stream = snapshot.stream
            base, version = self._base_versions.get(stream, 0), self._version(stream)
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
            return self._base_versions.get(stream, 0)

    def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.truncate`; O(events that remain)."""
        with self._lock:
            self._check_open()
            going = {name: bisect_right(positions, position) for name, positions in self._positions.items()}
            versions = {name: self._base_versions.get(name, 0) + count for name, count in going.items() if count}
            check_bases(position, self._base, len(self._events) + self._base, versions, bases)
            count = position - self._base
            self._events = self._events[count:]
            self._names = self._names[count:]
            for name in versions:
                self._positions[name] = self._positions[name][going[name] :]
            self._base = position
            self._begin_at(versions, bases)

    def _begin_at(self, versions: Mapping[str, int], bases: Mapping[str, Snapshot]) -> None:
        for name, version in versions.items():
            self._base_versions[name] = version
            newer = [one for one in self._snapshots.get(name, []) if one.version > version]
            self._snapshots[name] = [*newer, bases[name]]

    def record_end(self, position: int) -> int:
        """``position``, within the log: it can be truncated anywhere."""
        with self._lock:
            self._check_open()
            return max(self._base, min(position, len(self._events) + self._base))

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
            if self._positions:
                raise EventLogError("adopt memory: found a log with events, expected an empty one")
            self._base = position
            self._positions = {name: [] for name in bases}
            self._begin_at({name: base.version for name, base in bases.items()}, bases)

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

    def _closed_error(self) -> EventLogError:
        return EventLogError("the event log memory: is closed; open a new one")
