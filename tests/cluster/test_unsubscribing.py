"""Subscriptions that end on a node of a cluster: nothing of theirs goes astray (SEMANTICS G3, G6, L4, C3)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import attrs
import pytest

from mpreg_mq import DeliveryGuarantee, QueuedMessage
from mpreg_mq.actors import commands as c
from mpreg_mq.errors import EventLogError
from tests.support.clusters import created, running_nodes, until
from tests.support.running import Recorder

pytest.importorskip("nats", reason="nats-py is not installed (pip install 'mpreg-mq[nats]')")


def _subscriptions(owner: Any) -> int:
    return len(owner.node.ownership.queues["q"].queue.subscriptions)


class Router:
    """What a node asks of owners: ends of subscriptions do not get there, as often as ``lost`` says."""

    def __init__(self, node: Any, lost: float = 0) -> None:
        self.lost = lost
        self.tries = 0
        self.detached: list[str] = []
        self._ask = node._router.ask
        node._router.ask = self.ask

    async def ask(self, queue: str, asked: Any, **how: Any) -> Any:
        if type(asked) is c.Unsubscribe:
            self.tries += 1
            if self.tries <= self.lost:
                raise EventLogError("nobody answered")
        self.detached += getattr(asked, "subscription_ids", ())
        return await self._ask(queue, asked, **how)


def test_g6_what_was_leased_before_an_end_goes_to_nobody_elses_callback(url: str) -> None:
    """Given leased messages under way while their subscription ends, then it gets them, and its sibling none."""

    async def story() -> None:
        from mpreg_mq.cluster.wire import ReceiveRequest

        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            arriving, ended = asyncio.Event(), asyncio.Event()
            real = other._router.ask

            async def ask(queue: str, asked: Any, **how: Any) -> Any:
                answer = await real(queue, asked, **how)
                if type(asked) is ReceiveRequest and answer:
                    arriving.set()
                    await ended.wait()
                if type(asked) is c.Unsubscribe:
                    ended.set()
                return answer

            other._router.ask = ask
            first, second = Recorder(), Recorder()
            subscription = other.subscribe_to_queue("q", "w", "a.#", first, max_in_flight=20)
            other.subscribe_to_queue("q", "w", "b.#", second, max_in_flight=20)
            await until(lambda: _subscriptions(owner) == 2)
            await owner.send_message("q", "a.1", 1)
            await arriving.wait()
            assert other.unsubscribe_from_queue("q", subscription)
            await until(lambda: bool(first.messages or second.messages))
            assert (first.payloads, second.payloads) == ([1], [])
            await owner.send_messages("q", [("a.2", 2), ("b.2", 2)])
            await until(lambda: second.payloads == [2])
            assert first.payloads == [1]

    asyncio.run(story())


@pytest.mark.parametrize("siblings", [0, 1])
def test_g3_an_end_that_the_owner_has_not_heard_is_told_again(url: str, siblings: int) -> None:
    """Given ends that get lost, when the owner answers again, then it has ended them, and waits for nobody else."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            Router(other, lost=3)
            seen = Recorder()
            subscription = other.subscribe_to_queue("q", "w", "a.#", Recorder())
            for _ in range(siblings):
                other.subscribe_to_queue("q", "w", "b.#", Recorder())
            owner.subscribe_to_queue("q", "v", "#", seen)
            await until(lambda: _subscriptions(owner) == siblings + 2)
            assert other.unsubscribe_from_queue("q", subscription)
            # A fetch that waits at the owner goes on first.
            await owner.send_message("q", "b.1", 0, DeliveryGuarantee.BROADCAST)
            await until(lambda: _subscriptions(owner) == siblings + 1)
            await owner.send_message("q", "a.1", 1, DeliveryGuarantee.BROADCAST)
            await until(lambda: seen.payloads == [0, 1])
            async with asyncio.timeout(60):
                while (await owner.get_queue_statistics("q")).current_queue_size:
                    await asyncio.sleep(0)

    asyncio.run(story())


@pytest.mark.parametrize("siblings", [0, 1])
def test_c3_a_node_that_leaves_ends_what_the_owner_has_not_heard_of(url: str, siblings: int) -> None:
    """Given an end that always gets lost, when its node shuts down, then that is ended with all others of the node."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            other.config = attrs.evolve(other.config, shutdown_timeout_seconds=0.05)
            router = Router(other, lost=float("inf"))
            ids = [other.subscribe_to_queue("q", "w", f"{number}.#", Recorder()) for number in range(siblings + 1)]
            await until(lambda: _subscriptions(owner) == siblings + 1)
            assert other.unsubscribe_from_queue("q", ids[0])
            await until(lambda: router.tries > 0)
            await other.shutdown()
            assert sorted(router.detached) == sorted(ids)

    asyncio.run(story())


def test_c3_a_queue_that_is_deleted_takes_its_threads_along(url: str) -> None:
    """Given callbacks of a queue that is deleted, then who runs finishes, and the threads end and nothing is kept."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            _, other = await created(nodes, "q")
            threads: list[threading.Thread] = []
            running, release = asyncio.Event(), asyncio.Event()
            finished: list[str] = []

            def note(message: QueuedMessage) -> None:
                threads.append(threading.current_thread())

            async def take_long(message: QueuedMessage) -> None:
                running.set()
                await release.wait()
                finished.append(message.topic)

            subscription = other.subscribe_to_queue("q", "w", "thread", note, blocking=True)
            other.subscribe_to_queue("q", "w", "long", take_long, max_in_flight=2)
            await other.send_messages("q", [("long", 1), ("thread", 1)])
            await until(lambda: bool(threads) and running.is_set())
            assert await other.delete_queue("q")
            callbacks = other._callbacks
            await until(lambda: not callbacks._subscribers and not callbacks._subscriptions)
            assert not other.unsubscribe_from_queue("q", subscription)
            release.set()
            await until(lambda: not threads[0].is_alive() and not callbacks._ending)
            assert finished == ["long"]

    asyncio.run(story())


def test_l4_a_callback_that_outlives_its_subscription_acknowledges_only_if_it_did_before(url: str) -> None:
    """Given callbacks whose subscriptions end under them, then one without auto_acknowledge leaves that to the user."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            other.config = attrs.evolve(other.config, shutdown_timeout_seconds=0.0)
            release = asyncio.Event()
            started: dict[str, QueuedMessage] = {}

            async def take_long(message: QueuedMessage) -> None:
                started[message.topic] = message
                await release.wait()

            ids = [
                other.subscribe_to_queue("q", "w", topic, take_long, auto_acknowledge=topic == "itself")
                for topic in ("itself", "user")
            ]
            other.subscribe_to_queue("q", "w", "b", Recorder(), max_in_flight=5)
            await until(lambda: _subscriptions(owner) == 3)
            await owner.send_messages("q", [("itself", 1), ("user", 2)])
            await until(lambda: len(started) == 2)
            subscriber = other._callbacks._subscribers["q", "w"]
            for one in ids:
                assert other.unsubscribe_from_queue("q", one)
            # What waits at the owner goes on with this.
            await owner.send_message("q", "b", 3)
            await until(lambda: len(subscriber._attachment.subscriptions) == 1)
            release.set()
            async with asyncio.timeout(60):
                while (await owner.get_queue_statistics("q")).messages_acknowledged < 2:
                    await asyncio.sleep(0)
            assert not await other.acknowledge_message("q", started["itself"].id, "w")
            assert await other.acknowledge_message("q", started["user"].id, "w")

    asyncio.run(story())
