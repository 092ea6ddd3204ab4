"""What the machine allows: the same bytes without a queue around them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence

from benchmarks.contestants.base import QueueUnderLoad
from benchmarks.contestants.life import bodies_of
from benchmarks.harness.model import Values
from benchmarks.harness.payloads import Message
from benchmarks.harness.statistics import percentile


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
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE events (position INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        parts = self.parts(messages)
        begun = time.perf_counter()
        for part in parts:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO events (body) VALUES (?)", [(body,) for body in part])
            connection.execute("COMMIT")
        spent = time.perf_counter() - begun
        connection.close()
        self.bytes_used = path.stat().st_size
        path.unlink()
        return spent


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
