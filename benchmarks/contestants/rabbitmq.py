"""RabbitMQ: a durable queue, persistent messages, publisher confirms, manual acknowledgments."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.contestants.base import AsyncQueue, Countdown, library
from benchmarks.harness.payloads import Message

PREFETCH = 1_000


class RabbitQueue(AsyncQueue):
    """aio-pika; one connection, a channel to send on and one to consume on."""

    async def connect(self) -> None:
        """Open the connection and its channels."""
        self._pika = library("aio_pika", "aio-pika")
        self._connection = await self._pika.connect(self.context.address)
        self._sending = await self._connection.channel(publisher_confirms=True)
        self._receiving = await self._connection.channel()
        await self._receiving.set_qos(prefetch_count=PREFETCH)
        self._runs = 0

    async def begin(self, count: int) -> None:
        """A new queue and its consumer."""
        self._runs += 1
        self._queue = await self._receiving.declare_queue(f"bench-{self._runs}", durable=True)
        self._acknowledged = Countdown(count)
        self._tag = await self._queue.consume(self._on_message)

    async def _on_message(self, message: Any) -> None:
        self.handle(msgspec.json.decode(message.body))
        await message.ack()
        self._acknowledged.count(1)

    async def send(self, sender: int, message: Message) -> None:
        """One publish, and its confirm."""
        body = self._pika.Message(
            msgspec.json.encode(message[1]), delivery_mode=self._pika.DeliveryMode.PERSISTENT, type=message[0]
        )
        await self._sending.default_exchange.publish(body, routing_key=self._queue.name)

    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        """Publishes without waiting, and then all their confirms."""
        await asyncio.gather(*(self.send(sender, message) for message in messages))

    async def finished(self) -> None:
        """Until all acknowledgments are written; RabbitMQ does not answer them."""
        await self._acknowledged.wait()

    async def end(self) -> None:
        """Remove the queue."""
        await self._queue.cancel(self._tag)
        await self._queue.delete(if_empty=False, if_unused=False)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()
