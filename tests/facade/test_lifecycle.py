"""A queue from its first subscription to its end, with and without event loops."""

from __future__ import annotations

import asyncio

import pytest

from mpreg_mq import (
    InvalidOptionError,
    InvalidTopicError,
    MessageQueue,
    QueueClosedError,
    QueueConfiguration,
    QueuedMessage,
    RejectionReason,
    VirtualClock,
)
from mpreg_mq.events import MemoryEventLog
from tests.support.running import Recorder, assert_fold_equality, make_queue, until


def test_subscribing_checks_its_arguments() -> None:
    """Given a malformed pattern, a callback that is none or other bad arguments, then the error says so."""
    queue = make_queue()
    for pattern in ("", "a..b", "a*", "#.", 5):
        with pytest.raises(InvalidTopicError):
            queue.subscribe("s", pattern)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="callback"):
        queue.subscribe("s", "#", "print")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="subscriber_id"):
        queue.subscribe("", "#")
    with pytest.raises(InvalidOptionError, match="max_in_flight"):
        queue.subscribe("s", "#", max_in_flight=0)
    with pytest.raises(InvalidOptionError, match="metadata"):
        queue.subscribe("s", "#", team=5)  # type: ignore[arg-type]
    assert queue.subscriptions == {}
    queue.shutdown_sync()


def test_c3_shutdown_gives_callbacks_their_time_and_ends_leases() -> None:
    """Given one callback that ends in time and one that does not, then the first counts and the second is cut off."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, MemoryEventLog())
        ends = asyncio.Event()

        async def work(message: QueuedMessage) -> None:
            await (ends.wait() if message.payload == "short" else asyncio.Event().wait())

        queue.subscribe("s", "#", work)
        await queue.send_message("a", "short")
        await queue.send_message("a", "endless")
        waiting = asyncio.create_task(queue.receive_messages("p", wait_seconds=60))
        await clock.settle()
        closing = asyncio.create_task(queue.shutdown(10))
        await clock.settle()
        assert await waiting == []
        assert (await queue.send_message("a", "late")).rejection is RejectionReason.CLOSING
        ends.set()
        await clock.advance(9)
        assert not closing.done()
        await clock.advance(1)
        await closing
        counts = queue.get_statistics()
        assert (counts.messages_acknowledged, counts.leases_expired) == (1, 1)
        assert (counts.current_queue_size, counts.current_in_flight_count) == (1, 0)
        assert_fold_equality(queue)
        await queue.shutdown()
        with pytest.raises(QueueClosedError):
            queue.subscribe("s", "#")
        assert (await queue.send_message("a", 1)).rejection is RejectionReason.CLOSING
        assert not await queue.acknowledge_message("x", "s")
        assert not queue.unsubscribe("x")
        assert "closed" in repr(queue)

    asyncio.run(story())


def test_a_queue_works_without_an_event_loop_and_over_several() -> None:
    """Given no loop, then a queue can be made, looked at and closed; two loops in a row may use it."""
    queue = make_queue()
    seen = Recorder()
    queue.subscribe("s", "#", seen)
    assert queue.get_statistics().messages_sent == 0

    async def send(payload: int) -> None:
        await queue.send_message("a", payload)
        await until(lambda: payload in seen.payloads)

    asyncio.run(send(1))
    asyncio.run(send(2))
    assert seen.payloads == [1, 2]
    queue.shutdown_sync()
    queue.shutdown_sync()
    assert queue.get_statistics().messages_acknowledged == 2


def test_autostart_false_delivers_only_after_start_workers() -> None:
    """Given autostart off, then messages wait until the workers are started."""

    async def story() -> None:
        queue = MessageQueue(QueueConfiguration("q"), autostart=False)
        seen = Recorder()
        queue.subscribe("s", "#", seen)
        await queue.send_message("a", 1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert seen.payloads == []
        queue.start_workers()
        await until(lambda: seen.payloads == [1])
        async with queue:
            pass

    asyncio.run(story())
