"""A manager that several event loops use, each on a thread of its own: what they wait for comes, or is refused."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import MessageQueueManager, QueueConfiguration
from mpreg_mq.ending import OneAtATime
from mpreg_mq.errors import EventLogError, InvalidOptionError, MessageQueueError, QueueClosedError
from mpreg_mq.events import Append, MemoryEventLog
from tests.support.loops import OtherLoop, other_loop
from tests.support.running import PATIENCE_SECONDS, until


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads that take turns much more often than they do by themselves."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_l1_a_receiver_on_another_loop_joins_and_fetches() -> None:
    """Given a queue that one loop handles, when a new subscriber fetches on another, then it gets what there is."""
    manager = MessageQueueManager()
    go_on = threading.Event()

    async def fetch() -> list[Any]:
        # Whoever handles it does not do so before this has begun to wait.
        other.loop.call_soon_threadsafe(go_on.wait, PATIENCE_SECONDS)
        asyncio.get_running_loop().call_later(0, go_on.set)
        messages = await manager.receive_messages("q", "new")
        assert await manager.acknowledge_message("q", messages[0], "new")
        return [message.payload for message in messages]

    with other_loop() as other:
        other.run(manager.create_queue("q"))
        other.run(manager.send_message("q", "t", 1))
        assert asyncio.run(fetch()) == [1]
        other.run(manager.shutdown())


def test_what_cannot_wait_on_another_loop_does_nothing() -> None:
    """Given a queue that one loop handles, when another one calls what is no coroutine, then that is refused with what
    to do instead, and nothing has changed; a thread without a loop may call it."""
    manager = MessageQueueManager()

    async def call() -> None:
        for verb in (manager.pause_queue, manager.get_queue_statistics):
            with pytest.raises(MessageQueueError, match="another event loop handles it: ask there, or in a thread"):
                verb("q")
        with pytest.raises(MessageQueueError, match="another event loop handles it"):
            manager.subscribe_to_queue("q", "s", "#")
        assert await asyncio.to_thread(manager.resume_queue, "q") is False

    with other_loop() as other:
        other.run(manager.create_queue("q"))
        asyncio.run(call())
        assert not manager.queue("q").paused
        assert not manager.queue("q").subscriptions
        other.run(manager.shutdown())


class GatedLog(MemoryEventLog):
    """A log with a journal; where it is ``gated``, an append waits to be let through, and the first one fails then."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.gated = False
        self.come = 0
        self.through = threading.Semaphore(0)

    def append(self, batch: Sequence[Append]) -> None:
        if self.gated:
            self.come += 1
            first = self.come == 1
            self.through.acquire(timeout=PATIENCE_SECONDS)
            if first:
                raise EventLogError("the disk is on fire")
        super().append(batch)


def test_what_cannot_wait_for_a_queue_that_reads_its_log_again_does_nothing() -> None:
    """Given a queue of which one commit has failed and another is under way, when it is paused, then that is refused
    and has no effect, and a new subscriber's receive waits until the queue has read its log again."""

    async def story() -> None:
        log = GatedLog()
        manager = MessageQueueManager(log=log)
        await manager.create_queue("q")
        actor = manager.queue("q")._actor
        log.gated = True
        send = asyncio.create_task(manager.send_message("q", "t", 1))
        await until(lambda: log.come == 1)
        purge = asyncio.create_task(manager.purge_queue("q"))
        await until(lambda: actor._outstanding == 2)
        log.through.release()
        await until(lambda: actor._recovering is not None)
        with pytest.raises(MessageQueueError, match="it reads its log again after a failure: ask a moment later"):
            manager.pause_queue("q")
        receive = asyncio.create_task(manager.receive_messages("q", "new"))
        await asyncio.sleep(0)
        assert not receive.done()
        log.through.release(100)
        assert await receive == []
        assert not (await send).success
        with pytest.raises(EventLogError):
            await purge
        assert not manager.queue("q").paused
        await manager.shutdown()

    asyncio.run(story())


def test_queues_are_deleted_from_several_loops_at_once(tmp_path: Path) -> None:
    """Given queues that several loops make and delete at the same time, then each has its own way, and nobody waits for
    ever."""
    manager = MessageQueueManager(log=tmp_path / "log.db")

    async def churn(mine: str) -> int:
        deleted = 0
        for number in range(10):
            assert await manager.create_queue(f"{mine}-{number}")
            deleted += await manager.delete_queue(f"{mine}-{number}")
        return deleted

    async def churn_all(mine: str) -> list[int]:
        return await asyncio.wait_for(asyncio.gather(*(churn(f"{mine}-{n}") for n in range(3))), PATIENCE_SECONDS)

    with other_loop() as one, other_loop() as two:
        under_way = [
            asyncio.run_coroutine_threadsafe(churn_all(f"q{n}"), loop.loop) for n, loop in enumerate((one, two))
        ]
        assert [future.result(PATIENCE_SECONDS) for future in under_way] == [[10, 10, 10]] * 2
        one.run(manager.shutdown())


def test_one_queue_is_made_and_deleted_by_several_loops_at_once(quick_switches: None) -> None:
    """Given several loops that make and delete one queue as soon as they can, then each is told whether it was they,
    and as many have made it as have deleted it."""
    manager = MessageQueueManager()

    async def churn() -> tuple[int, int]:
        made = deleted = 0
        for _ in range(100):
            made += await manager.create_queue("q")
            deleted += await manager.delete_queue("q")
        return made, deleted

    with other_loop() as one, other_loop() as two:
        under_way = [asyncio.run_coroutine_threadsafe(churn(), loop.loop) for loop in (one, two, one)]
        done = [future.result(PATIENCE_SECONDS) for future in under_way]
        assert sum(made for made, _ in done) == sum(deleted for _, deleted in done) > 0
        assert manager.list_queues() == []
        one.run(manager.shutdown())


def test_a_lock_of_several_loops_is_one_tasks_at_a_time_and_passes_by_who_has_gone() -> None:
    """Given a lock that a task has, when of those that wait on two loops one is cancelled, then the others get it in
    turn."""
    lock = OneAtATime()
    order: list[str] = []

    async def take(name: str, waits: bool) -> None:
        async with lock:
            order.append(name)
            if waits:
                await asyncio.sleep(0)
            assert order[-1] == name

    async def story(other: OtherLoop) -> None:
        await lock.__aenter__()
        gone = asyncio.create_task(take("gone", False))
        here = asyncio.create_task(take("here", True))
        there = asyncio.run_coroutine_threadsafe(take("there", True), other.loop)
        while len(lock._waiting) < 3:
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        await lock.__aexit__()
        await asyncio.wait_for(asyncio.gather(here, asyncio.wrap_future(there)), PATIENCE_SECONDS)

    with other_loop() as other:
        asyncio.run(story(other))
    assert sorted(order) == ["here", "there"]


async def bury(manager: MessageQueueManager, name: str, count: int = 1) -> None:
    """A new queue with dead letters."""
    await manager.create_queue(name, QueueConfiguration(name, max_retries=0))
    await manager.send_messages(name, [("t", number) for number in range(count)])
    for message in await manager.receive_messages(name, "w", count):
        await manager.negative_acknowledge(name, message, "w")


def test_d1_another_loop_redrives_and_hears_what_it_has_redriven() -> None:
    """Given dead letters of a queue that one loop handles, when another loop tries and does a redrive, here or into a
    queue of a third one, then it gets the ids, as of every verb that can be awaited."""
    manager = MessageQueueManager()

    async def redrive() -> None:
        assert len(await manager.redrive_dead_letters("q", dry_run=True)) == 2
        for target in ("q", "other"):
            (new,) = await manager.redrive_dead_letters("q", limit=1, target_queue=target)
            (message,) = await manager.receive_messages(target, f"fetches {target}")
            assert (new, new.created_at) == (message.id, message.id.created_at)

    with other_loop() as one, other_loop() as two:
        one.run(bury(manager, "q", 2))
        two.run(manager.create_queue("other"))
        asyncio.run(redrive())
        assert manager.list_dead_letters("q") == []
        one.run(manager.shutdown())


def test_c3_another_loop_looks_at_what_is_closed() -> None:
    """Given a manager that one loop has closed and which still runs, when another one asks for statistics, then it gets
    them, and is told that the queue is closed for the rest."""
    manager = MessageQueueManager()

    async def look() -> None:
        counts = manager.get_queue_statistics("q")
        assert counts is not None
        assert counts.messages_dead_lettered == len(manager.list_dead_letters("q")) == 1
        with pytest.raises(QueueClosedError):
            manager.pause_queue("q")

    with other_loop() as other:
        other.run(bury(manager, "q"))
        other.run(manager.shutdown())
        asyncio.run(look())


def test_g2_receivers_that_come_together_join_once() -> None:
    """Given a loop that is busy, when one subscriber fetches several times at once on another loop, then it has one
    subscription, and who names another pattern is refused as ever."""
    manager = MessageQueueManager()
    go_on = threading.Event()

    async def fetch() -> None:
        # Nobody has joined before all have asked.
        other.loop.call_soon_threadsafe(go_on.wait, PATIENCE_SECONDS)
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, go_on.set)
        several = (manager.receive_messages("q", "new", topic_pattern=pattern) for pattern in ("#", "#", "t.x"))
        *received, refused = await asyncio.gather(*several, return_exceptions=True)
        assert received == [[], []]
        assert isinstance(refused, InvalidOptionError)

    with other_loop() as other:
        other.run(manager.create_queue("q"))
        asyncio.run(fetch())
        assert [one.topic_pattern for one in manager.queue("q").subscriptions.values()] == ["#"]
        other.run(manager.shutdown())
