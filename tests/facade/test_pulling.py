"""Subscribers that fetch their messages."""

from __future__ import annotations

import asyncio

import pytest

from mpreg_mq import InvalidOptionError, MessageQueue, QueueConfiguration, RejectionReason, VirtualClock
from mpreg_mq.events import MemoryEventLog
from mpreg_mq.invariants import check_history
from tests.support.loop_actors import LoopThread
from tests.support.running import PATIENCE_SECONDS, Recorder, assert_fold_equality, make_queue, until


def test_pull_waits_for_a_message_and_no_longer_than_it_said() -> None:
    """Given receivers that wait, then a send wakes one, a timeout answers one, and a cancelled one loses nothing."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        first = asyncio.create_task(queue.receive_messages("p", wait_seconds=30, visibility_timeout_seconds=50))
        await clock.settle()
        await queue.send_message("a", 1)
        assert [message.payload for message in await first] == [1]
        second = asyncio.create_task(queue.receive_messages("p", wait_seconds=30))
        await clock.advance(29)
        assert not second.done()
        await clock.advance(1)
        assert await second == []
        cancelled = asyncio.create_task(queue.receive_messages("p", wait_seconds=30))
        await clock.settle()
        cancelled.cancel()
        await clock.settle()
        await queue.send_message("a", 2)
        await clock.settle()
        assert [message.payload for message in queue.pending_messages] == [2]
        assert [message.payload for message in await queue.receive_messages("p", 5)] == [2]
        await clock.advance(60)
        assert {message.payload for message in await queue.receive_messages("p", 5)} == {1, 2}
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_a_receiver_that_waits_takes_nothing_from_the_callback_of_its_subscriber() -> None:
    """Given a receiver that waits, when its subscriber leaves and comes back with a callback, then that gets the next
    message, and the receiver nothing."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        fetches = queue.subscribe("s", "#")
        receiver = asyncio.create_task(queue.receive_messages("s", wait_seconds=30))
        await clock.settle()
        queue.unsubscribe(fetches)
        seen = Recorder()
        queue.subscribe("s", "#", seen)
        await queue.send_message("a", 1)
        await clock.advance(30)
        assert seen.payloads == [1]
        assert await receiver == []
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


class PreemptedClock(VirtualClock):
    """A clock that goes on by ``pause`` seconds right after it was read, as when another thread has the processor."""

    pause = 0.0

    def now(self) -> float:
        read = super().now()
        self._now, self.pause = self._now + self.pause, 0.0
        return read


def test_o1_a_receive_takes_what_comes_first_at_its_own_time() -> None:
    """Given a lease that runs out and then a retry that falls due, both between two steps of a receive, then no later
    message is delivered at a time at which that retry comes first."""

    async def story() -> None:
        clock, log = PreemptedClock(), MemoryEventLog()
        queue = make_queue(clock, log)
        for payload in ("leased", "returned", "waiting"):
            await queue.send_message("t", payload)
        await queue.receive_messages("p", visibility_timeout_seconds=10)
        (returned,) = await queue.receive_messages("p")
        await queue.negative_acknowledge(returned, "p", delay_seconds=10.5)
        await clock.advance(9.9)
        clock.pause = 1.0
        assert len(await queue.receive_messages("p")) == 1
        assert list(check_history(log)) == []
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_r3_a_receiver_that_is_cancelled_as_its_message_comes_has_not_failed() -> None:
    """Given a breaker that opens at the first failure, when a receiver is cancelled while its message is on the way to
    it, then that is there again at once, as an attempt that says nothing about the subscriber."""

    async def story() -> None:
        queue = make_queue(circuit_breaker_failure_threshold=1)
        waiting = asyncio.create_task(queue.receive_messages("p", wait_seconds=30))
        await until(lambda: bool(queue._actor._receivers))
        await queue.send_message("t", 1)
        queue._actor.take_turn()
        assert not queue._actor._receivers
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (message,) = await queue.receive_messages("p")
        assert message.delivery_attempt == 2
        await queue.shutdown()

    asyncio.run(story())


def test_a_receiver_that_gives_up_on_another_thread_takes_no_message_with_it() -> None:
    """Given a receiver on another thread's loop that was cancelled, then the next message goes to who still asks."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        queue.subscribe("gone", "a")

        async def wait_and_give_up() -> None:
            waiting = asyncio.create_task(queue.receive_messages("gone", wait_seconds=30))
            while not waiting.cancelled():
                await asyncio.sleep(0)
                if queue._actor._receivers:
                    waiting.cancel()
                    await asyncio.wait([waiting])

        await asyncio.to_thread(asyncio.run, wait_and_give_up())
        await until(lambda: not queue._actor._receivers)
        await queue.send_message("a", 1)
        await clock.settle()
        assert [message.payload for message in queue.pending_messages] == [1]
        assert [message.payload for message in await queue.receive_messages("still here")] == [1]
        await queue.shutdown()

    asyncio.run(story())


def test_who_waits_on_another_loop_than_the_queues_waits_no_longer_when_that_ends() -> None:
    """Given a queue on the loop of another thread, and tasks here that wait for a message and for room there, when that
    loop ends, then both hear when their time is over."""
    home = LoopThread()
    configuration = QueueConfiguration("q", max_size=1, overflow_policy="wait", overflow_wait_seconds=1.0)

    async def begun() -> MessageQueue:
        # With the timers of real loops, which end with them.
        queue = MessageQueue(configuration)
        queue.subscribe("p", "b")
        await queue.send_message("a", 1)
        return queue

    async def story() -> None:
        with home as loop:
            queue = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(begun(), loop))
            receiving = asyncio.create_task(queue.receive_messages("p", wait_seconds=1.0, topic_pattern="b"))
            sending = asyncio.create_task(queue.send_message("a", 2))
            await until(lambda: home.run(lambda: len(queue._actor._receivers) + len(queue._actor._parked)) == 2)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await receiving == []
            assert (await sending).rejection is RejectionReason.CAPACITY
        await queue.shutdown()

    asyncio.run(story())


def test_pull_is_for_subscribers_without_a_callback() -> None:
    """Given a subscriber that is called, then it cannot fetch; and a receiver's arguments are checked."""

    async def story() -> None:
        queue = make_queue()
        queue.subscribe("push", "#", Recorder())
        with pytest.raises(InvalidOptionError, match="callback"):
            await queue.receive_messages("push")
        for arguments in ({"max_messages": 0}, {"wait_seconds": -1}, {"visibility_timeout_seconds": 0}):
            with pytest.raises(InvalidOptionError):
                await queue.receive_messages("p", **arguments)  # type: ignore[arg-type]
        await queue.shutdown()

    asyncio.run(story())
