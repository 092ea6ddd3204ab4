"""Ours and MPREG's queue, which have the same API."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.compare_mpreg import MPREG, OURS, Api
from benchmarks.contestants.base import AsyncQueue, Countdown, Load, bytes_under, ignore
from benchmarks.harness.model import Context, UnavailableError
from benchmarks.harness.payloads import Message
from mpreg_mq.events import SQLiteEventLog

POLL_SECONDS = 0.001


def load_api(side: str, context: Context) -> Api:
    """The names of a side.

    Raises:
        UnavailableError: it cannot be imported.
    """
    try:
        return Api.load(side, context.mpreg_source)
    except Exception as error:
        raise UnavailableError(
            f"{side} cannot be imported ({type(error).__name__}: {error}); "
            "name a checkout with --mpreg-source, and install what it needs"
        ) from None


class QueueApi(AsyncQueue):
    """A queue with one subscriber, whose callback returns at once; an acknowledgment follows from that."""

    side = OURS

    def __init__(self, context: Context, load: Load, guarantee: str = "AT_LEAST_ONCE", log: str = "memory:") -> None:
        super().__init__(context, load)
        self._guarantee_name = guarantee
        self._log = log
        self._runs = 0

    async def connect(self) -> None:
        """Import the side."""
        self._api = load_api(self.side, self.context)
        self._guarantee = self._api.queues.DeliveryGuarantee[self._guarantee_name]

    async def begin(self, count: int) -> None:
        """A new queue on a new log."""
        self._runs += 1
        self._directory = self.context.directory / f"run-{self._runs}"
        self._directory.mkdir()
        self.queue = self.make_queue(count)
        self.expected = count
        self.delivered = Countdown(count)
        # What the harness does for each message counts against the queue, so it does no more than it must.
        callback = self.delivered.message if self.handle is ignore else self._on_message
        self.queue.subscribe("worker", "#", callback=callback, auto_acknowledge=True)

    def _on_message(self, message: Any) -> None:
        self.handle(message.payload)
        self.delivered.count(1)

    def make_queue(self, count: int) -> Any:
        """An empty queue with room for so many messages."""
        configuration = self._api.queues.QueueConfiguration(name="bench", max_size=count)
        return self._api.queues.MessageQueue(configuration, log=self.log_for_run())

    def log_for_run(self) -> str | Path | SQLiteEventLog:
        """What the queue is given as its log; asked once a run."""
        return self._directory / "queue.db" if self._log == "sqlite" else self._log

    async def send(self, sender: int, message: Message) -> None:
        """One message."""
        result = await self.queue.send_message(message[0], message[1], self._guarantee)
        if not result.success:
            raise RuntimeError(f"a send was rejected: {result.error_message}")

    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        """One commit."""
        for result in await self.queue.send_messages(messages, self._guarantee):
            if not result.success:
                raise RuntimeError(f"a send was rejected: {result.error_message}")

    async def finished(self) -> None:
        """Delivered, and acknowledged if it is to be."""
        await self.delivered.wait()
        if self._guarantee_name != "FIRE_AND_FORGET":
            async with asyncio.timeout(60):
                while self.queue.get_statistics().messages_acknowledged < self.expected:
                    await asyncio.sleep(POLL_SECONDS)

    async def end(self) -> None:
        """Shut down, remove the files."""
        await self.queue.shutdown()
        self.close_log()
        self.bytes_used = bytes_under(self._directory)
        shutil.rmtree(self._directory)

    def close_log(self) -> None:
        """Close a log that is not the queue's own."""


class QueueWrittenOnLoop(QueueApi):
    """Ours on a log in a file that the event loop writes, while the kernel waits for the disk."""

    loop_waits_seconds: ClassVar[float] = 0.0

    def log_for_run(self) -> SQLiteEventLog:
        """A new log."""
        self._opened = SQLiteEventLog(
            self._directory / "queue.db", writes_on_loop=True, loop_waits_seconds=self.loop_waits_seconds
        )
        return self._opened

    def close_log(self) -> None:
        """Close the log."""
        self._opened.close()


class QueueWaitingOnLoop(QueueWrittenOnLoop):
    """As that, but the loop waits for its disk, as Redis does, unless it is slow."""

    loop_waits_seconds = 0.002


class MpregQueue(QueueApi):
    """MPREG's, in memory; it has no batches, and delivers a message every 100 ms."""

    side = MPREG
    fixed_count: ClassVar[int | None] = 30

    def make_queue(self, count: int) -> Any:
        """An empty queue with room for so many messages."""
        return self._api.queue(max_size=count)


class MpregFireAndForget(MpregQueue):
    """MPREG's, where the message is delivered by the send itself."""

    fixed_count: ClassVar[int | None] = None
