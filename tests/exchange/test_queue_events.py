"""Queue events on topics: off by default, after the log, without payloads, and without a flood."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import DeliveryGuarantee, Durability, MessageQueueManager, QueueConfiguration, QueueManagerConfiguration
from mpreg_mq.events import EventLog, MemoryEventLog
from mpreg_mq.exchange import queue_events
from tests.support.exchanges import EXCHANGES, MakeExchange, subscription
from tests.support.running import until

PUBLISHING = QueueManagerConfiguration(publish_queue_events=True)


def listen(exchange: Any, pattern: str = "mpreg.queue.#") -> list[Any]:
    """What is published from here on."""
    heard: list[Any] = []
    exchange.add_internal_subscription(subscription(exchange, "l", pattern), lambda one: heard.append(one.message))
    return heard


@pytest.mark.parametrize("log", ["memory:", "sqlite"])
@pytest.mark.parametrize("make", EXCHANGES)
def test_events_are_published_once_they_are_stored(make: MakeExchange, log: str, tmp_path: Path) -> None:
    """Given event publishing, when a message is sent and acknowledged, then each event comes as a topic, in the order
    of the log, without the payload."""

    async def story() -> None:
        exchange = make()
        heard = listen(exchange)
        target = log if log == "memory:" else str(tmp_path / "events.db")
        async with MessageQueueManager(PUBLISHING, exchange, log=target) as manager:
            await manager.create_queue("q", QueueConfiguration("q", enable_deduplication=True))
            await manager.send_message("q", "secret.topic", "secret payload", headers={"k": "secret header"})
            (one,) = await manager.receive_messages("q", "s")
            await manager.acknowledge_message("q", one.id, "s")
            await manager.send_message("q", "secret.topic", "secret payload", headers={"k": "secret header"})
            stored = [queue_events.event_name(record.event) for record in manager.log.read_stream("queue:q")]
            await until(lambda: len(heard) >= len(stored))
        names = [message.topic.removeprefix("mpreg.queue.q.") for message in heard]
        assert names[: len(stored)] == stored
        assert {"queue_created", "message_enqueued", "message_acknowledged", "duplicate_rejected"} <= set(names)
        enqueued = next(message.payload for message in heard if message.topic.endswith("message_enqueued"))
        assert enqueued["queue"] == "q"
        assert enqueued["topic"] == "secret.topic"
        assert enqueued["guarantee"] == "at_least_once"
        assert "payload" not in enqueued
        assert "secret header" not in repr(heard)

    asyncio.run(story())


@pytest.mark.parametrize("durability", Durability)
def test_queues_of_every_durability_publish_their_events(durability: Durability, tmp_path: Path) -> None:
    """Given event publishing and a log on disk, when a message is sent to a queue that keeps its events there, on their
    way there or in memory only, then each event comes as a topic."""

    async def story() -> None:
        async with MessageQueueManager(PUBLISHING, log=tmp_path / "events.db") as manager:
            heard = listen(manager.topic_exchange)
            await manager.create_queue("q", QueueConfiguration("q", durability=durability))
            await manager.send_message("q", "t", 1)
            await until(lambda: len(heard) >= 2)
            await manager.delete_queue("q")
        names = [message.topic.removeprefix("mpreg.queue.q.") for message in heard]
        assert names == ["queue_created", "message_enqueued", "messages_purged", "queue_deleted"]

    asyncio.run(story())


def test_nothing_is_published_unless_asked_for() -> None:
    """Given the default configuration, when a queue is used, then nothing is published."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            heard = listen(manager.topic_exchange, "#")
            await manager.send_message("q", "t", 1)
            await asyncio.sleep(0)
        assert heard == []

    asyncio.run(story())


@pytest.mark.parametrize("guarantee", [DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.FIRE_AND_FORGET])
def test_queues_that_take_the_events_of_all_queues_come_to_rest(guarantee: DeliveryGuarantee) -> None:
    """Given two queues that take in every event, when one message is sent elsewhere, then each has that one's events
    and none about them."""

    async def story() -> None:
        async with MessageQueueManager(PUBLISHING) as manager:
            for name in ("x", "y"):
                await manager.route_topic_to_queue("mpreg.queue.#", name, guarantee)
                manager.subscribe_to_queue(name, "s", "#", callback=lambda one: None)
            heard = listen(manager.topic_exchange)
            await manager.send_message("work", "t", 1)
            await until(lambda: sum("work" in one.topic for one in heard) == 2)
            for _ in range(200):
                await asyncio.sleep(0)
            for name in ("x", "y"):
                assert manager.queue(name).get_statistics().current_queue_size == 0
            topics = [one.topic for one in heard]
            assert "mpreg.queue.work.message_enqueued" in topics
            assert not [topic for topic in topics if topic.startswith("mpreg.queue.x.message")]
            assert manager._events is not None
            assert not manager._events._silent

    asyncio.run(story())


@pytest.mark.parametrize("snapshots", [False, True])
def test_the_events_in_a_queue_stay_without_events_after_a_restart(snapshots: bool) -> None:
    """Given a queue that took events in, one of them leased and one a dead letter, when the manager is made anew, then
    none are published about them, whatever becomes of them, and others are published as before."""

    async def before(log: EventLog) -> None:
        async with MessageQueueManager(PUBLISHING, log=log) as manager:
            await manager.create_queue("audit", QueueConfiguration("audit", max_retries=0))
            await manager.create_queue("work")
            await manager.route_topic_to_queue("mpreg.queue.work.message_enqueued", "audit")
            await manager.send_messages("work", [("t", number) for number in range(5)])
            await until(lambda: len(manager.queue("audit").pending_messages) == 5)
            manager.subscribe_to_queue("audit", "held", "#", callback=lambda one: None, auto_acknowledge=False)
            await until(lambda: len(manager.queue("audit").in_flight_messages) == 5)
            refused = next(iter(manager.queue("audit").in_flight_messages))
            assert await manager.negative_acknowledge("audit", refused, "held")
            if snapshots:
                manager.queue("audit")._actor.save_snapshot()

    async def after(log: EventLog) -> None:
        async with MessageQueueManager(PUBLISHING, log=log) as manager:
            heard = listen(manager.topic_exchange)
            assert await manager.redrive_dead_letters("audit", limit=1)
            for one in await manager.receive_messages("audit", "reader", 2):
                assert await manager.acknowledge_message("audit", one.id, "reader")
            assert await manager.purge_queue("audit") + await manager.purge_dead_letters("audit")
            (one,) = await manager.receive_messages("work", "worker")
            assert await manager.acknowledge_message("work", one.id, "worker")
            await until(lambda: "mpreg.queue.work.message_acknowledged" in [one.topic for one in heard])
            about_audit = {one.topic for one in heard if one.topic.startswith("mpreg.queue.audit")}
            assert about_audit <= {"mpreg.queue.audit.subscriber_joined", "mpreg.queue.audit.subscriber_left"}

    log = MemoryEventLog()
    asyncio.run(before(log))
    asyncio.run(after(log))


def test_what_is_known_of_the_events_in_a_queue_ends_with_it() -> None:
    """Given a queue that took events in, when it is deleted, then nothing is kept of them, and that it was deleted is
    published."""

    async def story() -> None:
        async with MessageQueueManager(PUBLISHING) as manager:
            heard = listen(manager.topic_exchange)
            await manager.route_topic_to_queue("mpreg.queue.work.message_enqueued", "audit")
            await manager.send_message("work", "t", 1)
            await until(lambda: len(manager.queue("audit").pending_messages) == 1)
            await manager.delete_queue("audit")
            await until(lambda: "mpreg.queue.audit.queue_deleted" in [one.topic for one in heard])
            assert manager._events is not None
            assert not manager._events._silent

    asyncio.run(story())


def test_too_many_events_drop_the_oldest_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more events than may wait, then the oldest are dropped and counted, and the rest is published."""
    monkeypatch.setattr(queue_events, "MAX_WAITING", 10)

    async def story() -> None:
        async with MessageQueueManager(PUBLISHING) as manager:
            heard = listen(manager.topic_exchange)
            await manager.create_queue("q")
            await until(lambda: len(heard) == 1)
            await manager.send_messages("q", [("t", number) for number in range(50)])
            await until(lambda: len(heard) == 11)
            assert manager._events is not None
            assert manager._events.dropped == 40

    asyncio.run(story())


def test_an_exchange_that_fails_stops_nothing() -> None:
    """Given an exchange that raises, when queues are used, then they work."""

    class Failing:
        def publish_message(self, message: Any) -> None:
            raise RuntimeError("exchange")

    async def story() -> None:
        async with MessageQueueManager(PUBLISHING, Failing()) as manager:
            assert (await manager.send_message("q", "t", 1)).success

    asyncio.run(story())
