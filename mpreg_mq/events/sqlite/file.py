"""A log file: its connections, what is known of it, and how it comes back after a failure."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.log import Snapshot
from mpreg_mq.events.sqlite import schema, snapshots
from mpreg_mq.events.sqlite.failures import changed_by_others, explain, explained, is_full, is_refusal
from mpreg_mq.events.sqlite.forking import forget_after_fork, keep_for_ever
from mpreg_mq.events.sqlite.reading import RecordReader
from mpreg_mq.events.sqlite.records import EMPTY, Head
from mpreg_mq.events.sqlite.writer_file import HeadFile, RecordedHead, WriterLock, read_head

logger = logging.getLogger("mpreg_mq")

Row = tuple[int, int, int, int, bytes, bytes]
"""Position, stream id, version, count, checksum, body."""

BUSY_SECONDS = 5.0
_CHECKPOINT_PAGES = 1000
_ROWS_PER_STATEMENT = 32
"""Up to so many records are one statement, which is its own transaction: one wait for SQLite instead of three."""

_STREAMS = (
    "SELECT id, name, base_version, "
    "(SELECT max(version) FROM records WHERE stream_id = streams.id) FROM streams ORDER BY id"
)
_INSERT = [f"{schema.INSERT_RECORD} {', '.join(['(?, ?, ?, ?, ?, ?)'] * n)}" for n in range(_ROWS_PER_STATEMENT + 1)]


@attrs.define
class Stream:
    """What is known of a stream."""

    id: int
    name: str
    version: int
    base_version: int


class LogFile:
    """One file, opened for writing or for reading; not safe for use by several threads at once."""

    def __init__(self, path: Path, synchronous: str, read_only: bool, reserve_bytes: int) -> None:
        self.path = path
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
        self._writer: sqlite3.Connection | None = None
        self._lock: WriterLock | None = None
        self._head_file: HeadFile | None = None
        self.reader = RecordReader(path, lambda: self.base, lambda id_: self._names.get(id_), self.check_open)
        if not path.parent.is_dir():
            raise EventLogError(f"open {path}: there is no directory {path.parent}; create it first")
        if path.is_dir():
            raise EventLogError(f"open {path}: this is a directory, expected a file; name a file in it")
        try:
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

    def _open(self) -> None:
        if not self._read_only:
            self._lock = WriterLock(self.path)
        # Before the log itself: it is written after it, so what it says is in the log that is read then.
        recorded = read_head(self.path)
        has_wal = _size(f"{self.path}-wal") > 0
        if not has_wal and _size(f"{self.path}-journal") == 0:
            # With one, writing was interrupted, and SQLite knows how to go on.
            self._check_size()
        if self._read_only:
            self.reader.replace(self._connect_reader())
            if schema.check_owner(self._reading, self.path) != schema.SCHEMA_VERSION:
                raise EventLogError(
                    f"open {self.path}: an older release wrote it; open it for writing once, which brings it up to date"
                )
            self.load()
            self._check_head(recorded, has_wal)
            return
        self._writer = self._connect("rwc")
        migrated = self._prepare(self._writer)
        self.reader.replace(self._connect_reader())
        self.load()
        self._check_head(None if migrated else recorded, has_wal or migrated)
        certain = self._synchronous == "FULL"
        self._head_file = HeadFile(self.path, self.head, certain=certain, reserve_bytes=self._reserve_bytes)

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
            if not self._read_only or _size(f"{self.path}-wal") > 0 or not self.path.exists():
                raise
            connection = self._connect("ro&immutable=1")
        # Of a damaged file even the name of a table in a message may be no text.
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_size(self) -> None:
        """Notice a file that was cut: SQLite takes what is there for all there ever was."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            header = file.read(100)
            size = os.fstat(file.fileno()).st_size
            if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
                return
            page = int.from_bytes(header[16:18], "big")
            expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
            if size < expected:
                raise CorruptLogError(
                    f"open {self.path}: found {size} bytes, expected {expected}: its end is missing; repair the log"
                )

    def _prepare(self, writer: sqlite3.Connection) -> bool:
        """Make the tables of an empty file or check whose it is, and switch WAL on; whether it was migrated."""
        migrated = False
        if schema.is_nobodys(writer):
            # Before the write-ahead log is on, so that the file's own header says from the start whose it is.
            writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
            with self.transaction("EXCLUSIVE"):
                if schema.is_nobodys(writer):
                    schema.create_tables(writer)
        version = schema.check_owner(writer, self.path)
        if version < schema.SCHEMA_VERSION:
            logger.info("log %s: migrating it from schema version %d to %d", self.path, version, schema.SCHEMA_VERSION)
            with self.transaction("EXCLUSIVE"):
                schema.migrate(writer, version)
            migrated = True
        self._set_up(writer)
        return migrated

    def _set_up(self, writer: sqlite3.Connection) -> None:
        journal_mode = writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if journal_mode != "wal":
            raise EventLogError(
                f"open {self.path}: got journal mode {journal_mode!r}, expected 'wal'; "
                "put the log on a local file system"
            )
        writer.execute(f"PRAGMA synchronous = {self._synchronous}")
        writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        # The first read opens the write-ahead log; only a connection that has it open removes it at the end.
        writer.execute("SELECT count(*) FROM sqlite_master").fetchone()

    @property
    def _reading(self) -> sqlite3.Connection:
        connection = self._writer or self.reader.connection
        assert connection is not None, "an open log has a connection"
        return connection

    # --- what is known ------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read where the log begins and ends, and what streams there are; O(streams).

        Raises:
            CorruptLogError: these do not agree with each other.
        """
        connection = self._reading
        connection.execute("BEGIN")
        try:
            base = schema.read_head(connection, "base", self.path)
            row = connection.execute("SELECT position, checksum FROM records ORDER BY position DESC LIMIT 1").fetchone()
            found = connection.execute(_STREAMS).fetchall()
        finally:
            connection.execute("ROLLBACK")
        streams = {}
        for id_, name, base_version, version in found:
            streams[name] = Stream(id_, name, max(version or 0, base_version), base_version)
        head = base if row is None or row[0] <= base.position else Head(*row)
        total = sum(stream.version for stream in streams.values())
        if total != head.position:
            raise CorruptLogError(
                f"open {self.path}: its streams have {total} events, its last position is {head.position}; "
                "repair the log"
            )
        self.head = head
        self.base = base
        self.streams = streams
        self._names = {stream.id: name for name, stream in streams.items()}

    def _check_head(self, recorded: RecordedHead | None, dirty: bool) -> None:
        """Compare the log with where it is said to end.

        Raises:
            CorruptLogError: events are missing that were on disk, or those there are not what was written.
        """
        stored = schema.read_head(self._reading, "head", self.path)
        clean = recorded is None and not dirty
        self._require(stored, exact=clean)
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
        if expected.position > self.base.position:
            row = self._reading.execute(
                "SELECT checksum FROM records WHERE position = ?", (expected.position,)
            ).fetchone()
            if row is None or row[0] != expected.checksum:
                raise self.reader.damaged(expected.position, "the events there are not those that were written")

    @property
    def next_stream_id(self) -> int:
        """A row id that no stream has."""
        return max(self._names, default=0) + 1

    def versions_at(self, position: int) -> dict[str, int]:
        """Versions of the streams that have events at or below ``position``; O(streams)."""
        found = {}
        for name, stream in self.streams.items():
            row = self._reading.execute(
                "SELECT max(version) FROM records WHERE stream_id = ? AND position <= ?", (stream.id, position)
            ).fetchone()
            version = max(row[0] or 0, stream.base_version)
            if version:
                found[name] = version
        return found

    def head_at(self, position: int) -> Head:
        """The head that the log had at the end of the record that ends at ``position``."""
        if position == self.base.position:
            return self.base
        row = self._reading.execute("SELECT checksum FROM records WHERE position = ?", (position,)).fetchone()
        if row is None:
            raise EventLogError(
                f"truncate {self.path}: got position {position}, expected the end of a record; ask record_end"
            )
        return Head(position, row[0])

    # --- committing ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Run statements in a transaction of the writing connection."""
        assert self._writer is not None, "only a log that is open for writing changes"
        self._writer.execute(f"BEGIN {kind}")
        try:
            yield self._writer
            self._writer.execute("COMMIT")
        except BaseException:
            # A full disk, for one, has made SQLite roll back already; the first error is the one to report.
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            raise

    def commit(self, rows: Sequence[Row], added: Sequence[Stream], head: Head) -> None:
        """Add records and streams in one transaction; they lead to ``head``."""
        assert self._writer is not None, "only a log that is open for writing changes"
        try:
            if added or len(rows) > _ROWS_PER_STATEMENT:
                self._commit_many(rows, added)
            else:
                self._writer.execute(_INSERT[len(rows)], [value for row in rows for value in row])
        except sqlite3.Error as error:
            if is_refusal(error):
                if changed_by_others(error):
                    self._failed = error
                raise
            self._settle(error, head)
        except BaseException as error:
            self._failed = error
            raise
        self.head = head
        for stream in added:
            self._names[stream.id] = stream.name
        if self._head_file is not None:
            self._head_file.write(head)

    def _commit_many(self, rows: Sequence[Row], added: Sequence[Stream]) -> None:
        with self.transaction() as connection:
            for stream in added:
                connection.execute(
                    "INSERT INTO streams (id, name, base_version) VALUES (?, ?, 0)", (stream.id, stream.name)
                )
            connection.executemany(_INSERT[1], rows)

    # --- failing and coming back --------------------------------------------------------------------------

    def _settle(self, error: sqlite3.Error, head: Head) -> None:
        """Find out whether a transaction was committed that SQLite reports an error of; raise if it was not."""
        logger.warning("log %s: a commit failed (%s); opening the file again to see what it holds", self.path, error)
        self._failed = error
        if is_full(error) and self._head_file is not None:
            self._head_file.give_up_reserve()
        try:
            self.recover()
        except (sqlite3.Error, EventLogError) as second:
            raise EventLogError(
                f"append {self.path}: SQLite says: {error}; whether the events are in the log is not known, and it "
                f"cannot be opened again ({second}); it takes no events until that works"
            ) from error
        if self.head != head:
            raise explain(error, "append", self.path) from error

    def recover(self) -> None:
        """Open the file again after a failure; nothing to do where there was none.

        The write-ahead log is emptied into the file, so that what was found is on disk, and a transaction that was
        not found cannot turn up after the next failure.
        """
        if self._failed is None:
            return
        assert self._head_file is not None, "only a log that is open for writing fails"
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.close()
        self._writer = self._connect("rw")
        self._set_up(self._writer)
        self.reader.replace(self._connect_reader())
        self.load()
        self._check_last()
        with self.transaction() as connection:
            schema.write_head(connection, "head", self.head)
        if self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise EventLogError(f"open {self.path}: readers kept its write-ahead log from being emptied; try again")
        self._head_file.write(self.head)
        self._failed = None

    @property
    def has_reserve(self) -> bool:
        """Whether there is room for more than finishing the messages that are there."""
        return self._head_file is None or self._head_file.reserved

    def take_reserve(self) -> bool:
        """Take the reserve back, where the disk has room for it again."""
        return self._head_file is None or self._head_file.reserve()

    # --- retention ----------------------------------------------------------------------------------------

    def adopt(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Begin an empty log at ``position``."""
        if self.head != EMPTY or self.streams:
            raise EventLogError(f"adopt {self.path}: found a log with events, expected an empty one")
        base = Head(position, EMPTY.checksum)
        streams = [Stream(id_, name, 0, 0) for id_, name in enumerate(sorted(bases), 1)]
        with self.transaction() as connection:
            connection.executemany(
                "INSERT INTO streams (id, name, base_version) VALUES (?, ?, 0)",
                [(stream.id, stream.name) for stream in streams],
            )
            snapshots.rebase(connection, base, [(stream, bases[stream.name]) for stream in streams])
            schema.write_head(connection, "head", base)
        self.load()
        if self._head_file is not None:
            self._head_file.write(self.head)

    def reclaim(self, records: int, pages: int) -> bool:
        """Remove some truncated records, or give some free pages back; whether there is more to do."""
        assert self._writer is not None, "only a log that is open for writing changes"
        removed = self._writer.execute(
            "DELETE FROM records WHERE position IN "
            "(SELECT position FROM records WHERE position <= ? ORDER BY position LIMIT ?)",
            (self.base.position, records),
        ).rowcount
        if removed:
            return True
        free = self._writer.execute("PRAGMA freelist_count").fetchone()[0]
        if not free:
            return False
        # It goes on at each step, and only a script is stepped to its end where there are no columns.
        self._writer.executescript(f"PRAGMA incremental_vacuum({pages})")
        return bool(free > pages)

    # --- the end ------------------------------------------------------------------------------------------

    def sync(self) -> bool:
        """Move everything into the file and to disk; whether no reader was in the way."""
        assert self._writer is not None, "only a log that is open for writing is synced"
        if self._synchronous == "FULL":
            return True
        with self.transaction() as connection:
            schema.write_head(connection, "head", self.head)
        # A checkpoint syncs the write-ahead log before it copies from it, and the database after.
        return not self._writer.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0]

    def close(self) -> None:
        """Note the head in the file, and leave it alone in its directory."""
        if self.closed:
            return
        self.closed = True
        if self.forked:
            return
        ended = False
        try:
            if self._writer is not None and self._failed is None:
                with self.transaction() as connection:
                    schema.write_head(connection, "head", self.head)
                ended = True
        finally:
            self._abandon(remove_head=ended)

    def _abandon(self, *, remove_head: bool = False) -> None:
        """Close everything. The writer last: the connection that closes last checkpoints."""
        self.closed = True
        # What cannot be written any more is in the write-ahead log, or was never acknowledged.
        with contextlib.suppress(sqlite3.Error):
            self.reader.replace(None)
        with contextlib.suppress(sqlite3.Error):
            if self._writer is not None:
                self._writer.close()
        self._leave_head(remove_head)
        if self._lock is not None:
            self._lock.release()

    def _leave_head(self, remove: bool) -> None:
        if self._head_file is None:
            return
        if remove and _size(f"{self.path}-wal") == 0:
            self._head_file.remove()
        else:
            self._head_file.give_up_reserve()
            self._head_file.abandon()

    def check_open(self) -> None:
        """Raise where the log must not be used."""
        if self.closed or self.forked:
            if self.forked:
                raise EventLogError(
                    f"the event log {self.path} was opened before this process was forked, and must not be used in "
                    "it; open it anew in the process that uses it"
                )
            raise EventLogError(f"the event log sqlite:///{self.path} is closed; open it again")

    def forget_in_child(self) -> None:
        """In a forked child: leave the files alone, whatever is done with this object later."""
        self.forked = True
        for connection in (self._writer, self.reader.connection):
            keep_for_ever(connection)
        if self._lock is not None:
            self._lock.abandon()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
