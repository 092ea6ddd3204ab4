"""Routes that come late or end early: the backlog of an exchange, queues that are deleted, callers that give up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import (
    MessageQueueError,
    MessageQueueManager,
    OverflowPolicy,
    QueueConfiguration,
    TopicExchange,
    VirtualClock,
)
from mpreg_mq.exchange.messages import Listener, TopicNotification
from mpreg_mq.topics import matches
from tests.support.exchanges import EXCHANGES, MakeExchange, message
from tests.support.routes import PATTERNS, TOPICS, counts_of, pending, settled
from tests.support.running import until

# --- backlog ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", EXCHANGES)
def test_a_new_route_takes_the_backlog_when_asked(make: MakeExchange) -> None:
    """Given messages that were published before, when a route wants a backlog, then the queue gets those of its age
    and pattern once, and without the wish it gets none."""

    async def story() -> None:
        exchange = make()
        for number, topic in enumerate(("a.1", "b", "a.2")):
            exchange.publish_message(message(exchange, topic, number, f"m{number}"))
        async with MessageQueueManager(None, exchange) as manager:
            await manager.route_topic_to_queue("a.*", "without")
            await manager.route_topic_to_queue("a.*", "q", backlog_seconds=60)
            await manager.route_topic_to_queue("a.*", "q", backlog_seconds=60, priority=1)
            exchange.publish_message(message(exchange, "a.3", 3, "m3"))
            await settled(manager)
            assert [one.topic for one in pending(manager)] == ["a.1", "a.2", "a.3"]
            assert [one.topic for one in pending(manager, "without")] == ["a.3"]

    asyncio.run(story())


@pytest.mark.parametrize("make", EXCHANGES)
def test_the_backlog_has_what_an_older_route_came_too_late_for(make: MakeExchange) -> None:
    """Given messages published before and after an overlapping route without a backlog, when a younger route into the
    same queue takes the backlog, then the queue has each message once, by the route that took it."""

    async def story() -> None:
        exchange = make()
        async with MessageQueueManager(None, exchange) as manager:
            exchange.publish_message(message(exchange, "t.x", "before", "m1"))
            await manager.route_topic_to_queue("t.#", "q")
            exchange.publish_message(message(exchange, "t.x", "after", "m2"))
            await manager.route_topic_to_queue("t.x", "q", backlog_seconds=60)
            exchange.publish_message(message(exchange, "t.x", "last", "m3"))
            await settled(manager)
            routes = {one.payload: one.headers["mpreg-mq.route"] for one in pending(manager)}
            assert routes == {"after": "t.#", "before": "t.x", "last": "t.#"}
            assert len(pending(manager)) == 3
            counts = counts_of(manager, "t.x")
            assert (counts.received, counts.routed, counts.overlapping) == (3, 1, 2)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("policy", "lost"), [(OverflowPolicy.REJECT, 2), (OverflowPolicy.DROP_OLDEST, 1), (OverflowPolicy.WAIT, 1)]
)
def test_the_backlog_has_what_there_was_no_room_for(policy: OverflowPolicy, lost: int) -> None:
    """Given a route into a full queue that has given up messages, when a wider route takes the backlog, then the queue
    gets those as well, and each message once."""

    async def story() -> None:
        clock = VirtualClock()
        async with MessageQueueManager(clock=clock) as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_size=1))
            await manager.route_topic_to_queue("a.*", "q", overflow_policy=policy, max_buffered=1)
            for number in range(3):
                await manager.publish_to_topic_exchange("a.x", number)
                await clock.advance(1)
            counts = counts_of(manager, "a.*")
            assert counts.refused + counts.dropped == lost
            await manager.route_topic_to_queue("a.#", "q", overflow_policy=OverflowPolicy.WAIT, backlog_seconds=60)
            taken = []
            for _ in range(5):
                taken += [one.payload for one in await manager.receive_messages("q", "s")]
                await clock.advance(2)
            assert sorted(taken) == [0, 1, 2]
            counts = counts_of(manager, "a.#")
            assert (counts.received, counts.routed, counts.overlapping) == (3, lost, 3 - lost)

    asyncio.run(story())


def test_a_message_that_is_there_is_not_lost_with_its_copy() -> None:
    """Given a message that was published twice, of which the queue took one and refused the other, when a wider route
    takes the backlog, then it leaves both."""

    async def story() -> None:
        exchange, clock = TopicExchange(), VirtualClock()
        async with MessageQueueManager(None, exchange, clock=clock) as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_size=1))
            await manager.route_topic_to_queue("a.*", "q")
            for _ in range(2):
                exchange.publish_message(message(exchange, "a.x", 1, "m1"))
                await clock.advance(1)
            assert len(await manager.receive_messages("q", "s", 2)) == 1
            await manager.route_topic_to_queue("a.#", "q", backlog_seconds=60)
            await clock.advance(1)
            assert await manager.receive_messages("q", "s", 2) == []
            assert counts_of(manager, "a.#").overlapping == 2

    asyncio.run(story())


@given(steps=st.lists(st.one_of(TOPICS, st.tuples(PATTERNS, st.booleans())), max_size=12))
def test_a_message_enters_a_queue_once_whatever_takes_the_backlog(steps: list[str | tuple[str, bool]]) -> None:
    """For all orders of publishing and of making and ending routes into a queue, with and without a backlog: it gets
    every message once that a route matched when it was published, or that a route found in the backlog."""

    async def story() -> None:
        async with MessageQueueManager(clock=VirtualClock()) as manager:
            published: list[str] = []
            wanted: set[int] = set()
            patterns: list[str] = []
            await manager.create_queue("q")
            for step in steps:
                if isinstance(step, str):
                    if any(matches(pattern, step) for pattern in patterns):
                        wanted.add(len(published))
                    await manager.publish_to_topic_exchange(step, len(published))
                    published.append(step)
                    continue
                pattern, backlog = step
                if pattern in patterns:
                    patterns.remove(pattern)
                    await manager.unroute_topic_from_queue(pattern, "q")
                    continue
                patterns.append(pattern)
                if backlog:
                    wanted |= {number for number, topic in enumerate(published) if matches(pattern, topic)}
                await manager.route_topic_to_queue(pattern, "q", backlog_seconds=60 if backlog else None)
            await until(lambda: len(pending(manager)) >= len(wanted))
            await settled(manager)
            assert sorted(one.payload for one in pending(manager)) == sorted(wanted)

    asyncio.run(story())


def test_a_new_queue_has_taken_nothing() -> None:
    """Given a queue that took a message and was deleted, when another of its name takes the backlog, then it gets the
    message."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.publish_to_topic_exchange("t.x", 1)
            for _ in range(2):
                await manager.route_topic_to_queue("t.#", "q", backlog_seconds=60)
                await settled(manager)
                assert [one.payload for one in pending(manager)] == [1]
                await manager.delete_queue("q")

    asyncio.run(story())


def test_a_message_of_another_thread_that_came_with_the_backlog_does_not_come_again() -> None:
    """Given a message that another thread published, when a route finds it in the backlog before the loop hears of it,
    then it enters the queue once."""

    async def story() -> None:
        exchange = TopicExchange()
        async with MessageQueueManager(None, exchange) as manager:
            await manager.route_topic_to_queue("t.#", "q")
            thread = threading.Thread(target=exchange.publish_message, args=(message(exchange, "t.x", 1),))
            thread.start()
            thread.join()
            await manager.route_topic_to_queue("t.x", "q", backlog_seconds=60)
            await settled(manager)
            assert [one.payload for one in pending(manager)] == [1]
            assert counts_of(manager, "t.#").overlapping == 1

    asyncio.run(story())


# --- routes that end while other threads publish --------------------------------------------------------------


class _Halting(TopicExchange):
    """Tells the subscriptions of one message in the order of their patterns here, and halts between them."""

    def __init__(self, *patterns: str) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self._patterns = patterns
        self._calls: dict[str, Callable[[], None]] = {}

    def _call(self, listener: Listener, notification: TopicNotification) -> None:
        (pattern,) = self.subscriptions[notification.subscription_id].patterns
        self._calls[pattern.pattern] = partial(super()._call, listener, notification)
        if len(self._calls) == len(self._patterns):
            for one in self._patterns:
                self._calls[one]()
                assert self.go_on.wait(10)
            self._calls.clear()


@pytest.mark.parametrize("patterns", [("old.#", "#"), ("#", "old.#")])
@pytest.mark.parametrize("ending", ["old.#", "#"])
def test_a_route_that_ends_while_a_thread_publishes_neither_loses_nor_doubles(
    patterns: tuple[str, str], ending: str
) -> None:
    """Given two routes into a queue and a thread that publishes, when one of them ends after one has been told of the
    message and before the other is, then the message enters the queue once."""

    async def story() -> None:
        exchange = _Halting(*patterns)
        async with MessageQueueManager(None, exchange) as manager:
            for pattern in ("old.#", "#"):
                await manager.route_topic_to_queue(pattern, "q")
            published = message(exchange, "old.a", 1)
            publishing = asyncio.create_task(asyncio.to_thread(exchange.publish_message, published))
            await until(lambda: counts_of(manager, patterns[0]).received == 1)
            await manager.unroute_topic_from_queue(ending, "q")
            exchange.go_on.set()
            await publishing
            await settled(manager)
            assert [one.payload for one in pending(manager)] == [1]

    asyncio.run(story())


def test_what_another_thread_published_before_a_route_ended_is_not_lost() -> None:
    """Given a message that another thread published just before its route is replaced by another one, then it is in the
    queue."""

    async def story() -> None:
        exchange = TopicExchange()
        async with MessageQueueManager(None, exchange) as manager:
            await manager.route_topic_to_queue("a", "q")
            thread = threading.Thread(target=exchange.publish_message, args=(message(exchange, "a", 1),))
            thread.start()
            thread.join()
            await manager.route_topic_to_queue("#", "q")
            await manager.unroute_topic_from_queue("a", "q")
            await until(lambda: [one.payload for one in pending(manager)] == [1])

    asyncio.run(story())


# --- routes and the ends of queues --------------------------------------------------------------------------


def test_no_route_outlives_its_queue(tmp_path: Path) -> None:
    """Given a route that is asked for while its queue is deleted, twice at once, then the route has a queue, and routes
    of before have none."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "routes.db") as manager:
            await manager.route_topic_to_queue("old", "q")
            deleted, routed, _ = await asyncio.gather(
                manager.delete_queue("q"), manager.route_topic_to_queue("new", "q"), manager.delete_queue("q")
            )
            assert deleted
            assert routed
            left = [routing.topic_pattern for routing in manager.topic_routings]
            assert left in ([], ["new"])
            assert list(manager.queues) == ["q" for _ in left]
            assert manager.get_global_statistics().total_queues == len(left)

    asyncio.run(story())


def test_what_waits_for_a_queue_that_is_deleted_is_lost_for_that_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Given messages of a route that wait for room, when their queue is deleted, then the log says that they are lost,
    and why."""

    async def story() -> None:
        async with MessageQueueManager(clock=VirtualClock()) as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_size=1))
            await manager.route_topic_to_queue("t", "q", overflow_policy=OverflowPolicy.WAIT)
            for number in range(3):
                await manager.publish_to_topic_exchange("t", number)
            await until(lambda: len(pending(manager)) == 1)
            await manager.delete_queue("q")

    asyncio.run(story())
    assert "message lost: the queue was deleted before there was room" in caplog.text
    assert "closed" not in caplog.text


def test_a_queue_that_cannot_be_deleted_is_still_there(tmp_path: Path) -> None:
    """Given a manager that is shut down while it deletes a queue, when it is made anew, then no route leads nowhere."""

    async def before() -> None:
        manager = MessageQueueManager(log=tmp_path / "routes.db")
        for pattern in ("a", "b", "c"):
            await manager.route_topic_to_queue(pattern, "q")
        deleting = asyncio.create_task(manager.delete_queue("q"))
        await asyncio.sleep(0)
        await manager.shutdown()
        await asyncio.wait([deleting])
        assert deleting.exception() is None or isinstance(deleting.exception(), MessageQueueError)

    async def after() -> None:
        async with MessageQueueManager(log=tmp_path / "routes.db") as manager:
            assert {routing.queue_name for routing in manager.topic_routings} <= set(manager.queues)

    asyncio.run(before())
    asyncio.run(after())


def test_a_route_that_nobody_waits_for_is_made_all_the_same(tmp_path: Path) -> None:
    """Given a caller that gives up while its route is stored, then the route works, and so does making another one."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "routes.db") as manager:
            await manager.create_queue("q")
            making = asyncio.create_task(manager.route_topic_to_queue("a", "q"))
            await asyncio.sleep(0)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
            assert await manager.route_topic_to_queue("b", "q")
            for topic in ("a", "b"):
                await manager.publish_to_topic_exchange(topic, topic)
            await settled(manager)
            assert [one.payload for one in pending(manager)] == ["a", "b"]

    asyncio.run(story())


def test_a_route_that_ended_leaves_nothing_behind() -> None:
    """Given routes that are made, take a message and end, then no more is kept of them than of those that are there;
    one that is made again begins to count anew."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("kept", "q")
            for number in range(20):
                pattern = f"t.{number % 2}"
                await manager.route_topic_to_queue(pattern, "q")
                await manager.publish_to_topic_exchange(pattern, number)
                await settled(manager)
                assert counts_of(manager, pattern).received == 1
                await manager.unroute_topic_from_queue(pattern, "q")
            feed = manager._router._feeds["q"]
            assert set(feed.counts) <= {("kept", "q")}
            assert not feed._removed

    asyncio.run(story())


def test_messages_that_wait_of_a_route_that_ended_still_come() -> None:
    """Given a route that ends while a message of it waits, then the message comes, and then nothing is kept of it."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("t", "q")
            await manager.publish_to_topic_exchange("t", 1)
            await manager.unroute_topic_from_queue("t", "q")
            await settled(manager)
            await until(lambda: len(pending(manager)) == 1)
            await until(lambda: not manager._router._feeds["q"].counts)

    asyncio.run(story())
