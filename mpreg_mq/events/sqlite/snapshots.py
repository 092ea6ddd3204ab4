"""The snapshots in a log file: each with a checksum of its own, because it is believed only if that holds."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import Snapshot
from mpreg_mq.events.sqlite import schema
from mpreg_mq.events.sqlite.records import CHECKSUM_BYTES, Head

logger = logging.getLogger("mpreg_mq")

KEPT = 2
"""Newest snapshots of a stream that are kept, besides its base: one more than is needed, should it be damaged."""

# The body is the sixth column, by which the reader measures rows.
FIND = (
    "SELECT version, checksum, NULL, NULL, NULL, body FROM snapshots "
    "WHERE stream_id = ? AND version >= ? AND version <= ? ORDER BY version DESC"
)


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


def checked(rows: Sequence[tuple[object, ...]], stream: Place, path: Path) -> list[Snapshot]:
    """The snapshots of these rows that are what was written."""
    found = []
    for version, sum_, *_, body in rows:
        if (
            isinstance(version, int)
            and isinstance(body, bytes)
            and version >= 0
            and sum_ == _checksum(stream.name, version, body)
        ):
            found.append(Snapshot(stream.name, version, body))
        else:
            logger.warning("log %s: the snapshot of %s at version %s is damaged; not used", path, stream.name, version)
    return found
