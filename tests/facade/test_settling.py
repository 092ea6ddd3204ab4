"""What becomes of messages that are settled by hand, fail, expire or are late; on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from mpreg_mq import InvalidOptionError, MessageQueue, QueueConfiguration, QueuedMessage, VirtualClock
from tests.support.running import Recorder, assert_fold_equality, make_queue


def test_l2_l3_manual_settling() -> None:
    """Given a subscriber that settles by hand, then acknowledging, returning and extending answer truthfully."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, default_acknowledgment_timeout_seconds=10)
        seen = Recorder()
        queue.subscribe("s", "#", seen, auto_acknowledge=False)
        first = (await queue.send_message("a", 1)).message_id
        assert first is not None
        await clock.settle()
        assert queue.in_flight_messages[first.id].delivered_to == {"s"}
        assert await queue.extend_lease(first, "s", 100)
        assert not await queue.extend_lease(first, "x", 100)
        await clock.advance(50)
        assert await queue.negative_acknowledge(first, "s", "busy")
        await clock.settle()
        assert [message.delivery_attempt for message in seen.messages] == [1, 2]
        assert not await queue.acknowledge_message(first.id, "stranger")
        assert await queue.acknowledge_message(first.id, "s")
        assert not await queue.acknowledge_message(first.id, "s")
        with pytest.raises(InvalidOptionError, match="delay_seconds"):
            await queue.negative_acknowledge(first, "s", delay_seconds=-1)
        with pytest.raises(InvalidOptionError, match="seconds_from_now"):
            await queue.extend_lease(first, "s", float("nan"))
        await queue.shutdown()

    asyncio.run(story())


def test_r2_retries_come_after_their_backoff_and_end_in_a_dead_letter() -> None:
    """Given a callback that always fails, then attempts are spaced by the backoff and the last makes a dead letter."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, max_retries=2, retry_backoff_seconds=10, retry_jitter=0)
        times: list[float] = []
        start = clock.now()

        def fail(message: QueuedMessage) -> None:
            times.append(clock.now() - start)
            raise RuntimeError("no")

        queue.subscribe("s", "#", fail)
        await queue.send_message("a", {"x": 1})
        await clock.advance(100)
        assert times == [0, 10, 30]
        (entry,) = queue.dead_letter_queue
        assert (entry.attempts, entry.last_error, entry.subscriber_id) == (3, "RuntimeError: no", "s")
        assert (entry.payload, entry.topic, entry.headers) == ({"x": 1}, "a", {})
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_d1_redrive_dry_run_some_and_to_another_queue() -> None:
    """Given dead letters, then a dry run changes nothing, and redriven ones are gone from here."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, max_retries=0)
        other = MessageQueue(QueueConfiguration("other"), clock=clock)

        def fail(message: QueuedMessage) -> None:
            raise RuntimeError

        subscription = queue.subscribe("s", "#", fail)
        ids = [(await queue.send_message("a", number)).message_id for number in range(3)]
        await clock.settle()
        queue.unsubscribe(subscription)
        assert await queue.redrive_dead_letters(dry_run=True, limit=2) == ids[:2]
        assert len(queue.dead_letter_queue) == 3
        moved = await queue.redrive_dead_letters([str(ids[2])], target=other)
        assert [message.redriven_from for message in other.pending_messages] == [f"q/{ids[2]}"]
        assert [message.id for message in other.pending_messages] == moved
        assert len(await queue.redrive_dead_letters()) == 2
        assert [message.payload for message in queue.pending_messages] == [0, 1]
        assert await queue.purge_dead_letters() == 0
        with pytest.raises(InvalidOptionError, match="limit"):
            await queue.redrive_dead_letters(limit=0)
        await queue.shutdown()
        await other.shutdown()

    asyncio.run(story())


def test_t1_and_o3_happen_at_their_moment() -> None:
    """Given a TTL and a delay, then expiry and delivery come at their moments without polling."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        seen = Recorder()
        await queue.send_message("gone", 1, message_ttl_seconds=10)
        queue.subscribe("s", "due", seen)
        await queue.send_message("due", 2, delay_seconds=5)
        await clock.settle()
        assert clock.next_timer() == clock.now() + 5
        await clock.advance(5)
        assert seen.payloads == [2]
        await clock.advance(5)
        assert queue.get_statistics().messages_expired == 1
        assert clock.next_timer() is None
        await queue.shutdown()

    asyncio.run(story())
