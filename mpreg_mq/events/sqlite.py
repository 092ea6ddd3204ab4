"""The event log in an SQLite file: one transaction for each append, write-ahead logging, ``synchronous=FULL``.

One connection writes and checkpoints; another, which cannot write, reads in short statements, so that no
reader holds up the writer or keeps the write-ahead log from being reused.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError, CorruptLogError, EventLogError
from mpreg_mq.events.codec import CODEC, EncodedEvent
from mpreg_mq.events.log import Append, RecordedEvent, version_conflict

APPLICATION_ID = 0x6D70_6D71
"""``mpmq`` in the file's header: tells a log from any other SQLite file."""

SCHEMA_VERSION = 1
"""Version of the tables, kept in ``meta``."""

SYNCHRONOUS_MODES = ("FULL", "NORMAL")
"""FULL: an append returns when it is on disk. NORMAL: a power cut may lose what was appended since ``sync``."""

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE streams (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL)",
    "CREATE TABLE event_types (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE events (position INTEGER PRIMARY KEY, stream_id INTEGER NOT NULL, version INTEGER NOT NULL, "
    "type INTEGER NOT NULL, schema INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE UNIQUE INDEX events_of_stream ON events (stream_id, version)",
)
_INSERT_EVENT = "INSERT INTO events (position, stream_id, version, type, schema, body) VALUES (?, ?, ?, ?, ?, ?)"
_FIND_STREAM = "SELECT id, version FROM streams WHERE name = ?"
_FIND_LAST_POSITION = "SELECT coalesce(max(position), 0) FROM events"

# Both give: where to read on after, position, stream, version, type, schema, body.
_READ_STREAM = (
    "SELECT version, position, ?, version, event_types.name, schema, body "
    "FROM events JOIN event_types ON event_types.id = type "
    "WHERE stream_id = ? AND version > ? AND version <= ? ORDER BY version LIMIT 1000"
)
_READ_ALL = (
    "SELECT position, position, streams.name, events.version, event_types.name, schema, body "
    "FROM events JOIN event_types ON event_types.id = type JOIN streams ON streams.id = stream_id "
    "WHERE position > ? AND position <= ? ORDER BY position LIMIT 1000"
)
_CHUNK_BYTES = 1 << 20
_BUSY_SECONDS = 5.0

_Row = tuple[int, int, str, int, str, int, bytes]


class SQLiteEventLog:
    """An :class:`~mpreg_mq.events.log.EventLog` in one SQLite file, created where it is missing.

    One process writes a file at a time; an append that meets another process's events is refused. ``read_only``
    needs no permission to write, and changes nothing; another process may write meanwhile.

    Raises:
        ConfigurationError: ``synchronous`` is not one of :data:`SYNCHRONOUS_MODES`.
        EventLogError: the directory is missing, the file is another program's or a newer release's, or SQLite
            cannot open it.
    """

    blocking = True

    def __init__(self, path: str | os.PathLike[str], *, synchronous: str = "FULL", read_only: bool = False) -> None:
        if synchronous not in SYNCHRONOUS_MODES:
            raise ConfigurationError(
                f"SQLiteEventLog.synchronous: got {describe(synchronous)}, expected {' or '.join(SYNCHRONOUS_MODES)}"
            )
        self._path = Path(os.path.abspath(path))
        self._synchronous = synchronous
        self.read_only = read_only
        self._lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._closed = False
        # What is known of the committed state. After a failed transaction it is forgotten and read again.
        self._streams: dict[str, tuple[int | None, int]] = {}
        self._type_ids: dict[str, int] = {}
        self._last_position: int | None = None
        if not self._path.parent.is_dir():
            raise EventLogError(f"open {self._path}: there is no directory {self._path.parent}; create it first")
        if self._path.is_dir():
            raise EventLogError(f"open {self._path}: this is a directory, expected a file; name a file in it")
        with self._explained("open"):
            self._writer = self._connect_read_only() if read_only else self._connect("rwc")
            try:
                self._prepare()
                self._reader = self._connect_read_only()
            except BaseException:
                self._writer.close()
                raise

    # --- connections --------------------------------------------------------------------------------------

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )

    def _connect_read_only(self) -> sqlite3.Connection:
        connection = self._connect("ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            # Where not even the files of the write-ahead log can be made, and there is none, nobody writes either.
            if Path(f"{self._path}-wal").exists() or not self._path.exists():
                raise
            connection = self._connect("ro&immutable=1")
        return connection

    def _prepare(self) -> None:
        """Check whose file it is, create the tables in an empty one, and switch the write-ahead log on."""
        if not self.read_only and self._value("PRAGMA page_count") == 0:
            # Before the write-ahead log is on, so that the file's own header says from the start whose it is.
            with self._transaction("EXCLUSIVE"):
                if self._value("SELECT count(*) FROM sqlite_master") == 0:
                    self._create_tables()
        application_id = self._value("PRAGMA application_id")
        if application_id != APPLICATION_ID:
            raise EventLogError(
                f"open {self._path}: found an SQLite database of another program (application_id "
                f"{application_id:#x}), expected an event log ({APPLICATION_ID:#x}); give another path"
            )
        version = self._value("SELECT value FROM meta WHERE key = 'schema_version'")
        if version != SCHEMA_VERSION:
            raise EventLogError(
                f"open {self._path}: found schema version {version}, this release reads {SCHEMA_VERSION}; "
                "written by a newer release; upgrade mpreg-mq"
            )
        if self.read_only:
            return
        journal_mode = self._value("PRAGMA journal_mode = WAL")
        if journal_mode != "wal":
            raise EventLogError(
                f"open {self._path}: got journal mode {journal_mode!r}, expected 'wal'; "
                "put the log on a local file system"
            )
        self._writer.execute(f"PRAGMA synchronous = {self._synchronous}")
        # The first read opens the write-ahead log; only a connection that has it open removes it at the end.
        self._value("SELECT count(*) FROM sqlite_master")

    def _create_tables(self) -> None:
        self._writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in _TABLES:
            self._writer.execute(statement)
        self._writer.execute("INSERT INTO meta (key, value) VALUES ('schema_version', ?)", (SCHEMA_VERSION,))

    def _value(self, statement: str, *parameters: object) -> Any:
        """First column of the first row that the writing connection finds, or None."""
        row = self._writer.execute(statement, parameters).fetchone()
        return None if row is None else row[0]

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        self._writer.execute(f"BEGIN {kind}")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            self._streams.clear()
            self._type_ids.clear()
            self._last_position = None
            # A full disk, for one, has made SQLite roll back already; the first error is the one to report.
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn SQLite's errors into :class:`EventLogError`."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise EventLogError(
                f"{what} {self._path}: another process has appended to this log ({error}); "
                "let one process at a time use it, and open it again"
            ) from error
        except sqlite3.Error as error:
            found = ""
            if "not a database" in str(error):
                with self._path.open("rb") as file:
                    found = f"; found a file that begins with {file.read(16)!r}, give another path"
            raise EventLogError(f"{what} {self._path}: SQLite says: {error}{found}") from error

    def _check_open(self) -> None:
        if self._closed:
            raise EventLogError(f"the event log {self.location} is closed; open it again")

    @property
    def location(self) -> str:
        """``sqlite:///`` and the absolute path."""
        return f"sqlite:///{self._path}"

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    # --- writing ------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        """Add all events of the batch in one transaction; see :meth:`mpreg_mq.events.log.EventLog.append`.

        With ``synchronous="FULL"`` it returns when they are on disk: many appends in one batch wait about as
        long as one event by itself.
        """
        encoded = [[CODEC.encode(event) for event in append.events] for append in batch]
        with self._lock, self._explained("append"):
            self._check_open()
            if self.read_only:
                raise EventLogError(f"append to {self._path}: it was opened read-only; open it for writing")
            streams = self._fit(batch)
            if not streams:
                return
            with self._transaction("IMMEDIATE"):
                streams = self._store_streams(streams)
                types = self._store_types({event.type for events in encoded for event in events})
                position = self._last_position
                if position is None:
                    position = int(self._value(_FIND_LAST_POSITION))
                rows = list(_rows(batch, encoded, streams, types, position))
                self._writer.executemany(_INSERT_EVENT, rows)
            self._type_ids.update(types)
            self._streams.update(streams)
            self._last_position = position + len(rows)

    def _fit(self, batch: Sequence[Append]) -> dict[str, tuple[int | None, int]]:
        """Row id (None: to be made) and new version of each stream that gets events, if every append fits."""
        streams: dict[str, tuple[int | None, int]] = {}
        for append in batch:
            stream_id, version = streams.get(append.stream) or self._find_stream(append.stream)
            if append.expected_version != version:
                raise version_conflict(append, version)
            if append.events:
                streams[append.stream] = (stream_id, version + len(append.events))
        return streams

    def _find_stream(self, name: str) -> tuple[int | None, int]:
        known = self._streams.get(name)
        if known is None:
            known = self._writer.execute(_FIND_STREAM, (name,)).fetchone()
            if known is None:
                return None, 0
            self._streams[name] = known
        return known

    def _store_streams(self, streams: dict[str, tuple[int | None, int]]) -> dict[str, tuple[int | None, int]]:
        stored: dict[str, tuple[int | None, int]] = {}
        for name, (stream_id, version) in streams.items():
            if stream_id is None:
                stream_id = self._insert("INSERT INTO streams (name, version) VALUES (?, ?)", name, version)
            else:
                self._writer.execute("UPDATE streams SET version = ? WHERE id = ?", (version, stream_id))
            stored[name] = (stream_id, version)
        return stored

    def _store_types(self, names: set[str]) -> dict[str, int]:
        ids: dict[str, int] = {}
        for name in sorted(names):
            known = self._type_ids.get(name) or self._value("SELECT id FROM event_types WHERE name = ?", name)
            ids[name] = known or self._insert("INSERT INTO event_types (name) VALUES (?)", name)
        return ids

    def _insert(self, statement: str, *parameters: object) -> int:
        """Insert one row; its row id."""
        row_id = self._writer.execute(statement, parameters).lastrowid
        assert row_id is not None, "SQLite gives every inserted row an id"
        return row_id

    def sync(self) -> None:
        """Return when everything appended is on disk; with ``synchronous="FULL"`` it already is.

        Raises:
            EventLogError: the disk refused, or readers kept the log busy for five seconds.
        """
        with self._lock, self._explained("sync"):
            self._check_open()
            if self.read_only or self._synchronous == "FULL":
                return
            # A checkpoint syncs the write-ahead log before it copies from it, and the database after.
            if self._value("PRAGMA wal_checkpoint(FULL)"):
                raise EventLogError(f"sync {self._path}: other users of the file kept it busy; try again")

    # --- reading ------------------------------------------------------------------------------------------

    def _read(self, statement: str, *parameters: object) -> list[Any]:
        """Rows that the reading connection finds, cut off once they hold a megabyte of bodies."""
        rows: list[Any] = []
        size = 0
        with self._read_lock, self._explained("read"):
            self._check_open()
            cursor = self._reader.execute(statement, parameters)
            for row in cursor:
                rows.append(row)
                size += len(row[-1]) if isinstance(row[-1], bytes) else 0
                if size >= _CHUNK_BYTES:
                    break
            cursor.close()
        return rows

    def stream_version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where it has none. Does not wait for an append under way."""
        return self._read_version(stream)[1]

    def _read_version(self, stream: str) -> tuple[int | None, int]:
        self._check_open()
        found = self._streams.get(stream)
        if found is None:
            rows = self._read(_FIND_STREAM, stream)
            return rows[0] if rows else (None, 0)
        return found

    def streams(self) -> list[str]:
        """Names of the streams that have events, sorted."""
        return sorted(name for (name,) in self._read("SELECT name FROM streams"))

    def last_position(self) -> int:
        """Position of the log's last event; 0 where it has none. Does not wait for an append under way."""
        self._check_open()
        position = self._last_position
        return int(self._read(_FIND_LAST_POSITION)[0][0]) if position is None else position

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``, read in chunks of about a megabyte.

        Raises:
            UnknownEventError: while iterating, at an event that a newer release wrote.
            CorruptLogError: while iterating, at an event whose bytes cannot be decoded.
        """
        stream_id, version = self._read_version(stream)
        return self._records(_READ_STREAM, (stream, stream_id), after_version, version)

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``, read and refused as in :meth:`read_stream`."""
        return self._records(_READ_ALL, (), after_position, self.last_position())

    def _records(
        self, statement: str, parameters: tuple[object, ...], after: int, last: int
    ) -> Iterator[RecordedEvent]:
        after = max(0, after)
        while after < last:
            rows: list[_Row] = self._read(statement, *parameters, after, last)
            if not rows:
                raise CorruptLogError(
                    f"read {self._path}: found nothing after {after}, expected events up to {last}; "
                    "restore the log from a copy"
                )
            for after, position, stream, version, type_name, schema, body in rows:  # noqa: B007
                self._check_open()
                yield RecordedEvent(position, stream, version, CODEC.decode(type_name, schema, body))

    # --- the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file, which leaves one file without a write-ahead log; calling it again does nothing."""
        with self._lock, self._read_lock, self._explained("close"):
            if not self._closed:
                self._closed = True
                # The writer last: the connection that closes last checkpoints.
                self._reader.close()
                self._writer.close()


def _rows(
    batch: Sequence[Append],
    encoded: Sequence[Sequence[EncodedEvent]],
    streams: dict[str, tuple[int | None, int]],
    types: dict[str, int],
    position: int,
) -> Iterator[tuple[object, ...]]:
    """Rows of ``events`` for a batch that fits, after ``position``."""
    for append, events in zip(batch, encoded, strict=True):
        for version, event in enumerate(events, append.expected_version + 1):
            position += 1
            yield position, streams[append.stream][0], version, types[event.type], event.schema, event.body
