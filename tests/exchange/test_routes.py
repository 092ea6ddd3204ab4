"""Topic routes of a manager, with our exchange and with MPREG's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import (
    DeliveryGuarantee,
    InvalidOptionError,
    InvalidTopicError,
    MessageQueueManager,
    OverflowPolicy,
    QueueClosedError,
    QueueConfiguration,
    TopicExchange,
)
from mpreg_mq.topics import matches
from tests.support.exchanges import EXCHANGES, MakeExchange, message
from tests.support.routes import PATTERNS, TOPICS, counts_of, pending, settled

# --- what a route does --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", EXCHANGES)
def test_a_published_message_becomes_a_send_with_its_origin(make: MakeExchange) -> None:
    """Given a route, when a message is published, then the queue has its topic, payload and headers, and where it
    came from; its id is the deduplication id."""

    async def story() -> None:
        exchange = make()
        async with MessageQueueManager(None, exchange) as manager:
            assert await manager.route_topic_to_queue("order.#", "q", DeliveryGuarantee.BROADCAST, priority=3)
            exchange.publish_message(
                message(
                    exchange,
                    "order.paid",
                    {"id": 7},
                    "id-1",
                    publisher="shop",
                    timestamp=12.5,
                    headers={"trace": "abc", "n": 1, "none": None, "mpreg-mq.publisher": "a lie"},
                )
            )
            exchange.publish_message(message(exchange, "invoice.paid", 1))
            await settled(manager)
            (one,) = pending(manager)
            assert (one.topic, one.payload, one.priority) == ("order.paid", {"id": 7}, 3)
            assert one.delivery_guarantee is DeliveryGuarantee.BROADCAST
            assert one.deduplication_id == "id-1"
            assert one.headers == {
                "trace": "abc",
                "n": "1",
                "mpreg-mq.publisher": "shop",
                "mpreg-mq.message-id": "id-1",
                "mpreg-mq.published-at": "12.5",
                "mpreg-mq.route": "order.#",
            }

    asyncio.run(story())


@pytest.mark.parametrize("make", EXCHANGES)
@given(
    routes=st.lists(st.tuples(PATTERNS, st.sampled_from(["x", "y"])), max_size=6),
    topics=st.lists(TOPICS, max_size=8),
)
def test_each_queue_gets_what_a_naive_matcher_says(
    make: MakeExchange, routes: list[tuple[str, str]], topics: list[str]
) -> None:
    """For all routes and topics: a queue gets, once and in order, each message that one of its patterns matches; what
    every route counts adds up."""

    async def story() -> None:
        exchange = make()
        async with MessageQueueManager(None, exchange) as manager:
            for name in ("x", "y"):
                await manager.create_queue(name)
            for pattern, name in routes:
                assert await manager.route_topic_to_queue(pattern, name)
            for topic in topics:
                exchange.publish_message(message(exchange, topic))
            await settled(manager)
            for name in ("x", "y"):
                wanted = [
                    topic
                    for topic in topics
                    if any(matches(pattern, topic) for pattern, target in routes if target == name)
                ]
                assert [one.topic for one in pending(manager, name)] == wanted
            for pattern, name in set(routes):
                counts = counts_of(manager, pattern, name)
                assert counts.received == sum(matches(pattern, topic) for topic in topics)
                assert counts.received == counts.routed + counts.overlapping
            manager._router.table.check()

    asyncio.run(story())


def test_the_oldest_route_takes_a_message() -> None:
    """Given overlapping routes into one queue, when both match, then the older one's options count; when it is gone,
    those of the other do."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("a.#", "q", priority=1)
            await manager.route_topic_to_queue("a.b", "q", priority=2)
            await manager.publish_to_topic_exchange("a.b", 1)
            await settled(manager)
            await manager.unroute_topic_from_queue("a.#", "q")
            await manager.publish_to_topic_exchange("a.b", 2)
            await settled(manager)
            assert [(one.payload, one.priority) for one in pending(manager)] == [(1, 1), (2, 2)]

    asyncio.run(story())


@pytest.mark.parametrize("name", [[], {}, 7, None])
def test_what_can_be_no_name_has_no_route(name: Any) -> None:
    """Given a route, when something that can be no name stands for its pattern or its queue, then it is not found,
    and the one there is goes on."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("a", "q")
            for route in ((name, "q"), ("a", name)):
                assert not await manager.unroute_topic_from_queue(*route)
                assert manager.get_route_statistics(*route) is None
            assert len(manager.topic_routings) == 1

    asyncio.run(story())


def test_the_payload_is_that_of_the_moment_it_was_published() -> None:
    """Given a published payload, when its publisher changes it afterwards, then the queue has it as it was (S3)."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("a", "q")
            payload = {"n": 1}
            await manager.publish_to_topic_exchange("a", payload)
            payload["n"] = 2
            await settled(manager)
            assert [one.payload for one in pending(manager)] == [{"n": 1}]

    asyncio.run(story())


def test_a_message_published_twice_is_a_duplicate_where_the_queue_looks() -> None:
    """Given a queue that deduplicates, when a message comes twice, then the second is refused and counted (U1)."""

    async def story() -> None:
        exchange = TopicExchange()
        async with MessageQueueManager(None, exchange) as manager:
            await manager.create_queue("q", QueueConfiguration("q", enable_deduplication=True))
            await manager.route_topic_to_queue("a", "q")
            for payload in (1, 2):
                exchange.publish_message(message(exchange, "a", payload, "same"))
            await settled(manager)
            counts = counts_of(manager, "a")
            assert (counts.routed, counts.duplicates, counts.refused) == (1, 1, 0)

    asyncio.run(story())


def test_fire_and_forget_routes_reach_who_is_there() -> None:
    """Given a fire-and-forget route into a full queue, when a message is published, then subscribers get it (G1)."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_size=1))
            heard: list[Any] = []
            manager.subscribe_to_queue("q", "s", "a.#", callback=lambda one: heard.append(one.payload))
            await manager.send_message("q", "other", 0)
            await manager.route_topic_to_queue(
                "a.#", "q", DeliveryGuarantee.FIRE_AND_FORGET, overflow_policy=OverflowPolicy.WAIT
            )
            await manager.publish_to_topic_exchange("a.b", 1)
            await settled(manager)
            assert heard == [1]

    asyncio.run(story())


# --- beginning, changing and ending -------------------------------------------------------------------------


@pytest.mark.parametrize("make", EXCHANGES)
def test_one_subscription_for_each_pattern(make: MakeExchange) -> None:
    """Given two routes of one pattern, then there is one subscription, which ends with the second of them."""

    async def story() -> None:
        exchange = make()
        before = len(exchange.subscriptions)
        async with MessageQueueManager(None, exchange) as manager:
            await manager.route_topic_to_queue("a.#.#", "x")
            await manager.route_topic_to_queue("a.#.#", "y")
            assert len(exchange.subscriptions) == before + 1
            exchange.publish_message(message(exchange, "a"))
            await settled(manager)
            assert [len(pending(manager, name)) for name in ("x", "y")] == [1, 1]
            assert await manager.unroute_topic_from_queue("a.#.#", "x")
            assert not await manager.unroute_topic_from_queue("a.#.#", "x")
            exchange.publish_message(message(exchange, "a"))
            await settled(manager)
            assert [len(pending(manager, name)) for name in ("x", "y")] == [1, 2]
            await manager.delete_queue("y")
            assert len(exchange.subscriptions) == before
            assert manager.topic_routings == []
            assert manager.get_route_statistics("a.#.#", "y") is None
        assert len(exchange.subscriptions) == before

    asyncio.run(story())


@pytest.mark.parametrize("make", EXCHANGES)
def test_routes_come_back_after_a_restart(make: MakeExchange, tmp_path: Path) -> None:
    """Given routes in a log, when the manager is made again, then they route as before, and an ended one does not."""
    log = tmp_path / "routes.db"

    async def before() -> None:
        async with MessageQueueManager(None, make(), log=log) as manager:
            await manager.route_topic_to_queue(
                "a.*", "q", overflow_policy=OverflowPolicy.WAIT, max_buffered=5, headers={"x": "y"}, group_id="g"
            )
            await manager.route_topic_to_queue("b", "q")
            await manager.route_topic_to_queue("b", "q")  # nothing changes, so nothing is stored
            await manager.route_topic_to_queue("c", "q")
            await manager.unroute_topic_from_queue("c", "q")
            assert manager.log.stream_version("routes:topics") == 4

    async def after() -> None:
        exchange = make()
        async with MessageQueueManager(None, exchange, log=log) as manager:
            for topic in ("a.1", "b", "c"):
                exchange.publish_message(message(exchange, topic, message_id=topic))
            await settled(manager)
            assert [(one.topic, one.group_id) for one in pending(manager)] == [("a.1", "g"), ("b", None)]
            assert pending(manager)[0].headers["x"] == "y"
            (first, second) = manager.topic_routings
            assert (first.topic_pattern, first.overflow_policy, first.max_buffered) == ("a.*", OverflowPolicy.WAIT, 5)
            assert second.topic_pattern == "b"

    asyncio.run(before())
    asyncio.run(after())


def test_a_route_can_be_changed() -> None:
    """Given a route, when it is made again with other options, then these count, and there is still one route."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.route_topic_to_queue("a", "q")
            await manager.route_topic_to_queue("a", "q", DeliveryGuarantee.BROADCAST, priority=9)
            await manager.publish_to_topic_exchange("a", 1)
            await settled(manager)
            assert [(one.priority, one.delivery_guarantee) for one in pending(manager)] == [
                (9, DeliveryGuarantee.BROADCAST)
            ]
            assert len(manager.topic_routings) == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"topic_pattern": "a..b"}, InvalidTopicError),
        ({"priority": "high"}, InvalidOptionError),
        ({"prioritee": 1}, InvalidOptionError),
        ({"deduplication_id": "x"}, InvalidOptionError),
        ({"overflow_policy": "explode"}, InvalidOptionError),
        ({"max_buffered": 0}, InvalidOptionError),
        ({"backlog_seconds": -1}, InvalidOptionError),
        ({"delivery_guarantee": "maybe"}, InvalidOptionError),
    ],
)
def test_bad_arguments_make_no_route(arguments: dict[str, Any], named: type[Exception]) -> None:
    """Given a bad argument, when a route is asked for, then it is refused by name and nothing is stored, nor
    is the queue made."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            with pytest.raises(named, match=r"got|expected"):
                await manager.route_topic_to_queue(**{"topic_pattern": "a", "queue_name": "q", **arguments})
            assert manager.topic_routings == []
            assert manager.log.streams() == []
            assert manager.queues == {}
            assert manager.topic_exchange.subscriptions == {}

    asyncio.run(story())


def test_a_closed_manager_routes_nothing() -> None:
    """Given a closed manager, then route verbs say so, and a publisher notices nothing."""

    async def story() -> None:
        exchange = TopicExchange()
        manager = MessageQueueManager(None, exchange)
        await manager.route_topic_to_queue("a", "q")
        await manager.shutdown()
        exchange.publish_message(message(exchange, "a"))
        for verb in (manager.route_topic_to_queue("a", "q"), manager.unroute_topic_from_queue("a", "q")):
            with pytest.raises(QueueClosedError):
                await verb

    asyncio.run(story())


def test_a_store_that_fails_makes_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a store that refuses, when a route is asked for, then the caller hears of it and there is no route; when
    it works again, there is."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("q")
            append = manager.log.append

            def fail(batch: Any) -> None:
                raise OSError("disk full")

            monkeypatch.setattr(manager.log, "append", fail)
            with pytest.raises(OSError, match="disk full"):
                await manager.route_topic_to_queue("a", "q")
            assert manager.topic_routings == []
            monkeypatch.setattr(manager.log, "append", append)
            assert await manager.route_topic_to_queue("a", "q")

    asyncio.run(story())
