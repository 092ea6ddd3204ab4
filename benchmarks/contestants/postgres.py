"""A PostgreSQL table as a queue: INSERT, and DELETE of rows that SELECT ... FOR UPDATE SKIP LOCKED took."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.contestants.base import AsyncQueue, Countdown, library
from benchmarks.harness.payloads import Message

TAKE_AT_ONCE = 500
POLL_SECONDS = 0.001
CREATE = "CREATE TABLE jobs (id bigserial PRIMARY KEY, topic text NOT NULL, body bytea NOT NULL)"
INSERT = "INSERT INTO jobs (topic, body) VALUES ($1, $2)"
INSERT_MANY = "INSERT INTO jobs (topic, body) SELECT * FROM unnest($1::text[], $2::bytea[])"
TAKE = (
    "DELETE FROM jobs WHERE id = ANY(ARRAY(SELECT id FROM jobs ORDER BY id FOR UPDATE SKIP LOCKED LIMIT $1)) "
    "RETURNING body"
)


class PostgresTable(AsyncQueue):
    """asyncpg; a connection for each sender, and one for the worker, which deletes in the transaction it works in."""

    async def connect(self) -> None:
        """Open all connections."""
        asyncpg = library("asyncpg")
        self._connections: list[Any] = [
            await asyncpg.connect(self.context.address) for _ in range(self.load.senders + 1)
        ]
        self._worker = self._connections[-1]

    async def begin(self, count: int) -> None:
        """A new table and its worker."""
        await self._worker.execute("DROP TABLE IF EXISTS jobs")
        await self._worker.execute(CREATE)
        self._done = Countdown(count)
        self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._done.left > 0:
            async with self._worker.transaction():
                taken = await self._worker.fetch(TAKE, TAKE_AT_ONCE)
                for (body,) in taken:
                    self.handle(msgspec.json.decode(body))
            self._done.count(len(taken))
            if not taken:
                await asyncio.sleep(POLL_SECONDS)

    async def send(self, sender: int, message: Message) -> None:
        """One INSERT, one commit."""
        await self._connections[sender].execute(INSERT, message[0], msgspec.json.encode(message[1]))

    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        """One INSERT of many rows, one commit."""
        topics = [topic for topic, _ in messages]
        bodies = [msgspec.json.encode(payload) for _, payload in messages]
        await self._connections[sender].execute(INSERT_MANY, topics, bodies)

    async def finished(self) -> None:
        """Until the deletes are committed."""
        await self._done.wait()

    async def end(self) -> None:
        """The worker has ended with its last row."""
        await self._working

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            await connection.close()
