"""What a manager or a queue has begun comes to its end, whoever stops waiting for it (C3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import MessageQueue, MessageQueueManager, QueueConfiguration, QueuedMessage, RejectionReason, VirtualClock
from mpreg_mq.configuration import QueueManagerConfiguration
from mpreg_mq.ending import Ending
from mpreg_mq.errors import EventLogError, LogLockedError
from mpreg_mq.events import SQLiteEventLog
from tests.support.running import PATIENCE_SECONDS, FlakyLog, make_queue, until

STEPS = pytest.mark.parametrize("steps", range(8))


async def cancelled_after(steps: int, work: Any) -> None:
    """Begin something, and stop waiting for it after so many iterations of the loop."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@STEPS
def test_a_queue_is_created_though_nobody_waits_for_it(tmp_path: Path, steps: int) -> None:
    """Given a creation that is cancelled, wherever that is, when the queue is created again or sent to, then that
    works, and there is one queue."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await cancelled_after(steps, manager.create_queue("q"))
            await manager.create_queue("q")
            assert (await manager.send_message("q", "t", 1)).success
            await cancelled_after(steps, manager.send_message("auto", "t", 1))
            assert (await manager.send_message("auto", "t", 2)).success
            assert sorted(manager.list_queues()) == ["auto", "q"]

    asyncio.run(story())


@STEPS
def test_a_queue_is_deleted_though_nobody_waits_for_it(tmp_path: Path, steps: int) -> None:
    """Given a deletion that is cancelled, wherever that is, when the queue is deleted again, then it is gone, and one
    of the same name can be made."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await manager.create_queue("q")
            await manager.send_message("q", "t", 1)
            await cancelled_after(steps, manager.delete_queue("q"))
            await manager.delete_queue("q")
            assert manager.list_queues() == []
            assert await manager.create_queue("q")
            assert (await manager.send_message("q", "t", 2)).success
            assert [message.payload for message in manager.queue("q").pending_messages] == [2]

    asyncio.run(story())


def test_two_who_delete_a_queue_delete_it_once(tmp_path: Path) -> None:
    """Given two deletions of one queue at once, then one says that it did it and the other that there is none."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await manager.create_queue("q")
            assert await asyncio.gather(*(manager.delete_queue("q") for _ in range(2))) == [True, False]
            assert await asyncio.gather(*(manager.create_queue("q") for _ in range(2))) == [True, False]

    asyncio.run(story())


def test_queues_that_are_being_made_count_among_the_most(tmp_path: Path) -> None:
    """Given room for two queues, when three are created at once, then the third is refused; a cancelled one counts."""

    async def story() -> None:
        settings = QueueManagerConfiguration(max_queues=2)
        async with MessageQueueManager(settings, log=tmp_path / "log.db") as manager:
            made = await asyncio.gather(*(manager.create_queue(name) for name in "abc"))
            assert made == [True, True, False]
            await manager.delete_queue("a")
            await cancelled_after(2, manager.create_queue("d"))
            assert not await manager.create_queue("e")
            assert not await manager.create_queue("d")
            assert sorted(manager.list_queues()) == ["b", "d"]

    asyncio.run(story())


def test_a_creation_that_fails_is_told_to_who_asked_for_it() -> None:
    """Given a log that fails, then who creates the queue gets the error, who creates it at the same time tries anew,
    and it can be created later."""

    async def story() -> None:
        log = FlakyLog(blocking=True)
        async with MessageQueueManager(log=log) as manager:
            log.failing = True
            failed = await asyncio.gather(*(manager.create_queue("q") for _ in range(2)), return_exceptions=True)
            assert [type(error) for error in failed] == [EventLogError, EventLogError]
            log.failing = False
            assert await manager.create_queue("q")

    asyncio.run(story())


def held_up(manager: MessageQueueManager) -> asyncio.Event:
    """Have a callback of queue q wait for an event."""
    ends = asyncio.Event()

    async def work(message: QueuedMessage) -> None:
        await ends.wait()

    manager.subscribe_to_queue("q", "w", "#", work)
    return ends


def test_c3_a_shutdown_ends_though_nobody_waits_for_it(tmp_path: Path) -> None:
    """Given a shutdown that waits for a callback and is cancelled, then it goes on; a second one waits for it, and then
    the log is closed."""

    async def story() -> None:
        path = tmp_path / "log.db"
        manager = MessageQueueManager(log=path)
        await manager.create_queue("q")
        ends = held_up(manager)
        await manager.send_message("q", "t", 1)
        await until(lambda: manager.queue("q").get_statistics().current_in_flight_count == 1)
        await cancelled_after(5, manager.shutdown())
        second = asyncio.create_task(manager.shutdown())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not second.done()
        with pytest.raises(LogLockedError, match="this process has it open for writing already; shut down the manager"):
            SQLiteEventLog(path)
        ends.set()
        await second
        assert manager.queue("q").get_statistics().messages_acknowledged == 1
        SQLiteEventLog(path).close()
        await manager.shutdown()

    asyncio.run(story())


def test_c3_a_queue_ends_though_nobody_waits_for_it() -> None:
    """Given a queue whose shutdown is cancelled, then it takes nothing more, and a second one waits for the first."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, FlakyLog(blocking=True))
        forever = asyncio.Event()

        async def work(message: QueuedMessage) -> None:
            await forever.wait()

        queue.subscribe("w", "#", work)
        await queue.send_message("t", 1)
        await until(lambda: queue.get_statistics().current_in_flight_count == 1)
        await cancelled_after(3, queue.shutdown(10))
        assert (await queue.send_message("t", 2)).rejection is RejectionReason.CLOSING
        second = asyncio.create_task(queue.shutdown(10))
        await clock.advance(9)
        assert not second.done()
        await clock.advance(1)
        await second
        assert queue.get_statistics().leases_expired == 1

    asyncio.run(story())


def test_c3_a_callback_that_shuts_down_the_manager_is_cut_off_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Given a callback that waits for the shutdown, which waits for it, then its time runs out, and all is closed."""

    async def story() -> None:
        path = tmp_path / "log.db"
        manager = MessageQueueManager(QueueManagerConfiguration(shutdown_timeout_seconds=0.01), log=path)
        await manager.create_queue("q")

        async def stop(message: QueuedMessage) -> None:
            await manager.shutdown()

        manager.subscribe_to_queue("q", "w", "#", stop)
        await manager.send_message("q", "t", 1)
        await until(lambda: manager._closed)
        await manager.shutdown()
        assert manager.queue("q").get_statistics().leases_expired == 1
        SQLiteEventLog(path).close()

    asyncio.run(story())


def test_c3_the_end_of_the_loop_ends_a_shutdown_as_well(tmp_path: Path) -> None:
    """Given a program that gives up waiting and ends its loop, then the log is closed all the same."""
    path = tmp_path / "log.db"

    async def story() -> None:
        manager = MessageQueueManager(log=path)
        await manager.create_queue("q")
        held_up(manager)
        await manager.send_message("q", "t", 1)
        await until(lambda: manager.queue("q").get_statistics().current_in_flight_count == 1)
        await cancelled_after(5, manager.shutdown())

    asyncio.run(story())
    log = SQLiteEventLog(path)
    assert type(list(log.read_all())[-1].event).__name__ == "SubscriberLeft"
    log.close()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_queue_that_cannot_be_closed_keeps_neither_the_others_nor_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Given one of two queues whose end raises, then the other is closed and so is the log, and the error is raised."""
    path = tmp_path / "log.db"

    async def story() -> None:
        manager = MessageQueueManager(log=path)
        for name in "ab":
            await manager.create_queue(name)
        actor = manager.queue("a")._actor

        def fail(*_: Any) -> Any:
            raise EventLogError("it cannot be")

        monkeypatch.setattr(type(actor), "_save_at_the_end", lambda self: fail() if self is actor else None)

        async def shut_down() -> None:
            if at_once:
                manager.shutdown_sync()
            else:
                await manager.shutdown()

        with pytest.raises(EventLogError, match="it cannot be"):
            await shut_down()
        SQLiteEventLog(path).close()
        await manager.shutdown()

    asyncio.run(story())


def test_a_shutdown_at_once_needs_not_wait_for_one_under_way(tmp_path: Path) -> None:
    """Given a shutdown that waits for a callback, when the manager is shut down at once, then it is, and so is the
    first."""

    async def story() -> None:
        path = tmp_path / "log.db"
        manager = MessageQueueManager(log=path)
        await manager.create_queue("q")
        held_up(manager)
        await manager.send_message("q", "t", 1)
        await until(lambda: manager.queue("q").get_statistics().current_in_flight_count == 1)
        first = asyncio.create_task(manager.shutdown())
        for _ in range(5):
            await asyncio.sleep(0)
        manager.shutdown_sync()
        SQLiteEventLog(path).close()
        await first

    asyncio.run(story())


def test_what_is_awaited_on_another_loop_ends_as_well() -> None:
    """Given an end under way on one loop, when another thread's loop asks for it, then it waits for that one."""
    ending, begun, ends = Ending(), threading.Event(), threading.Event()
    ended: list[str] = []

    async def end() -> None:
        begun.set()
        while not ends.is_set():
            await asyncio.sleep(0)
        ended.append("once")

    thread = threading.Thread(target=lambda: asyncio.run(ending.reach(end)))
    thread.start()
    begun.wait()

    async def join() -> None:
        waiting = asyncio.ensure_future(ending.reach(end))
        await asyncio.sleep(0)
        ends.set()
        await waiting

    asyncio.run(join())
    thread.join()
    assert ended == ["once"]


def test_who_waits_on_another_loop_takes_it_up_when_its_loop_ends() -> None:
    """Given an end under way on a loop that ends before it, then who waits for it on another loop comes to it there."""
    ending, begun, joined = Ending(), threading.Event(), threading.Event()
    ended: list[str] = []

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def begin() -> None:
        task = asyncio.create_task(ending.reach(never))
        await until(joined.is_set)
        task.cancel()

    async def end() -> None:
        ended.append("on the other loop")

    async def join() -> None:
        waiting = asyncio.ensure_future(ending.reach(end))
        await asyncio.sleep(0)
        joined.set()
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)

    thread = threading.Thread(target=lambda: asyncio.run(begin()))
    thread.start()
    begun.wait()
    asyncio.run(join())
    thread.join()
    assert ended == ["on the other loop"]


def test_what_nobody_waits_for_is_logged_where_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Given an end whose only waiter was cancelled, when it fails, then that is logged, and it is over."""

    async def story() -> None:
        ending, fails = Ending(), asyncio.Event()

        async def end() -> None:
            await fails.wait()
            raise EventLogError("no room")

        await cancelled_after(2, ending.reach(end))
        fails.set()
        await until(lambda: ending.over)
        await ending.reach(end)

    with caplog.at_level(logging.ERROR):
        asyncio.run(story())
    assert "no room" in caplog.text


def test_a_receiver_of_a_queue_that_is_deleted_is_sent_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Given a receiver that waits, when the queue is deleted, then it gets nothing, and nothing is logged."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await manager.create_queue("q")
            waiting = asyncio.create_task(manager.receive_messages("q", "w", 1, 60.0))
            await asyncio.sleep(0)
            await manager.delete_queue("q")
            assert await waiting == []

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert caplog.text == ""


def test_a_lock_of_another_process_is_that_ones(tmp_path: Path) -> None:
    """Given a log that another process has, then the error names that process and not this one."""
    path = tmp_path / "log.db"
    queue = MessageQueue(QueueConfiguration("q"), log=path)
    lock = path.with_name("log.db-lock")
    lock.write_text("1")
    with pytest.raises(LogLockedError, match=r"another process \(pid 1\)"):
        SQLiteEventLog(path)
    lock.write_text(str(os.getpid()))
    queue.shutdown_sync()
