"""Places: where in a log the records of a stream are, so that reading one stream needs to look at no other's.

An index would have every commit change one more page, which is one more to write before the disk is waited for, and
with many queues one for each of them. So the places of many records are noted together, in the table ``places``; which
records have none yet is known in memory, and found out when a log is opened, by looking at the records behind the
position up to which they are noted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from mpreg_mq.events.sqlite import schema
from mpreg_mq.events.sqlite.transactions import Place, Row

PLACED_TOGETHER = 512
"""Of so many records the places are noted together. More would hold up the commit that they go with for longer, and
give whoever opens a log after a crash, or reads along, more to look at."""

_ADD = "INSERT OR REPLACE INTO places (stream_id, version, position) VALUES (?, ?, ?)"
_BEHIND = "SELECT position, stream_id, version, count FROM records WHERE position > ? ORDER BY position"
_REMOVE = (
    "DELETE FROM places WHERE (stream_id, version) IN "
    "(SELECT stream_id, version FROM records WHERE position <= ? ORDER BY position LIMIT ?)"
)
_SAME = "p.stream_id = r.stream_id AND p.version = r.version AND p.position = r.position"
WRONG_PLACES = (
    (
        "records are not where their stream is looked up",
        f"SELECT count(*) FROM records r WHERE NOT EXISTS (SELECT 1 FROM places p WHERE {_SAME}) "
        f"AND r.position <= (SELECT value FROM meta WHERE key = '{schema.PLACED_TO}')",
    ),
    (
        "places have no record",
        f"SELECT count(*) FROM places p WHERE NOT EXISTS (SELECT 1 FROM records r WHERE {_SAME})",
    ),
)
"""What can be wrong with the table, and how many times it is; O(records) each."""


@attrs.define(eq=False)
class Unplaced:
    """Records whose places are not noted yet. Whoever writes changes it, and others may look at it meanwhile."""

    placed_to: Any = None
    """What a log that was opened said of how far places are noted."""
    places: list[Place] = attrs.field(factory=list)
    before: dict[int, int] = attrs.field(factory=dict)
    """By stream id, the position before the first of them."""

    def add(self, rows: Iterable[Row]) -> None:
        """These records have come."""
        for position, stream_id, version, count, *_ in rows:
            self.places.append((stream_id, version, position))
            self.before.setdefault(stream_id, position - count)

    def with_more(self, rows: Sequence[Row]) -> list[Place]:
        """What is to be noted in the transaction that adds ``rows``; nothing, most of the time."""
        if len(self.places) + len(rows) < PLACED_TOGETHER:
            return []
        return self.places + [(stream_id, version, position) for position, stream_id, version, *_ in rows]


def note(connection: sqlite3.Connection, places: Iterable[Place], position: int) -> None:
    """Note places, which are all there are up to ``position``; in a transaction of the caller's."""
    # In the order of the table, so that each page of it is come to once.
    connection.executemany(_ADD, sorted(places))
    schema.write_meta(connection, schema.PLACED_TO, position)


def find(connection: sqlite3.Connection) -> Unplaced:
    """The records of a log whose places are not noted; O(these)."""
    placed_to = schema.read_meta(connection, schema.PLACED_TO)
    found = Unplaced(placed_to)
    found.add(connection.execute(_BEHIND, (placed_to,)))
    return found


def remove(connection: sqlite3.Connection, position: int, records: int) -> None:
    """Forget the places of the first so many records up to a position, which are about to be removed."""
    connection.execute(_REMOVE, (position, records))
