"""A tap on a log tells of every event that is stored, once, in order, and of none that is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from mpreg_mq.actors.journal import Journal
from mpreg_mq.events import Append, SQLiteEventLog
from mpreg_mq.exchange.queue_events import TappedLog
from tests.support.journals import PATIENCE, Answers, append
from tests.support.quick_logs import QuickLog


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0)


def run(log: TappedLog, story: Callable[[Journal, asyncio.AbstractEventLoop], Awaitable[None]]) -> None:
    """A story with a journal for the log."""

    async def main() -> None:
        journal = Journal.start(log, hold_seconds=0.0)
        await story(journal, asyncio.get_running_loop())
        journal.stop()

    asyncio.run(main())


def versions(told: list[Append]) -> list[int]:
    return [one.expected_version for one in told]


def test_what_is_not_on_disk_yet_is_not_told() -> None:
    """Given a batch that the loop has written, then it is told when its sync has ended, and not before."""
    inner, told = QuickLog(), list[Append]()

    async def story(journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: inner.writer.doubtful)
        assert told == []
        inner.writer.end()
        await until(lambda: answers.errors)
        assert versions(told) == [0]

    run(TappedLog(inner, told.append), story)


@pytest.mark.parametrize("survive", [0, 1, 2])
def test_after_a_failure_each_is_told_once(survive: int) -> None:
    """Given two batches whose sync failed, and so many of them in the log, then each is told once, in order."""
    inner, told = QuickLog(), list[Append]()

    async def story(journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        for version in range(2):
            journal.submit(append("queue:a", version), answers, loop)
            await until(lambda: len(inner.writer.doubtful) > version)  # noqa: B023
        assert told == []
        inner.writer.survive = survive
        inner.writer.fail(OSError(5, "the disk is on fire"))
        await until(lambda: len(answers.errors) == 2)
        assert versions(told) == [0, 1]

    run(TappedLog(inner, told.append), story)


def test_a_batch_that_was_refused_is_told_when_the_thread_has_stored_it() -> None:
    """Given a log that cannot be written now without waiting, then what the thread stores in its place is told once."""
    inner, told = QuickLog(), list[Append]()
    inner.writer.refuse = True

    async def story(journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: answers.errors)
        inner.writer.refuse, inner.writer.at_once = False, True
        journal.flush(PATIENCE)
        journal.submit(append("queue:a", 1), answers, loop)
        await until(lambda: len(answers.errors) == 2)
        assert versions(told) == [0, 1]

    run(TappedLog(inner, told.append), story)


def test_a_log_that_overrides_append_is_not_passed_by(tmp_path: Path) -> None:
    """Given a log in a file of a class with an append of its own, then everything goes through that, on the thread."""

    threads: set[int] = set()

    class Counting(SQLiteEventLog):
        def append(self, batch: Sequence[Append]) -> None:
            threads.add(threading.get_ident())
            super().append(batch)

    with_append = Counting(tmp_path / "log.db", writes_on_loop=True)
    assert with_append.quick_writer() is None

    async def story() -> None:
        journal = Journal.start(with_append)
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, asyncio.get_running_loop())
        await until(lambda: answers.errors)
        journal.stop_and_close()

    asyncio.run(story())
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_who_is_told_cannot_fail_what_is_on_disk() -> None:
    """Given somebody who raises when told, then the append is answered as done, and so is the next."""
    inner = QuickLog()
    inner.writer.at_once = True

    def told(_: Append) -> None:
        raise RuntimeError("Event loop is closed")

    async def story(journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        for version in range(2):
            journal.submit(append("queue:a", version), answers, loop)
            await until(lambda: len(answers.errors) > version)  # noqa: B023
        assert answers.errors == [None, None]

    run(TappedLog(inner, told), story)
