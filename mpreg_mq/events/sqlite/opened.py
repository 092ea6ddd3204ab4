"""A log file that is opened: its connections, and what is known of it."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from pathlib import Path

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.sqlite import schema
from mpreg_mq.events.sqlite.failures import explained, is_full
from mpreg_mq.events.sqlite.kernel_sync import KernelSync
from mpreg_mq.events.sqlite.places import Unplaced, find, note
from mpreg_mq.events.sqlite.reading import RecordReader
from mpreg_mq.events.sqlite.records import EMPTY, Head
from mpreg_mq.events.sqlite.sizes import check_size, size_of
from mpreg_mq.events.sqlite.transactions import Stream, transaction
from mpreg_mq.events.sqlite.writer_file import (
    HeadFile,
    RecordedHead,
    WriterLock,
    give_back_reserve,
    is_written_here,
    linked,
    read_head,
)
from mpreg_mq.forking import FORKED, forget_after_fork, keep_for_ever, set_free

logger = logging.getLogger("mpreg_mq")

BUSY_SECONDS = 5.0
CHECKPOINT_PAGES = 1000
"""So many pages of the write-ahead log are copied into the file, and it begins anew."""

_MORE_LOOKS = 4

# The last record whose place is noted and which is there: most likely the first that is looked at.
_STREAMS = (
    "SELECT id, name, base_version, "
    "(SELECT r.version FROM {places} p CROSS JOIN records r "
    "ON r.position = p.position AND r.stream_id = p.stream_id AND r.version = p.version "
    "WHERE p.stream_id = streams.id ORDER BY p.version DESC LIMIT 1) FROM streams ORDER BY id"
)


class OpenedFile:
    """The connections to one file, and what it holds; not safe for use by several threads at once."""

    def __init__(self, path: Path, synchronous: str, read_only: bool, reserve_bytes: int) -> None:
        self._place = os.fspath(path)
        self.path = path = linked(path)
        self.closed = False
        self.streams: dict[str, Stream] = {}
        self.head = EMPTY
        self.base = EMPTY
        self._synchronous = synchronous
        self._read_only = read_only
        self._reserve_bytes = reserve_bytes
        self._names: dict[int, str] = {}
        self.forked = False
        self._failed: BaseException | None = None
        self._quick = False
        self.quick_pages = 0
        """Roughly how many pages quick commits have added to the write-ahead log since its last checkpoint."""
        self._new_pages = 0
        """Roughly how many pages commits have added to a write-ahead log that is not filled ahead."""
        self._filled = False
        self._checkpointer: sqlite3.Connection | None = None
        self._checkpointing = threading.Lock()
        """Who has it uses the checkpointer, or needs to checkpoint: SQLite refuses that at once while another does."""
        self._is_synced = True
        self._synced_to = 0
        """The highest position that is known to be on disk."""
        self._kernel_syncs: list[KernelSync] = []
        self._writer: sqlite3.Connection | None = None
        self._lock: WriterLock | None = None
        self._head_file: HeadFile | None = None
        self._identity = (0, 0)
        """Device and number of the file that is open for writing."""
        self._data_version: int | None = None
        self._stored = EMPTY
        """Where the log itself says that it ends."""
        self._unplaced = Unplaced()
        self.places_are_noted = True
        """Whether it has a table for them; logs of older releases, which are only read, have an index."""
        self.reader = RecordReader(
            path,
            lambda: self.base,
            lambda id_: self._names.get(id_),
            lambda id_: self._unplaced.before.get(id_),
            self.check_open,
        )
        try:
            self._check_path()
            with explained("open", path):
                self._open()
        # Damage can have made anything of what the tables hold.
        except (TypeError, ValueError, OverflowError) as error:
            self._abandon()
            raise CorruptLogError(f"open {path}: its tables cannot be understood ({error}); repair the log") from error
        except OSError as error:
            self._abandon()
            raise EventLogError(f"open {path}: {error}") from error
        except BaseException:
            self._abandon()
            raise
        forget_after_fork(self)

    # --- opening ------------------------------------------------------------------------------------------

    def _check_path(self) -> None:
        path = self.path
        if not path.parent.is_dir():
            raise EventLogError(f"open {path}: there is no directory {path.parent}; create it first")
        if path.is_dir():
            raise EventLogError(f"open {path}: this is a directory, expected a file; name a file in it")
        # SQLite would open it, and say so when something is written.
        if not self._read_only and path.exists() and not os.access(path, os.W_OK):
            raise EventLogError(
                f"open {path}: it must not be written by this user; change its permissions, or open it read_only"
            )

    def _open(self) -> None:
        if not self._read_only:
            self._lock = WriterLock(self.path)
        recorded, has_wal = self._beside()
        if not self._read_only and recorded is not None:
            # Of a process that was killed: there may be no other room for what follows.
            give_back_reserve(self.path)
        if self._read_only:
            self._open_to_read(recorded, has_wal)
            return
        self._writer = self._connect("rwc")
        migrated = self._prepare(self._writer)
        self._identity = self._found()
        self.reader.replace(self._connect_reader())
        self.load()
        self._check_head(None if migrated else recorded, has_wal or migrated)
        certain = self._synchronous == "FULL"
        try:
            self._note_places()
            self._head_file = HeadFile(self.path, self.head, certain=certain, reserve_bytes=self._reserve_bytes)
        except (sqlite3.Error, OSError) as error:
            _check_full(error)
            self._make_room(self._writer)
            self._head_file = HeadFile(
                self.path, self.head, certain=certain, reserve_bytes=self._reserve_bytes, in_place=True
            )

    def _make_room(self, writer: sqlite3.Connection) -> None:
        """Empty a write-ahead log that may take all the room there is, mostly for what is in the file already."""
        try:
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._note_places()
        except sqlite3.Error as error:
            # Then it opens all the same, and says so when something is added; the places are noted later.
            _check_full(error)

    def _beside(self) -> tuple[RecordedHead | None, bool]:
        """What the files beside the log say: where it ends, and whether there is a write-ahead log.

        To be read before the log itself, which is written before them, so that what they say is in it.
        """
        recorded = read_head(self.path)
        has_wal = size_of(f"{self.path}-wal") > 0
        if self._read_only and is_written_here(self.path):
            # It was checked then, and closing the file would end SQLite's locks on it.
            return recorded, has_wal
        if not has_wal and size_of(f"{self.path}-journal") == 0:
            # With one, writing was interrupted, and SQLite knows how to go on.
            check_size(self.path)
        return recorded, has_wal

    def _open_to_read(self, recorded: RecordedHead | None, has_wal: bool) -> None:
        self.reader.replace(self._connect_reader())
        version = schema.check_owner(self._reading, self.path)
        if version < schema.OLDEST_READ:
            raise EventLogError(
                f"open {self.path}: an older release wrote it; open it for writing once, which brings it up to date"
            )
        self._use_places(version)
        for _ in range(_MORE_LOOKS):
            try:
                self.load()
                self._check_head(recorded, has_wal)
                return
            except CorruptLogError:
                # Somebody may have begun or ended to write between one look and the next; damage is there again.
                recorded, has_wal = self._beside()
        self.load()
        self._check_head(recorded, has_wal)

    def _use_places(self, version: int) -> None:
        self.places_are_noted = version >= schema.FIRST_WITH_PLACES
        self.reader.places = "places" if self.places_are_noted else "records"

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )

    def _connect_reader(self) -> sqlite3.Connection:
        connection = self._connect("ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            # Where the files of the write-ahead log cannot be made, and there is none, nobody writes either.
            if not self._read_only or size_of(f"{self.path}-wal") > 0 or not self.path.exists():
                raise
            connection = self._connect("ro&immutable=1")
        # Of a damaged file even the name of a table in a message may be no text.
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, writer: sqlite3.Connection) -> bool:
        """Make the tables of an empty file or check whose it is, and switch WAL on; whether those were others."""
        migrated = False
        if schema.is_nobodys(writer):
            # Before the write-ahead log is on, so that the file's own header says from the start whose it is.
            writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
            with transaction(writer, "EXCLUSIVE"):
                if schema.is_nobodys(writer):
                    schema.create_tables(writer)
        version = schema.check_owner(writer, self.path)
        if version < schema.SCHEMA_VERSION:
            logger.info("log %s: migrating it from schema version %d to %d", self.path, version, schema.SCHEMA_VERSION)
            with transaction(writer, "EXCLUSIVE"):
                schema.migrate(writer, version)
            # A later one has had a head file all along.
            migrated = version < schema.OLDEST_READ
        self._set_up(writer)
        return migrated

    def _set_up(self, writer: sqlite3.Connection) -> None:
        journal_mode = writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if journal_mode != "wal":
            raise EventLogError(
                f"open {self.path}: got journal mode {journal_mode!r}, expected 'wal'; "
                "put the log on a local file system"
            )
        self._set_thorough(writer)
        # The first read opens the write-ahead log; only a connection that has it open removes it at the end.
        writer.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def _set_thorough(self, writer: sqlite3.Connection) -> None:
        """Have commits wait: for other users of the file, for the disk, and for a checkpoint when it is time."""
        writer.execute(f"PRAGMA synchronous = {self._synchronous}")
        writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        writer.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        self._quick = False

    def _thorough(self) -> sqlite3.Connection:
        """The writing connection, for a commit that waits."""
        writer = self._writer
        assert writer is not None, "only a log that is open for writing changes"
        if self._quick:
            self._set_thorough(writer)
        return writer

    @property
    def _reading(self) -> sqlite3.Connection:
        connection = self._writer or self.reader.connection
        assert connection is not None, "an open log has a connection"
        return connection

    def _note_places(self) -> None:
        """Note the places of what a crash has left without."""
        writer, unplaced = self._writer, self._unplaced
        if unplaced.places and writer is not None:
            with transaction(writer, "IMMEDIATE"):
                note(writer, unplaced.places, self.head.position)
            self._unplaced = Unplaced()

    def _found(self) -> tuple[int, int]:
        """What is at the path, which is not the open file any more where that was removed or replaced."""
        found = os.stat(self._place)
        return found.st_dev, found.st_ino

    def check_in_place(self) -> None:
        """Raise where nobody would find what is written."""
        try:
            if self._found() == self._identity:
                return
            found = "another file is in its place"
        except OSError as error:
            found = str(error)
        raise EventLogError(
            f"append {self.path}: the file was removed or replaced while it is open ({found}), so that nothing that is "
            "added would be found again; put it back, or open the log anew"
        )

    # --- what is known ------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what others have added since it was last read; O(1) where there is nothing."""
        # Asked before it is read: what is added in between is read at the next time.
        version = self._reading.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version:
            self.load()
            self._data_version = version

    def load(self) -> None:
        """Read where the log begins and ends, and what streams there are; O(streams).

        Raises:
            CorruptLogError: these do not agree with each other.
        """
        connection = self._reading
        connection.execute("BEGIN")
        try:
            base = schema.read_head(connection, "base", self.path)
            self._stored = schema.read_head(connection, "head", self.path)
            if not self.places_are_noted:
                # Whoever opened it for writing has brought it up to date.
                self._use_places(schema.read_meta(connection, "schema_version"))
            row = connection.execute("SELECT position, checksum FROM records ORDER BY position DESC LIMIT 1").fetchone()
            found = connection.execute(_STREAMS.format(places=self.reader.places)).fetchall()
            head = base if row is None or row[0] <= base.position else Head(*row)
            unplaced = find(connection) if self.places_are_noted else Unplaced()
        finally:
            connection.execute("ROLLBACK")
        streams = {}
        latest = {id_: version for id_, version, _ in unplaced.places}
        for id_, name, base_version, version in found:
            streams[name] = Stream(id_, name, max(version or 0, latest.get(id_, 0), base_version), base_version)
        total = sum(stream.version for stream in streams.values())
        if total != head.position:
            raise CorruptLogError(
                f"open {self.path}: its streams have {total} events, its last position is {head.position}; "
                "repair the log"
            )
        # Before the streams: who knows of a record can read it.
        self._unplaced = unplaced
        self.head = head
        self.base = base
        self.streams = streams
        self._names = {stream.id: name for name, stream in streams.items()}

    def _check_head(self, recorded: RecordedHead | None, dirty: bool) -> None:
        """Compare the log with where it is said to end.

        Raises:
            CorruptLogError: events are missing that were on disk, or those there are not what was written.
        """
        clean = recorded is None and not dirty
        self._require(self._stored, exact=clean)
        if recorded is None:
            if dirty and not self._read_only and self.head != EMPTY:
                logger.warning("log %s: it has no head file, so that a lost end would not show", self.path)
        elif recorded.certain or recorded.head.position <= self.head.position:
            self._require(recorded.head)
        else:
            logger.warning(
                "log %s: the last %d events are lost; it was not written with synchronous=FULL",
                self.path,
                recorded.head.position - self.head.position,
            )
        self._check_last()
        placed_to = self._unplaced.placed_to
        if self.places_are_noted and not (isinstance(placed_to, int) and placed_to <= self.head.position):
            raise CorruptLogError(
                f"open {self.path}: found {placed_to!r} as the position up to which places are noted, "
                f"expected 0 to {self.head.position}; repair the log"
            )

    def _check_last(self) -> None:
        """Check the record that the next one is chained to."""
        if self.head.position > self.base.position:
            for _ in self.reader.of_log(self.head.position - 1, self.head.position):
                pass

    def _require(self, expected: Head, *, exact: bool = False) -> None:
        if expected.position > self.head.position or (exact and expected != self.head):
            raise CorruptLogError(
                f"open {self.path}: found {self.head.position} events, expected {expected.position}: "
                "its end is missing; repair the log to go on without it",
                min(self.head.position, expected.position) + 1,
            )
        if expected.position > self.base.position and self._find_checksum(expected.position) != expected.checksum:
            raise self.reader.damaged(expected.position, "the events there are not those that were written")

    def _find_checksum(self, position: int) -> bytes | None:
        """The checksum of the record that ends at ``position``, if one does."""
        row = self._reading.execute("SELECT checksum FROM records WHERE position = ?", (position,)).fetchone()
        return None if row is None else row[0]

    @property
    def next_stream_id(self) -> int:
        """A row id that no stream has."""
        return max(self._names, default=0) + 1

    # --- the end ------------------------------------------------------------------------------------------

    def _abandon(self, *, remove_head: bool = False) -> None:
        """Close everything. The writer last: the connection that closes last checkpoints."""
        self.closed = True
        # What cannot be written any more is in the write-ahead log, or was never acknowledged.
        for sync in self._kernel_syncs:
            sync.end()
        self._kernel_syncs.clear()
        with contextlib.suppress(sqlite3.Error):
            self.reader.replace(None)
        with contextlib.suppress(sqlite3.Error), self._checkpointing:
            if self._checkpointer is not None:
                self._checkpointer.close()
        with contextlib.suppress(sqlite3.Error):
            if self._writer is not None:
                self._writer.close()
        self._leave_head(remove_head)
        if self._lock is not None:
            self._lock.release()

    def _leave_head(self, remove: bool) -> None:
        if self._head_file is None:
            return
        if remove and size_of(f"{self.path}-wal") == 0:
            self._head_file.remove()
        else:
            self._head_file.give_up_reserve()
            self._head_file.abandon()

    def check_open(self) -> None:
        """Raise where the log must not be used."""
        if self.closed or self.forked:
            if self.forked:
                raise EventLogError(f"the event log {self.path} {FORKED}")
            raise EventLogError(f"the event log sqlite:///{self.path} is closed; open it again")

    def forget_in_child(self) -> None:
        """In a forked child: leave the files alone, whatever is done with this object later."""
        self.forked = True
        self.reader.forget_in_child()
        set_free(self._checkpointing)
        for connection in (self._writer, self._checkpointer, self.reader.connection):
            keep_for_ever(connection)
        if self._lock is not None:
            self._lock.abandon()


def _check_full(error: sqlite3.Error | OSError) -> None:
    """Raise the error, unless it is that there is no room."""
    if not is_full(error):
        raise error
