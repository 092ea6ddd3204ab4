"""Helpers for tests that run real actors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpreg_mq.clock import VirtualClock
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import Append, MemoryEventLog, RecordedEvent
from mpreg_mq.model import QueuedMessage
from mpreg_mq.projections import QueueState
from mpreg_mq.queue import MessageQueue

PATIENCE_SECONDS = 20.0
"""Real time after which a test that waits for another thread gives up; nothing is asserted about it."""


class UnspeakableError(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError


class FlakyLog:
    """A memory log whose appends fail while told to; ``blocking`` puts the journal's thread before it."""

    location = "flaky:"

    def __init__(self, blocking: bool) -> None:
        self.blocking = blocking
        self.failing = False
        self.appended: list[Sequence[Append]] = []
        self._log = MemoryEventLog()

    def append(self, batch: Sequence[Append]) -> None:
        if self.failing:
            raise OSError("disk on fire")
        self._log.append(batch)
        self.appended.append(batch)

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        return self._log.read_stream(stream, after_version)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def make_queue(clock: VirtualClock | None = None, log: Any = None, **settings: Any) -> MessageQueue:
    """A queue on a virtual clock."""
    return MessageQueue(QueueConfiguration("q", **settings), log=log, clock=clock or VirtualClock())


async def until(holds: Callable[[], bool]) -> None:
    """Yield turns until something holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait on a thread without a loop until something holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "it does not come to hold"
        pause.wait(0.001)


class Recorder:
    """A callback that remembers what it was given."""

    def __init__(self) -> None:
        self.messages: list[QueuedMessage] = []

    def __call__(self, message: QueuedMessage) -> None:
        self.messages.append(message)

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self.messages]


def assert_fold_equality(queue: MessageQueue) -> None:
    """The live state equals the fold of the log (I4)."""
    actor = queue._actor
    records = list(actor._store.log.read_stream(actor.stream))
    rebuilt = QueueState.replay(record.event for record in records)
    rebuilt.check()
    assert rebuilt.describe() == actor.state.describe()
