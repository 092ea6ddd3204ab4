"""Subscriptions across clusters whose server is started again, or whose end does not arrive, on doubles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import InvalidTopicError, QueueConfiguration, QueuedMessage, VirtualClock
from mpreg_mq.mpreg import MessageQueuePlugin, PluginConfiguration
from tests.mpreg.test_federation import QUICK, clusters, kind
from tests.support.mpreg_double.fabric.queue_federation import Fabric
from tests.support.mpreg_double.server import MPREGServer, MPREGSettings


@asynccontextmanager
async def started(cluster: str, fabric: Fabric, clock: VirtualClock) -> AsyncIterator[MessageQueuePlugin]:
    """A server of a cluster that is on the fabric until it ends; then there may be another one."""
    server = MPREGServer(MPREGSettings(cluster_id=cluster), fabric)
    async with MessageQueuePlugin(server, config=PluginConfiguration(manager=QUICK), clock=clock) as plugin:
        yield plugin
        await server.shutdown_async()


@pytest.mark.parametrize("lost", ["nothing", "what tells of the new start"])
def test_a_subscriber_whose_server_was_started_again_gets_every_message(lost: str) -> None:
    """Given a subscription across clusters, when the subscriber's server is started again and its program subscribes
    again, then every message comes to it in its first attempt, also where the other cluster has not heard that the
    earlier subscription is over; and nobody makes a queue for messages of that one."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("c", "b", clock=clock) as (c, b):
            fabric = c.host.server.fabric
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_retries=0))
            calls: list[Any] = []
            for run in range(3):
                async with started("a", fabric, clock) as a:
                    if lost != "nothing":
                        fabric.loses = lambda one: kind("queue_subscribe")(one) and "mpreg-mq.run" in one.payload
                    await a.federation.subscribe_globally(
                        "w", "jobs", "#", callback=lambda one: calls.append(one.payload)
                    )
                    await clock.settle()
                    for number in range(5):
                        await b.manager.send_message("jobs", "t", 5 * run + number)
                    await clock.advance(1.0)
                    assert a.manager.list_queues() == []
                    assert len(b.manager.queue("jobs").subscriptions) == 1
            assert sorted(calls) == list(range(15))
            assert b.manager.queue("jobs").get_statistics().messages_acknowledged == 15

    asyncio.run(story())


def test_messages_for_a_subscription_that_a_restart_has_ended_are_not_acknowledged() -> None:
    """Given a subscription across clusters, when the subscriber's server is started again and nobody subscribes, then
    messages are neither acknowledged nor put into a queue there: they wait for a subscriber."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("c", "b", clock=clock) as (c, b):
            fabric = c.host.server.fabric
            await b.manager.create_queue("jobs")
            async with started("a", fabric, clock) as a:
                await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: None)
                await clock.settle()
            async with started("a", fabric, clock) as a:
                for number in range(3):
                    await b.manager.send_message("jobs", "t", number)
                await clock.advance(60.0)
                assert a.manager.list_queues() == []
            counts = b.manager.queue("jobs").get_statistics()
            assert (counts.messages_acknowledged, counts.current_queue_size) == (0, 3)
            assert not b.manager.queue("jobs").subscriptions
            assert "no subscription" in str(b.get_federation_statistics()["a"].last_error)

    asyncio.run(story())


def test_messages_have_no_attempt_for_a_subscription_that_is_gone_with_its_server() -> None:
    """Given messages that wait because a subscriber's server is away, when that is started again, and its program
    subscribes some time later, then they have had no attempt in between."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("c", "b", clock=clock) as (c, b):
            fabric = c.host.server.fabric
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_retries=1))
            calls: list[Any] = []
            async with started("a", fabric, clock) as a:
                await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: calls.append("early"))
                await clock.settle()
            for number in range(5):
                await b.manager.send_message("jobs", "t", number)
            await clock.advance(30.0)
            tried = b.manager.queue("jobs").get_statistics().delivery_failures
            async with started("a", fabric, clock) as a:
                await clock.advance(60.0)
                counts = b.manager.queue("jobs").get_statistics()
                assert (counts.current_queue_size, counts.delivery_failures) == (5, tried)
                await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: calls.append(one.payload))
                await clock.advance(20.0)
            assert sorted(calls) == list(range(5))

    asyncio.run(story())


def test_the_end_of_a_subscription_is_told_until_there_is_a_way() -> None:
    """Given a subscription across clusters, when it ends while there is no way to the other cluster, then it ends there
    as soon as there is one, without a message for it."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            fabric = a.host.server.fabric
            await b.manager.create_queue("jobs")
            subscription_id = await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: None)
            await clock.settle()
            away = fabric.servers.pop("b")
            assert await a.federation.unsubscribe_globally(subscription_id)
            await clock.advance(30.0)
            assert len(b.manager.queue("jobs").subscriptions) == 1
            fabric.servers["b"] = away
            await clock.advance(30.0)
            assert not b.manager.queue("jobs").subscriptions
            told = sum(kind("queue_unsubscribe")(one) for one in fabric.carried)
            await clock.advance(60.0)
            assert sum(kind("queue_unsubscribe")(one) for one in fabric.carried) == told == 1

    asyncio.run(story())


def test_a_subscription_whose_end_was_lost_ends_with_the_next_message() -> None:
    """Given a subscription across clusters whose end was lost on its way, when a message comes, then it is not
    acknowledged, and waits for the next subscriber."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            await b.manager.create_queue("jobs")
            calls: list[Any] = []
            subscription_id = await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: None)
            await clock.settle()
            a.host.server.fabric.loses = kind("queue_unsubscribe")
            assert await a.federation.unsubscribe_globally(subscription_id)
            await b.manager.send_message("jobs", "t", 1)
            await clock.advance(10.0)
            assert not b.manager.queue("jobs").subscriptions
            assert b.manager.queue("jobs").get_statistics().current_queue_size == 1
            assert a.manager.list_queues() == []
            b.manager.subscribe_to_queue("jobs", "other", "#", callback=lambda one: calls.append(one.payload))
            await clock.advance(10.0)
            assert calls == [1]

    asyncio.run(story())


@given(
    st.sampled_from(["a.#", "b.#", "c.#", "#"]),
    st.sampled_from("abc"),
    st.sampled_from(["nothing", "queue_unsubscribe"]),
)
def test_a_message_of_an_ended_subscription_goes_only_where_its_topic_fits(pattern: str, topic: str, lost: str) -> None:
    """Given two subscriptions of a subscriber, when the first ends while a message for it is on its way, or its end
    does not arrive, then the other one gets the message if that is of its topics; otherwise the message waits."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_retries=9))
            ended, other = list[Any](), list[Any]()
            subscription_id = await a.federation.subscribe_globally("w", "jobs", f"{topic}.1", callback=ended.append)
            await clock.settle()
            (local_id,) = b.manager.queue("jobs").subscriptions
            await a.federation.subscribe_globally("w", "jobs", pattern, callback=other.append)
            await clock.settle()
            a.host.server.fabric.loses = kind(lost)
            # It goes on its way to the first subscription, which ends before it arrives.
            whole = a.federation.handle_fabric_message

            async def end_first(message: Any, **more: Any) -> None:
                if message.payload.get("subscription_id") == subscription_id:
                    await a.federation.unsubscribe_globally(subscription_id)
                await whole(message, **more)

            with patch.object(a.federation, "handle_fabric_message", end_first):
                await b.manager.send_message("jobs", f"{topic}.1", 1)
                await clock.advance(1.0)
            fits = pattern in ("#", f"{topic}.#")
            counts = b.manager.queue("jobs").get_statistics()
            assert (ended, [one.payload for one in other]) == ([], [1] if fits else [])
            assert (counts.messages_acknowledged, counts.current_queue_size) == ((1, 0) if fits else (0, 1))
            assert local_id not in b.manager.queue("jobs").subscriptions

    asyncio.run(story())


def test_a_subscription_that_was_given_up_by_mistake_comes_back() -> None:
    """Given a cluster that has lost a subscription that goes on, when adverts are renewed, then it has it again."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            await b.manager.create_queue("jobs")
            a.host.server.fabric.loses = kind("queue_subscribe")
            await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: None)
            await clock.settle()
            assert not b.manager.queue("jobs").subscriptions
            a.host.server.fabric.loses = lambda message: False
            await clock.advance(30.0)
            assert len(b.manager.queue("jobs").subscriptions) == 1
            await clock.advance(60.0)
            assert len(b.manager.queue("jobs").subscriptions) == 1

    asyncio.run(story())


def test_queues_that_are_made_here_later_are_subscribed_to() -> None:
    """Given a subscription for a pattern of queues, when such a queue is made in its own cluster, by a call, by a send
    or once more after it was deleted, then it is subscribed to once, until the subscription ends."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", clock=clock) as (a,):
            calls: list[Any] = []
            await a.manager.create_queue("jobs.first")
            subscription_id = await a.federation.subscribe_globally(
                "w", "jobs.*", "#", callback=lambda one: calls.append(one.payload), team="night"
            )
            await a.manager.create_queue("jobs.second")
            await a.manager.create_queue("other")
            await a.manager.delete_queue("jobs.first")
            await a.manager.create_queue("jobs.first")
            names = ["jobs.first", "jobs.second", "jobs.third"]
            for name in [*names, "other"]:
                await a.manager.send_message(name, "t", name)
            await clock.advance(30.0)
            assert sorted(calls) == names
            for name in names:
                (one,) = a.manager.queue(name).subscriptions.values()
                assert one.metadata == {"team": "night"}
            handles = a.federation._local_subscription_handles[subscription_id]
            assert sorted(name for name, _ in handles) == names
            assert await a.federation.unsubscribe_globally(subscription_id)
            assert not any(a.manager.queue(name).subscriptions for name in names)

    asyncio.run(story())


def test_l4_a_global_callback_runs_in_the_context_of_its_subscription() -> None:
    """Given a subscription across clusters, when messages come from its own cluster's queues, also from one made later,
    and from another's, then its callback sees the variables of who subscribed it."""
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            seen: dict[str, str] = {}

            async def note(message: QueuedMessage) -> None:
                await asyncio.sleep(0)
                seen[message.payload] = tenant.get()

            await a.manager.create_queue("jobs.here")
            await b.manager.create_queue("jobs.there")
            tenant.set("home")
            await a.federation.subscribe_globally("w", "jobs.*", "#", callback=note)
            tenant.set("sender")
            await a.manager.create_queue("jobs.later")
            await clock.settle()
            for plugin, name in ((a, "jobs.here"), (b, "jobs.there"), (a, "jobs.later")):
                assert (await plugin.manager.send_message(name, "t", name)).success
            await clock.advance(1.0)
            assert seen == {"jobs.here": "home", "jobs.there": "home", "jobs.later": "home"}

    asyncio.run(story())


def test_a_bad_pattern_begins_no_subscription() -> None:
    """Given a malformed topic pattern, when a program subscribes with it, then it is refused and nothing is left."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            with pytest.raises(InvalidTopicError):
                await a.federation.subscribe_globally("w", "jobs", "a..b", callback=lambda one: None)
            assert a.federation.subscriptions == {}

    asyncio.run(story())
