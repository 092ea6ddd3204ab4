"""What SQLite's errors mean for a log."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mpreg_mq.errors import CorruptLogError, EventLogError, LogFullError
from mpreg_mq.events.sqlite.header import header_problem, read_header

# A plain error is one of a table that is not there, or of text that is none: the statements are right.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What a damaged file makes the sqlite3 module raise; it takes whatever SQLite says of the file for text."""

_REFUSED = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
)


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code; SQLITE_ERROR for an error of the sqlite3 module itself."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_refusal(error: sqlite3.Error) -> bool:
    """Whether SQLite refused the statement before it wrote anything: nothing of it can turn up later."""
    return code_of(error) in _REFUSED


def changed_by_others(error: sqlite3.Error) -> bool:
    """Whether the file holds what this process did not write."""
    return code_of(error) == sqlite3.SQLITE_CONSTRAINT


def is_full(error: sqlite3.Error | OSError) -> bool:
    """Whether there is no room on the disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return code_of(error) == sqlite3.SQLITE_FULL


def explain(error: sqlite3.Error, what: str, path: Path) -> EventLogError:
    """The error to raise for one of SQLite's."""
    code = code_of(error)
    if code == sqlite3.SQLITE_CONSTRAINT:
        return EventLogError(
            f"{what} {path}: somebody else has changed this log ({error}); "
            "let one process at a time use it, and open it again"
        )
    if code == sqlite3.SQLITE_FULL:
        return LogFullError(f"{what} {path}: there is no room on its disk ({error}); make room, sending goes on then")
    if code == sqlite3.SQLITE_NOTADB:
        with path.open("rb") as file:
            found = file.read(16)
        return CorruptLogError(
            f"{what} {path}: SQLite says: {error}; found a file that begins with {found!r}, give another path"
        )
    if code == sqlite3.SQLITE_READONLY and (problem := header_problem(read_header(path))) is not None:
        return CorruptLogError(f"{what} {path}: {problem}")
    if code in _DAMAGE:
        return CorruptLogError(f"{what} {path}: SQLite says: {error}; the file is damaged, repair the log")
    return EventLogError(f"{what} {path}: SQLite says: {error}")


@contextlib.contextmanager
def explained(what: str, path: Path) -> Iterator[None]:
    """Turn SQLite's errors into :class:`EventLogError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, what, path) from error
    except UnicodeDecodeError as error:
        raise CorruptLogError(f"{what} {path}: {error}; the file is damaged, repair the log") from error
