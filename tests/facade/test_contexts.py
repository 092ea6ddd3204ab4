"""Which context (:mod:`contextvars`) a callback runs in: that of its subscription, whoever sends the message."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import (
    BlockingMessageQueueManager,
    DeliveryGuarantee,
    MessageQueueManager,
    QueuedMessage,
    VirtualClock,
)
from tests.support.running import PATIENCE_SECONDS, make_queue, until, wait_until

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")
"""What a program keeps for the request that it works on."""

KINDS = ["function", "coroutine", "blocking function", "blocking coroutine"]


def _callback(kind: str, note: Callable[[], None]) -> Callable[[QueuedMessage], Any]:
    def function(message: QueuedMessage) -> None:
        note()

    async def coroutine(message: QueuedMessage) -> None:
        note()
        await asyncio.sleep(0)
        note()

    return coroutine if "coroutine" in kind else function


def _in(tenant: str, function: Callable[[], Any]) -> Any:
    """Call a function for a tenant."""

    def call() -> Any:
        TENANT.set(tenant)
        return function()

    return copy_context().run(call)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guarantee", list(DeliveryGuarantee))
@pytest.mark.parametrize("log", ["memory:", "file"])
def test_l4_a_callback_runs_in_the_context_of_its_subscription(
    kind: str, guarantee: DeliveryGuarantee, log: str, tmp_path: Path
) -> None:
    """Given a subscription that was made for one tenant, when tasks of others send messages, one alone and some
    together, then each callback runs for the tenant of its subscription."""
    seen: list[str] = []

    async def story() -> None:
        manager = MessageQueueManager(log=log if log == "memory:" else tmp_path / "mq.db")
        await manager.create_queue("q")
        callback = _callback(kind, lambda: seen.append(TENANT.get()))
        blocking = kind.startswith("blocking")
        _in("home", lambda: manager.subscribe_to_queue("q", "s", "#", callback, blocking=blocking))

        async def send(number: int) -> None:
            TENANT.set(f"tenant-{number}")
            options = {"required_acknowledgments": 1} if guarantee is DeliveryGuarantee.QUORUM else {}
            result = await manager.send_message("q", "t", number, guarantee, **options)
            assert result.success, result.error_message

        times = 2 if "coroutine" in kind else 1
        await send(0)
        await until(lambda: len(seen) == times)
        await asyncio.gather(*(send(number) for number in range(1, 20)))
        await until(lambda: len(seen) == 20 * times)
        assert TENANT.get() == "tenant-0"
        await manager.shutdown()

    asyncio.run(story())
    assert set(seen) == {"home"}


def test_l4_each_subscription_has_a_context_of_its_own() -> None:
    """Given subscriptions for several tenants, also one that a callback makes, then none sees what another has set."""
    seen: list[tuple[str, str]] = []

    async def story() -> None:
        queue = make_queue()

        def note(name: str) -> Callable[[QueuedMessage], None]:
            def callback(message: QueuedMessage) -> None:
                seen.append((name, TENANT.get()))
                TENANT.set(f"left by {name}")

            return callback

        def subscribe_another(message: QueuedMessage) -> None:
            queue.subscribe("inner", "inner", note("inner"))

        _in("a", lambda: queue.subscribe("a", "both", note("a")))
        _in("b", lambda: queue.subscribe("b", "both", note("b")))
        _in("c", lambda: queue.subscribe("c", "another", subscribe_another))
        await queue.send_message("both", 1, DeliveryGuarantee.BROADCAST)
        await queue.send_message("another", 1)
        await until(lambda: len(seen) == 2 and len(queue.subscriptions) == 4)
        await queue.send_message("inner", 1)
        await until(lambda: len(seen) == 3)
        assert TENANT.get() == "nobody"
        await queue.shutdown()

    asyncio.run(story())
    assert sorted(seen) == [("a", "a"), ("b", "b"), ("inner", "c")]


def test_l4_coroutines_that_run_beside_each_other_do_not_share_what_they_set() -> None:
    """Given a coroutine callback that sets something for its message, when several messages are worked on at once, then
    each sees its own to the end."""
    seen: list[tuple[int, str]] = []

    async def story() -> None:
        queue = make_queue()
        all_there = asyncio.Event()
        begun = 0

        async def callback(message: QueuedMessage) -> None:
            nonlocal begun
            assert TENANT.get() == "nobody"
            TENANT.set(str(message.payload))
            begun += 1
            if begun == 5:
                all_there.set()
            await all_there.wait()
            seen.append((message.payload, TENANT.get()))

        queue.subscribe("s", "#", callback)
        await queue.send_messages([("t", number) for number in range(5)])
        await until(lambda: len(seen) == 5)
        await queue.shutdown()

    asyncio.run(story())
    assert sorted(seen) == [(number, str(number)) for number in range(5)]


def test_l4_a_thread_that_is_left_behind_does_not_keep_the_next_from_the_context() -> None:
    """Given a blocking callback that does not return before its lease runs out, when the message comes again, then the
    new thread runs it in the context of the subscription, though the old one is still in there."""
    seen: list[str] = []
    stuck, may_end = threading.Event(), threading.Event()

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, default_acknowledgment_timeout_seconds=5.0, retry_jitter=0.0)

        def callback(message: QueuedMessage) -> None:
            seen.append(TENANT.get())
            if message.delivery_attempt == 1:
                stuck.set()
                assert may_end.wait(PATIENCE_SECONDS)

        _in("home", lambda: queue.subscribe("s", "#", callback, blocking=True))
        await queue.send_message("t", 1)
        await until(stuck.is_set)
        await clock.advance(60)
        await until(lambda: queue.get_statistics().messages_acknowledged == 1)
        may_end.set()
        await queue.shutdown()

    asyncio.run(story())
    assert seen == ["home", "home"]


def test_l4_a_thread_that_subscribes_lends_its_context() -> None:
    """Given a program without asyncio that subscribes for a tenant, then its callback runs for that one."""
    seen: list[str] = []
    with BlockingMessageQueueManager() as manager:
        manager.create_queue("q")
        _in("home", lambda: manager.subscribe_to_queue("q", "s", "#", lambda message: seen.append(TENANT.get())))
        _in("sender", lambda: manager.send_message("q", "t", 1))
        wait_until(lambda: len(seen) == 1)
    assert seen == ["home"]


def test_l4_a_callback_that_sends_to_its_own_subscription_is_called_again_in_the_same_context() -> None:
    """Given a callback that has a fire-and-forget message sent to its own queue, then it is called for that one after
    it has returned, in its context again."""
    seen: list[tuple[Any, str]] = []
    tasks: list[asyncio.Future[None]] = []

    async def story() -> None:
        queue = make_queue()

        async def send_another() -> None:
            await queue.send_message("t", "inner", DeliveryGuarantee.FIRE_AND_FORGET)

        def callback(message: QueuedMessage) -> None:
            seen.append((message.payload, TENANT.get()))
            if message.payload == "outer":
                tasks.append(asyncio.ensure_future(send_another()))

        _in("home", lambda: queue.subscribe("s", "#", callback))
        await queue.send_message("t", "outer", DeliveryGuarantee.FIRE_AND_FORGET)
        await until(lambda: len(seen) == 2)
        await queue.shutdown()

    asyncio.run(story())
    assert seen == [("outer", "home"), ("inner", "home")]


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_a_subscription_does_not_keep_its_last_message(kind: str) -> None:
    """Given subscriptions, one of which was made within a callback, when their messages are done with, then nothing
    holds them."""

    async def story() -> None:
        manager = MessageQueueManager()
        await manager.create_queue("q")
        done = 0

        def count(message: QueuedMessage) -> None:
            nonlocal done
            done += 1

        def subscribe_another(message: QueuedMessage) -> None:
            manager.subscribe_to_queue("q", "inner", "inner", callback=_callback(kind, lambda: None))
            count(message)

        async def count_later(message: QueuedMessage) -> None:
            await asyncio.sleep(0)
            count(message)

        manager.subscribe_to_queue("q", "s", "outer", callback=subscribe_another)
        manager.subscribe_to_queue("q", "t", "plain", callback=count_later if kind == "coroutine" else count)
        for topic in ("outer", "plain"):
            await manager.send_message("q", topic, {"marked for the collector": [topic]})
        await until(lambda: done == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        assert [one for one in gc.get_objects() if type(one) is dict and "marked for the collector" in one] == []
        await manager.shutdown()

    asyncio.run(story())
