"""What the machine allows: the same bytes without a queue around them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contestants.base import AsyncQueue, QueueUnderLoad
from benchmarks.contestants.life import bodies_of
from benchmarks.harness.model import Values
from benchmarks.harness.payloads import Message
from benchmarks.harness.statistics import percentile


def opened(path: Path) -> sqlite3.Connection:
    """A new file for :func:`insert`."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (position INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    return connection


def insert(connection: sqlite3.Connection, bodies: Sequence[bytes]) -> None:
    """One transaction."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO events (body) VALUES (?)", [(body,) for body in bodies])
    connection.execute("COMMIT")


class BatchedBytes(QueueUnderLoad):
    """The three events of each message, written ``load.step`` messages at a time."""

    async def connect(self) -> None:
        """Nothing to connect to."""

    def parts(self, messages: Sequence[Message]) -> list[list[bytes]]:
        """The bodies of the events, by batch."""
        bodies = bodies_of(messages)
        step = 3 * self.load.step
        return [bodies[start : start + step] for start in range(0, len(bodies), step)]


class RawSqlite(BatchedBytes):
    """``sqlite3`` with a write-ahead log and ``synchronous=FULL``: one table, no index, a transaction a batch."""

    async def run(self, messages: Sequence[Message]) -> float:
        """Insert them."""
        path = self.context.directory / "raw.db"
        connection = opened(path)
        parts = self.parts(messages)
        begun = time.perf_counter()
        for part in parts:
            insert(connection, part)
        spent = time.perf_counter() - begun
        connection.close()
        self.bytes_used = path.stat().st_size
        path.unlink()
        return spent


class RawSqliteTogether(AsyncQueue):
    """The same file: who sends waits until all that was sent in one turn of the loop is in it, in one transaction.

    The loop waits for the disk, and nothing is encoded: each message's events are those of the first one. That is the
    least that a queue on SQLite can do for a durable message.
    """

    async def connect(self) -> None:
        """Nothing to connect to."""

    async def begin(self, count: int) -> None:
        """A new file."""
        self._path = self.context.directory / "together.db"
        self._connection = opened(self._path)
        self._bodies = bodies_of(self.context.payloads.take(1))
        self._waiting: list[tuple[Message, asyncio.Future[None]]] = []

    async def send(self, sender: int, message: Message) -> None:
        """One message."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._commit)
        committed: asyncio.Future[None] = loop.create_future()
        self._waiting.append((message, committed))
        await committed

    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        """As many single ones."""
        await asyncio.gather(*(self.send(sender, message) for message in messages))

    def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        insert(self._connection, self._bodies * len(waiting))
        for (_, payload), committed in waiting:
            self.handle(payload)
            committed.set_result(None)

    async def finished(self) -> None:
        """Who has sent has waited."""

    async def end(self) -> None:
        """Remove it."""
        self._connection.close()
        self._path.unlink()


class RawAppend(BatchedBytes):
    """A file that grows by a batch at a time, with ``fdatasync`` after each."""

    async def run(self, messages: Sequence[Message]) -> float:
        """Append them."""
        path = self.context.directory / "raw.log"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        parts = self.parts(messages)
        begun = time.perf_counter()
        for part in parts:
            os.write(file, b"".join(part))
            os.fdatasync(file)
        spent = time.perf_counter() - begun
        os.close(file)
        path.unlink()
        return spent


class FutureHop(QueueUnderLoad):
    """An asyncio future that a callback of the loop resolves, awaited by each sender: the least a send can be."""

    async def connect(self) -> None:
        """Nothing to connect to."""

    async def run(self, messages: Sequence[Message]) -> float:
        """As many hops as there are messages."""
        loop = asyncio.get_running_loop()

        async def hops(count: int) -> None:
            for _ in range(count):
                future = loop.create_future()
                loop.call_soon(future.set_result, None)
                await future

        begun = time.perf_counter()
        await asyncio.gather(*(hops(len(messages) // self.load.senders) for _ in range(self.load.senders)))
        return time.perf_counter() - begun


class OneFsync(BatchedBytes):
    """How long one append of a message's three events takes to be on disk, nothing else going on."""

    async def run(self, messages: Sequence[Message]) -> float:
        """Appends, with their times kept."""
        path = self.context.directory / "raw.log"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._seconds: list[float] = []
        for part in self.parts(messages):
            begun = time.perf_counter()
            os.write(file, b"".join(part))
            os.fdatasync(file)
            self._seconds.append(time.perf_counter() - begun)
        os.close(file)
        path.unlink()
        return sum(self._seconds)

    async def measure(self) -> Values:
        """Half and 99 of 100 of the appends take at most so many milliseconds."""
        await super().measure()
        return {"p50": 1e3 * percentile(self._seconds, 0.5), "p99": 1e3 * percentile(self._seconds, 0.99)}
