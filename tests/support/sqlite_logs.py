"""Logs in SQLite files, and what is in them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mpreg_mq.events import Event, MessageCompleted, SQLiteEventLog


@contextmanager
def opened(path: Path, synchronous: str = "FULL", *, writes_on_loop: bool = False) -> Iterator[SQLiteEventLog]:
    log = SQLiteEventLog(path, synchronous=synchronous, writes_on_loop=writes_on_loop)
    try:
        yield log
    finally:
        log.close()


def run(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Do something to a database behind the log's back; the rows of the last statement."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def events(*numbers: int) -> tuple[Event, ...]:
    return tuple(MessageCompleted(at=float(number), message_id=f"m{number}") for number in numbers)


def stored(log: SQLiteEventLog) -> list[tuple[int, str, int, Event]]:
    return [(record.position, record.stream, record.version, record.event) for record in log.read_all()]
