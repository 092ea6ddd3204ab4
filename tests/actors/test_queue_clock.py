"""A clock that lies behind the log, or is put back: the queue's time goes on (O3, T1, L1, R2, U1, I6)."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mpreg_mq import (
    MessageQueueManager,
    OverflowPolicy,
    QueueConfiguration,
    QueuedMessage,
    RejectionReason,
    VirtualClock,
)
from mpreg_mq.actors.messages import Inspect
from mpreg_mq.actors.queue_clock import STEP_SECONDS
from mpreg_mq.events import MemoryEventLog, SQLiteEventLog
from mpreg_mq.invariants import check_history
from mpreg_mq.queue import MessageQueue
from tests.support.running import PATIENCE_SECONDS, FlakyLog, Recorder, assert_fold_equality, make_queue

START = 1_000_000.0
YEAR = 365 * 86400.0


class SteppingClock(VirtualClock):
    """A virtual clock that can be put back, as no clock should be."""

    def step(self, seconds: float) -> None:
        """Put it forward, or back."""
        self._now = max(0.0, self._now + seconds)


async def log_that_lies(ahead: float, **settings: object) -> MemoryEventLog:
    """The log of a queue whose clock was ahead, with one message sent and acknowledged."""
    log = MemoryEventLog()
    async with make_queue(VirtualClock(start=START + ahead), log, **settings) as queue:
        await queue.send_message("first", 0)
        (message,) = await queue.receive_messages("w")
        await queue.acknowledge_message(message.id, "w")
    return log


def time_of(queue: MessageQueue) -> float:
    """The present time of a queue."""
    now: float = queue._actor.call_now(Inspect(lambda state, now: now))
    return now


@pytest.mark.parametrize("ahead", [2.0, 86400.0, YEAR])
def test_i6_a_queue_whose_log_lies_ahead_does_in_its_time_what_is_due(
    ahead: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a log that ends ahead of the clock, then retries, delays, leases, TTL and keys take as long as ever."""

    async def story() -> None:
        log = await log_that_lies(ahead)
        clock = VirtualClock(start=START)
        calls: list[tuple[str, float]] = []

        def work(message: QueuedMessage) -> None:
            calls.append((message.payload, clock.now() - START))
            if message.payload == "retried" and message.delivery_attempt == 1:
                raise RuntimeError("not yet")

        async with make_queue(
            clock,
            log,
            retry_backoff_seconds=0.5,
            retry_jitter=0.0,
            enable_deduplication=True,
            deduplication_window_seconds=3.0,
        ) as queue:
            queue.subscribe("s", "push", work)
            await queue.send_message("push", "retried")
            await clock.settle()
            await queue.send_message("push", "delayed", delay_seconds=1.0)
            await queue.send_message("pull", "leased")
            (leased,) = await queue.receive_messages("w", visibility_timeout_seconds=1.5)
            expiring = await queue.send_message("nobody", "expiring", message_ttl_seconds=2.0)
            assert expiring.success
            assert (await queue.send_message("pull", "once", deduplication_id="key")).success

            await clock.advance(1.25)
            assert calls == [("retried", 0.0), ("retried", 0.5), ("delayed", 1.0)]
            assert queue.get_statistics().leases_expired == queue.get_statistics().messages_expired == 0
            await clock.advance(1.0)
            assert queue.get_statistics().messages_expired == 1
            again = await queue.receive_messages("w2", 10)
            assert [(message.payload, message.delivery_attempt) for message in again] == [("leased", 2), ("once", 1)]
            assert leased.id == again[0].id
            repeated = await queue.send_message("pull", "once", deduplication_id="key")
            assert repeated.rejection is RejectionReason.DUPLICATE
            await clock.advance(1.0)
            assert (await queue.send_message("pull", "once", deduplication_id="key")).success
            assert time_of(queue) == clock.now() + ahead
            assert_fold_equality(queue)

    with caplog.at_level(logging.WARNING, "mpreg_mq"):
        asyncio.run(story())
    assert len(caplog.messages) == 1
    assert "time goes on from that event" in caplog.messages[0]


def test_each_queue_of_a_manager_has_its_own_time(caplog: pytest.LogCaptureFixture) -> None:
    """Given one queue whose log ends ahead and one whose does not, then only the first is ahead, and both go on."""

    async def story() -> None:
        log = MemoryEventLog()
        for name, start in (("right", START), ("ahead", START + YEAR)):
            async with MessageQueueManager(log=log, clock=VirtualClock(start=start)) as manager:
                await manager.create_queue(name, QueueConfiguration(name))
        clock = VirtualClock(start=START + 1)
        async with MessageQueueManager(log=log, clock=clock) as manager:
            seen = Recorder()
            times = []
            for name in ("right", "ahead"):
                manager.subscribe_to_queue(name, "s", "#", callback=seen)
                await manager.send_message(name, "a", name, delay_seconds=1.0)
                queue = manager.queue(name)
                assert queue is not None
                times.append(time_of(queue))
            assert times == [START + 1, START + YEAR]
            await clock.advance(1.0)
            assert sorted(seen.payloads) == ["ahead", "right"]

    asyncio.run(story())
    assert ["ahead" in message.split(":")[0] for message in caplog.messages] == [True]


def test_l1_a_lease_outlasts_no_step_of_the_clock() -> None:
    """Given a lease, a delay and a clock put back by an hour, then both end in the time that is left to them."""

    async def story() -> None:
        clock = SteppingClock(start=START)
        async with make_queue(clock, MemoryEventLog(), retry_backoff_seconds=0.0) as queue:
            await queue.send_message("a", 1)
            await queue.receive_messages("w", visibility_timeout_seconds=30.0)
            await queue.send_message("b", 2, delay_seconds=40.0)
            for _ in range(2):
                clock.step(-3600.0)
                assert time_of(queue) == START
            await clock.advance(29.0)
            assert await queue.receive_messages("w2", 10) == []
            await clock.advance(1.0)
            assert [message.payload for message in await queue.receive_messages("w2", 10)] == [1]
            await clock.advance(10.0)
            assert [message.payload for message in await queue.receive_messages("w2", 10)] == [2]

    asyncio.run(story())


def test_a_clock_put_back_by_little_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """Given a clock put back by milliseconds, as time servers do, then nothing is said, and the time is the clock's."""

    async def story() -> None:
        clock = SteppingClock(start=START)
        async with make_queue(clock, MemoryEventLog()) as queue:
            await queue.send_message("a", 1)
            for _ in range(100):
                clock.step(-0.05)
                assert time_of(queue) == START
                clock.step(0.05)
            await clock.advance(5.0)
            assert time_of(queue) == clock.now()

    asyncio.run(story())
    assert caplog.messages == []


def test_a_state_that_is_rebuilt_goes_on_from_where_the_log_ends() -> None:
    """Given a queue rebuilt on a clock that lies behind, then its time goes on as before."""

    async def story() -> None:
        log = await log_that_lies(YEAR)
        clock = VirtualClock(start=START)
        async with make_queue(clock, log) as queue:
            await queue.send_message("a", 1, delay_seconds=10.0)
            await clock.advance(4.0)
            queue._actor._rebuild(RuntimeError("a fault"))
            assert time_of(queue) == START + YEAR + 4.0
            seen = Recorder()
            queue.subscribe("s", "#", seen)
            await clock.advance(5.0)
            assert seen.payloads == []
            await clock.advance(1.0)
            assert seen.payloads == [1]

    asyncio.run(story())


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_o3_what_was_due_by_a_clock_that_was_put_back_is_not_delivered_early(tmp_path: Path, restarts: bool) -> None:
    """Given a delayed message that was due, for nobody who took it, when the clock is put back to where it is not yet
    due, with the process or with the next one, which has a snapshot, then it is delivered when its time comes again."""

    async def story() -> None:
        clock, seen = SteppingClock(start=START), Recorder()
        manager = MessageQueueManager(log=tmp_path / "log.db", clock=clock)
        await manager.create_queue("q")
        await manager.send_message("q", "a", 1, delay_seconds=10.0)
        await clock.advance(10.0)
        queue = manager.queue("q")
        assert len(queue._actor.call_now(Inspect(lambda state, now: state.messages.lanes))) == 1
        if restarts:
            queue._actor.call_now(Inspect(lambda state, now: queue._actor.save_snapshot()))
            await manager.shutdown()
            manager = MessageQueueManager(log=tmp_path / "log.db", clock=clock)
        clock.step(-4.0)
        manager.subscribe_to_queue("q", "s", "#", seen)
        await clock.settle()
        assert seen.payloads == []
        await clock.advance(3.0)
        assert seen.payloads == []
        await clock.advance(1.0)
        assert seen.payloads == [1]
        await manager.shutdown()
        with closing(SQLiteEventLog(tmp_path / "log.db", read_only=True)) as log:
            assert len(log.snapshots("queue:q")) == restarts
            assert check_history(log.read_all()) == []

    asyncio.run(story())


STEPS = st.floats(-1e5, 1e5) | st.floats(-3.0, 3.0) | st.sampled_from([-1.0, 1.0, -3600.0, 3600.0])


@example([(0.0, 0.0), (-3600.0, 1.0), (3600.0, 5.0), (-7200.0, 1.0), (-0.5, 2.0)])
@given(st.lists(st.tuples(STEPS, st.floats(0.0, 100.0)), max_size=30))
def test_the_time_of_a_queue_never_goes_back_and_never_stands_still(steps: list[tuple[float, float]]) -> None:
    """Given any steps of the clock, then a queue's time never goes back, in the log either, and advances with it."""

    async def story() -> None:
        clock = SteppingClock(start=START)
        log = MemoryEventLog()
        async with make_queue(clock, log) as queue:
            latest = time_of(queue)
            for number, (step, seconds) in enumerate(steps):
                clock.step(step)
                await queue.send_message("a", number)
                begun = time_of(queue)
                assert begun >= latest
                await clock.advance(seconds)
                await queue.send_message("b", number)
                latest = time_of(queue)
                assert seconds - STEP_SECONDS - 1e-6 <= latest - begun <= seconds + 1e-6
        times = [record.event.at for record in log.read_all()]
        assert times == sorted(times)

    asyncio.run(story())


def test_what_waits_does_not_wait_for_a_clock_that_was_put_back() -> None:
    """Given a receiver that waits for a message, a send that waits for room, and a queue that waits to try its store
    again, when the clock is put back, then each of them waits no longer than it was to."""

    async def story() -> None:
        log, clock = FlakyLog(blocking=False), SteppingClock(start=START)
        async with make_queue(
            clock, log, max_size=1, overflow_policy=OverflowPolicy.WAIT, overflow_wait_seconds=5.0
        ) as queue:
            await queue.send_message("full", 1)
            receiving = asyncio.create_task(queue.receive_messages("w", topic_pattern="pull", wait_seconds=5.0))
            sending = asyncio.create_task(queue.send_message("full", 2))
            await clock.settle()
            clock.step(-3600.0)
            # What the queue does next tells it.
            assert not await queue.acknowledge_message("unknown", "w")
            await clock.advance(4.0)
            assert not receiving.done()
            assert not sending.done()
            await clock.advance(1.5)
            assert await receiving == []
            assert (await sending).rejection is RejectionReason.CAPACITY

    asyncio.run(story())


def test_a_store_is_tried_again_though_the_clock_was_put_back() -> None:
    """Given a queue whose store has failed and that waits to try it again, when the clock is put back, then it delivers
    after a few seconds of that."""

    async def story() -> None:
        log, clock = FlakyLog(blocking=False), SteppingClock(start=START)
        queue = make_queue(clock, log)
        seen = Recorder()
        queue.subscribe("s", "#", seen)
        await clock.settle()
        log.failing = True
        assert not (await queue.send_message("a", 1)).success
        log.failing = False
        clock.step(-3600.0)
        assert (await queue.send_message("a", 2)).success
        await clock.advance(10.0)
        assert seen.payloads == [2]
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_a_clock_of_tests_waits_for_blocking_callbacks_of_a_queue_that_is_ahead() -> None:
    """Given a log that ends ahead of a virtual clock, then that stands still for blocking callbacks all the same."""

    async def story() -> None:
        log = await log_that_lies(YEAR)
        clock = VirtualClock(start=START, blocking_seconds=PATIENCE_SECONDS)
        calls: list[int] = []
        may_end = threading.Event()

        def work(message: QueuedMessage) -> None:
            assert may_end.wait(PATIENCE_SECONDS)
            calls.append(message.delivery_attempt)

        async with make_queue(clock, log) as queue:
            queue.subscribe("s", "push", work, blocking=True)
            await queue.send_message("push", 1)
            advancing = asyncio.create_task(clock.advance(1000.0))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not advancing.done()
            may_end.set()
            await advancing
            assert calls == [1]
            assert queue.get_statistics().messages_acknowledged == 2

    asyncio.run(story())
