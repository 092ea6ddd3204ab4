"""The tables of a log file, whose file it is, and how a file of an older release becomes one of this."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.log import Append
from mpreg_mq.events.sqlite.records import EMPTY, Head, blocks, checksum
from mpreg_mq.events.types import Event

APPLICATION_ID = 0x6D70_6D71
"""``mpmq`` in the file's header: tells a log from any other SQLite file."""

SCHEMA_VERSION = 4
"""Version of the tables, kept in ``meta``.

Version 1 had a row for each event and no checksums, version 2 other checksums, and version 3 an index of the streams
that changed with every commit.
"""

OLDEST_READ = 2
"""What is written like this or later can be read as it is."""

FIRST_WITH_PLACES = 4
OLD_INDEX = "CREATE UNIQUE INDEX records_of_stream ON records (stream_id, version)"
"""What had the places of records before that version."""

PLACES = (
    "CREATE TABLE places (stream_id INTEGER NOT NULL, version INTEGER NOT NULL, position INTEGER NOT NULL, "
    "PRIMARY KEY (stream_id, version)) WITHOUT ROWID"
)
"""Where the records of a stream are, up to the position that ``meta`` names; see places.py."""

TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE streams (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, base_version INTEGER NOT NULL)",
    # Position and version are those of the record's last event.
    "CREATE TABLE records (position INTEGER PRIMARY KEY, stream_id INTEGER NOT NULL, version INTEGER NOT NULL, "
    "count INTEGER NOT NULL, checksum BLOB NOT NULL, body BLOB NOT NULL)",
    PLACES,
    "CREATE TABLE snapshots (stream_id INTEGER NOT NULL, version INTEGER NOT NULL, checksum BLOB NOT NULL, "
    "body BLOB NOT NULL, PRIMARY KEY (stream_id, version)) WITHOUT ROWID",
)
INSERT_RECORD = "INSERT INTO records (position, stream_id, version, count, checksum, body) VALUES "
PLACED_TO = "placed_to"
"""Key of ``meta``: the position up to which the places of records are noted."""
SET_META = "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)"

_NOTE_ALL_PLACES = (
    "INSERT INTO places (stream_id, version, position) "
    "SELECT stream_id, version, position FROM records ORDER BY stream_id, version"
)
_STEP = 1000


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty log."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for statement in TABLES:
        connection.execute(statement)
    write_meta(connection, "schema_version", SCHEMA_VERSION)
    write_head(connection, "base", EMPTY)
    write_head(connection, "head", EMPTY)
    write_meta(connection, PLACED_TO, 0)


def note_all_places(connection: sqlite3.Connection) -> None:
    """Note the places of all records there are, of which none is noted yet."""
    connection.execute(_NOTE_ALL_PLACES)
    write_meta(
        connection, PLACED_TO, connection.execute("SELECT coalesce(max(position), 0) FROM records").fetchone()[0]
    )


def is_nobodys(connection: sqlite3.Connection) -> bool:
    """Whether a file is empty, or what a failure while its tables were made has left of it."""
    if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
        return True
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and connection.execute("PRAGMA application_id").fetchone()[0] in (0, APPLICATION_ID)


def read_meta(connection: sqlite3.Connection, key: str) -> Any:
    """A value of ``meta``, or None."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def write_meta(connection: sqlite3.Connection, key: str, value: object) -> None:
    """Set a value of ``meta``."""
    connection.execute(SET_META, (key, value))


def read_head(connection: sqlite3.Connection, which: str, path: Path) -> Head:
    """``base``, before which events were truncated, or ``head``, which is true after a clean end."""
    position, sum_ = read_meta(connection, f"{which}_position"), read_meta(connection, f"{which}_checksum")
    if not isinstance(position, int) or not isinstance(sum_, bytes):
        raise CorruptLogError(
            f"open {path}: found {position!r} and {sum_!r} as its {which}, expected a position and a checksum; "
            "repair the log"
        )
    return Head(position, sum_)


def write_head(connection: sqlite3.Connection, which: str, head: Head) -> None:
    """Set ``base`` or ``head``."""
    write_meta(connection, f"{which}_position", head.position)
    write_meta(connection, f"{which}_checksum", head.checksum)


def check_owner(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of a log file.

    Raises:
        EventLogError: it is another program's, or a newer release's.
    """
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if application_id != APPLICATION_ID:
        raise EventLogError(
            f"open {path}: found an SQLite database of another program (application_id {application_id:#x}), "
            f"expected an event log ({APPLICATION_ID:#x}); give another path"
        )
    version = read_meta(connection, "schema_version")
    if not isinstance(version, int) or version < 1:
        raise CorruptLogError(
            f"open {path}: found schema version {version!r}, expected 1 to {SCHEMA_VERSION}; repair the log"
        )
    if version > SCHEMA_VERSION:
        raise EventLogError(
            f"open {path}: found schema version {version}, this release reads up to {SCHEMA_VERSION}; "
            "written by a newer release; upgrade mpreg-mq"
        )
    return version


# --- from older versions ------------------------------------------------------------------------------------


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables from an older version to this one, inside a transaction of the caller's.

    O(events) time from version 1, and the file grows by the size of the log, which is reused; O(records) from later
    ones, of whose records only the places are looked at.

    Raises:
        EventLogError: an event cannot be read; nothing has changed then.
    """
    if version >= OLDEST_READ:
        connection.execute(PLACES)
        note_all_places(connection)
        # Where damage has taken it away already, nothing of it is needed.
        connection.execute("DROP INDEX IF EXISTS records_of_stream")
        # What is added from now on is not for those who read that version.
        write_meta(connection, "schema_version", SCHEMA_VERSION)
        return
    for table in ("streams", "events", "event_types"):
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    connection.execute("DROP TABLE meta")
    create_tables(connection)
    connection.execute("INSERT INTO streams (id, name, base_version) SELECT id, name, 0 FROM old_streams")
    head = EMPTY
    stream_ids = dict(connection.execute("SELECT name, id FROM streams"))
    for append in _old_appends(connection):
        for block in blocks((append,)):
            position = head.position + block.events
            sum_ = checksum(head.checksum, position, block.version, block.events, block.stream, block.body)
            row = (position, stream_ids[block.stream], block.version, block.events, sum_, block.body)
            connection.execute(f"{INSERT_RECORD} (?, ?, ?, ?, ?, ?)", row)
            head = Head(position, sum_)
    expected = connection.execute("SELECT coalesce(sum(version), 0) FROM old_streams").fetchone()[0]
    if head.position != expected:
        raise CorruptLogError(
            f"migrate: found {head.position} events, expected {expected}; restore the log from a copy",
            head.position + 1,
        )
    write_head(connection, "head", head)
    note_all_places(connection)
    for table in ("streams", "events", "event_types"):
        connection.execute(f"DROP TABLE old_{table}")


def _old_appends(connection: sqlite3.Connection) -> Iterator[Append]:
    """The events of version 1 as appends, those that follow each other in one stream together."""
    after = 0
    while rows := _old_rows(connection, after):
        for stream, found in groupby(rows, lambda row: row[0]):
            of_stream = list(found)
            yield Append(stream, of_stream[0][1] - 1, [event for _, _, event in of_stream])
        after += len(rows)


def _old_rows(connection: sqlite3.Connection, after: int) -> list[tuple[str, int, Event]]:
    found = connection.execute(
        "SELECT position, old_streams.name, old_events.version, old_event_types.name, schema, body FROM old_events "
        "JOIN old_event_types ON old_event_types.id = type JOIN old_streams ON old_streams.id = stream_id "
        "WHERE position > ? ORDER BY position LIMIT ?",
        (after, _STEP),
    )
    rows = []
    for expected, (position, stream, version, type_name, schema, body) in enumerate(found, after + 1):
        if position != expected:
            raise CorruptLogError(
                f"migrate: found position {position}, expected {expected}; restore the log from a copy", expected
            )
        rows.append((stream, version, CODEC.decode(type_name, schema, body)))
    return rows
