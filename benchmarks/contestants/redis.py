"""Redis Streams: a consumer group, and entries acknowledged by the batch that was read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contestants.base import AsyncQueue, Countdown, bytes_under, library
from benchmarks.harness.payloads import Message

STREAM, GROUP = "bench", "workers"
READ_AT_ONCE = 500
BLOCK_MILLISECONDS = 1_000


class RedisStreams(AsyncQueue):
    """redis-py on asyncio with hiredis, a connection for each sender, pipelines without MULTI."""

    async def connect(self) -> None:
        """Open all connections."""
        library("hiredis")
        redis = library("redis.asyncio")
        host, port = str(self.context.address).split(":")
        senders = self.load.senders
        self._clients: list[Any] = [
            redis.Redis(host=host, port=int(port), single_connection_client=True) for _ in range(senders + 1)
        ]
        for client in self._clients:
            await client.ping()
        self._reader = self._clients[-1]

    async def begin(self, count: int) -> None:
        """An empty stream with a group, and its consumer."""
        await self._reader.delete(STREAM)
        await self._reader.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        self._bytes_before = await self._bytes_on_disk()
        self._acknowledged = Countdown(count)
        self._consumer = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        while self._acknowledged.left > 0:
            read = await self._reader.xreadgroup(
                GROUP, "worker", {STREAM: ">"}, count=READ_AT_ONCE, block=BLOCK_MILLISECONDS
            )
            for _, entries in read or ():
                for _, fields in entries:
                    self.handle(msgspec.json.decode(fields[b"body"]))
                await self._reader.xack(STREAM, GROUP, *[entry_id for entry_id, _ in entries])
                self._acknowledged.count(len(entries))

    async def send(self, sender: int, message: Message) -> None:
        """One XADD."""
        await self._clients[sender].xadd(STREAM, _fields(message))

    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        """One pipeline of XADD."""
        pipeline = self._clients[sender].pipeline(transaction=False)
        for message in messages:
            pipeline.xadd(STREAM, _fields(message))
        await pipeline.execute()

    async def finished(self) -> None:
        """Until all are XACKed."""
        await self._acknowledged.wait()

    async def end(self) -> None:
        """The consumer has ended with its last message."""
        await self._consumer
        self.bytes_used = await self._bytes_on_disk() - self._bytes_before

    async def _bytes_on_disk(self) -> int:
        directory: dict[Any, Any] = await self._reader.config_get("dir")
        (path,) = directory.values()
        return bytes_under(Path(path if isinstance(path, str) else path.decode()))

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.aclose()


def _fields(message: Message) -> dict[str, Any]:
    return {"topic": message[0], "body": msgspec.json.encode(message[1])}
