"""How a log file is changed: in one transaction, by few statements."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence

import attrs

from mpreg_mq.events.sqlite import schema
from mpreg_mq.events.sqlite.records import Head

Row = tuple[int, int, int, int, bytes, bytes]
"""Position, stream id, version, count, checksum, body."""

Place = tuple[int, int, int]
"""Stream id, version, position."""

_ROWS_PER_STATEMENT = 32
"""Up to so many records are one statement, which is its own transaction: one wait for SQLite instead of three."""

_INSERT = [f"{schema.INSERT_RECORD} {', '.join(['(?, ?, ?, ?, ?, ?)'] * n)}" for n in range(_ROWS_PER_STATEMENT + 1)]


@attrs.define
class Stream:
    """What is known of a stream."""

    id: int
    name: str
    version: int
    base_version: int


@attrs.frozen(eq=False)
class Addition:
    """What one transaction adds."""

    rows: Sequence[Row]
    new_streams: Sequence[Stream]
    versions: dict[str, int]
    """Of each stream of the batch, after it."""
    head: Head


@contextlib.contextmanager
def transaction(writer: sqlite3.Connection, kind: str) -> Iterator[sqlite3.Connection]:
    """Run statements in a transaction, which is taken back where they raise."""
    writer.execute(f"BEGIN {kind}")
    try:
        yield writer
        writer.execute("COMMIT")
    except BaseException:
        # A full disk, for one, has made SQLite roll back already; the first error is the one to report.
        with contextlib.suppress(sqlite3.Error):
            writer.execute("ROLLBACK")
        raise


def insert(
    writer: sqlite3.Connection, addition: Addition, also: Callable[[sqlite3.Connection], None] | None = None
) -> None:
    """Add records and streams in one transaction, and do something else in it."""
    rows, added = addition.rows, addition.new_streams
    if not added and also is None and len(rows) <= _ROWS_PER_STATEMENT:
        writer.execute(_INSERT[len(rows)], [value for row in rows for value in row])
        return
    with transaction(writer, "IMMEDIATE") as connection:
        for stream in added:
            connection.execute(
                "INSERT INTO streams (id, name, base_version) VALUES (?, ?, 0)", (stream.id, stream.name)
            )
        connection.executemany(_INSERT[1], rows)
        if also is not None:
            also(connection)
