"""Creating queues from several nodes, against a real server: one queue of a name, as it was created first."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from mpreg_mq import QueueConfiguration, RejectionReason
from mpreg_mq.events import open_log
from tests.support.clusters import PATIENCE_SECONDS, crash, created, make_node, owned_by, running_nodes, until

FIRST = QueueConfiguration("q", enable_deduplication=True, max_retries=10)
OTHER = QueueConfiguration("q", max_retries=1)


def kinds_of(url: str) -> Counter[str]:
    """How many events of each kind the queue has."""
    log = open_log(url, read_only=True)
    try:
        return Counter(type(record.event).__name__ for record in log.read_stream("queue:q"))
    finally:
        log.close()


def unaware(node: Any) -> Any:
    """Make a node forget that it has heard of the queue; it hears of it again when it looks."""
    node.node.directory.queues.pop("q")
    node.node.directory.revision = 0
    return node


def test_creating_a_queue_that_exists_changes_nothing(url: str) -> None:
    """Given a queue, when it is created again with another configuration, by nodes that have heard of it and by ones
    that have not, then the answer is no, and the queue is what it was."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q", FIRST)
            assert not await owner.create_queue("q", OTHER)
            assert not await other.create_queue("q", OTHER)
            assert not await unaware(other).create_queue("q", OTHER)
            assert not await unaware(owner).create_queue("q", OTHER)
            assert owner.node.ownership.queues["q"].queue.config == FIRST
            assert other.queue_configs["q"] == FIRST
        assert kinds_of(url)["QueueReconfigured"] == 0

    asyncio.run(story())


def test_a_send_of_a_node_that_has_not_heard_of_the_queue_changes_nothing(url: str) -> None:
    """Given a queue that deduplicates, when a node that has not heard of it sends twice with one key, then the message
    is accepted once, and the configuration is what it was."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q", FIRST)
            assert (await unaware(other).send_message("q", "t", 1, deduplication_id="key")).success
            again = await other.send_message("q", "t", 1, deduplication_id="key")
            assert again.rejection is RejectionReason.DUPLICATE
            assert owner.node.ownership.queues["q"].queue.config == FIRST
        assert kinds_of(url)["QueueReconfigured"] == 0

    asyncio.run(story())


def test_of_several_that_create_a_queue_at_once_one_does(url: str) -> None:
    """Given nodes and a client that create one queue at the same time, each with its own configuration, then one of
    them has made it, and it is that one's."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as (a, b), make_node(url, "client", owns_queues=False) as client:
            wanted = [QueueConfiguration("q", max_retries=retries) for retries in range(6)]
            made = await asyncio.gather(
                *(node.create_queue("q", one) for node, one in zip((a, b, client) * 2, wanted, strict=True))
            )
            assert made.count(True) == 1
            await until(lambda: all("q" in node.queue_configs for node in (a, b)))
            assert a.queue_configs["q"] == b.queue_configs["q"] == wanted[made.index(True)]
            (owner,) = [node for node in (a, b) if "q" in node.node.ownership.queues]
            assert owner.node.ownership.queues["q"].queue.config == wanted[made.index(True)]
        assert kinds_of(url)["QueueCreated"] == 1

    asyncio.run(story())


def test_a_queue_is_created_again_after_it_was_deleted_elsewhere(url: str) -> None:
    """Given a queue that one node deletes, when others that have not heard of that create it, then they make a new one;
    also a node that has heard neither of the first one nor of its end."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q", FIRST)
            assert await owner.delete_queue("q")
            assert await other.create_queue("q", OTHER)
            await until(lambda: all(node.queue_configs.get("q") == OTHER for node in nodes))
            assert await other.delete_queue("q")
            await until(lambda: not any("q" in node.queue_configs for node in nodes))
            for node in nodes:
                node.node.directory.removed.clear()
                node.node.directory.revision = 0
            assert await other.create_queue("q", FIRST)
            assert (await owner.send_message("q", "t", 1)).success

    asyncio.run(story())


def test_queues_that_are_made_and_deleted_at_once_end_as_the_answers_say(url: str) -> None:
    """Given nodes that create and delete one queue at the same time, over and over, then there is a queue afterwards if
    one more was made than deleted, and nothing was reconfigured."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as (a, b):
            there = 0
            for _ in range(10):
                made, ended, again, gone = await asyncio.gather(
                    a.create_queue("q", FIRST), b.delete_queue("q"), b.create_queue("q", OTHER), a.delete_queue("q")
                )
                there += made + again - ended - gone
                for node in (a, b):
                    await node.node.directory.refresh()
                    assert ("q" in node.queue_configs) == bool(there)
        assert kinds_of(url)["QueueReconfigured"] == 0

    asyncio.run(story())


def test_of_two_that_delete_a_queue_at_once_one_does(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a deletion whose request is on its way when the owner deletes the queue, and whose sender hears of that
    before the answer, then the sender is told that it deleted nothing."""

    async def story() -> None:
        monkeypatch.setattr("mpreg_mq.cluster.routing.LATE_SECONDS", PATIENCE_SECONDS)
        async with running_nodes(url, "a", "b", lease_seconds=PATIENCE_SECONDS) as nodes:
            owner, other = await created(nodes, "q")
            ask, on_its_way, arrives = other.node.transport.ask, asyncio.Event(), asyncio.Event()

            async def held(*request: Any) -> bytes:
                on_its_way.set()
                await arrives.wait()
                answer: bytes = await ask(*request)
                return answer

            monkeypatch.setattr(other.node.transport, "ask", held)
            deleting = asyncio.create_task(other.delete_queue("q"))
            await on_its_way.wait()
            assert await owner.delete_queue("q")
            await until(lambda: "q" not in other.queue_configs)
            for _ in range(10):
                # Whoever waits for a change goes on.
                await asyncio.sleep(0)
            arrives.set()
            assert not await deleting

    asyncio.run(story())


def test_a_deletion_ends_no_queue_that_was_made_after_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a deletion that was done and whose answer is on its way, when the queue is made again and its sender sends
    to the new one before the answer comes, then the deletion is answered, and the new queue stays."""

    async def story() -> None:
        monkeypatch.setattr("mpreg_mq.cluster.routing.LATE_SECONDS", PATIENCE_SECONDS)
        async with running_nodes(url, "a", "b", lease_seconds=PATIENCE_SECONDS) as nodes:
            owner, other = await created(nodes, "q")
            ask, on_its_way, arrives = other.node.transport.ask, asyncio.Event(), asyncio.Event()

            async def held(*request: Any) -> bytes:
                answer: bytes = await ask(*request)
                if not on_its_way.is_set():
                    on_its_way.set()
                    await arrives.wait()
                return answer

            monkeypatch.setattr(other.node.transport, "ask", held)
            deleting = asyncio.create_task(other.delete_queue("q"))
            await on_its_way.wait()
            assert await owner.create_queue("q", OTHER)
            await until(lambda: other.queue_configs.get("q") == OTHER)
            assert (await other.send_message("q", "t", 1)).success
            arrives.set()
            assert await deleting
            await other.node.directory.refresh()
            assert other.queue_configs.get("q") == OTHER
            assert kinds_of(url)["QueueDeleted"] == 1

    asyncio.run(story())


def test_a_queue_whose_maker_ended_halfway_is_made_by_the_next_owner(url: str) -> None:
    """Given a queue that was entered for a node which crashed before it was in the log, then it is not made again by
    whoever asks for it, and the next owner makes it as it was entered."""

    async def story() -> None:
        from mpreg_mq.cluster.records import QueueRecord, encode_record, queue_key

        async with running_nodes(url, "a", "b") as nodes:
            gone, left = nodes
            await crash(gone)
            record = QueueRecord("q", FIRST, gone.node.member, 1)
            await left.node.directory.bucket.put(queue_key("q"), encode_record(record), 0)
            nodes.remove(gone)
            assert not await left.create_queue("q", OTHER)
            await owned_by(nodes, "q", left)
            assert left.node.ownership.queues["q"].queue.config == FIRST
            assert (await left.send_message("q", "t", 1, deduplication_id="key")).success

    asyncio.run(story())


def test_a_queue_of_the_log_alone_is_taken_as_it_is(url: str) -> None:
    """Given a queue whose entry somebody removed while the nodes run, when it is created again, then the answer is no,
    and it is there with its configuration and messages."""

    async def story() -> None:
        from mpreg_mq.cluster.records import queue_key

        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q", FIRST)
            await node.send_message("q", "t", "kept")
            await node.node.directory.bucket.remove(queue_key("q"))
            await until(lambda: node.list_queues() == [] and node.node.ownership.queues == {})
            assert not await node.create_queue("q", OTHER)
            assert node.queue_configs["q"] == FIRST
            (message,) = await node.receive_messages("q", "w")
            assert message.payload == "kept"

    asyncio.run(story())
