"""Redrives to another queue, and what comes between their two steps (D1)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mpreg_mq import EventLogError, MessageQueueManager, QueueConfiguration, VirtualClock
from mpreg_mq.errors import QueueClosedError
from mpreg_mq.events import Append
from mpreg_mq.replay.verify import verify
from tests.support.running import PATIENCE_SECONDS, FlakyLog, until


class GatedLog(FlakyLog):
    """A log that keeps appends to ``b`` waiting until :attr:`gate` is set, and refuses those to one queue."""

    def __init__(self) -> None:
        super().__init__(blocking=True)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = False
        self.refused_queue: str | None = None

    def append(self, batch: Sequence[Append]) -> None:
        streams = {append.stream for append in batch if append.events}
        if f"queue:{self.refused_queue}" in streams:
            raise OSError("disk on fire")
        if "queue:b" in streams and not self.gate.is_set():
            self.waiting = True
            assert self.gate.wait(PATIENCE_SECONDS)
        super().append(batch)


class Redriving:
    """Two queues ``a`` and ``b``; the first has a dead letter for each payload."""

    def __init__(self, manager: MessageQueueManager, log: GatedLog) -> None:
        self.manager = manager
        self.log = log

    def to_b(self, **options: Any) -> asyncio.Task[list[Any]]:
        """A redrive from ``a`` to ``b`` that has begun."""
        return asyncio.ensure_future(self.manager.redrive_dead_letters("a", target_queue="b", **options))

    async def halfway(self) -> asyncio.Task[list[Any]]:
        """A redrive from ``a`` to ``b`` that waits for ``b`` to have stored the messages."""
        self.log.gate.clear()
        redrive = self.to_b()
        await until(lambda: self.log.waiting)
        return redrive

    @property
    def in_b(self) -> list[Any]:
        return [message.payload for message in self.manager.queue("b").pending_messages]

    @property
    def dead(self) -> list[Any]:
        return [letter.payload for letter in self.manager.list_dead_letters("a")]


@asynccontextmanager
async def redriving(*payloads: Any) -> AsyncIterator[Redriving]:
    """Such queues in a log that keeps every promise when they are closed."""
    log = GatedLog()
    async with MessageQueueManager(log=log) as manager:
        await manager.create_queue("a", QueueConfiguration("a", max_retries=0))
        await manager.create_queue("b")
        for payload in payloads:
            await manager.send_message("a", "t", payload)
        for message in await manager.receive_messages("a", "w", 100):
            await manager.negative_acknowledge("a", message.id, "w")
        try:
            yield Redriving(manager, log)
        finally:
            log.gate.set()
    assert verify(log).violations == ()


def test_d1_two_redrives_at_once_accept_each_dead_letter_once() -> None:
    """Given two redrives to another queue at once, then one gets every dead letter and the other none."""

    async def story() -> None:
        async with redriving(1, 2) as q:
            first, second = await asyncio.gather(q.to_b(), q.to_b())
            assert (len(first), second) == (2, [])
            assert (q.in_b, q.dead) == ([1, 2], [])
            statistics = q.manager.get_queue_statistics("a")
            assert statistics is not None
            assert statistics.messages_redriven == 2

    asyncio.run(story())


def test_d1_redrives_of_a_part_each_share_the_dead_letters() -> None:
    """Given redrives with a limit at once, then each takes others."""

    async def story() -> None:
        async with redriving(1, 2, 3) as q:
            counts = [len(one) for one in await asyncio.gather(*(q.to_b(limit=2) for _ in range(3)))]
            assert counts == [2, 1, 0]
            assert (q.in_b, q.dead) == ([1, 2, 3], [])

    asyncio.run(story())


@pytest.mark.parametrize("named", [False, True])
def test_d1_what_another_queue_is_accepting_is_neither_purged_nor_redriven(named: bool) -> None:
    """Given a redrive between its two steps, then a purge and a redrive in place leave what it has, by name as well."""

    async def story() -> None:
        async with redriving(1, 2) as q:
            ids = [letter.id for letter in q.manager.list_dead_letters("a")] if named else None
            redrive = await q.halfway()
            purged, again = await asyncio.gather(
                q.manager.purge_dead_letters("a", ids), q.manager.redrive_dead_letters("a", ids)
            )
            assert (purged, again) == (0, [])
            q.log.gate.set()
            assert len(await redrive) == 2
            assert (q.in_b, q.dead) == ([1, 2], [])

    asyncio.run(story())


def test_d1_who_stops_waiting_does_not_stop_a_redrive() -> None:
    """Given a redrive whose caller is cancelled between its two steps, then it comes to its end all the same."""

    async def story() -> None:
        async with redriving(1) as q:
            redrive = await q.halfway()
            redrive.cancel()
            with pytest.raises(asyncio.CancelledError):
                await redrive
            assert await q.manager.redrive_dead_letters("a", target_queue="b") == []
            q.log.gate.set()
            await until(lambda: not q.dead)
            assert q.in_b == [1]

    asyncio.run(story())


def test_d1_a_shutdown_waits_for_redrives() -> None:
    """Given a redrive between its two steps when the manager is closed, then it comes to its end first."""

    async def story() -> None:
        async with redriving(1) as q:
            redrive = await q.halfway()
            closing = asyncio.ensure_future(q.manager.shutdown())
            await until(lambda: q.manager.queue("a")._closed)
            q.log.gate.set()
            assert len(await redrive) == 1
            await closing
            assert (q.in_b, q.dead) == ([1], [])

    asyncio.run(story())


def test_d1_a_closing_queue_begins_no_redrive() -> None:
    """Given a queue that was closed, then nothing of it is redriven."""

    async def story() -> None:
        async with redriving(1) as q:
            await q.manager.queue("a").shutdown()
            with pytest.raises(QueueClosedError):
                await q.to_b()
            assert q.in_b == []

    asyncio.run(story())


def test_d1_a_queue_may_be_deleted_during_a_redrive() -> None:
    """Given a redrive between its two steps when its queue is deleted, then the other queue has the messages."""

    async def story() -> None:
        async with redriving(1) as q:
            redrive = await q.halfway()
            deleting = asyncio.ensure_future(q.manager.delete_queue("a"))
            await until(lambda: q.manager.queue("a")._actor.state.deleted)
            q.log.gate.set()
            assert len(await redrive) == 1
            assert await deleting
            assert q.in_b == [1]

    asyncio.run(story())


def test_d1_what_the_other_queue_cannot_store_stays_a_dead_letter() -> None:
    """Given a log that does not take the acceptances, then nothing was redriven, and it can be tried again."""

    async def story() -> None:
        async with redriving(1) as q:
            q.log.refused_queue = "b"
            with pytest.raises(EventLogError):
                await q.to_b()
            assert (q.in_b, q.dead) == ([], [1])
            q.log.refused_queue = None
            assert len(await q.to_b()) == 1
            assert (q.in_b, q.dead) == ([1], [])

    asyncio.run(story())


def test_d1_a_redrive_that_ends_between_its_steps_loses_nothing() -> None:
    """Given a redrive of which only the first step can be stored, then the message is in both queues, and can be
    redriven or purged again."""

    async def story() -> None:
        async with redriving(1, 2) as q:
            q.log.refused_queue = "a"
            with pytest.raises(EventLogError):
                await q.to_b(limit=1)
            q.log.refused_queue = None
            assert (q.in_b, q.dead) == ([1], [1, 2])
            assert await q.manager.purge_dead_letters("a", [q.manager.list_dead_letters("a")[0].id]) == 1
            assert len(await q.to_b()) == 1
            assert (q.in_b, q.dead) == ([1, 2], [])

    asyncio.run(story())


def test_d1_a_redrive_of_a_loop_that_is_gone_holds_nothing() -> None:
    """Given a redrive whose loop was closed before its end, then another loop can redrive and purge what it had."""

    async def begin() -> MessageQueueManager:
        manager = MessageQueueManager(log="memory:")
        await manager.create_queue("a", QueueConfiguration("a", max_retries=0))
        await manager.create_queue("b")
        for payload in (1, 2):
            await manager.send_message("a", "t", payload)
        for message in await manager.receive_messages("a", "w", 2):
            await manager.negative_acknowledge("a", message.id, "w")
        never = asyncio.get_running_loop().create_future()
        stuck: asyncio.Task[Any] = asyncio.ensure_future(asyncio.wait([never]))
        ids = frozenset(letter.id.id for letter in manager.list_dead_letters("a"))
        manager.queue("a")._actor.redrives[stuck] = ids
        assert await manager.purge_dead_letters("a") == 0
        return manager

    loop = asyncio.new_event_loop()
    manager = loop.run_until_complete(begin())
    loop.close()

    async def go_on() -> None:
        assert len(await manager.redrive_dead_letters("a", target_queue="b", limit=1)) == 1
        assert await manager.purge_dead_letters("a") == 1
        await manager.shutdown()

    asyncio.run(go_on())


def test_d1_s2_what_the_other_queue_refuses_is_not_in_the_way_of_a_limited_redrive() -> None:
    """Given dead letters of which the oldest is too large for the other queue, when one is redriven there at a time,
    then each that fits has its turn, as the dry run said, and the first stays."""

    async def story() -> None:
        async with redriving("x" * 100, "one", "two") as given:
            await given.manager.delete_queue("b")
            await given.manager.create_queue("b", QueueConfiguration("b", max_payload_bytes=10))
            ids = [letter.id for letter in given.manager.list_dead_letters("a")]
            for number in (1, 2):
                would = await given.manager.redrive_dead_letters("a", target_queue="b", limit=1, dry_run=True)
                assert would == [ids[number]]
                assert len(await given.to_b(limit=1)) == 1
            assert await given.to_b(limit=1) == []
            assert given.in_b == ["one", "two"]
            assert given.dead == ["x" * 100]

    asyncio.run(story())


def test_d1_s2_what_the_other_queue_refuses_stays() -> None:
    """Given dead letters of which one is too large for the other queue, when they are redriven there, then that one is
    refused and stays, as the dry run said."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("a", QueueConfiguration("a", max_retries=0))
            await manager.create_queue("b", QueueConfiguration("b", max_payload_bytes=10))
            for payload in ("x" * 100, "small"):
                await manager.send_message("a", "t", payload)
            for message in await manager.receive_messages("a", "s", 2):
                await manager.negative_acknowledge("a", message.id, "s")
            large, small = manager.list_dead_letters("a")
            assert await manager.redrive_dead_letters("a", target_queue="b", dry_run=True) == [small.id]
            assert len(await manager.redrive_dead_letters("a", target_queue="b")) == 1
            assert [dead.id for dead in manager.list_dead_letters("a")] == [large.id]
            assert [message.payload for message in await manager.receive_messages("b", "s", 2)] == ["small"]
            counts = manager.get_queue_statistics("b")
            assert counts is not None
            assert counts.messages_rejected == 1

    asyncio.run(story())


def test_the_ids_of_a_redrive_say_when_their_messages_were_sent() -> None:
    """Given a dead letter of a minute ago, by the queue's clock, then a dry run gives its id with the time at which it
    was sent, and a redrive, here or to another queue, that of the new message."""

    async def story() -> None:
        clock = VirtualClock()
        async with MessageQueueManager(clock=clock) as manager:
            for name in ("a", "b"):
                await manager.create_queue(name, QueueConfiguration(name, max_retries=0))
            await manager.send_messages("a", [("t", 1), ("t", 2)])
            for message in await manager.receive_messages("a", "w", 2):
                await manager.negative_acknowledge("a", message, "w")
            sent = [letter.id.created_at for letter in manager.list_dead_letters("a")]
            await clock.advance(60.0)
            tried = await manager.redrive_dead_letters("a", dry_run=True)
            assert [dead.created_at for dead in tried] == sent == [clock.now() - 60.0] * 2
            for target in ("a", "b"):
                (new,) = await manager.redrive_dead_letters("a", limit=1, target_queue=target)
                (pending,) = manager.queue(target).pending_messages
                assert new.created_at == pending.id.created_at == clock.now()

    asyncio.run(story())
