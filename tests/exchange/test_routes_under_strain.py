"""Topic routes under strain: messages that go in circles, full queues, other threads and loops."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from mpreg_mq import (
    BlockingMessageQueueManager,
    DeliveryResult,
    MessageQueueManager,
    OverflowPolicy,
    QueueConfiguration,
    QueuedMessage,
    QueueManagerConfiguration,
    TopicExchange,
    VirtualClock,
)
from mpreg_mq.events import EventLog
from mpreg_mq.exchange.feed import QueueFeed, RoutedMessage
from tests.support.exchanges import message
from tests.support.routes import counts_of, pending, settled
from tests.support.running import FlakyLog, until

# --- loops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["manager", "exchange", "coroutine", "thread"])
def test_a_message_from_a_queue_does_not_enter_it_again(how: str) -> None:
    """Given a subscriber that publishes what it gets on the topics that feed its queue, whichever way it does, then
    the message is not taken again, that is counted, and another queue does take it."""

    async def story() -> None:
        exchange = TopicExchange()
        async with MessageQueueManager(None, exchange) as manager:
            done = asyncio.Event()
            loop = asyncio.get_running_loop()

            def republish(one: QueuedMessage) -> Any:
                if how == "manager":
                    return manager.publish_to_topic_exchange("t.again", one.payload)
                if how == "coroutine":
                    return later(one)
                exchange.publish_message(message(exchange, "t.again", one.payload))
                loop.call_soon_threadsafe(done.set)
                return None

            async def later(one: QueuedMessage) -> None:
                await asyncio.sleep(0)
                await manager.publish_to_topic_exchange("t.again", one.payload)

            await manager.route_topic_to_queue("t.#", "q")
            await manager.route_topic_to_queue("t.again", "other")
            manager.subscribe_to_queue("q", "s", "#", callback=republish, blocking=how == "thread")
            await manager.publish_to_topic_exchange("t.first", 1)
            await until(lambda: manager.queue("q").get_statistics().messages_acknowledged == 1)
            await until(lambda: manager.queue("other").get_statistics().messages_sent == 1)
            counts = counts_of(manager, "t.#")
            assert (counts.received, counts.routed, counts.looped) == (2, 1, 1)
            (copy,) = pending(manager, "other")
            assert copy.headers["mpreg-mq.trail"] == "q"

    asyncio.run(story())


def test_queues_that_feed_each_other_come_to_an_end() -> None:
    """Given two queues whose subscribers publish what feeds the other, then a message passes each once."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            heard: Counter[str] = Counter()

            def pass_on(name: str, topic: str) -> Any:
                async def callback(one: QueuedMessage) -> None:
                    heard[name] += 1
                    await manager.publish_to_topic_exchange(topic, one.payload, headers={"x": "y"})

                return callback

            await manager.route_topic_to_queue("to.a", "a")
            await manager.route_topic_to_queue("to.b", "b")
            manager.subscribe_to_queue("a", "s", "#", callback=pass_on("a", "to.b"))
            manager.subscribe_to_queue("b", "s", "#", callback=pass_on("b", "to.a"))
            await manager.publish_to_topic_exchange("to.a", 1)
            await until(lambda: counts_of(manager, "to.a", "a").looped == 1)
            assert heard == {"a": 1, "b": 1}

    asyncio.run(story())


# --- back-pressure ------------------------------------------------------------------------------------------


async def _full(manager: MessageQueueManager, policy: OverflowPolicy, **options: Any) -> None:
    await manager.create_queue("q", QueueConfiguration("q", max_size=2))
    await manager.route_topic_to_queue("a", "q", overflow_policy=policy, **options)
    for number in range(5):
        await manager.publish_to_topic_exchange("a", number)


def test_without_more_a_full_queue_refuses_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    """Given the reject policy and a full queue, then what does not fit is refused, counted, and said once."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await _full(manager, OverflowPolicy.REJECT)
            await settled(manager)
            counts = counts_of(manager, "a")
            assert (counts.received, counts.routed, counts.refused) == (5, 2, 3)
            assert "maximum capacity" in str(counts.last_error)
            assert [record.getMessage() for record in caplog.records if "message lost" in record.getMessage()] != []
            assert sum("message lost" in record.getMessage() for record in caplog.records) == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    ("policy", "kept", "refused", "dropped"),
    [(OverflowPolicy.WAIT, [0, 1, 2, 3], 1, 0), (OverflowPolicy.DROP_OLDEST, [0, 1, 3, 4], 0, 1)],
)
def test_what_can_wait_goes_on_when_there_is_room(
    policy: OverflowPolicy, kept: list[int], refused: int, dropped: int
) -> None:
    """Given a route that keeps two messages for a full queue, when the queue is emptied, then these follow in order;
    of the others the new ones are refused, or the old ones dropped, and counted."""

    async def story() -> None:
        clock = VirtualClock()
        async with MessageQueueManager(clock=clock) as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_size=2))
            await manager.route_topic_to_queue("a", "q", overflow_policy=policy, max_buffered=2)
            for number in range(5):
                await manager.publish_to_topic_exchange("a", number)
                await clock.settle()
            taken: list[int] = []
            for _ in range(2):
                for one in await manager.receive_messages("q", "s", 10):
                    taken.append(one.payload)
                    await manager.acknowledge_message("q", one.id, "s")
                await clock.advance(1.0)
            assert taken == kept
            counts = counts_of(manager, "a")
            assert (counts.routed, counts.refused, counts.dropped, counts.buffered) == (4, refused, dropped, 0)
            # A full queue was looked at, not asked.
            assert manager.queue("q").get_statistics().messages_rejected == 0

    asyncio.run(story())


async def _being_sent(manager: MessageQueueManager, payload: object) -> None:
    """Publish on ``a`` and let it go: it is on its way into the queue, and not there yet."""
    await manager.publish_to_topic_exchange("a", payload)
    await asyncio.sleep(0)
    assert (counts_of(manager, "a").buffered, counts_of(manager, "a").routed) == (1, 0)


def test_a_route_that_drops_its_oldest_keeps_the_newest_while_others_are_sent(tmp_path: Path) -> None:
    """Given a route that keeps one message and drops the oldest, when two more come while the first is being sent, then
    the first and the newest get there, the loss is counted, and another queue of the pattern gets all of them."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await manager.route_topic_to_queue("a", "q", overflow_policy=OverflowPolicy.DROP_OLDEST, max_buffered=1)
            await manager.route_topic_to_queue("a", "other")
            await _being_sent(manager, 1)
            for number in (2, 3):
                await manager.publish_to_topic_exchange("a", number)
            await settled(manager)
            assert [one.payload for one in pending(manager)] == [1, 3]
            assert [one.payload for one in pending(manager, "other")] == [1, 2, 3]
            counts = counts_of(manager, "a")
            assert (counts.received, counts.routed, counts.dropped) == (3, 2, 1)

    asyncio.run(story())


def test_what_comes_back_is_the_oldest_of_its_route() -> None:
    """Given a route that keeps one message and drops the oldest, when the store refuses what is being sent and another
    one waits by then, then that one is kept."""

    async def story() -> None:
        clock = VirtualClock()
        log = FlakyLog(blocking=True)
        async with MessageQueueManager(log=cast(EventLog, log), clock=clock) as manager:
            await manager.route_topic_to_queue("a", "q", overflow_policy=OverflowPolicy.DROP_OLDEST, max_buffered=1)
            log.failing = True
            await _being_sent(manager, 1)
            for number in (2, 3):
                await manager.publish_to_topic_exchange("a", number)
            await until(lambda: counts_of(manager, "a").dropped == 2)
            log.failing = False
            await clock.advance(5.0)
            await until(lambda: counts_of(manager, "a").buffered == 0)
            assert [one.payload for one in pending(manager)] == [3]
            counts = counts_of(manager, "a")
            assert (counts.received, counts.routed, counts.dropped) == (3, 1, 2)

    asyncio.run(story())


def test_a_fault_of_one_route_is_not_that_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a queue whose feed raises, when a message is published, then the loss is counted with its reason, and the
    other queues of the pattern get the message."""
    put = QueueFeed.put

    def fail(feed: QueueFeed, one: RoutedMessage) -> None:
        if feed.queue_name == "q":
            raise RuntimeError("fault")
        put(feed, one)

    monkeypatch.setattr(QueueFeed, "put", fail)

    async def story() -> None:
        async with MessageQueueManager() as manager:
            for name in ("q", "other"):
                await manager.route_topic_to_queue("a", name)
            await manager.publish_to_topic_exchange("a", 1)
            await settled(manager)
            assert [one.payload for one in pending(manager, "other")] == [1]
            counts = counts_of(manager, "a")
            assert (counts.received, counts.refused, counts.last_error) == (1, 1, "RuntimeError: fault")

    asyncio.run(story())


def test_a_queue_that_raises_ends_no_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a queue that raises what nobody foresaw, when messages are routed, then these are refused and counted, and
    the next ones go on."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("a", "q", overflow_policy=OverflowPolicy.WAIT)

            async def fail(*_: object, **__: object) -> list[DeliveryResult]:
                raise RuntimeError("fault")

            with monkeypatch.context() as faulty:
                faulty.setattr(manager.queue("q"), "send_messages", fail)
                await manager.publish_to_topic_exchange("a", 1)
                await settled(manager)
            await manager.publish_to_topic_exchange("a", 2)
            await settled(manager)
            assert [one.payload for one in pending(manager)] == [2]
            counts = counts_of(manager, "a")
            assert (counts.received, counts.routed, counts.refused) == (2, 1, 1)

    asyncio.run(story())


def test_a_queue_that_reads_its_log_again_is_waited_for() -> None:
    """Given a queue that reads its log again after a failure, when messages for it wait to be routed, then they get
    there."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("a", "q", overflow_policy=OverflowPolicy.WAIT)
            actor = manager.queue("q")._actor
            failure = actor._recovering = OSError("disk on fire")
            await manager.publish_to_topic_exchange("a", 1)
            for _ in range(20):
                await asyncio.sleep(0)
            actor._recover_from(failure)
            await settled(manager)
            assert [one.payload for one in pending(manager)] == [1]

    asyncio.run(story())


def test_what_still_waits_at_the_end_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Given messages that wait for a full queue, when the manager is shut down, then they are refused and counted."""

    async def story() -> None:
        manager = MessageQueueManager(clock=VirtualClock())
        await _full(manager, OverflowPolicy.WAIT)
        await manager.shutdown()
        counts = counts_of(manager, "a")
        assert (counts.routed, counts.refused, counts.buffered) == (2, 3, 0)
        assert "closed" in str(counts.last_error)

    asyncio.run(story())


def test_what_was_published_before_the_end_is_not_lost() -> None:
    """Given messages published just before a shutdown, then all of them are in the log."""

    async def story() -> None:
        manager = MessageQueueManager()
        await manager.route_topic_to_queue("a", "q")
        for number in range(100):
            await manager.publish_to_topic_exchange("a", number)
        await manager.shutdown()
        assert manager.queue("q").get_statistics().messages_sent == 100

    asyncio.run(story())


def test_what_another_thread_published_before_the_end_is_not_lost() -> None:
    """Given a message that another thread published just before a shutdown, then it is in the log."""

    async def story() -> None:
        exchange = TopicExchange()
        manager = MessageQueueManager(None, exchange)
        await manager.route_topic_to_queue("a", "q")
        thread = threading.Thread(target=exchange.publish_message, args=(message(exchange, "a", 1),))
        thread.start()
        thread.join()
        await manager.shutdown()
        assert manager.queue("q").get_statistics().messages_sent == 1

    asyncio.run(story())


def test_what_comes_after_the_end_is_refused_and_counted() -> None:
    """Given a message that another thread published as the manager was shut down, when the loop hears of it, then it is
    refused and counted."""

    async def story() -> None:
        manager = MessageQueueManager()
        await manager.route_topic_to_queue("a", "q", overflow_policy=OverflowPolicy.WAIT)
        await manager.route_topic_to_queue("a", "other", overflow_policy=OverflowPolicy.WAIT)
        await manager.publish_to_topic_exchange("a", 1)
        (first, second) = manager._router.table.of_pattern("a")
        del manager._router._feeds[second.routing.queue_name]
        await manager.shutdown()
        manager._router._take(message(manager.topic_exchange, "a", 2), "a", ())
        for route in (first, second):
            counts = counts_of(manager, "a", route.routing.queue_name)
            assert (counts.received - counts.routed, counts.refused, counts.buffered) == (1, 1, 0)

    asyncio.run(story())


@pytest.mark.parametrize("payload", [object(), 2**70])
def test_what_a_queue_cannot_take_is_counted_and_stops_nothing(payload: object) -> None:
    """Given a payload that has no encoding and one that is too large, then both are refused and the next goes on."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_payload_bytes=100))
            await manager.route_topic_to_queue("a", "q")
            for one in (payload, "x" * 200, "fine"):
                assert await manager.publish_to_topic_exchange("a", one)
            await settled(manager)
            counts = counts_of(manager, "a")
            assert (counts.received, counts.routed, counts.refused) == (3, 1, 2)
            assert [one.payload for one in pending(manager)] == ["fine"]

    asyncio.run(story())


# --- threads and loops --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_routes_and_events_work_on_a_loop_whose_tasks_begin_at_once() -> None:
    """Given a loop with eager tasks, as MPREG's client makes it, when messages are published one after the other, then
    each is in the queue before its turn is over, and so are the events of it."""

    async def story() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        async with MessageQueueManager(QueueManagerConfiguration(publish_queue_events=True)) as manager:
            await manager.route_topic_to_queue("a", "q")
            await manager.route_topic_to_queue("mpreg.queue.q.message_enqueued", "events")
            for number in range(5):
                await manager.publish_to_topic_exchange("a", number)
                await until(lambda number=number: len(pending(manager)) == number + 1)  # type: ignore[misc]
            await until(lambda: len(pending(manager, "events")) == 5)

    asyncio.run(story())


def test_messages_published_on_another_thread_arrive() -> None:
    """Given a thread that publishes, then its messages go into the queue on the manager's loop, in order."""

    async def story() -> None:
        exchange = TopicExchange()
        async with MessageQueueManager(None, exchange) as manager:
            await manager.route_topic_to_queue("a", "q")

            def publish() -> None:
                for number in range(50):
                    exchange.publish_message(message(exchange, "a", number))

            thread = threading.Thread(target=publish)
            thread.start()
            await until(lambda: len(pending(manager)) == 50)
            thread.join()
            assert [one.payload for one in pending(manager)] == list(range(50))

    asyncio.run(story())


def test_programs_without_asyncio_route_too(tmp_path: Path) -> None:
    """Given the blocking manager, then it routes, and its routes work again as soon as it is made anew."""
    log = tmp_path / "blocking.db"
    with BlockingMessageQueueManager(log=log) as manager:
        assert manager.route_topic_to_queue("a.#", "q")
        assert manager.publish_to_topic_exchange("a.b", 1, headers={"k": "v"})
        (one,) = manager.receive_messages("q", "s", wait_seconds=10)
        assert (one.payload, one.headers["k"]) == (1, "v")
        assert manager.acknowledge_message("q", one.id, "s")
    exchange = TopicExchange()
    with BlockingMessageQueueManager(None, exchange, log=log) as manager:
        exchange.publish_message(message(exchange, "a.b", 2))
        (one,) = manager.receive_messages("q", "s", wait_seconds=10)
        assert one.payload == 2
        assert manager.acknowledge_message("q", one.id, "s")
        assert [routing.topic_pattern for routing in manager.topic_routings] == ["a.#"]
        counts = manager.get_route_statistics("a.#", "q")
        assert counts is not None
        assert counts.routed == 1
        assert manager.unroute_topic_from_queue("a.#", "q")


def test_what_is_published_before_there_is_a_loop_waits_for_it(tmp_path: Path) -> None:
    """Given routes in a log and no loop, when a message is published, then it is in the queue once a loop runs."""
    log = tmp_path / "early.db"

    async def first() -> None:
        async with MessageQueueManager(log=log) as manager:
            await manager.route_topic_to_queue("a", "q")

    asyncio.run(first())
    exchange = TopicExchange()
    manager = MessageQueueManager(QueueManagerConfiguration(), exchange, log=log)
    exchange.publish_message(message(exchange, "a", 1))

    async def second() -> None:
        await manager.route_topic_to_queue("b", "q")
        await settled(manager)
        assert [one.payload for one in pending(manager)] == [1]
        await manager.shutdown()

    asyncio.run(second())
