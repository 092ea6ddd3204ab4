"""Callbacks on nodes of a cluster behave as those of a manager on one node (SEMANTICS G1, G6, S4, L1, L3, L4)."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import attrs

from mpreg_mq import DeliveryGuarantee, QueueConfiguration, QueuedMessage, VirtualClock
from tests.support.clusters import created, make_node, running_nodes, until
from tests.support.running import Recorder

FIRE = DeliveryGuarantee.FIRE_AND_FORGET


def _subscriptions(owner: Any) -> int:
    return len(owner.node.ownership.queues["q"].queue.subscriptions)


class Coroutines:
    """A coroutine callback that waits to be released, and notes what became of it."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []
        self.release = asyncio.Event()

    async def __call__(self, message: QueuedMessage) -> None:
        self.started.append(message.payload)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.payload)
            raise
        self.ended.append(message.payload)


def test_g6_a_subscribers_callbacks_get_what_their_own_patterns_match(url: str) -> None:
    """Given one subscriber with callbacks for several patterns on two nodes, then each gets what it subscribed to."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            seen = {pattern: Recorder() for pattern in ("a.*", "b.*", "c.*")}
            for node, pattern in ((owner, "a.*"), (owner, "b.*"), (other, "c.*")):
                node.subscribe_to_queue("q", "w", pattern, seen[pattern])
            await until(lambda: _subscriptions(owner) == 3)
            for number in range(10):
                for level in "abc":
                    assert (await other.send_message("q", f"{level}.x", (level, number))).success
            await until(lambda: sum(len(one.messages) for one in seen.values()) == 30)
            for pattern, recorder in seen.items():
                assert recorder.payloads == [[pattern[0], number] for number in range(10)]

    asyncio.run(story())


def test_g6_a_subscription_that_ends_leaves_the_subscribers_others(url: str) -> None:
    """Given two callbacks of one subscriber, when one unsubscribes, then the other goes on and the rest waits (G5)."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            first, second = Recorder(), Recorder()
            subscription = other.subscribe_to_queue("q", "w", "a.*", first)
            other.subscribe_to_queue("q", "w", "b.*", second)
            await until(lambda: _subscriptions(owner) == 2)
            assert not other.unsubscribe_from_queue("elsewhere", subscription)
            assert other.unsubscribe_from_queue("q", subscription)
            await until(lambda: _subscriptions(owner) == 1)
            await other.send_messages("q", [("a.x", 1), ("b.x", 2)])
            await until(lambda: second.payloads == [2])
            assert first.payloads == []
            assert (await other.get_queue_statistics("q")).current_queue_size == 1

    asyncio.run(story())


def test_l1_a_callback_whose_subscription_the_owner_lost_is_subscribed_again(url: str) -> None:
    """Given an owner that took a node for gone and ended its subscriptions, then the callback soon gets messages."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            seen = Recorder()
            other.subscribe_to_queue("q", "w", "#", seen)
            await until(lambda: _subscriptions(owner) == 1)
            await owner.send_message("q", "t", 1)
            await until(lambda: seen.payloads == [1])
            assert owner.node.ownership.queues["q"].detach_members(lambda member: True) == 1
            await owner.send_message("q", "t", 2)
            await until(lambda: seen.payloads == [1, 2])

    asyncio.run(story())


def test_l1_a_queue_that_is_made_again_has_subscribers_of_its_own(url: str) -> None:
    """Given a queue that was deleted under a callback, and made again, then who subscribes then gets messages."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            before, after = Recorder(), Recorder()
            other.subscribe_to_queue("q", "w", "#", before)
            await until(lambda: _subscriptions(owner) == 1)
            assert await other.delete_queue("q")
            await until(lambda: other.list_queues() == [])
            await until(lambda: not other._callbacks._subscribers)
            assert await other.create_queue("q")
            other.subscribe_to_queue("q", "w", "#", after)
            assert (await other.send_message("q", "t", 1)).success
            await until(lambda: after.payloads == [1])
            assert before.payloads == []

    asyncio.run(story())


def test_s4_a_callback_has_the_acknowledgment_timeout_of_its_message(url: str) -> None:
    """Given a message with a timeout of its own and one without, then each callback may take as long as it says."""

    async def story() -> None:
        clock = VirtualClock()
        configuration = QueueConfiguration("q", default_acknowledgment_timeout_seconds=1, max_retries=0)
        async with running_nodes(url, "a", "b", clock=clock) as nodes:
            _, other = await created(nodes, "q", configuration)
            work = Coroutines()
            other.subscribe_to_queue("q", "w", "#", work)
            await other.send_message("q", "t", "long", acknowledgment_timeout_seconds=10)
            await other.send_message("q", "t", "short")
            await until(lambda: work.started == ["long", "short"])
            await clock.advance(2)
            await until(lambda: work.cancelled == ["short"])
            work.release.set()
            await until(lambda: work.ended == ["long"])
            async with asyncio.timeout(60):
                while (await other.get_queue_statistics("q")).messages_acknowledged != 1:
                    await asyncio.sleep(0)
            (dead,) = await other.list_dead_letters("q")
            assert dead.payload == "short"

    asyncio.run(story())


def test_l3_a_callback_that_extends_its_lease_goes_on(url: str) -> None:
    """Given a callback on another node that extends its lease, then it is not cancelled before that one ends."""

    async def story() -> None:
        clock = VirtualClock()
        configuration = QueueConfiguration("q", default_acknowledgment_timeout_seconds=1, max_retries=0)
        async with running_nodes(url, "a", "b", clock=clock) as nodes:
            _, other = await created(nodes, "q", configuration)
            work = Coroutines()
            extended: list[bool] = []

            async def extend(message: QueuedMessage) -> None:
                extended.append(await other.extend_lease("q", message.id, "w", 10))
                await work(message)

            other.subscribe_to_queue("q", "w", "#", extend)
            await other.send_messages("q", [("t", 1)])
            await until(lambda: work.started == [1])
            assert extended == [True]
            await clock.advance(9)
            assert work.cancelled == []
            await clock.advance(2)
            await until(lambda: work.cancelled == [1])

    asyncio.run(story())


def test_l1_a_thread_that_does_not_return_is_left_behind_for_a_new_one(url: str) -> None:
    """Given a blocking callback that hangs, when its lease ends, then the next message is handled on another thread."""

    async def story() -> None:
        clock = VirtualClock()
        configuration = QueueConfiguration("q", default_acknowledgment_timeout_seconds=1, max_retries=0)
        release = threading.Event()
        async with running_nodes(url, "a", "b", clock=clock) as nodes:
            _, other = await created(nodes, "q", configuration)
            threads: dict[Any, threading.Thread] = {}

            def hang(message: QueuedMessage) -> None:
                threads[message.payload] = threading.current_thread()
                if message.payload == "hangs":
                    release.wait()

            try:
                other.subscribe_to_queue("q", "w", "#", hang, blocking=True)
                await other.send_messages("q", [("t", "hangs"), ("t", "next")])
                await until(lambda: "hangs" in threads)
                await clock.advance(2)
                await until(lambda: "next" in threads)
                assert threads["next"] is not threads["hangs"]
                assert threads["hangs"].is_alive()
            finally:
                release.set()

    asyncio.run(story())


def test_l4_callbacks_run_in_the_context_in_which_they_were_subscribed(url: str) -> None:
    """Given functions, coroutines and blocking functions, then each sees the variables of who subscribed it."""
    tenant = contextvars.ContextVar("tenant", default="nobody")

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
            seen: dict[str, str] = {}

            def note(message: QueuedMessage) -> None:
                seen[message.topic] = tenant.get()

            async def note_later(message: QueuedMessage) -> None:
                await asyncio.sleep(0)
                note(message)
                # In a copy that is its task's.
                tenant.set("changed by a coroutine")

            tenant.set("one")
            node.subscribe_to_queue("q", "s1", "function", note)
            tenant.set("two")
            node.subscribe_to_queue("q", "s2", "coroutine", note_later)
            tenant.set("three")
            node.subscribe_to_queue("q", "s3", "thread", note, blocking=True)
            node.subscribe_to_queue("q", "s4", "thread-coroutine", note_later, blocking=True)
            tenant.set("sender")
            topics = ["function", "coroutine", "thread", "thread-coroutine"]
            for _ in range(2):
                seen.clear()
                await node.send_messages("q", [(topic, 1) for topic in topics])
                await until(lambda: len(seen) == 4)
                assert [seen[topic] for topic in topics] == ["one", "two", "three", "three"]

    asyncio.run(story())


def test_l4_whatever_a_callback_raises_is_a_failed_attempt(url: str) -> None:
    """Given callbacks that raise what would end a loop, then their messages fail and the node goes on."""

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q", QueueConfiguration("q", max_retries=0))

            def leave(message: QueuedMessage) -> None:
                raise SystemExit(message.topic)

            async def leave_later(message: QueuedMessage) -> None:
                await asyncio.sleep(0)
                leave(message)

            node.subscribe_to_queue("q", "s1", "now", leave)
            node.subscribe_to_queue("q", "s2", "later", leave_later)
            await node.send_messages("q", [("now", 1), ("later", 2)])
            async with asyncio.timeout(60):
                while len(dead := await node.list_dead_letters("q")) < 2:
                    await asyncio.sleep(0)
            assert {entry.last_error for entry in dead} == {"SystemExit: now", "SystemExit: later"}

    asyncio.run(story())


def test_g1_fire_and_forget_calls_one_callback_of_each_subscriber(url: str) -> None:
    """Given subscribers with several matching callbacks on two nodes, then each is called once, also with a batch."""

    async def story() -> None:
        async with (
            running_nodes(url, "a", "b", lease_seconds=5.0) as nodes,
            make_node(url, "client", owns_queues=False, lease_seconds=5.0) as client,
        ):
            owner, other = await created(nodes, "q")
            await until(lambda: client.list_queues() == ["q"])
            several, alone = Recorder(), Recorder()
            for node, pattern in ((other, "t"), (other, "#"), (owner, "t"), (client, "*")):
                node.subscribe_to_queue("q", "several", pattern, several)
            client.subscribe_to_queue("q", "alone", "t", alone)
            other.subscribe_to_queue("q", "stranger", "u", several)
            await until(lambda: _subscriptions(owner) == 6)
            # It pulls, and so has nothing that could be called.
            await owner.receive_messages("q", "puller")
            assert (await other.send_message("q", "t", 1, FIRE)).success
            assert (await other.send_message("q", "t", "x" * 1_048_000, FIRE)).success
            results = await other.send_messages("q", [("t", 2), ("t", 3)], FIRE)
            assert all(result.success for result in results)
            await until(lambda: len(alone.payloads) == 4 and len(several.payloads) >= 4)
            assert (await other.send_message("q", "t", "last", FIRE)).success
            await until(lambda: alone.payloads[-1] == several.payloads[-1] == "last")
            assert sorted(map(str, several.payloads)) == sorted(map(str, alone.payloads))

    asyncio.run(story())


def test_c2_a_fire_and_forget_callback_takes_no_place_and_ends_in_time(url: str) -> None:
    """Given one that hangs, and a place for one lease, then leased messages arrive; the timeout ends it (C2)."""

    async def story() -> None:
        clock = VirtualClock()
        configuration = QueueConfiguration("q", default_acknowledgment_timeout_seconds=1)
        async with running_nodes(url, "a", "b", clock=clock) as nodes:
            owner, other = await created(nodes, "q", configuration)
            fired, seen = Coroutines(), Recorder()

            async def work(message: QueuedMessage) -> None:
                await asyncio.sleep(0)
                seen(message)

            def either(message: QueuedMessage) -> Any:
                return (fired if message.delivery_guarantee is FIRE else work)(message)

            other.subscribe_to_queue("q", "w", "#", either, max_in_flight=1)
            await until(lambda: _subscriptions(owner) == 1)
            await owner.send_message("q", "t", "hangs", FIRE)
            await until(lambda: fired.started == ["hangs"])
            # The first two may come with a fetch that was under way before.
            await owner.send_messages("q", [("t", 1), ("t", 2), ("t", 3)])
            await until(lambda: seen.payloads == [1, 2, 3])
            assert fired.cancelled == []
            await clock.advance(2)
            await until(lambda: fired.cancelled == ["hangs"])

    asyncio.run(story())


def test_c3_shutting_down_ends_callbacks_that_do_not_return(url: str) -> None:
    """Given a callback that never ends, when its node shuts down, then it is cancelled and another gets the message."""

    async def story() -> None:
        async with running_nodes(url, "a") as (owner,):
            await owner.create_queue("q")
            client = make_node(url, "client", owns_queues=False)
            client.config = attrs.evolve(client.config, shutdown_timeout_seconds=0.05)
            await client.start()
            await until(lambda: client.list_queues() == ["q"])
            work = Coroutines()
            client.subscribe_to_queue("q", "w", "#", work)
            await client.send_message("q", "t", 1)
            await client.send_message("q", "t", "fired", FIRE)
            await until(lambda: sorted(map(str, work.started)) == ["1", "fired"])
            await client.shutdown()
            assert sorted(map(str, work.cancelled)) == ["1", "fired"]
            seen = Recorder()
            owner.subscribe_to_queue("q", "other", "#", seen)
            await until(lambda: seen.payloads == [1])

    asyncio.run(story())
