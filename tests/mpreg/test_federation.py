"""Queues across clusters, on doubles whose fabric loses and repeats what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from mpreg_mq import DeliveryGuarantee, QueueConfiguration, QueuedMessage, QueueManagerConfiguration, VirtualClock
from mpreg_mq.mpreg import MessageQueuePlugin, PluginConfiguration
from tests.support.mpreg_double.fabric.queue_federation import Fabric
from tests.support.mpreg_double.server import MPREGServer, MPREGSettings
from tests.support.running import until


def kind(name: str) -> Callable[[Any], bool]:
    """What a fabric loses or doubles: messages of this kind."""
    return lambda message: message.payload["kind"] == name


QUICK = QueueManagerConfiguration(shutdown_timeout_seconds=0.05)


@asynccontextmanager
async def clusters(
    *names: str, clock: VirtualClock | None = None, log: Path | None = None, **settings: Any
) -> AsyncIterator[list[MessageQueuePlugin]]:
    """A plugin on a server of each cluster, on one fabric; the last one on a log."""
    fabric = Fabric()
    async with AsyncExitStack() as stack:
        plugins = []
        for name in names:
            server = MPREGServer(MPREGSettings(cluster_id=name), fabric)
            plugin = MessageQueuePlugin(
                server,
                log=log if name == names[-1] else None,
                config=PluginConfiguration(manager=QUICK, **settings),
                clock=clock,
            )
            plugins.append(await stack.enter_async_context(plugin))
        yield plugins


# --- sending ------------------------------------------------------------------------------------------------


def test_a_queue_is_found_and_used_from_another_cluster() -> None:
    """Given a queue in one cluster, when another one sends to it by name, then it is there with its options, and the
    statistics show the answer; a local queue is used directly, an unknown one is an error."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            options = a.host.module("fabric.queue_messages").QueueMessageOptions(priority=4, headers={"k": "v"})
            result = await a.federation.send_message_globally(
                "jobs", "job.new", {"n": 1}, delivery_guarantee=DeliveryGuarantee.BROADCAST, options=options
            )
            assert result.success
            await until(lambda: not a.federation.in_flight)
            (one,) = b.manager.queue("jobs").pending_messages
            assert (one.payload, one.priority, one.headers) == ({"n": 1}, 4, {"k": "v"})
            assert one.delivery_guarantee is DeliveryGuarantee.BROADCAST
            counts = a.get_federation_statistics()["b"]
            assert (counts.sent, counts.acknowledged, counts.in_flight, counts.refused) == (1, 1, 0, 0)
            assert counts.longest_round_trip_seconds >= counts.last_round_trip_seconds > 0
            assert b.get_federation_statistics()["a"].received == 1
            assert (await b.federation.send_message_globally("jobs", "job.new", 2)).success
            assert not (await a.federation.send_message_globally("nowhere", "job.new", 3)).success

    asyncio.run(story())


def test_a_refusal_of_the_other_cluster_is_a_failure() -> None:
    """Given a full queue in another cluster, when it is sent to, then the statistics and whoever waits hear why."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_size=1))
            assert (await a.federation.send_confirmed("jobs", "t", 1)).success
            refused = await a.federation.send_confirmed("jobs", "t", 2)
            assert not refused.success
            assert "maximum capacity" in str(refused.error_message)
            counts = a.get_federation_statistics()["b"]
            assert (counts.acknowledged, counts.refused) == (1, 1)
            assert "maximum capacity" in str(counts.last_error)
            assert a.federation.stats.failed_deliveries == 1

    asyncio.run(story())


def test_a_message_that_is_never_answered_times_out() -> None:
    """Given a fabric that loses answers, when the time is over, then nothing is in flight any more, and it counts."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock, acknowledgment_timeout_seconds=5.0) as (a, b):
            await b.manager.create_queue("jobs")
            a.host.server.fabric.loses = kind("queue_ack")
            waiting = asyncio.create_task(a.federation.send_confirmed("jobs", "t", 1))
            await clock.advance(4.9)
            assert len(a.federation.in_flight) == 1
            assert not waiting.done()
            await clock.advance(0.2)
            assert "did not answer within 5 s" in str((await waiting).error_message)
            assert a.federation.in_flight == {}
            counts = a.get_federation_statistics()["b"]
            assert (counts.sent, counts.timed_out, counts.in_flight) == (1, 1, 0)

    asyncio.run(story())


def test_a_cluster_without_a_way_to_it_is_an_error_at_once() -> None:
    """Given a cluster that is gone while its advert is still believed, when its queue is sent to, then that fails."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            del a.host.server.fabric.servers["b"]
            assert not (await a.federation.send_message_globally("jobs", "t", 1)).success
            assert "no way to cluster 'b'" in str((await a.federation.send_confirmed("jobs", "t", 1)).error_message)
            counts = a.get_federation_statistics()["b"]
            assert (counts.sent, counts.undeliverable, counts.in_flight) == (0, 2, 0)

    asyncio.run(story())


def test_clusters_that_are_not_allowed_are_left_alone() -> None:
    """Given a list of allowed clusters, then others are neither sent to nor listened to."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            a.federation.inner.allowed_clusters = frozenset({"a"})
            assert not (await a.federation.send_message_globally("jobs", "t", 1)).success
            assert not (await a.federation.send_confirmed("jobs", "t", 1)).success
            assert b.manager.queue("jobs").pending_messages == []

    asyncio.run(story())


def test_an_answer_waits_for_a_way_back() -> None:
    """Given a cluster that can be heard but not reached yet, when it sends, then it is answered once it can be."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            await b.manager.create_queue("jobs")
            waiting = asyncio.create_task(a.federation.send_confirmed("jobs", "t", 1))
            away = a.host.server.fabric.servers.pop("a")
            await clock.advance(1.0)
            assert len(b.manager.queue("jobs").pending_messages) == 1
            assert not waiting.done()
            a.host.server.fabric.servers["a"] = away
            await clock.advance(1.0)
            assert (await waiting).success
            counts = a.get_federation_statistics()["b"]
            assert counts.last_round_trip_seconds >= 1.0

    asyncio.run(story())


# --- transmitting twice -------------------------------------------------------------------------------------


def test_a_request_that_comes_twice_is_carried_out_once() -> None:
    """Given a fabric that repeats requests, when messages are sent, then each is in the queue once, and equal ones of
    different requests are different messages."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            a.host.server.fabric.doubles = kind("queue_request")
            for _ in range(2):
                assert (await a.federation.send_confirmed("jobs", "t", "same")).success
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(b.manager.queue("jobs").pending_messages) == 2
            assert b.manager.duplicate_requests == 2

    asyncio.run(story())


def test_a_request_is_transmitted_again_until_it_is_answered() -> None:
    """Given a fabric that loses the first answer, when a message may be transmitted three times, then it is answered,
    and in the queue once."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            await b.manager.create_queue("jobs")
            fabric = a.host.server.fabric
            fabric.loses = kind("queue_ack")
            waiting = asyncio.create_task(a.federation.send_confirmed("jobs", "t", 1, transmissions=3))
            await clock.advance(9.0)
            fabric.loses = lambda message: False
            assert not waiting.done()
            await clock.advance(2.0)
            assert (await waiting).success
            assert len(b.manager.queue("jobs").pending_messages) == 1
            assert sum(kind("queue_request")(message) for message in fabric.carried) == 2
            await clock.advance(60.0)
            assert sum(kind("queue_request")(message) for message in fabric.carried) == 2

    asyncio.run(story())


def test_a_request_is_known_after_a_restart(tmp_path: Path) -> None:
    """Given a request that was carried out, when its receiver is started again and it comes once more, then it is not
    carried out, and answered with success."""

    async def story() -> None:
        fabric: Fabric | None = None
        for round_number in range(2):
            async with clusters("a", "b", log=tmp_path / "b.db") as (a, b):
                await b.manager.create_queue("jobs")
                if fabric is None:
                    fabric = a.host.server.fabric
                    assert (await a.federation.send_confirmed("jobs", "t", 1)).success
                    (request,) = [message for message in fabric.carried if kind("queue_request")(message)]
                else:
                    await b.federation.handle_fabric_message(request)
                    carried = a.host.server.fabric.carried
                    await until(lambda sent=carried: any(kind("queue_ack")(one) for one in sent))  # type: ignore[misc]
                    assert b.manager.duplicate_requests == 1
                    (answer,) = [one for one in carried if kind("queue_ack")(one)]
                    assert answer.payload["success"] is True
                assert len(b.manager.queue("jobs").pending_messages) == 1, round_number

    asyncio.run(story())


def test_a_request_that_was_refused_may_come_again() -> None:
    """Given a request that a full queue refused, when it comes again and there is room, then it is carried out."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_size=1))
            await b.manager.send_message("jobs", "t", 0)
            assert not (await a.federation.send_confirmed("jobs", "t", 1)).success
            request = next(one for one in a.host.server.fabric.carried if kind("queue_request")(one))
            await b.manager.purge_queue("jobs")
            await b.federation.handle_fabric_message(request)
            await until(lambda: [one.payload for one in b.manager.queue("jobs").pending_messages] == [1])

    asyncio.run(story())


def test_what_a_callback_sends_is_not_taken_for_the_request() -> None:
    """Given a callback that runs while a request is carried out, when it sends messages, then none is a duplicate."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            for name in ("jobs", "copies"):
                await b.manager.create_queue(name)

            async def copy(one: QueuedMessage) -> None:
                for number in range(2):
                    await b.manager.send_message("copies", "t", number)

            b.manager.subscribe_to_queue("jobs", "s", "#", callback=copy)
            await a.federation.send_confirmed("jobs", "t", 1, delivery_guarantee=DeliveryGuarantee.FIRE_AND_FORGET)
            await until(lambda: len(b.manager.queue("copies").pending_messages) == 2)

    asyncio.run(story())


def test_a_queue_that_deduplicates_by_content_goes_on_doing_so() -> None:
    """Given a queue with deduplication, when equal messages come by two requests, then the second is refused (U1)."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", enable_deduplication=True))
            assert (await a.federation.send_confirmed("jobs", "t", 1)).success
            assert not (await a.federation.send_confirmed("jobs", "t", 1)).success
            assert (await a.federation.send_confirmed("missing", "t", 1, target_cluster="b")).success

    asyncio.run(story())


def test_an_answer_is_repeated_with_its_request() -> None:
    """Given a queue with deduplication by content, when a request comes again, then its answer is the same again,
    though a second request of that content would be refused."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", enable_deduplication=True))
            assert (await a.federation.send_confirmed("jobs", "t", 1)).success
            request = next(one for one in a.host.server.fabric.carried if kind("queue_request")(one))
            await b.federation.handle_fabric_message(request)
            carried = a.host.server.fabric.carried
            await until(lambda: sum(kind("queue_ack")(one) for one in carried) == 2)
            assert [one.payload["success"] for one in carried if kind("queue_ack")(one)] == [True, True]
            assert b.manager.duplicate_requests == 1

    asyncio.run(story())


# --- subscribing --------------------------------------------------------------------------------------------


def test_a_subscriber_of_another_cluster_gets_messages_and_their_failure_comes_back() -> None:
    """Given a subscription across clusters, when its callback fails once, then the message is tried again, and is
    acknowledged at its queue when the callback has come to its end."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", retry_backoff_seconds=0.0))
            calls: list[Any] = []

            async def work(one: QueuedMessage) -> None:
                calls.append((one.payload, one.headers))
                await asyncio.sleep(0)
                if len(calls) == 1:
                    raise KeyError("sku")

            await a.federation.subscribe_globally("worker", "jobs", "job.*", callback=work)
            await b.manager.send_message("jobs", "job.new", 7, headers={"k": "v"})
            await until(lambda: b.manager.queue("jobs").get_statistics().messages_acknowledged == 1)
            assert calls == [(7, {"k": "v"})] * 2
            assert b.manager.queue("jobs").get_statistics().delivery_failures == 1
            counts = b.get_federation_statistics()["a"]
            assert (counts.forwarded, counts.forward_failures) == (1, 1)
            assert "sku" in str(counts.last_error)

    asyncio.run(story())


def test_a_forwarded_message_that_comes_twice_is_handled_once() -> None:
    """Given a fabric that repeats what is forwarded, then the subscriber's callback runs once for each message."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            a.host.server.fabric.doubles = kind("queue_request")
            calls: list[Any] = []
            await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: calls.append(one.payload))
            await b.manager.send_message("jobs", "t", 1)
            await until(lambda: b.manager.queue("jobs").get_statistics().messages_acknowledged == 1)
            assert calls == [1]
            assert a.manager.duplicate_requests == 1

    asyncio.run(story())


def test_queues_that_come_later_are_subscribed_to() -> None:
    """Given a subscription for a pattern of queues, when such a queue is made in its cluster, in another one that was
    asked before, or in one that was not, then it is subscribed to."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", "c", clock=clock) as (a, b, c):
            calls: list[Any] = []
            await b.manager.create_queue("jobs.first")
            await a.federation.subscribe_globally("w", "jobs.*", "#", callback=lambda one: calls.append(one.payload))
            await clock.settle()
            await b.manager.create_queue("jobs.second")
            await c.manager.create_queue("jobs.third")
            await clock.advance(10.0)
            for plugin, name in ((b, "jobs.first"), (b, "jobs.second"), (c, "jobs.third")):
                await plugin.manager.send_message(name, "t", name)
            await clock.settle()
            assert sorted(calls) == ["jobs.first", "jobs.second", "jobs.third"]

    asyncio.run(story())


def test_a_subscription_comes_back_when_the_other_server_does(tmp_path: Path) -> None:
    """Given a subscription at a server that is started again, when its adverts tell of that, then it is subscribed to
    again, and what waited there is delivered."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "c", clock=clock) as (a, _):
            fabric = a.host.server.fabric
            calls: list[Any] = []
            for round_number in range(2):
                server = MPREGServer(MPREGSettings(cluster_id="b"), fabric)
                config = PluginConfiguration(manager=QUICK)
                async with MessageQueuePlugin(server, log=tmp_path / "b.db", config=config, clock=clock) as b:
                    if round_number == 0:
                        await b.manager.create_queue("jobs")
                        await a.federation.subscribe_globally(
                            "w", "jobs", "#", callback=lambda one: calls.append(one.payload)
                        )
                    await b.manager.send_message("jobs", "t", round_number)
                    for _ in range(200):
                        await clock.advance(0.1)
                        if len(calls) > round_number:
                            break
                    await until(lambda plugin=b: plugin.manager.queue("jobs").get_statistics().current_queue_size == 0)  # type: ignore[misc]
                    await server.shutdown_async()
            assert calls == [0, 1]

    asyncio.run(story())


def test_the_end_of_a_subscription_is_the_end_everywhere() -> None:
    """Given a subscription across clusters, when it ends, then no queue has it, here or there; MPREG's own would have
    begun it once more."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            for plugin in (a, b):
                await plugin.manager.create_queue("jobs")
            subscription_id = await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: None)
            await until(lambda: len(b.manager.queue("jobs").subscriptions) == 1)
            assert b.federation._local_subscription_handles[subscription_id]
            assert await a.federation.unsubscribe_globally(subscription_id)
            assert not await a.federation.unsubscribe_globally(subscription_id)
            await until(lambda: not b.manager.queue("jobs").subscriptions)
            assert not a.manager.queue("jobs").subscriptions

    asyncio.run(story())


def test_a_subscriber_without_a_way_to_it_gets_nothing_until_there_is_one() -> None:
    """Given a subscriber whose cluster is cut off, when messages come, then at most one attempt of one message is lost
    on it, they wait or go to others, and it gets messages again when its cluster is back."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_retries=1))
            calls: list[Any] = []
            await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: calls.append(one.payload))
            await clock.settle()
            fabric = a.host.server.fabric
            away = fabric.servers.pop("a")
            for number in range(5):
                await b.manager.send_message("jobs", "t", number)
            await clock.advance(60.0)
            counts = b.manager.queue("jobs").get_statistics()
            assert counts.messages_dead_lettered == 0
            assert counts.current_queue_size == 5
            fabric.servers["a"] = away
            await clock.advance(20.0)
            assert sorted(calls) == [0, 1, 2, 3, 4]

    asyncio.run(story())


def test_messages_for_another_cluster_are_no_failures_when_the_server_stops(tmp_path: Path) -> None:
    """Given messages that are being forwarded when the server begins to stop and its connections go, then no attempt
    of theirs failed, and they are pending after the restart."""

    async def story() -> None:
        async with clusters("a", "b", log=tmp_path / "b.db") as (a, b):
            await b.manager.create_queue("jobs")
            await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: None)
            await until(lambda: len(b.manager.queue("jobs").subscriptions) == 1)
            a.host.server.fabric.loses = kind("queue_ack")
            await b.manager.send_message("jobs", "t", 1)
            await until(lambda: b.manager.queue("jobs").get_statistics().current_in_flight_count == 1)
            await b.host.server.shutdown_async()
        server = MPREGServer(MPREGSettings(cluster_id="b"))
        async with MessageQueuePlugin(server, log=tmp_path / "b.db") as again:
            counts = again.manager.queue("jobs").get_statistics()
            assert (counts.current_queue_size, counts.delivery_failures) == (1, 0)

    asyncio.run(story())


def test_a_bad_pattern_of_another_cluster_disturbs_nobody() -> None:
    """Given another cluster that subscribes with a malformed topic pattern, then this one goes on."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            subscription = a.host.module("fabric.queue_messages").QueueFederationSubscription(
                "s-1",
                "w",
                "jobs",
                "a..b",
                a.host.module("fabric.queue_federation").QueueDeliveryGuarantee.AT_LEAST_ONCE,
                True,
                "a",
                "b",
            )
            kinds = a.host.module("fabric.queue_messages").QueueFederationKind
            await a.federation.inner._send(subscription.to_dict(kind=kinds.SUBSCRIBE), "b")
            for _ in range(10):
                await asyncio.sleep(0)
            assert not b.manager.queue("jobs").subscriptions
            assert (await a.federation.send_confirmed("jobs", "t", 1)).success

    asyncio.run(story())
