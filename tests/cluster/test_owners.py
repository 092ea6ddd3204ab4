"""Nodes that share queues, against a real server: owners come and go."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mpreg_mq import (
    MessageQueueManager,
    QueueConfiguration,
    QueuedMessage,
    QueueManagerConfiguration,
    RejectionReason,
    VirtualClock,
)
from mpreg_mq.events import open_log
from mpreg_mq.projections import QueueState
from tests.support.clusters import crash, created, make_node, owned_by, running_nodes, until
from tests.support.running import Recorder


def test_queues_move_to_a_node_that_joins_and_back_when_it_leaves(url: str) -> None:
    """Given queues and messages, when a node joins and leaves, then its share goes and comes back, without failover."""

    async def story() -> None:
        async with running_nodes(url, "a") as (a,):
            names = [f"q{number}" for number in range(8)]
            for name in names:
                await a.create_queue(name)
                await a.send_message(name, "t", name)
            async with make_node(url, "b") as b:
                await until(lambda: 0 < len(b.node.ownership.queues) < 8 and len(a.node.ownership.queues) < 8)
                await until(lambda: len(a.node.ownership.queues) + len(b.node.ownership.queues) == 8)
                for name in names:
                    (message,) = await b.receive_messages(name, "w", wait_seconds=5)
                    assert message.payload == name
            await until(lambda: len(a.node.ownership.queues) == 8)
            assert a.metrics()["failovers"] == 0
            # The leases that the other node gave are honoured by this one.
            assert await a.receive_messages("q0", "other") == []

    asyncio.run(story())


def test_a_node_takes_queues_over_while_the_threads_of_its_loop_are_busy(url: str) -> None:
    """Given a node whose program keeps every thread of the loop busy, when the owner crashes, then it takes over."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            free = threading.Event()
            with ThreadPoolExecutor(1) as threads:
                loop.set_default_executor(threads)
                busy = loop.run_in_executor(None, free.wait)
                try:
                    await crash(owner)
                    nodes.remove(owner)
                    await owned_by(nodes, "q", other)
                    assert (await other.send_message("q", "t", 1)).success
                    await other.shutdown()
                finally:
                    free.set()
                await busy

    asyncio.run(story())


def test_a_draining_node_gives_its_queues_away_and_still_forwards(url: str) -> None:
    """Given a node that drains, then it owns nothing any more, and what is sent to it arrives."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q")
            await owner.drain()
            await owned_by(nodes, "q", other)
            assert owner.node.ownership.queues == {}
            assert (await owner.send_message("q", "t", 1)).success
            (message,) = await owner.receive_messages("q", "w")
            assert message.payload == 1

    asyncio.run(story())


def test_failover_honours_due_times_attempts_keys_and_leases(url: str) -> None:
    """Given a queue in every state, when its owner crashes, then the next one goes on there (O3, R1, U1, L1)."""

    async def story() -> None:
        clock = VirtualClock()
        configuration = QueueConfiguration("q", enable_deduplication=True, max_retries=2, retry_backoff_seconds=50)
        async with running_nodes(url, "a", "b", clock=clock) as nodes:
            owner, other = await created(nodes, "q", configuration)
            await other.send_message("q", "leased", "leased", visibility_timeout_seconds=30)
            (leased,) = await other.receive_messages("q", "w")
            await other.send_message("q", "failed", "failed")
            (failed,) = await other.receive_messages("q", "w")
            assert await other.negative_acknowledge("q", failed.id, "w", "once", 20)
            first = await other.send_message("q", "delayed", "delayed", delay_seconds=10, deduplication_id="key")
            await crash(owner)
            nodes.remove(owner)
            await owned_by(nodes, "q", other)
            assert other.metrics()["failovers"] == 1
            duplicate = await other.send_message("q", "x", "x", deduplication_id="key")
            assert (duplicate.rejection, duplicate.duplicate_of) == (RejectionReason.DUPLICATE, first.message_id)
            assert await other.receive_messages("q", "w2", 9) == []
            await clock.advance(10)
            assert [m.payload for m in await other.receive_messages("q", "w2", 9)] == ["delayed"]
            await clock.advance(10)
            (again,) = await other.receive_messages("q", "w2", 9)
            assert (again.payload, again.delivery_attempt) == ("failed", 2)
            assert await other.acknowledge_message("q", leased.id, "w")
            await clock.advance(20)
            assert await other.receive_messages("q", "w2", 9) == []

    asyncio.run(story())


def test_a_new_owner_replays_a_snapshot_and_the_tail(url: str) -> None:
    """Given a queue that is saved now and then, when its owner crashes, then the next one reads only the rest."""

    async def story() -> None:
        from mpreg_mq.cluster.manager import ClusterQueueManager

        nodes = []
        for name in ("a", "b"):
            cluster = make_node(url, name).node.configuration
            settings = QueueManagerConfiguration(snapshot_every_events=100)
            nodes.append(ClusterQueueManager(url, cluster, settings))
            await nodes[-1].start()
        await until(lambda: all(len(node.node.directory.members()) == 2 for node in nodes))
        owner, other = await created(nodes, "q")
        for number in range(10):
            await owner.send_messages("q", [("t", (number, index)) for index in range(20)])
            for message in await owner.receive_messages("q", "w", 15):
                assert await owner.acknowledge_message("q", message.id, "w")
        log = other.node._log
        await until(lambda: log.snapshots("queue:q") != [])
        state = owner.node.ownership.queues["q"].queue._actor.state
        read: list[int] = []
        read_stream = log.read_stream

        def noted(stream: str, after_version: int = 0) -> Any:
            read.append(after_version)
            return read_stream(stream, after_version)

        log.read_stream = noted
        await crash(owner)
        await owned_by([other], "q", other)
        assert read[0] >= 100
        assert other.node.ownership.queues["q"].queue._actor.state.describe() == state.describe()
        assert len(await other.receive_messages("q", "w", 100)) == 50
        await other.shutdown()

    asyncio.run(story())


def test_a_callback_is_not_disturbed_by_a_failover(url: str) -> None:
    """Given a callback at work when the owner crashes, then it runs once and is acknowledged at the new owner."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes, make_node(url, "client", owns_queues=False) as client:
            owner, other = await created(nodes, "q")
            await until(lambda: client.list_queues() == ["q"])
            started, proceed = asyncio.Event(), asyncio.Event()
            runs: list[QueuedMessage] = []

            async def work(message: QueuedMessage) -> None:
                runs.append(message)
                started.set()
                await proceed.wait()

            client.subscribe_to_queue("q", "s", "#", work)
            await client.send_message("q", "t", 1)
            await started.wait()
            await crash(owner)
            nodes.remove(owner)
            await owned_by(nodes, "q", other)
            proceed.set()
            queue = other.node.ownership.queues["q"].queue
            await until(lambda: queue.get_statistics().messages_acknowledged == 1)
            await other.send_message("q", "t", 2)
            await until(lambda: [message.payload for message in runs] == [1, 2])

    asyncio.run(story())


def test_what_a_crashed_node_was_working_on_goes_to_others(url: str) -> None:
    """Given a subscriber whose node crashes with a message, then the owner ends its lease and somebody else gets it."""

    async def story() -> None:
        async with running_nodes(url, "a") as (owner,):
            await owner.create_queue("q")
            client = make_node(url, "client", owns_queues=False)
            await client.start()
            await until(lambda: client.list_queues() == ["q"])
            started = asyncio.Event()

            async def never(message: QueuedMessage) -> None:
                started.set()
                await asyncio.Event().wait()

            client.subscribe_to_queue("q", "s", "#", never)
            await client.send_message("q", "t", 1)
            await started.wait()
            for subscriber in client._callbacks._subscribers.values():
                subscriber._fetching.cancel()
            await crash(client)
            seen = Recorder()
            owner.subscribe_to_queue("q", "other", "#", seen)
            await until(lambda: seen.payloads == [1])
            assert seen.messages[0].delivery_attempt == 2
            assert [one.subscriber_id for one in owner.node.ownership.queues["q"].queue.subscriptions.values()] == [
                "other"
            ]
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if "_guarded" in repr(task):
                    task.cancel()

    asyncio.run(story())


def test_an_owner_that_lost_its_queue_is_refused_by_the_servers_and_ends_its_actor(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Given an owner that does not know that another claimed its queue, then its next append ends the ownership."""

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
            thief: Any = open_log(url)
            thief.claim("queue:q", "thief")
            result = await node.node.carry_out("q", _send())
            assert (result.outcome.value, "q" in node.node.ownership.queues) == ("unavailable", False)
            assert node.metrics()["ownerships_lost"] == 1
            thief.close()
            # It is still the wanted owner, so it claims the queue again, above the thief's epoch.
            await until(lambda: "q" in node.node.ownership.queues)
            assert node.node.ownership.queues["q"].epoch == 3
            assert (await node.send_message("q", "t", 1)).success

    asyncio.run(story())
    assert "queue q: a." in caplog.text
    assert "does not own it any more" in caplog.text


def _send() -> Any:
    from mpreg_mq.actors.commands import Send

    return Send("t", b"\x01")


def test_a_node_id_that_somebody_else_takes_ends_the_earlier_one(url: str) -> None:
    """Given two processes with one node id, then the earlier one loses its queues and says why."""

    async def story() -> None:
        async with running_nodes(url, "a") as (first,):
            await first.create_queue("q")
            async with make_node(url, "a") as second:
                await until(lambda: "q" in second.node.ownership.queues)
                await until(lambda: first.node.ownership.queues == {})
                assert (await second.send_message("q", "t", 1)).success
                await until(lambda: first.node._replaced)

    asyncio.run(story())


def test_a_log_from_one_node_becomes_a_clusters(url: str) -> None:
    """Given a log that a manager on one node wrote, when nodes join on it, then they own its queues."""

    async def story() -> None:
        async with MessageQueueManager(log=url) as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_size=7))
            await manager.send_message("q", "t", "before")
            await manager.create_queue("gone")
            await manager.delete_queue("gone")
        async with running_nodes(url, "a", "b") as nodes:
            await until(lambda: all(node.list_queues() == ["q"] for node in nodes))
            assert nodes[1].queue_configs["q"].max_size == 7
            (message,) = await nodes[1].receive_messages("q", "w", wait_seconds=5)
            assert message.payload == "before"

    asyncio.run(story())


def test_the_log_tells_the_same_as_the_owners(url: str) -> None:
    """Given sends and acknowledgments over changing owners, then the fold of the log is the last owner's state (I4)."""

    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack:
            a = await stack.enter_async_context(make_node(url, "a"))
            await a.create_queue("q")
            for number in range(3):
                await a.send_messages("q", [("t", (number, index)) for index in range(20)])
                async with make_node(url, f"other{number}") as other:
                    for message in await other.receive_messages("q", "w", 7, 1.0):
                        assert await other.acknowledge_message("q", message.id, "w")
            await until(lambda: "q" in a.node.ownership.queues)
            state = a.node.ownership.queues["q"].queue._actor.state
            state.check()
            log = open_log(url, read_only=True)
            rebuilt = QueueState.replay(record.event for record in log.read_stream("queue:q"))
            log.close()
            assert rebuilt.describe() == state.describe()
            assert rebuilt.statistics.counts.messages_acknowledged == 21

    asyncio.run(story())


def test_without_an_owner_a_send_is_refused_in_time(url: str) -> None:
    """Given a queue whose only node is gone, then a client's send is refused as a store error that says what to do."""

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
        async with make_node(url, "client", owns_queues=False, request_timeout_seconds=0.5) as client:
            result = await client.send_message("q", "t", 1)
            assert result.rejection is RejectionReason.STORE_ERROR
            assert "no owner answered within 0.5 s" in str(result.error_message)

    asyncio.run(story())


def test_asking_again_while_the_first_answer_is_under_way_tells_the_truth(url: str) -> None:
    """Given tries of an acknowledgment and of a send that are not confirmed yet, then a second try waits for them."""

    async def story() -> None:
        from mpreg_mq.actors.commands import Acknowledge, Send
        from mpreg_mq.cluster import wire

        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q", QueueConfiguration("q", enable_deduplication=True))
            await node.send_message("q", "t", 1)
            (message,) = await node.receive_messages("q", "w")
            many = wire.AcknowledgeMany((Acknowledge(message.id.id, "w"),))
            replies = await asyncio.gather(*(node.node.carry_out("q", many) for _ in range(3)))
            outcomes = [wire.answer_of(many, reply) for reply in replies]
            assert outcomes == [[wire.Acknowledged.COUNTED], [wire.Acknowledged.BEFORE], [wire.Acknowledged.BEFORE]]
            send = Send("t", b"\x01", fingerprint="key")
            log = node.node._log
            first, second = await asyncio.gather(*(node.node.carry_out("q", send) for _ in range(2)))
            accepted, duplicate = wire.answer_of(send, first), wire.answer_of(send, second)
            assert (accepted.success, duplicate.duplicate_of) == (True, accepted.message_id)
            stored = await asyncio.to_thread(lambda: [type(one.event).__name__ for one in log.read_stream("queue:q")])
            assert stored.count("MessageEnqueued") == 2

    asyncio.run(story())
