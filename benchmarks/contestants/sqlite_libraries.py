"""Queues in an SQLite file: persist-queue, litequeue, huey.

They block, and their file takes one writer at a time, so that they are quickest on one thread: it sends what is
under way, then takes and acknowledges it.
"""

from __future__ import annotations

import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contestants.base import QueueUnderLoad, bytes_under, library
from benchmarks.harness.payloads import Message


class BlockingQueue(QueueUnderLoad):
    """One thread that sends ``load.batch`` messages and then consumes them, again and again."""

    _runs = 0

    async def run(self, messages: Sequence[Message]) -> float:
        """Send and consume by turns."""
        self._runs += 1
        directory = self.context.directory / f"run-{self._runs}"
        directory.mkdir()
        self.begin(directory)
        batch = self.load.batch
        bodies = [payload for _, payload in messages]
        begun = time.perf_counter()
        for start in range(0, len(bodies), batch):
            part = bodies[start : start + batch]
            with self.together():
                for payload in part:
                    self.put(payload)
            with self.together():
                for _ in part:
                    self.take()
        spent = time.perf_counter() - begun
        self.end()
        self.bytes_used = bytes_under(directory)
        shutil.rmtree(directory)
        return spent

    def together(self) -> AbstractContextManager[Any]:
        """What makes one commit of several puts or takes, where the library has that."""
        return nullcontext()

    @abstractmethod
    def begin(self, directory: Path) -> None:
        """Make an empty queue in a directory."""

    @abstractmethod
    def put(self, payload: Any) -> None:
        """Send one message."""

    @abstractmethod
    def take(self) -> None:
        """Receive one message and acknowledge it."""

    def end(self) -> None:
        """Close the queue."""


class PersistQueue(BlockingQueue):
    """persist-queue's ``SQLiteAckQueue`` with its msgpack serializer replaced by msgspec's JSON, which is quicker."""

    async def connect(self) -> None:
        """Import it."""
        self._library = library("persistqueue", "persist-queue")

    def begin(self, directory: Path) -> None:
        """An acknowledging queue."""
        self._queue = self._library.SQLiteAckQueue(str(directory), serializer=_Json)

    def put(self, payload: Any) -> None:
        """A commit."""
        self._queue.put(payload)

    def take(self) -> None:
        """A commit to take it and one to acknowledge it."""
        self._queue.ack(self._queue.get())

    def end(self) -> None:
        """Close its connections."""
        self._queue.close()


class LiteQueue(BlockingQueue):
    """litequeue, with ``synchronous=FULL`` in place of its NORMAL where ``full``."""

    full = False

    async def connect(self) -> None:
        """Import it."""
        self._library = library("litequeue")

    def begin(self, directory: Path) -> None:
        """A queue of its own file."""
        self._queue = self._library.LiteQueue(directory / "queue.db")
        if self.full:
            self._queue.conn.execute("PRAGMA synchronous = FULL")

    def put(self, payload: Any) -> None:
        """A commit."""
        self._queue.put(msgspec.json.encode(payload).decode())

    def take(self) -> None:
        """A commit to take it and one to mark it done."""
        message = self._queue.pop()
        msgspec.json.decode(message.data)
        # Releases from 0.10 on ask for the claim that taking the message made.
        claim = {"claim_id": message.claim_id} if hasattr(message, "claim_id") else {}
        self._queue.done(message.message_id, **claim)

    def end(self) -> None:
        """Close its connection."""
        self._queue.close()


class LiteQueueFull(LiteQueue):
    """Every commit on disk."""

    full = True


class HueyQueue(BlockingQueue):
    """huey's ``SqliteHuey`` with ``fsync=True``, and its task run as its consumer does; taking it is all it records."""

    async def connect(self) -> None:
        """Import it."""
        self._library = library("huey")

    def begin(self, directory: Path) -> None:
        """An instance with one task."""
        self._huey = self._library.SqliteHuey(filename=str(directory / "huey.db"), fsync=True, results=False)
        self._task: Callable[[Any], Any] = self._huey.task()(_handle)

    def put(self, payload: Any) -> None:
        """A commit."""
        self._task(payload)

    def take(self) -> None:
        """A commit to take it off the queue; there is no acknowledgment."""
        self._huey.execute(self._huey.dequeue())

    def end(self) -> None:
        """Close its connection."""
        self._huey.storage.close()


class _Json:
    """The serializer that persist-queue is given."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return msgspec.json.encode(value)

    @staticmethod
    def loads(value: bytes) -> Any:
        return msgspec.json.decode(value)


def _handle(payload: Any) -> None:
    """What the task does with a message."""
