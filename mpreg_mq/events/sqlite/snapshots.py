"""The snapshots in a log file: each with a checksum of its own, because it is believed only if that holds."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.log import Snapshot
from mpreg_mq.events.sqlite import schema
from mpreg_mq.events.sqlite.records import CHECKSUM_BYTES, Head

logger = logging.getLogger("mpreg_mq")

KEPT = 2
"""Newest snapshots of a stream that are kept, besides its base: one more than is needed, should it be damaged."""

FIND = (
    "SELECT version, checksum, body FROM snapshots "
    "WHERE stream_id = ? AND version >= ? AND version <= ? ORDER BY version DESC LIMIT 1"
)
# To look something up SQLite reads the whole of rows that it passes, so that a damaged one hides those beside it. With
# a plus it goes from row to row instead, and reads no more than the numbers of those that it does not look for.
_VERSIONS = (
    "SELECT version FROM snapshots WHERE +stream_id = ? AND +version >= ? AND +version <= ? ORDER BY +version DESC"
)
_FIND_SLOWLY = "SELECT version, checksum, body FROM snapshots WHERE +stream_id = ? AND +version = ?"

Fetch = Callable[..., Sequence[Any]]
"""Gives the rows that a statement finds with some parameters.

Raises:
    CorruptLogError: SQLite cannot read them.
"""
_Row = tuple[Any, Any, Any]


class Place(Protocol):
    """The stream of a snapshot."""

    id: int
    name: str
    version: int
    base_version: int


def _checksum(stream: str, version: int, body: bytes) -> bytes:
    content = b"".join((b"snapshot", version.to_bytes(8, "little"), stream.encode(), b"\0", body))
    return blake2b(content, digest_size=CHECKSUM_BYTES).digest()


def out_of_range(snapshot: Snapshot, stream: Place | None) -> EventLogError:
    """The error for a snapshot of what the log does not hold."""
    found = "a stream that is not there" if stream is None else f"{stream.base_version} to {stream.version}"
    return EventLogError(f"snapshot of {snapshot.stream!r}: got version {snapshot.version}, expected {found}")


def save(connection: sqlite3.Connection, stream: Place, snapshot: Snapshot) -> None:
    """Add a snapshot and remove those that it makes superfluous."""
    row = (stream.id, snapshot.version, _checksum(stream.name, snapshot.version, snapshot.body), snapshot.body)
    connection.execute("INSERT OR REPLACE INTO snapshots (stream_id, version, checksum, body) VALUES (?, ?, ?, ?)", row)
    connection.execute(
        "DELETE FROM snapshots WHERE stream_id = ?1 AND version <> ?2 AND version NOT IN "
        "(SELECT version FROM snapshots WHERE stream_id = ?1 ORDER BY version DESC LIMIT ?3)",
        (stream.id, stream.base_version, KEPT),
    )


def rebase(connection: sqlite3.Connection, base: Head, bases: Iterable[tuple[Place, Snapshot]]) -> None:
    """Let the log begin after ``base``, with the given snapshots for what was before."""
    schema.write_head(connection, "base", base)
    for stream, snapshot in bases:
        connection.execute("DELETE FROM snapshots WHERE stream_id = ? AND version < ?", (stream.id, snapshot.version))
        row = (stream.id, snapshot.version, _checksum(stream.name, snapshot.version, snapshot.body), snapshot.body)
        connection.execute(
            "INSERT OR REPLACE INTO snapshots (stream_id, version, checksum, body) VALUES (?, ?, ?, ?)", row
        )
        connection.execute("UPDATE streams SET base_version = ? WHERE id = ?", (snapshot.version, stream.id))


def read(fetch: Fetch, stream: Place, path: Path, version: int | None = None) -> Iterator[Snapshot]:
    """The snapshots that are what was written, newest first, or the one at a version; with a warning for any other.

    Each is read when it is asked for, because one may be as large as all that a queue holds.
    """
    first, last = (stream.base_version, stream.version) if version is None else (version, version)
    for row in _rows(fetch, stream.id, first, last):
        if _is_whole(stream, *row):
            found, _, body = row
            yield Snapshot(stream.name, found, body)
        else:
            logger.warning("log %s: the snapshot of %s at version %s is damaged; not used", path, stream.name, row[0])


def _rows(fetch: Fetch, stream_id: int, first: int, last: int) -> Iterator[_Row]:
    """The rows of these versions, newest first; of one that SQLite cannot read only the version."""
    try:
        while rows := fetch(FIND, stream_id, first, last):
            found = rows[0][0]
            if not isinstance(found, int) or not first <= found <= last:
                # They are not in their order.
                break
            yield rows[0]
            last = found - 1
        else:
            return
    except CorruptLogError:
        pass
    for (found,) in fetch(_VERSIONS, stream_id, first, last):
        rows = [(found, None, None)]
        with contextlib.suppress(CorruptLogError):
            rows = fetch(_FIND_SLOWLY, stream_id, found)
        yield from rows


def _is_whole(stream: Place, version: object, sum_: object, body: object) -> bool:
    return (
        isinstance(version, int)
        and isinstance(body, bytes)
        and version >= 0
        and sum_ == _checksum(stream.name, version, body)
    )
