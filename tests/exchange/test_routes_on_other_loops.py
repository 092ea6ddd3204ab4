"""Routes of a manager that several event loops use, at the same time or one after the other."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import attrs
import pytest

from mpreg_mq import MessageQueueManager, OverflowPolicy, QueueConfiguration, TopicExchange
from tests.support.loops import other_loop
from tests.support.running import PATIENCE_SECONDS, until


async def fill_a_route(manager: MessageQueueManager) -> None:
    """Have a route wait for room in its queue."""
    await manager.create_queue("q", QueueConfiguration("q", max_size=1))
    await manager.route_topic_to_queue("t.#", "q", overflow_policy=OverflowPolicy.WAIT)
    for number in range(2):
        assert await manager.publish_to_topic_exchange("t.x", number)
    await until(lambda: manager.queue("q").statistics.messages_sent == 1)


@pytest.mark.parametrize("deleted", [True, False])
def test_what_a_route_still_sends_on_another_loop_is_ended_there(deleted: bool) -> None:
    """Given a route that waits for room in its queue on one loop, when another loop deletes the queue or closes the
    manager, then that comes to its end."""
    manager = MessageQueueManager()

    async def end() -> bool:
        if deleted and not await manager.delete_queue("q"):
            return False
        await manager.shutdown()
        return True

    with other_loop() as other:
        other.run(fill_a_route(manager))
        assert asyncio.run(end())
        assert manager.get_queue_info("q") is None or not deleted


@pytest.mark.parametrize("deleted", [True, False])
def test_what_a_route_still_sends_on_a_loop_that_stands_still_is_lost_with_a_reason(
    deleted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a route that waits for room in its queue on a loop that nobody runs any more, when another one deletes the
    queue or closes the manager, then that comes to its end, and what waited is logged as lost."""
    manager = MessageQueueManager()
    before = asyncio.new_event_loop()

    async def end() -> None:
        if deleted:
            assert await manager.delete_queue("q")
        await manager.shutdown()

    before.run_until_complete(fill_a_route(manager))
    asyncio.run(asyncio.wait_for(end(), PATIENCE_SECONDS))
    assert "before there was room" in caplog.text
    waiting = asyncio.all_tasks(before)
    for task in waiting:
        task.cancel()
    before.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
    before.close()


class WatchedExchange(TopicExchange):
    """An exchange that notes on which threads its subscriptions begin and end."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []

    def add_internal_subscription(self, subscription: Any, callback: Any) -> None:
        self.threads.append(threading.current_thread())
        super().add_internal_subscription(subscription, callback)

    def remove_subscription(self, subscription_id: str) -> bool:
        self.threads.append(threading.current_thread())
        return super().remove_subscription(subscription_id)


def test_routes_change_on_the_loop_that_they_send_on() -> None:
    """Given routes that send on one loop, when another one makes and ends them, deletes their queue and closes the
    manager, then nothing is changed beneath what the first is doing: all of it happens there."""
    exchange = WatchedExchange()
    manager = MessageQueueManager(topic_exchange=exchange)

    async def change() -> None:
        for pattern in ("a", "b", "c"):
            assert await manager.route_topic_to_queue(pattern, "q")
        assert await manager.unroute_topic_from_queue("a", "q")
        assert await manager.delete_queue("q")
        await manager.create_queue("q")
        assert await manager.route_topic_to_queue("d", "q")
        await manager.shutdown()

    with other_loop() as home:
        home.run(manager.create_queue("q"))
        asyncio.run(asyncio.wait_for(change(), PATIENCE_SECONDS))
        assert set(exchange.threads) == {home.thread}


def test_routes_send_on_the_next_loop_when_theirs_has_ended() -> None:
    """Given a route whose loop has ended, when something is published on another one, or on a thread without any, then
    it comes into the queue, with what still waited for room."""
    manager = MessageQueueManager()
    exchange = manager.topic_exchange

    async def publish(*numbers: int) -> None:
        for number in numbers:
            assert await manager.publish_to_topic_exchange("t.x", number)

    async def take() -> list[Any]:
        await manager.route_topic_to_queue("t.#", "q", overflow_policy=OverflowPolicy.WAIT)
        taken: list[Any] = []
        while len(taken) < 5:
            for message in await manager.receive_messages("q", "w", wait_seconds=PATIENCE_SECONDS):
                taken.append(message.payload)
                await manager.acknowledge_message("q", message, "w")
        await manager.shutdown()
        return taken

    asyncio.run(fill_a_route(manager))
    asyncio.run(publish(2, 3))
    message = exchange.backlog.get_backlog("t.x", 60)[0]
    exchange.publish_message(attrs.evolve(message, message_id="without a loop", payload=4))
    assert asyncio.run(asyncio.wait_for(take(), PATIENCE_SECONDS)) == [0, 1, 2, 3, 4]
