"""Reading records: in short statements, and never without checking them."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mpreg_mq.errors import CorruptLogError
from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.sqlite.failures import explained
from mpreg_mq.events.sqlite.records import Head, checksum, old_checksum
from mpreg_mq.events.types import Event
from mpreg_mq.forking import set_free

_CHUNK_BYTES = 1 << 20
_LARGE_BYTES = 1 << 10
"""Of an event: to compute the checksum of so much is as much work as to fold it."""
_OFTEN_SECONDS = 1e-3
"""Unless told otherwise, threads take turns every five milliseconds, which is longer than one works on a chunk."""

_CHUNKS_AHEAD = 4
"""More than one, because neither the reader nor who reads ahead takes the same time for each."""

_COLUMNS = "r.position, r.stream_id, r.version, r.count, r.checksum, r.body"
_BODY = 5
"""Which of them is the body."""
_BEFORE_IT = "LEFT JOIN records before ON before.position = r.position - r.count"
_PLACED = (
    f"SELECT {_COLUMNS}, before.checksum "
    f"FROM {{places}} p CROSS JOIN records r ON r.position = p.position {_BEFORE_IT} "
    "WHERE p.stream_id = ? AND p.version > ? AND p.version <= ? ORDER BY p.version"
)
_UNPLACED = (
    f"SELECT {_COLUMNS}, before.checksum FROM records r {_BEFORE_IT} "
    "WHERE r.position > ? AND r.stream_id = ? AND r.version > ? AND r.version <= ? ORDER BY r.position"
)
_OF_LOG = f"SELECT {_COLUMNS} FROM records r WHERE r.position > ? AND r.position <= ? ORDER BY r.position"
_BEFORE = "SELECT checksum FROM records WHERE position = ?"


class Found(NamedTuple):
    """A record that has been checked."""

    stream: str
    first_position: int
    first_version: int
    events: list[Event]


class _Chunk(NamedTuple):
    """Rows, what their checksums should be, and in which column is where to read on."""

    rows: list[Any]
    expected: list[bytes | None]
    place: int

    def end(self, after: int) -> int:
        """Where to read on; beyond everything where damage hides it, which stops whoever looks at the rows."""
        if not self.rows:
            return after
        found = self.rows[-1][self.place]
        return found if type(found) is int else 1 << 63


class _Chunks:
    """Fetches one chunk after another; None once there are no more."""

    def __init__(self, fetch: Callable[[int, bytes | None], _Chunk], after: int, last: int) -> None:
        self._fetch = fetch
        self._after = after
        self._before: bytes | None = None
        self._last = last
        self.ended = after >= last
        self.are_large = False
        """Whether the latest one has so few events that most of the work is to compute its checksums."""

    def fetch(self) -> _Chunk | None:
        if self.ended:
            return None
        chunk = self._fetch(self._after, self._before)
        end = chunk.end(self._after)
        self.ended = not chunk.rows or end >= self._last
        self.are_large = end - self._after <= _CHUNK_BYTES // _LARGE_BYTES
        self._after = end
        if chunk.rows:
            self._before = chunk.rows[-1][4]
        return chunk


class RecordReader:
    """One connection that cannot write, for readers of any thread.

    ``base`` tells where the log begins, ``name_of`` the name of a stream's row id, ``unplaced`` the position before
    its first record whose place is not noted, and ``check_open`` raises where the log must not be used.
    """

    def __init__(
        self,
        path: Path,
        base: Callable[[], Head],
        name_of: Callable[[int], str | None],
        unplaced: Callable[[int], int | None],
        check_open: Callable[[], None],
    ) -> None:
        self._path = path
        self._base = base
        self._name_of = name_of
        self._unplaced = unplaced
        self.places = "places"
        """The table that has the places of records."""
        self._check_open = check_open
        self._lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None

    def replace(self, connection: sqlite3.Connection | None) -> None:
        """Close the connection and go on with another one."""
        with self._lock:
            if self.connection is not None:
                self.connection.close()
            self.connection = connection

    def forget_in_child(self) -> None:
        """In a forked child: wait for no reader of the parent's."""
        set_free(self._lock)

    def rows(self, statement: str, *parameters: object) -> list[Any]:
        """All rows that are found; for what finds few."""
        with self._asking() as connection:
            return connection.execute(statement, parameters).fetchall()

    def chunk(self, statement: str, *parameters: object) -> list[Any]:
        """The first records that are found, cut off once they hold a megabyte of bodies: ask on from the last."""
        rows: list[Any] = []
        size = 0
        with self._asking() as connection:
            cursor = connection.execute(statement, parameters)
            for row in cursor:
                rows.append(row)
                if isinstance(row[_BODY], bytes):
                    size += len(row[_BODY])
                    if size >= _CHUNK_BYTES:
                        break
            cursor.close()
        return rows

    @contextmanager
    def _asking(self) -> Iterator[sqlite3.Connection]:
        with self._lock, explained("read", self._path):
            self._check_open()
            assert self.connection is not None, "an open log has a connection"
            yield self.connection

    def of_stream(self, stream: str, stream_id: int, after: int, last: int) -> Iterator[Found]:
        """The records of a stream that hold versions above ``after`` up to ``last``, the end of one."""
        begun = False

        def fetch(after: int, _: bytes | None) -> _Chunk:
            # Asked first, for what is placed meanwhile is found at either.
            unplaced = self._unplaced(stream_id)
            rows = self.chunk(_PLACED.format(places=self.places), stream_id, after, last)
            if not rows and unplaced is not None:
                rows = self.chunk(_UNPLACED, unplaced, stream_id, after, last)
            expected = [
                self._expected(before, stream, position, version, count, body)
                for position, _, version, count, _, body, before in rows
            ]
            return _Chunk(rows, expected, 2)

        for rows, expected in self._ahead(fetch, after, last):
            if not rows:
                raise self._missing(f"stream {stream!r}", after, last)
            for (position, _, version, count, sum_, body, before), known in zip(rows, expected, strict=True):
                self._check_numbers(position, version, count)
                first = version - count + 1
                if first > after + 1 or (begun and first != after + 1):
                    raise self._gap(position, f"version {first} of {stream!r}", after + 1)
                if before is None:
                    before = self._checksum_at(position - count)
                yield self._checked(before, stream, position, version, count, sum_, body, known)
                after = version
                begun = True

    def of_log(self, after: int, last: int) -> Iterator[Found]:
        """The records that hold positions above ``after`` up to ``last``, the end of one."""
        before: bytes | None = None

        def fetch(after: int, before: bytes | None) -> _Chunk:
            rows = self.chunk(_OF_LOG, after, last)
            expected = []
            for position, stream_id, version, count, sum_, body in rows:
                expected.append(self._expected(before, self._name_of(stream_id), position, version, count, body))
                before = sum_
            return _Chunk(rows, expected, 0)

        for rows, expected in self._ahead(fetch, after, last):
            if not rows:
                raise self._missing("all", after, last)
            for (position, stream_id, version, count, sum_, body), known in zip(rows, expected, strict=True):
                self._check_numbers(position, version, count)
                first = position - count + 1
                if first > after + 1 or (before is not None and first != after + 1):
                    raise self._gap(first, f"position {first}", after + 1)
                if before is None:
                    before = self._checksum_at(position - count)
                stream = self._name_of(stream_id)
                if stream is None:
                    raise self.damaged(first, f"found stream {stream_id}, which has no name")
                yield self._checked(before, stream, position, version, count, sum_, body, known)
                before = sum_
                after = position

    def _ahead(
        self, fetch: Callable[[int, bytes | None], _Chunk], after: int, last: int
    ) -> Iterator[tuple[list[Any], list[bytes | None]]]:
        """Chunks of rows above ``after`` with what their checksums should be.

        Where events are large and threads take turns often, a thread reads the next ones and computes their checksums
        while the caller works on one; most of that needs no lock of the interpreter's.
        """
        chunks = _Chunks(fetch, after, last)
        while (chunk := chunks.fetch()) is not None:
            yield chunk.rows, chunk.expected
            if chunks.are_large and not chunks.ended and sys.getswitchinterval() <= _OFTEN_SECONDS:
                break
        if chunks.ended:
            return
        thread = ThreadPoolExecutor(1, "mpreg-mq-read-ahead")
        try:
            ahead = deque(thread.submit(chunks.fetch) for _ in range(_CHUNKS_AHEAD))
            while (chunk := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(chunks.fetch))
                yield chunk.rows, chunk.expected
        finally:
            thread.shutdown(cancel_futures=True)

    @staticmethod
    def _expected(
        before: bytes | None, stream: str | None, position: int, version: int, count: int, body: bytes
    ) -> bytes | None:
        """The checksum that a row should have; None where it has to be looked into more closely."""
        if before is None or stream is None:
            return None
        try:
            return checksum(before, position, version, count, stream, body)
        # Damage can have made anything of the columns.
        except Exception:
            return None

    def _check_numbers(self, position: int, version: object, count: object) -> None:
        if type(version) is not int or type(count) is not int:
            raise self.damaged(position, f"found version {version!r} and {count!r} events, expected numbers")

    def _checksum_at(self, position: int) -> bytes:
        base = self._base()
        if position == base.position:
            return base.checksum
        rows = self.rows(_BEFORE, position)
        if not rows:
            raise self.damaged(position + 1, "the record before it is missing")
        found: bytes = rows[0][0]
        return found

    def _checked(
        self,
        before: bytes,
        stream: str,
        position: int,
        version: int,
        count: int,
        sum_: bytes,
        body: bytes,
        known: bytes | None,
    ) -> Found:
        first = position - count + 1
        try:
            expected = checksum(before, position, version, count, stream, body) if known is None else known
            intact = sum_ == expected or sum_ == old_checksum(before, position, version, count, stream, body)
        # Damage can have made anything of the columns.
        except Exception as error:
            raise self.damaged(first, f"the record is not readable ({error})") from error
        if not intact:
            raise self.damaged(first, f"the checksum of the {count} events of {stream!r} there does not match")
        events = CODEC.decode_many(body)
        if len(events) != count:
            raise self.damaged(first, f"found {len(events)} events, expected {count}")
        return Found(stream, first, version - count + 1, events)

    def _missing(self, what: str, after: int, last: int) -> CorruptLogError:
        return CorruptLogError(
            f"read {self._path}: of {what}, found nothing after {after}, expected events up to {last}; repair the log"
        )

    def _gap(self, position: int, found: str, expected: int) -> CorruptLogError:
        return self.damaged(position, f"found {found}, expected {expected}")

    def damaged(self, position: int, reason: str) -> CorruptLogError:
        """The error for a record that is not what was written."""
        return CorruptLogError(
            f"read {self._path}: damaged at position {position}: {reason}; repair the log to cut it there", position
        )
