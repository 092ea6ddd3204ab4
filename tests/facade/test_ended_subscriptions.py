"""What callbacks do that outlive their subscription, on a virtual clock (SEMANTICS L1, L4)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mpreg_mq import QueuedMessage, VirtualClock
from tests.support.running import Recorder, assert_fold_equality, make_queue, until


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
