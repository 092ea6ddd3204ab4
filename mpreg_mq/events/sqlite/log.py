"""The event log in an SQLite file: what an :class:`~mpreg_mq.events.log.EventLog` does, on checked records.

One connection writes and checkpoints; another, which cannot write, reads in short statements, so that no reader
holds up the writer or keeps the write-ahead log from being reused. Where an event loop writes, a third checkpoints
beside it. How the file is changed, recovered and closed is in :mod:`mpreg_mq.events.sqlite.file`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError, CorruptLogError, EventLogError, LogFullError
from mpreg_mq.events.log import Append, QuickWriter, RecordedEvent, Snapshot, check_bases, truncated_below
from mpreg_mq.events.sqlite import snapshots as s
from mpreg_mq.events.sqlite.adding import addition, adds_messages
from mpreg_mq.events.sqlite.failures import explained
from mpreg_mq.events.sqlite.file import LogFile
from mpreg_mq.events.sqlite.places import WRONG_PLACES
from mpreg_mq.events.sqlite.quick import SQLiteQuickWriter
from mpreg_mq.events.sqlite.reading import Found
from mpreg_mq.events.sqlite.records import blocks
from mpreg_mq.events.sqlite.transactions import Stream
from mpreg_mq.events.types import Event
from mpreg_mq.forking import forget_after_fork, set_free

logger = logging.getLogger("mpreg_mq")

SYNCHRONOUS_MODES = ("FULL", "NORMAL", "OFF")
"""When an append is on disk, and what a loss of power may take; the end of the process takes nothing.

``FULL``: before it returns; nothing is lost. ``NORMAL``: some time later, or at :meth:`SQLiteEventLog.sync`; the
appends since may be lost, never one without all after it. ``OFF``: when the system likes; anything may be lost, the
whole file included. Opening says in a warning what is missing.
"""

DEFAULT_RESERVE_BYTES = 8 << 20
"""Twice what the write-ahead log holds: as much is needed to empty it into the file, before anything can be written."""
MOST_RESERVE_BYTES = 1 << 40
RECORDS_PER_STEP = 200
"""Records that one call of :meth:`SQLiteEventLog.reclaim` removes at most; fewer where they are large."""
_PAGES_PER_STEP = 250
_LONGEST_WAIT_SECONDS = 60.0
_CHECKPOINT_BUSY = "other users of the file kept it busy; try again"


class SQLiteEventLog:
    """A :class:`~mpreg_mq.events.log.RetainingLog` in one SQLite file, created where it is missing.

    One process at a time has it open for writing; any number may have it open ``read_only`` meanwhile, which needs
    no permission to write and changes nothing. A log object must not be used in a forked child.

    Args:
        path: the file; beside it are ``-wal``, ``-shm``, ``-lock`` and ``-head`` while it is open for writing.
        synchronous: one of :data:`SYNCHRONOUS_MODES`.
        read_only: refuse every change.
        reserve_bytes: room on the disk that is kept for finishing messages when there is none for new ones.
        writes_on_loop: let an event loop write its commits itself and the kernel wait for the disk, where that is
            possible (see :meth:`quick_writer`). Otherwise a thread does both, which leaves more time to a loop that is
            busy with other things, and takes more of the processor altogether.
        loop_waits_seconds: with ``writes_on_loop``, let the loop itself wait for its disk, which is the quickest way
            where a disk is quick, and holds up everything else on the loop meanwhile. After a wait that took longer
            than this the kernel waits for the disk, for twenty times as long. 0, the default: it always does.

    Raises:
        ConfigurationError: an argument is not one of the values above.
        LogLockedError: another process has it open for writing.
        CorruptLogError: the file is damaged, or has lost its end; :func:`~mpreg_mq.events.sqlite.repair_log` helps.
        EventLogError: the directory is missing, the file is another program's or a newer release's, or SQLite
            cannot open it.
    """

    blocking = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "FULL",
        read_only: bool = False,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        writes_on_loop: bool = False,
        loop_waits_seconds: float = 0.0,
    ) -> None:
        if synchronous not in SYNCHRONOUS_MODES:
            raise ConfigurationError(
                f"SQLiteEventLog.synchronous: got {describe(synchronous)}, expected {', '.join(SYNCHRONOUS_MODES)}"
            )
        if type(reserve_bytes) is not int or not 0 <= reserve_bytes <= MOST_RESERVE_BYTES:
            raise ConfigurationError(
                f"SQLiteEventLog.reserve_bytes: got {describe(reserve_bytes)}, expected a whole number of bytes from 0 "
                f"to {MOST_RESERVE_BYTES}"
            )
        if type(writes_on_loop) is not bool:
            raise ConfigurationError(
                f"SQLiteEventLog.writes_on_loop: got {describe(writes_on_loop)}, expected True or False"
            )
        if type(loop_waits_seconds) not in (int, float) or not 0.0 <= loop_waits_seconds <= _LONGEST_WAIT_SECONDS:
            raise ConfigurationError(
                f"SQLiteEventLog.loop_waits_seconds: got {describe(loop_waits_seconds)}, "
                f"expected 0 to {_LONGEST_WAIT_SECONDS:g} seconds"
            )
        if loop_waits_seconds and not writes_on_loop:
            raise ConfigurationError(
                f"SQLiteEventLog.loop_waits_seconds: got {describe(loop_waits_seconds)} without writes_on_loop=True, "
                "which lets a loop write; ask for both"
            )
        self._writes_on_loop = writes_on_loop
        self._loop_waits_seconds = float(loop_waits_seconds)
        self.read_only = read_only
        self._path = _absolute(path)
        self._lock = threading.Lock()
        self._file = LogFile(self._path, synchronous, read_only, reserve_bytes)
        self._reader = self._file.reader
        forget_after_fork(self)

    def forget_in_child(self) -> None:
        """In a forked child: have nobody wait for a thread of the parent's that was writing; each is told why not."""
        set_free(self._lock)

    @property
    def location(self) -> str:
        """``sqlite:///`` and the absolute path."""
        return f"sqlite:///{self._path}"

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._file.closed

    def _check_writable(self, what: str) -> None:
        self._file.check_open()
        if self.read_only:
            raise EventLogError(f"{what} {self._path}: it was opened read-only; open it for writing")

    # --- writing ------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        """Add all events of the batch in one transaction; see :meth:`mpreg_mq.events.log.EventLog.append`.

        With ``synchronous="FULL"`` it returns when they are on disk: many appends in one batch wait about as
        long as one event by itself. Where SQLite cannot say whether a transaction was committed, the file is
        opened anew and what it holds decides; while that cannot be done, every append is refused.
        """
        found = blocks(batch)
        with self._lock, explained("append", self._path):
            self._check_writable("append to")
            file = self._file
            file.recover()
            if not file.has_reserve and adds_messages(batch) and not file.take_reserve():
                raise LogFullError(
                    f"append {self._path}: there is room on its disk only to finish the messages that are there; "
                    "make room, sending goes on then"
                )
            added = addition(file, batch, found)
            if added.rows:
                file.commit(added)

    def quick_writer(self) -> QuickWriter | None:
        """What adds batches without waiting for the disk, of which the kernel tells when it is done.

        It may wait for a quick disk all the same where ``loop_waits_seconds`` were given.

        None where that cannot or must not be: without ``writes_on_loop``, with another ``synchronous`` than "FULL",
        which waits for no disk, on another system than Linux, on a file system that does not take such requests, and
        in a subclass with an ``append`` of its own, which is not to be passed by. It ends with the log.
        """
        if not self._writes_on_loop or type(self).append is not SQLiteEventLog.append:
            return None
        with self._lock, explained("append", self._path):
            self._check_writable("append to")
            sync = self._file.open_kernel_sync()
        if sync is None:
            return None
        return SQLiteQuickWriter(self._path, self._lock, self._file, sync, self._loop_waits_seconds)

    def has_room(self) -> bool:
        """Whether an append of new messages is worth trying; asks the disk where there was none the last time."""
        with self._lock:
            return not self._file.closed and (self._file.has_reserve or self._file.take_reserve())

    def sync(self) -> None:
        """Return when everything appended is on disk; with ``synchronous="FULL"`` it already is.

        Raises:
            EventLogError: the disk refused, or readers kept the log busy for five seconds.
        """
        with self._lock, explained("sync", self._path):
            self._file.check_open()
            if not self.read_only and not self._file.sync():
                raise EventLogError(f"sync {self._path}: {_CHECKPOINT_BUSY}")

    # --- reading ------------------------------------------------------------------------------------------

    def stream_version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where it never had one. Does not wait for an append under way."""
        found = self._find(stream)
        return 0 if found is None else found.version

    def _find(self, stream: str) -> Stream | None:
        self._refresh()
        return self._file.streams.get(stream)

    def _refresh(self) -> None:
        """Only who writes knows without asking; a reader follows another process."""
        self._file.check_open()
        if self.read_only:
            with self._lock, explained("read", self._path):
                self._file.refresh()

    def streams(self) -> list[str]:
        """Names of the streams that have, or had, events, sorted."""
        self._refresh()
        return sorted(self._file.streams)

    def last_position(self) -> int:
        """Position of the log's last event; 0 where it never had one. Does not wait for an append under way."""
        self._refresh()
        return self._file.head.position

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``, read in chunks of about a megabyte.

        Raises:
            UnknownEventError: while iterating, at an event that a newer release wrote.
            CorruptLogError: while iterating, at a record that is not what was written.
        """
        base, found = self._file.base.position, self._find(stream)
        if found is None:
            return iter(())
        after = max(after_version, found.base_version)
        return self._stream_records(stream, found, after, found.version, base)

    def _stream_records(self, stream: str, found: Stream, after: int, last: int, base: int) -> Iterator[RecordedEvent]:
        file = self._file
        for record in self._checked(self._reader.of_stream(stream, found.id, after, last), after, base):
            version, position = record.first_version, record.first_position
            for event in record.events:
                if version > after:
                    if file.closed or file.forked:
                        file.check_open()
                    yield RecordedEvent(position, stream, version, event)
                version += 1
                position += 1

    def read_events(self, stream: str, after_version: int = 0) -> Iterator[Sequence[Event]]:
        """The events alone, those of a record at a time; read and refused as in :meth:`read_stream`."""
        base, found = self._file.base.position, self._find(stream)
        if found is None:
            return iter(())
        after = max(after_version, found.base_version)
        return self._stream_events(stream, found, after, found.version, base)

    def _stream_events(self, stream: str, found: Stream, after: int, last: int, base: int) -> Iterator[Sequence[Event]]:
        file = self._file
        for record in self._checked(self._reader.of_stream(stream, found.id, after, last), after, base):
            file.check_open()
            before = record.first_version - 1
            yield record.events if before >= after else record.events[after - before :]

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``, read and refused as in :meth:`read_stream`."""
        self._refresh()
        base = self._file.base.position
        after = max(after_position, base)
        return self._all_records(after, self._file.head.position, base)

    def _all_records(self, after: int, last: int, base: int) -> Iterator[RecordedEvent]:
        file = self._file
        for record in self._checked(self._reader.of_log(after, last), after, base):
            version, position = record.first_version, record.first_position
            for event in record.events:
                if position > after:
                    if file.closed or file.forked:
                        file.check_open()
                    yield RecordedEvent(position, record.stream, version, event)
                version += 1
                position += 1

    def _checked(self, records: Iterator[Found], after: int, base: int) -> Iterator[Found]:
        """The records, as long as retention has not overtaken their reader, for whom the log began at ``base``."""
        while True:
            try:
                record = next(records, None)
            except CorruptLogError as error:
                # Another process may have cut it.
                self._refresh()
                if self._file.base.position != base:
                    raise truncated_below(str(self._path), after, self._file.base.position) from error
                raise
            if record is None:
                return
            if record.first_position <= self._file.base.position != base:
                raise truncated_below(str(self._path), after, self._file.base.position)
            yield record

    def check_structure(self) -> str | None:
        """What SQLite finds wrong with the structure of the file, or None; O(size).

        Raises:
            CorruptLogError: a table is not what it was.
        """
        # Of those tables that a reader of events has no need of; SQLite itself takes any column for right.
        self._reader.rows(s.FIND, 0, 0, -1)
        if self._file.places_are_noted:
            for wrong, statement in WRONG_PLACES:
                if number := self._reader.rows(statement)[0][0]:
                    return f"read {self._path}: {number} {wrong}; repair the log"
        found = "; ".join(row[0] for row in self._reader.rows("PRAGMA integrity_check(5)"))
        return None if found == "ok" else f"read {self._path}: SQLite says: {found}; repair the log"

    # --- snapshots and retention --------------------------------------------------------------------------

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.save_snapshot`."""
        with self._lock, explained("snapshot", self._path):
            self._check_writable("snapshot of")
            self._file.recover()
            stream = self._file.streams.get(snapshot.stream)
            if stream is None or not stream.base_version <= snapshot.version <= stream.version:
                raise s.out_of_range(snapshot, stream)
            with self._file.transaction() as connection:
                s.save(connection, stream, snapshot)

    def snapshots(self, stream: str) -> list[Snapshot]:
        """See :meth:`mpreg_mq.events.log.RetainingLog.snapshots`."""
        return list(self.each_snapshot(stream))

    def each_snapshot(self, stream: str, version: int | None = None) -> Iterator[Snapshot]:
        """The same one by one, or the one at ``version``; see :func:`mpreg_mq.events.log.each_snapshot`."""
        found = self._find(stream)
        return iter(()) if found is None else s.read(self._reader.rows, found, self._path, version)

    def base_position(self) -> int:
        """Position up to which events were truncated; 0 where all are there."""
        self._refresh()
        return self._file.base.position

    def base_version(self, stream: str) -> int:
        """Version up to which a stream's events were truncated; 0 where all are there."""
        found = self._find(stream)
        return 0 if found is None else found.base_version

    def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.truncate`; O(streams).

        A record is kept whole: ``position`` must be the end of one, as every position is at which a snapshot is
        taken; :meth:`record_end` finds those.
        """
        with self._lock, explained("truncate", self._path):
            self._check_writable("truncate")
            self._file.recover()
            self._file.making_room(lambda: self._truncate(position, bases))

    def _truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        file = self._file
        versions = {
            name: version
            for name, version in file.versions_at(position).items()
            if version > file.streams[name].base_version
        }
        check_bases(position, file.base.position, file.head.position, versions, bases)
        base = file.head_at(position)
        with file.transaction() as connection:
            s.rebase(connection, base, [(file.streams[name], bases[name]) for name in versions])
        for name, version in versions.items():
            file.streams[name].base_version = version
        # Last: a reader who knows it knows those.
        file.base = base

    def record_end(self, position: int) -> int:
        """The last position at or below ``position`` at which the log can be truncated: on disk, and a record's end."""
        with explained("read", self._path):
            bound = min(position, self._file.synced_position)
            rows = self._reader.rows("SELECT max(position) FROM records WHERE position <= ?", bound)
        return max(rows[0][0] or 0, self._file.base.position)

    def reclaim(self) -> bool:
        """Free a little of the space of truncated events; whether there is more to do."""
        with self._lock, explained("reclaim", self._path):
            self._check_writable("reclaim")
            self._file.recover()
            return self._file.reclaim(RECORDS_PER_STEP, _PAGES_PER_STEP)

    def size_bytes(self) -> int:
        """Space of the events that are there, without what is free for new ones."""
        pages, free, page = self._reader.rows(
            "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, "
            "pragma_page_size"
        )[0]
        return int((pages - free) * page)

    def adopt(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.adopt`."""
        with self._lock, explained("adopt", self._path):
            self._check_writable("adopt")
            self._file.recover()
            self._file.adopt(bases)

    # --- the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file, which leaves one file without a write-ahead log; calling it again does nothing."""
        with self._lock, explained("close", self._path):
            self._file.close()


def _absolute(path: str | os.PathLike[str]) -> Path:
    """A path that no change of the working directory moves.

    Raises:
        ConfigurationError: no file can have it.
    """
    text = os.fspath(path)
    try:
        if "\0" not in text and os.fsencode(text):
            return Path(os.path.abspath(text))
    except UnicodeEncodeError:
        pass
    raise ConfigurationError(f"SQLiteEventLog.path: got {describe(path)}, which no file can be called; name a file")
