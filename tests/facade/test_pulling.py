"""Subscribers that fetch their messages."""

from __future__ import annotations

import asyncio

import pytest

from mpreg_mq import InvalidOptionError, VirtualClock
from tests.support.running import Recorder, assert_fold_equality, make_queue, until


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
