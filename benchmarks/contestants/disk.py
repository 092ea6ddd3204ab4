"""Bytes on disk for each message that is done, before anything is compacted."""

from __future__ import annotations

from benchmarks.contestants.base import QueueUnderLoad
from benchmarks.harness.model import Values

SIZE = "bytes a message"
MESSAGES_A_SECOND = 10_000
"""How many messages for each second that a round may take; all sides send as many."""


class DiskUse:
    """A queue whose files are measured when its messages are done and it is closed."""

    def __init__(self, queue: QueueUnderLoad, messages_a_second: int = MESSAGES_A_SECOND) -> None:
        self._queue = queue
        step = queue.load.step
        self._count = max(1, int(messages_a_second * min(1.0, queue.context.seconds)) // step) * step

    async def prepare(self) -> None:
        """Connect."""
        await self._queue.connect()

    async def measure(self) -> Values:
        """Bytes a message."""
        await self._queue.run(self._queue.context.payloads.take(self._count))
        return {SIZE: self._queue.bytes_used / self._count}

    async def close(self) -> None:
        """Close the queue."""
        await self._queue.close()
