"""What callbacks do that outlive their subscription, on a virtual clock (SEMANTICS L1, L4)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from pykka import ActorRegistry

from mpreg_mq import DeliveryGuarantee, QueuedMessage, VirtualClock
from mpreg_mq.actors.delivering import MOST_DEPARTED
from tests.support.running import FlakyLog, Recorder, assert_fold_equality, make_queue, until


@pytest.mark.parametrize("auto_acknowledge", [True, False])
@pytest.mark.parametrize("kind", ["function", "coroutine", "thread"])
def test_l4_a_callback_that_outlives_its_subscription_acknowledges_as_before(kind: str, auto_acknowledge: bool) -> None:
    """Given callbacks whose subscription ends under them, then only with auto_acknowledge their end acknowledges."""

    async def story() -> None:
        queue = make_queue(VirtualClock(blocking_seconds=0.0), default_acknowledgment_timeout_seconds=100)
        started, release = asyncio.Event(), asyncio.Event()
        in_thread = threading.Event()
        ids: list[str] = []
        ended: list[Any] = []

        def end_all() -> None:
            # With the next end the queue forgets those that run nothing.
            for one in ids:
                assert queue.unsubscribe(one)

        def function(message: QueuedMessage) -> None:
            end_all()
            ended.append(message.id)

        async def coroutine(message: QueuedMessage) -> None:
            started.set()
            await release.wait()
            ended.append(message.id)

        loop = asyncio.get_running_loop()

        def thread(message: QueuedMessage) -> None:
            loop.call_soon_threadsafe(started.set)
            in_thread.wait()
            ended.append(message.id)

        callback: Any = {"function": function, "coroutine": coroutine, "thread": thread}[kind]
        blocking = kind == "thread"
        ids.append(queue.subscribe("s", "a", callback, auto_acknowledge=auto_acknowledge, blocking=blocking))
        ids.append(queue.subscribe("s", "b", Recorder()))
        await queue.send_message("a", 1)
        if kind != "function":
            await started.wait()
            end_all()
            release.set()
            in_thread.set()
        await until(lambda: bool(ended) and not queue._actor._running)
        assert queue.get_statistics().messages_acknowledged == auto_acknowledge
        assert await queue.acknowledge_message(ended[0], "s") is not auto_acknowledge
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_l1_a_blocking_callback_of_an_ended_subscription_gives_the_thread_free() -> None:
    """Given one that hangs while its subscription ends, when its lease runs out, then its sibling gets a new thread."""

    async def story() -> None:
        clock = VirtualClock(blocking_seconds=0.0)
        queue = make_queue(clock, default_acknowledgment_timeout_seconds=5, max_retries=0)
        hangs, release = threading.Event(), threading.Event()
        seen: list[Any] = []

        def hang(message: QueuedMessage) -> None:
            hangs.set()
            release.wait()

        hanging = queue.subscribe("s", "a", hang, blocking=True)
        queue.subscribe("s", "b", lambda message: seen.append(message.payload), blocking=True)
        try:
            await queue.send_message("a", 1)
            await until(hangs.is_set)
            assert queue.unsubscribe(hanging)
            await clock.advance(5)
            await queue.send_message("b", 2)
            await until(lambda: queue.get_statistics().messages_acknowledged == 1)
            assert seen == [2]
        finally:
            release.set()
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("guarantee", [DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.FIRE_AND_FORGET])
@pytest.mark.parametrize("kind", ["function", "leaver", "coroutine", "thread"])
def test_subscribers_that_come_and_go_leave_no_actors_behind(kind: str, guarantee: DeliveryGuarantee) -> None:
    """Given many subscribers, each of which gets a message and leaves, also while its callback runs, then each callback
    comes to its end, and the queue keeps the actors of a few of them at most."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        others = {ref.actor_urn for ref in ActorRegistry.get_all()}
        seen = Recorder()
        release = asyncio.Event()
        subscription_id = ""

        def leaver(message: QueuedMessage) -> None:
            assert queue.unsubscribe(subscription_id)
            seen(message)

        async def coroutine(message: QueuedMessage) -> None:
            await release.wait()
            seen(message)

        callback: Any = {"leaver": leaver, "coroutine": coroutine}.get(kind, seen)
        for number in range(3 * MOST_DEPARTED):
            subscription_id = queue.subscribe(f"s{number}", "#", callback, blocking=kind == "thread")
            await queue.send_message("t", number, guarantee)
            delivered = number + 1
            await until(lambda: queue.get_statistics().messages_received == delivered)  # noqa: B023
            queue.unsubscribe(subscription_id)
            await asyncio.sleep(0)
        release.set()
        await until(lambda: len(seen.messages) == 3 * MOST_DEPARTED and not queue._actor._running)
        await clock.settle()
        for number in range(MOST_DEPARTED):
            queue.unsubscribe(queue.subscribe(f"last{number}", "other", callback))
        assert len(queue._actor._attachments) <= MOST_DEPARTED
        assert len({ref.actor_urn for ref in ActorRegistry.get_all()} - others) <= MOST_DEPARTED
        assert sorted(seen.payloads) == list(range(3 * MOST_DEPARTED))
        assert queue.get_statistics().messages_acknowledged == 3 * MOST_DEPARTED
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_a_subscriber_that_comes_back_is_called_again() -> None:
    """Given a subscriber that leaves while its callback runs, and one that leaves with nothing to do, when both come
    back and others leave, then both are called as before."""

    async def story() -> None:
        queue = make_queue(VirtualClock())
        release = asyncio.Event()
        seen = Recorder()

        async def coroutine(message: QueuedMessage) -> None:
            await release.wait()
            seen(message)

        busy = queue.subscribe("busy", "a", coroutine)
        await queue.send_message("a", 1)
        await until(lambda: queue.get_statistics().messages_received == 1)
        queue.unsubscribe(busy)
        queue.unsubscribe(queue.subscribe("idle", "b", coroutine))
        queue.subscribe("busy", "a", coroutine)
        queue.subscribe("idle", "b", coroutine)
        for number in range(2 * MOST_DEPARTED):
            queue.unsubscribe(queue.subscribe(f"other{number}", "c", seen))
        release.set()
        await queue.send_messages([("a", 2), ("b", 3)])
        await until(lambda: queue.get_statistics().messages_acknowledged == 3)
        assert sorted(seen.payloads) == [1, 2, 3]
        await queue.shutdown()

    asyncio.run(story())


def test_a_subscriber_leaves_nothing_behind_whose_attempt_was_made_twice() -> None:
    """Given a delivery that the log lost while its callback ran, and that was made once more, when both callbacks are
    over and the subscriber leaves, then the queue keeps nothing of it."""

    async def story() -> None:
        clock, log = VirtualClock(), FlakyLog(blocking=True)
        queue = make_queue(clock, log)
        release = asyncio.Event()
        begun = Recorder()

        async def coroutine(message: QueuedMessage) -> None:
            begun(message)
            await release.wait()

        subscription_id = queue.subscribe("s", "#", coroutine)
        assert (await queue.send_message("t", 1)).success
        log.failing = True
        await until(lambda: bool(begun.messages) and queue._actor._rebuilt > 0)
        log.failing = False
        await clock.advance(10.0)
        await until(lambda: len(begun.messages) == 2)
        assert [message.delivery_attempt for message in begun.messages] == [1, 1]
        release.set()
        await until(lambda: queue.get_statistics().messages_acknowledged == 1)
        await clock.settle()
        queue.unsubscribe(subscription_id)
        assert not queue._actor._attachments
        await queue.shutdown()

    asyncio.run(story())
