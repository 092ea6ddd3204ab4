"""The part of the ``sqlite3`` module that the store uses, on top of apsw, whose file system can be put in its place."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apsw

# An error that a file system raises in Python carries no code.
_CODES: dict[type[apsw.Error], int] = {
    apsw.IOError: sqlite3.SQLITE_IOERR,
    apsw.FullError: sqlite3.SQLITE_FULL,
}


def translated(error: apsw.Error) -> sqlite3.Error:
    """The error that the ``sqlite3`` module raises for this one."""
    code = getattr(error, "extendedresult", None) or _CODES.get(type(error), sqlite3.SQLITE_ERROR)
    kind = sqlite3.IntegrityError if isinstance(error, apsw.ConstraintError) else sqlite3.OperationalError
    found = kind(str(error))
    found.sqlite_errorcode = code
    return found


class Cursor:
    """What ``execute`` returns."""

    def __init__(self, connection: apsw.Connection, statement: str, parameters: Sequence[Any]) -> None:
        self._connection = connection
        try:
            self._cursor = connection.cursor()
            self._cursor.execute(statement, tuple(parameters))
        except apsw.Error as error:
            raise translated(error) from error
        self.rowcount = connection.changes()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._cursor)
        except apsw.Error as error:
            raise translated(error) from error

    def fetchone(self) -> Any:
        """The next row, or None."""
        return next(iter(self), None)

    def fetchall(self) -> list[Any]:
        """The rows that are left."""
        return list(self)

    def close(self) -> None:
        """Give the statement up."""
        self._cursor.close()


class Connection:
    """A connection whose files are in the given file system."""

    def __init__(self, path: str, vfs: str, *, read_only: bool) -> None:
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        try:
            self._connection = apsw.Connection(path, flags, vfs=vfs)
        except apsw.Error as error:
            raise translated(error) from error

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Run a statement."""
        return Cursor(self._connection, statement, parameters)

    def executescript(self, script: str) -> None:
        """Run statements to their end."""
        for _ in self.execute(script):
            pass

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each row."""
        for row in rows:
            self.execute(statement, row)

    def close(self) -> None:
        """Close the files."""
        try:
            self._connection.close()
        except apsw.Error as error:
            raise translated(error) from error
