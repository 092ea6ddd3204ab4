"""Nodes that share queues, against a real server: every node takes every request."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from mpreg_mq import (
    ConfigurationError,
    DeliveryGuarantee,
    InvalidOptionError,
    QueueClosedError,
    QueueConfiguration,
    QueuedMessage,
    QueueNotFoundError,
    RejectionReason,
)
from mpreg_mq.payload import UndecodablePayload, encode_payload
from tests.support.clusters import created, make_node, running_nodes, until
from tests.support.running import Recorder


def test_every_node_takes_every_request(url: str) -> None:
    """Given a queue of one node, then the other and a client send, fetch, extend, give back and acknowledge."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes, make_node(url, "client", owns_queues=False) as client:
            owner, other = await created(nodes, "q")
            for number, node in enumerate((owner, other, client)):
                assert (await node.send_message("q", "t", number, priority=number)).success
            results = await client.send_messages("q", [("t", 3), {"topic": "t", "payload": 4, "headers": {"k": "v"}}])
            assert [result.success for result in results] == [True, True]
            messages = await client.receive_messages("q", "w", 10, 1.0)
            assert [message.payload for message in messages] == [0, 1, 2, 3, 4]
            assert (messages[2].priority, messages[4].headers) == (2, {"k": "v"})
            assert await other.extend_lease("q", messages[0].id, "w", 60)
            assert await owner.acknowledge_message("q", messages[0].id, "w")
            assert await client.acknowledge_messages("q", [m.id for m in messages[1:4]], "w") == [True] * 3
            assert not await client.acknowledge_message("q", messages[0].id, "w")
            assert await other.negative_acknowledge("q", messages[4].id, "w", "not now")
            (again,) = await owner.receive_messages("q", "w")
            assert (again.payload, again.delivery_attempt) == (4, 2)
            statistics = await client.get_queue_statistics("q")
            assert (statistics.messages_sent, statistics.messages_acknowledged) == (5, 4)

    asyncio.run(story())


def test_queues_are_created_on_their_node_and_known_everywhere(url: str) -> None:
    """Given queues created from anywhere, then each has one owner, all nodes list them, and deleting ends them."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as (a, b), make_node(url, "client", owns_queues=False) as client:
            for number in range(6):
                assert await client.create_queue(f"q.{number}", QueueConfiguration(f"q.{number}", max_size=number + 1))
            assert not await a.create_queue("q.1")
            await until(lambda: len(a.list_queues()) == len(b.list_queues()) == 6)
            assert {a.owner_of(name) for name in a.list_queues()} == {"a", "b"}
            assert b.queue_configs["q.3"].max_size == 4
            assert (await client.send_message("new", "t", 1)).success
            assert await a.delete_queue("q.1")
            # A node that has not heard of that asks, and may take a lost answer for its own deletion's.
            await until(lambda: "q.1" not in b.list_queues())
            assert not await b.delete_queue("q.1")
            await until(lambda: "q.1" not in b.list_queues() and "q.1" not in client.list_queues())
            assert await b.create_queue("q.1")
            assert (await a.get_queue_statistics("q.1")).messages_sent == 0

    asyncio.run(story())


def test_bad_requests_are_refused_where_they_are_made_or_by_the_owner(url: str) -> None:
    """Given bad names, options, payloads and queues, then every verb answers as a manager on one node does."""

    async def story() -> None:
        manager = make_node(url, "early")
        with pytest.raises(QueueClosedError, match="not running"):
            await manager.create_queue("q")
        async with running_nodes(url, "a", "b") as nodes:
            _, other = await created(nodes, "q", QueueConfiguration("q", max_payload_bytes=100, max_size=1))
            with pytest.raises(ConfigurationError, match="queue name"):
                await other.create_queue("../x")
            with pytest.raises(ConfigurationError, match="expected the same"):
                await other.create_queue("x", QueueConfiguration("y"))
            for reason, send in (
                (RejectionReason.INVALID_TOPIC, other.send_message("q", "a..b", 1)),
                (RejectionReason.INVALID_OPTION, other.send_message("q", "t", 1, colour="red")),
                (RejectionReason.PAYLOAD_NOT_ENCODABLE, other.send_message("q", "t", object())),
                (RejectionReason.PAYLOAD_TOO_LARGE, other.send_message("q", "t", "x" * 200)),
                (RejectionReason.UNKNOWN_QUEUE, other.send_message("../x", "t", 1)),
            ):
                assert (await send).rejection is reason
            results = await other.send_messages("q", [("t", 1), ("a..b", 2), ("t", 3)])
            assert [result.rejection for result in results] == [
                None,
                RejectionReason.INVALID_TOPIC,
                RejectionReason.CAPACITY,
            ]
            with pytest.raises(InvalidOptionError, match="topic"):
                await other.send_messages("q", ["t"])
            with pytest.raises(InvalidOptionError, match="max_messages"):
                await other.receive_messages("q", "w", 0)
            with pytest.raises(InvalidOptionError, match="callback"):
                other.subscribe_to_queue("q", "s", "#")
            with pytest.raises(QueueNotFoundError, match="'nowhere' does not exist"):
                await other.receive_messages("nowhere", "w")
            assert not await other.acknowledge_message("nowhere", "m", "w")
            assert other.subscribe_to_queue("nowhere", "s", "#", print) is None
            assert await other.get_queue_statistics("nowhere") is None

    asyncio.run(story())


def test_administration_reaches_the_owner(url: str) -> None:
    """Given a queue of another node, then pausing, dead letters, redriving and purging work from here."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            _, other = await created(nodes, "q", QueueConfiguration("q", max_retries=0))
            await other.send_messages("q", [("t", 1), ("t", 2), ("t", 3)])
            assert await other.pause_queue("q")
            assert await other.receive_messages("q", "w", 3) == []
            assert await other.resume_queue("q")
            for message in await other.receive_messages("q", "w", 2):
                assert await other.negative_acknowledge("q", message.id, "w", "broken")
            dead = await other.list_dead_letters("q")
            assert [(entry.payload, entry.last_error) for entry in dead] == [(1, "broken"), (2, "broken")]
            assert len(await other.redrive_dead_letters("q", [dead[0].id])) == 1
            assert await other.purge_dead_letters("q") == 1
            assert await other.purge_queue("q") == 2

    asyncio.run(story())


def test_d1_a_dead_letter_that_cannot_be_decoded_is_listed_as_one_everywhere(url: str) -> None:
    """Given a payload that cannot be decoded, and one that looks like its stand-in, then both nodes tell them apart."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            _, other = await created(nodes, "q", QueueConfiguration("q", max_retries=0))
            alike = {"error": "x", "encoded": b"y"}
            broken = msgspec.msgpack.Ext(-1, b"no time")
            await other.send_messages("q", [("t", [broken]), ("t", alike)])
            (message,) = await other.receive_messages("q", "w", 2)
            await other.negative_acknowledge("q", message.id, "w", "broken")
            for node in nodes:
                first, second = [entry.payload for entry in await node.list_dead_letters("q")]
                assert isinstance(first, UndecodablePayload)
                assert (first.encoded, second) == (encode_payload([broken]), alike)

    asyncio.run(story())


def test_callbacks_run_where_they_subscribed(url: str) -> None:
    """Given callbacks on three nodes, then each gets messages, failures are tried again, and unsubscribing ends it."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes, make_node(url, "client", owns_queues=False) as client:
            owner, other = await created(nodes, "q", QueueConfiguration("q", retry_backoff_seconds=0.01))
            await until(lambda: client.list_queues() == ["q"])
            seen = [Recorder() for _ in range(3)]
            subscriptions = [
                node.subscribe_to_queue("q", f"s{number}", "to.*", seen[number])
                for number, node in enumerate((owner, other, client))
            ]
            for number in range(60):
                assert (await other.send_message("q", "to.all", number)).success
            await until(lambda: sum(len(one.messages) for one in seen) == 60)
            assert sorted(payload for one in seen for payload in one.payloads) == list(range(60))

            failures: list[QueuedMessage] = []

            async def fail_once(message: QueuedMessage) -> None:
                failures.append(message)
                await asyncio.sleep(0)
                if message.delivery_attempt == 1:
                    raise RuntimeError("once")

            client.subscribe_to_queue("q", "failing", "fail.#", fail_once, blocking=False)
            await owner.send_message("q", "fail.x", "f")
            await until(lambda: [message.delivery_attempt for message in failures] == [1, 2])
            assert client.unsubscribe_from_queue("q", subscriptions[2])
            assert not client.unsubscribe_from_queue("q", subscriptions[2])
            await until(lambda: len(owner.node.ownership.queues["q"].queue.subscriptions) == 3)

    asyncio.run(story())


def test_guarantees_hold_over_nodes(url: str) -> None:
    """Given subscribers on two nodes, then a broadcast reaches both, and fire-and-forget whoever is there now."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            first, second = Recorder(), Recorder()
            owner.subscribe_to_queue("q", "s1", "#", first)
            other.subscribe_to_queue("q", "s2", "#", second)
            await until(lambda: len(owner.node.ownership.queues["q"].queue.subscriptions) == 2)
            assert (await other.send_message("q", "t", "all", DeliveryGuarantee.BROADCAST)).success
            await until(lambda: first.payloads == second.payloads == ["all"])
            assert (await other.send_message("q", "t", "now", DeliveryGuarantee.FIRE_AND_FORGET)).success
            await until(lambda: first.payloads == second.payloads == ["all", "now"])
            statistics = await other.get_queue_statistics("q")
            assert statistics.messages_acknowledged == 1

    asyncio.run(story())


def test_a_blocking_callback_does_not_hold_up_its_node(url: str) -> None:
    """Given a blocking callback, then it runs on a thread, one message at a time."""
    import threading

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
            threads: list[threading.Thread] = []
            node.subscribe_to_queue(
                "q", "s", "#", lambda message: threads.append(threading.current_thread()), blocking=True
            )
            await node.send_messages("q", [("t", number) for number in range(3)])
            await until(lambda: len(threads) == 3)
            assert threading.main_thread() not in threads

    asyncio.run(story())
