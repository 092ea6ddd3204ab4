"""The manager for threads answers whoever calls it, also while another thread closes it or Ctrl-C comes (C3)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mpreg_mq import (
    BlockingMessageQueueManager,
    Durability,
    EventLogError,
    MessageQueueManager,
    QueueClosedError,
    QueueConfiguration,
    QueueManagerConfiguration,
    RejectionReason,
)
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import SQLiteEventLog
from tests.support.running import PATIENCE_SECONDS, wait_until

THREADS = 8


def interrupted_while(call: Callable[[], Any], begun: Callable[[], bool]) -> None:
    """Make a call on this thread, and interrupt it once it has begun."""

    def interrupt() -> None:
        wait_until(begun)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # What runs in the background may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _interruptible(thread, call)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()


def _interruptible(thread: threading.Thread, call: Callable[[], Any]) -> None:
    thread.start()
    call()
    # It may come only now.
    thread.join()
    threading.Event().wait(PATIENCE_SECONDS)


def test_c3_threads_that_call_while_another_shuts_down_get_an_answer() -> None:
    """Given threads that send and receive all the while, when the manager is shut down, then each of them hears that it
    is closed."""
    manager = BlockingMessageQueueManager()
    manager.create_queue("q")
    closed: list[str] = []
    begun = threading.Barrier(THREADS + 1)

    def work(number: int) -> None:
        begun.wait()
        try:
            while True:
                if number % 2:
                    manager.send_message("q", "t", number)
                else:
                    manager.receive_messages("q", f"w{number}", 1, 60.0)
        except MessageQueueError as error:
            closed.append(str(error))

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    begun.wait()
    manager.send_message("q", "t", 0)
    manager.shutdown()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert len(closed) == THREADS
    with pytest.raises(QueueClosedError, match="the queue manager is closed; make a new one"):
        manager.send_message("q", "t", 1)


def test_c3_what_is_asked_of_a_loop_that_has_been_told_to_stop_is_answered() -> None:
    """Given a request that the loop does not come to before it stops, or that waits for what does not come any more,
    then whoever asked hears that the manager is closed."""
    manager = BlockingMessageQueueManager()
    answers: list[BaseException] = []
    waiting = threading.Event()

    async def endless(*_: Any, **__: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    def ask() -> None:
        try:
            manager.send_message("q", "t", 1)
        except QueueClosedError as error:
            answers.append(error)

    with mock.patch.object(MessageQueueManager, "send_message", endless):
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert waiting.wait(PATIENCE_SECONDS)
        manager.shutdown()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert len(answers) == 3


def test_l1_an_interrupted_receiver_takes_nothing() -> None:
    """Given a thread that waits for a message, when Ctrl-C ends its wait, then the next message is for others."""
    manager = BlockingMessageQueueManager()
    manager.create_queue("q")
    interrupted_while(
        lambda: manager.receive_messages("q", "w", 1, 60.0),
        lambda: bool(manager._manager.queue("q")._actor._receivers),
    )
    wait_until(lambda: not manager._manager.queue("q")._actor._receivers)
    assert manager.send_message("q", "t", 1).success
    (message,) = manager.receive_messages("q", "v")
    assert message.payload == 1
    manager.shutdown()


def test_c3_an_interrupted_shutdown_goes_on_and_a_second_one_waits_for_it(tmp_path: Path) -> None:
    """Given a shutdown that waits for a callback, when Ctrl-C ends the wait, then a second one closes the log."""
    manager = BlockingMessageQueueManager(log=tmp_path / "log.db")
    manager.create_queue("q")
    ends, runs = threading.Event(), threading.Event()

    def work(message: Any) -> None:
        runs.set()
        ends.wait(PATIENCE_SECONDS)

    manager.subscribe_to_queue("q", "w", "#", work)
    manager.send_message("q", "t", 1)
    assert runs.wait(PATIENCE_SECONDS)
    interrupted_while(manager.shutdown, lambda: manager._manager._closed)
    assert manager.send_message("q", "t", 2).rejection is RejectionReason.CLOSING
    ends.set()
    manager.shutdown()
    assert not manager._thread.is_alive()
    SQLiteEventLog(tmp_path / "log.db").close()


def test_sums_can_be_asked_for_while_queues_are_made() -> None:
    """Given a table of queues that changes while the sums are made, then they are of those that were there."""
    with BlockingMessageQueueManager() as manager:
        for number in range(5):
            manager.create_queue(f"q{number}")
        inner = manager._manager
        first = inner.queue("q0")
        inspect = first._inspect

        def meanwhile(function: Callable[..., Any]) -> Any:
            inner._queues["another"] = first
            return inspect(function)

        with mock.patch.object(first, "_inspect", meanwhile):
            assert manager.get_global_statistics().total_queues == 5
        del inner._queues["another"]


def test_l4_an_interruption_that_is_none_ends_no_loop(tmp_path: Path) -> None:
    """Given a callback on the manager's own thread that raises what Ctrl-C raises, which that thread never gets, then
    it is a failed attempt, and everything goes on and can be closed."""
    manager = BlockingMessageQueueManager(log=tmp_path / "log.db")
    manager.create_queue("q", QueueConfiguration("q", max_retries=0))

    def fail(message: Any) -> None:
        raise KeyboardInterrupt

    manager.subscribe_to_queue("q", "w", "#", fail, blocking=False)
    manager.send_message("q", "t", 1)
    wait_until(lambda: len(manager.list_dead_letters("q")) == 1)
    assert manager.send_message("q", "t", 2).success
    manager.shutdown()
    SQLiteEventLog(tmp_path / "log.db").close()


def test_c3_a_shutdown_on_the_managers_own_thread_is_refused_and_closes_nothing(tmp_path: Path) -> None:
    """Given a callback on the manager's own thread that shuts it down, then it is told why not, and all goes on."""
    said: list[str] = []
    with BlockingMessageQueueManager(log=tmp_path / "log.db") as manager:
        manager.create_queue("q")

        def end(_: object) -> None:
            try:
                manager.shutdown()
            except MessageQueueError as error:
                said.append(str(error))

        manager.subscribe_to_queue("q", "ends", "end", end, blocking=False)
        assert manager.send_message("q", "end", 1).success
        wait_until(lambda: len(said) == 1)
        assert "subscribe this callback with blocking=True" in said[0]
        assert manager.send_message("q", "other", 2).success
    again = MessageQueueManager(log=tmp_path / "log.db")
    assert [message.payload for message in again.queue("q").pending_messages] == [2]
    again.shutdown_sync()


def test_every_verb_waits_on_a_thread_that_runs_a_loop() -> None:
    """Given a thread that runs an event loop of its own, when it calls the manager, then each verb gives its result,
    and the callback of a subscription runs in the context of that thread."""
    place = contextvars.ContextVar("place", default="nowhere")
    seen: list[str] = []

    async def call() -> None:
        place.set("here")
        subscription = manager.subscribe_to_queue("q", "s", "#", lambda _: seen.append(place.get()), verb="a name")
        assert subscription is not None
        assert manager.pause_queue("q")
        assert manager.send_message("q", "t", 1).success
        info, counts = manager.get_queue_info("q"), manager.get_queue_statistics("q")
        assert info is not None
        assert info["paused"]
        assert counts is not None
        assert counts.current_queue_size == 1
        assert manager.get_global_statistics().active_subscriptions == 1
        assert manager.list_dead_letters("q") == []
        assert manager.resume_queue("q")
        wait_until(lambda: seen == ["here"])
        assert manager.unsubscribe_from_queue("q", subscription)

    async def look() -> None:
        assert manager.get_global_statistics().total_messages_sent == 1

    with BlockingMessageQueueManager() as manager:
        manager.create_queue("q")
        asyncio.run(call())
    asyncio.run(look())


def test_c3_a_shutdown_that_fails_ends_the_thread() -> None:
    """Given a manager whose end raises, then that is raised, and its thread has ended all the same."""
    manager = BlockingMessageQueueManager()

    async def fail(_: object) -> None:
        raise EventLogError("no disk")

    with mock.patch.object(MessageQueueManager, "_end", fail), pytest.raises(EventLogError, match="no disk"):
        manager.shutdown()
    assert not manager._thread.is_alive()
    manager.shutdown()


def in_a_child(use: Callable[[], bool]) -> bool:
    """Whether a forked child found what it was to find."""
    with warnings.catch_warnings():
        # Newer Pythons warn of threads in a forking process.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        found = False
        with contextlib.suppress(BaseException):
            signal.alarm(int(PATIENCE_SECONDS))
            found = use()
        os._exit(7 if found else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("durability", ["committed", "buffered"])
def test_a_manager_is_not_used_after_a_fork(tmp_path: Path, durability: str) -> None:
    """Given a child forked with a manager open, when it sends or closes, then it is told, and the parent goes on."""
    path = tmp_path / "log.db"
    manager = MessageQueueManager(QueueManagerConfiguration(default_durability=Durability(durability)), log=path)
    asyncio.run(manager.create_queue("q"))

    def send() -> bool:
        async def story() -> bool:
            results = [await manager.send_message("q", "t", "child") for _ in range(2)]
            said = "".join(str(result.error_message) for result in results)
            return not results[1].success and "before this process was forked" in said

        return asyncio.run(story())

    def close() -> bool:
        for verb in (manager.shutdown_sync, lambda: asyncio.run(manager.shutdown())):
            with contextlib.suppress(MessageQueueError):
                verb()
        return True

    def change() -> bool:
        try:
            manager.pause_queue("q")
        except EventLogError as error:
            return "before this process was forked" in str(error)
        return False

    assert in_a_child(send)
    assert in_a_child(close)

    async def forked_beside_the_loop() -> None:
        # What the loop's own thread would see to, nobody does in the child.
        assert (await manager.send_message("q", "other", "before")).success
        for use in (send, change, close):
            assert await asyncio.to_thread(in_a_child, use)
        assert await manager.purge_queue("q") == 1

    asyncio.run(forked_beside_the_loop())

    async def go_on() -> None:
        assert (await manager.send_message("q", "t", "parent")).success
        await manager.shutdown()

    asyncio.run(go_on())
    again = MessageQueueManager(log=path)
    assert [message.payload for message in again.queue("q").pending_messages] == ["parent"]
    again.shutdown_sync()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_waits_for_no_change_of_its_parents(tmp_path: Path) -> None:
    """Given a child forked while its parent changes routes and makes a queue, when it does so, then it is told."""
    manager = MessageQueueManager(log=tmp_path / "log.db")

    def refused() -> bool:
        async def story() -> bool:
            verbs: tuple[Callable[[], Coroutine[Any, Any, bool]], ...] = (
                lambda: manager.route_topic_to_queue("new", "q"),
                lambda: manager.unroute_topic_from_queue("t", "q"),
                lambda: manager.create_queue("other"),
                lambda: manager.delete_queue("q"),
            )
            told = 0
            for verb in verbs:
                try:
                    await verb()
                except EventLogError as error:
                    told += "before this process was forked" in str(error)
            return told == len(verbs)

        return asyncio.run(story())

    async def parent() -> None:
        await manager.create_queue("q")
        assert await manager.route_topic_to_queue("t", "q")
        async with manager._router._recording:
            making = asyncio.create_task(manager.create_queue("other"))
            await asyncio.sleep(0)
            assert manager._under_way.names() == ["other"]
            assert await asyncio.to_thread(in_a_child, refused)
        assert await making
        await manager.shutdown()

    asyncio.run(parent())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_blocking_manager_is_not_used_after_a_fork() -> None:
    """Given a child forked with a manager for threads, when it sends, then it is told that the fork is why."""
    with BlockingMessageQueueManager() as manager:
        manager.create_queue("q")

        def send() -> bool:
            try:
                manager.send_message("q", "t", 1)
            except QueueClosedError as error:
                return "before this process was forked" in str(error)
            return False

        def ends() -> bool:
            for verb in (manager.pause_queue, manager.get_queue_statistics, manager.list_dead_letters):
                verb("q")
            manager.shutdown()
            return True

        with manager._asking:
            # As if another thread were about to ask.
            assert in_a_child(send)
        assert in_a_child(ends)
        assert manager.send_message("q", "t", 1).success
