"""What all queues have in common: a load, the time it took, and how many messages make a round of that time."""

from __future__ import annotations

import asyncio
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from benchmarks.harness.model import Context, UnavailableError, Values
from benchmarks.harness.payloads import Message

RATE = "messages/s"
DONE_TIMEOUT_SECONDS = 60.0


@attrs.frozen
class Load:
    """Who sends: so many tasks at once, each awaiting its message, or its batch of ``batch`` messages."""

    senders: int = 1
    batch: int = 1

    @property
    def step(self) -> int:
        """Messages under way at most; a run is a multiple of it."""
        return self.senders * self.batch


def library(name: str, distribution: str | None = None) -> Any:
    """An optional module.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{error}; pip install {distribution or name.partition('.')[0]}") from None


class Countdown:
    """Tells when it was called for the last of ``expected`` messages."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self._done = asyncio.Event()

    def count(self, messages: int) -> None:
        """So many messages more are done."""
        self.left -= messages
        if self.left <= 0:
            self._done.set()

    def message(self, _: Any) -> None:
        """One message more is done; a callback."""
        self.left -= 1
        if self.left <= 0:
            self._done.set()

    async def wait(self) -> None:
        """Wait for the last message.

        Raises:
            TimeoutError: it did not come within ``DONE_TIMEOUT_SECONDS``.
        """
        try:
            await asyncio.wait_for(self._done.wait(), DONE_TIMEOUT_SECONDS)
        except TimeoutError:
            raise TimeoutError(f"{self.left} messages not done after {DONE_TIMEOUT_SECONDS:.0f} s") from None


def bytes_under(directory: Path) -> int:
    """What the files in a directory hold."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


class QueueUnderLoad(ABC):
    """A queue under a load: a round is a number of messages sent, delivered and acknowledged.

    ``bytes_used`` is what the latest run left on disk, where that can be said.
    """

    bytes_used = 0
    fixed_count: ClassVar[int | None] = None
    """Messages of a round, where calibrating would take too long."""

    def __init__(self, context: Context, load: Load) -> None:
        self.context = context
        self.load = load
        self._count = 0

    async def prepare(self) -> None:
        """Connect, and find how many messages take about ``context.seconds``."""
        await self.connect()
        self._count = self.fixed_count or await self._calibrated()

    async def _calibrated(self) -> int:
        count = self.load.step
        # A short try to warm up, and a longer one whose rate tells something.
        for share in (0.05, 0.2, 1.0):
            spent = await self.run(self.context.payloads.take(count))
            wanted = count / spent * self.context.seconds * share
            count = max(1, round(wanted / self.load.step)) * self.load.step
        return count

    async def measure(self) -> Values:
        """Messages a second."""
        return {RATE: self._count / await self.run(self.context.payloads.take(self._count))}

    @abstractmethod
    async def connect(self) -> None:
        """What is done once."""

    @abstractmethod
    async def run(self, messages: Sequence[Message]) -> float:
        """Send these; seconds until the last of them is acknowledged."""

    async def close(self) -> None:  # noqa: B027 - a file has nothing to close
        """Release what :meth:`connect` made."""


def ignore(payload: Any) -> None:
    """What a subscriber does that only takes messages."""


class AsyncQueue(QueueUnderLoad):
    """A queue that is sent to by tasks of one event loop. ``handle`` is called with each payload that arrives."""

    def __init__(self, context: Context, load: Load) -> None:
        super().__init__(context, load)
        self.handle: Callable[[Any], None] = ignore

    async def run(self, messages: Sequence[Message]) -> float:
        """Begin, let the senders send their shares, wait until all is acknowledged, end."""
        senders, batch = self.load.senders, self.load.batch
        await self.begin(len(messages))
        begun = time.perf_counter()
        if senders == 1:
            await self._sender(0, messages, batch)
        else:
            async with asyncio.TaskGroup() as group:
                for sender in range(senders):
                    group.create_task(self._sender(sender, messages[sender::senders], batch))
        await self.finished()
        spent = time.perf_counter() - begun
        await self.end()
        return spent

    async def _sender(self, sender: int, messages: Sequence[Message], batch: int) -> None:
        if batch == 1:
            for message in messages:
                await self.send(sender, message)
        else:
            for start in range(0, len(messages), batch):
                await self.send_batch(sender, messages[start : start + batch])

    @abstractmethod
    async def begin(self, count: int) -> None:
        """Make an empty queue and start to consume ``count`` messages from it; not measured."""

    @abstractmethod
    async def send(self, sender: int, message: Message) -> None:
        """Send one; returns when it is as durable as it gets."""

    @abstractmethod
    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        """Send these together; returns when all are as durable as they get."""

    @abstractmethod
    async def finished(self) -> None:
        """Wait until all that were announced to :meth:`begin` are acknowledged."""

    async def end(self) -> None:
        """Remove the queue; not measured."""
