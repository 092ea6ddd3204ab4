"""A log that a test holds up, and what a journal is given and answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

from mpreg_mq.actors.journal import Journal
from mpreg_mq.events import Append, MemoryEventLog
from tests.support.numbered_events import event

PATIENCE = 30.0
"""Seconds after which a test that hangs fails."""


class GatedLog(MemoryEventLog):
    """A log whose disk can be held up, broken and watched."""

    def __init__(self) -> None:
        super().__init__()
        self.transactions: list[list[Append]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.failure: BaseException | None = None

    def append(self, batch: Sequence[Append]) -> None:
        self.transactions.append(list(batch))
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        super().append(batch)


def append(stream: str, version: int) -> Append:
    return Append(stream, version, (event(version),))


class Answers:
    """Collects what ``on_done`` is called with, and on which thread."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        self.threads: set[int] = set()
        self.came = threading.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self.threads.add(threading.get_ident())
        self.came.set()


def hold(log: GatedLog, journal: Journal, stream: str = "queue:held") -> None:
    """Have the journal sit in a commit until ``log.gate`` is set."""
    log.gate.clear()
    log.entered.clear()
    journal.submit(append(stream, 0), Answers(), None)
    assert log.entered.wait(PATIENCE)


async def until(holds: Callable[[], object]) -> None:
    """Wait for what another thread, or a later iteration, does."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0)


async def settled() -> None:
    """Let everything happen that is going to happen on the loop."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(story: Callable[[asyncio.AbstractEventLoop], Awaitable[None]]) -> None:
    async def main() -> None:
        await story(asyncio.get_running_loop())

    asyncio.run(main())
