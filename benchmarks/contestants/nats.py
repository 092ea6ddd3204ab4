"""NATS JetStream: a file stream, publishes that wait for their acknowledgment, a durable pull consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.contestants.base import AsyncQueue, Countdown, library
from benchmarks.harness.payloads import Message

STREAM, CONSUMER, PREFIX = "BENCH", "workers", "bench"
FETCH_AT_ONCE = 500
FETCH_TIMEOUT_SECONDS = 1.0


class JetStream(AsyncQueue):
    """nats-py; all senders share a connection, as its documentation has it."""

    async def connect(self) -> None:
        """Open the connection."""
        nats = library("nats", "nats-py")
        self._timeout: type[Exception] = library("nats.errors").TimeoutError
        self._client = await nats.connect(f"nats://{self.context.address}")
        self._stream = self._client.jetstream(publish_async_max_pending=10_000)

    async def begin(self, count: int) -> None:
        """A new stream and its consumer."""
        await self._stream.add_stream(name=STREAM, subjects=[f"{PREFIX}.>"])
        subscription = await self._stream.pull_subscribe(f"{PREFIX}.>", durable=CONSUMER)
        self._acknowledged = Countdown(count)
        self._consumer = asyncio.create_task(self._consume(subscription))

    async def _consume(self, subscription: Any) -> None:
        while self._acknowledged.left > 0:
            try:
                messages = await subscription.fetch(FETCH_AT_ONCE, timeout=FETCH_TIMEOUT_SECONDS)
            except self._timeout:
                continue
            for message in messages:
                self.handle(msgspec.json.decode(message.data))
                await message.ack()
            self._acknowledged.count(len(messages))
        await subscription.unsubscribe()

    async def send(self, sender: int, message: Message) -> None:
        """One publish, and its acknowledgment."""
        await self._stream.publish(f"{PREFIX}.{message[0]}", msgspec.json.encode(message[1]))

    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        """Publishes without waiting, and then all their acknowledgments."""
        sent = [
            await self._stream.publish_async(f"{PREFIX}.{topic}", msgspec.json.encode(payload))
            for topic, payload in messages
        ]
        await asyncio.gather(*sent)

    async def finished(self) -> None:
        """Until all acknowledgments are written; JetStream does not answer them."""
        await self._acknowledged.wait()
        await self._client.flush()

    async def end(self) -> None:
        """Remove the stream."""
        await self._consumer
        await self._stream.delete_stream(STREAM)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
