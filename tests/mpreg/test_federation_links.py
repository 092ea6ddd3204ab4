"""What other clusters ask for holds up nothing else that comes by the same connection, on doubles."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import OverflowPolicy, QueueConfiguration, QueuedMessage, VirtualClock
from mpreg_mq.mpreg import MessageQueuePlugin, federation
from tests.mpreg.test_federation import clusters
from tests.support.running import UnspeakableError, until


def test_a_callback_sends_to_the_cluster_of_its_message() -> None:
    """Given a subscriber of another cluster's queue, when its callback sends to that cluster and waits for the answer,
    then there is one, and the message is there once."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            for name in ("orders", "replies"):
                await b.manager.create_queue(name)
            answers: list[Any] = []

            async def reply(one: QueuedMessage) -> None:
                answers.append(await a.federation.send_confirmed("replies", "reply", one.payload))

            await a.federation.subscribe_globally("w", "orders", "#", callback=reply)
            await b.manager.send_message("orders", "order", 1)
            await until(lambda: b.manager.queue("orders").get_statistics().messages_acknowledged == 1)
            assert [answer.success for answer in answers] == [True]
            assert [one.payload for one in b.manager.queue("replies").pending_messages] == [1]

    asyncio.run(story())


def test_callbacks_of_other_clusters_messages_run_beside_each_other_and_hold_up_nothing() -> None:
    """Given callbacks that go on, when more messages come by that connection, then they are begun in their order, and
    a send is answered meanwhile."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("orders")
            await a.manager.create_queue("jobs")
            begun: list[Any] = []
            go_on = asyncio.Event()

            async def slow(one: QueuedMessage) -> None:
                begun.append(one.payload)
                await go_on.wait()

            await a.federation.subscribe_globally("w", "orders", "#", callback=slow)
            for number in range(3):
                await b.manager.send_message("orders", "order", number)
            await until(lambda: len(begun) == 3)
            assert begun == [0, 1, 2]
            assert (await b.federation.send_confirmed("jobs", "t", 1)).success
            assert b.manager.queue("orders").get_statistics().messages_acknowledged == 0
            go_on.set()
            await until(lambda: b.manager.queue("orders").get_statistics().messages_acknowledged == 3)

    asyncio.run(story())


def test_a_send_that_waits_for_room_holds_up_only_its_own_queue() -> None:
    """Given a full queue whose senders wait, when another cluster sends to it and to another one, then that has its
    message at once, and the full one gets the rest in order as there is room."""

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("a", "b", clock=clock) as (a, b):
            full = QueueConfiguration(
                "full", max_size=1, overflow_policy=OverflowPolicy.WAIT, overflow_wait_seconds=60.0
            )
            await b.manager.create_queue("full", full)
            await b.manager.create_queue("free")
            sends = [
                asyncio.create_task(a.federation.send_confirmed(name, "t", number))
                for number, name in enumerate(["full", "full", "full", "free"])
            ]
            await clock.settle()
            assert [send.done() for send in sends] == [True, False, False, True]
            taken = []
            for _ in range(3):
                (one,) = await b.manager.receive_messages("full", "w", wait_seconds=5)
                assert await b.manager.acknowledge_message("full", one.id, "w")
                taken.append(one.payload)
                await clock.settle()
            assert taken == [0, 1, 2]
            assert all([(await send).success for send in sends])

    asyncio.run(story())


@given(st.lists(st.tuples(st.sampled_from("ac"), st.sampled_from("xyz")), max_size=20))
def test_what_a_cluster_sends_to_a_queue_stays_in_order(sends: list[tuple[str, str]]) -> None:
    """Given any sends of two clusters to several queues, then each queue has those of each cluster in their order."""

    async def story() -> None:
        async with clusters("a", "c", "b") as (a, c, b):
            for name in "xyz":
                await b.manager.create_queue(name)
            federation = {"a": a.federation, "c": c.federation}
            answers = [
                asyncio.create_task(federation[cluster].send_confirmed(queue, "t", [cluster, number]))
                for number, (cluster, queue) in enumerate(sends)
            ]
            assert all([(await answer).success for answer in answers])
            for name in "xyz":
                have = [one.payload for one in b.manager.queue(name).pending_messages]
                assert len(have) == sum(queue == name for _, queue in sends)
                for cluster in "ac":
                    numbers = [number for sender, number in have if sender == cluster]
                    assert numbers == sorted(numbers)

    asyncio.run(story())


def test_callbacks_of_other_clusters_messages_end_with_the_server() -> None:
    """Given a callback that goes on, when the plugin is unregistered, then it is cancelled, and has ended by then."""

    async def story() -> None:
        async with clusters("b", "a") as (b, a):
            await b.manager.create_queue("orders")
            begun, ended = asyncio.Event(), list[str]()

            async def slow(one: QueuedMessage) -> None:
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
                    ended.append("slow")

            await a.federation.subscribe_globally("w", "orders", "#", callback=slow)
            await b.manager.send_message("orders", "order", 1)
            await begun.wait()
            await a.unregister()
            assert ended == ["slow"]

    asyncio.run(story())


async def flood(source: MessageQueuePlugin, target: str, subscription_id: str, count: int) -> None:
    """Forward messages as a cluster without the plugin does, which waits for no answer before the next one."""
    outgoing = source.federation._outgoing
    for number in range(count):
        request = outgoing.request(
            "orders",
            "t",
            [source.host.server.settings.cluster_id, number],
            outgoing._guarantee(None),
            target,
            None,
            subscription_id=subscription_id,
            subscriber_id="w",
        )
        assert (await source.federation.inner._send_request(request)).success


def test_no_more_deliveries_are_under_way_than_a_cluster_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given slow callbacks, when a cluster forwards without waiting for answers, then only so many are called, the rest
    in their order as others end, though one never does, and those of another cluster at once."""
    monkeypatch.setattr(federation, "MOST_BEGUN", 3)

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("b", "c", "a", clock=clock) as (b, c, a):
            begun: list[Any] = []
            ends: list[asyncio.Event] = []

            async def slow(one: QueuedMessage) -> None:
                begun.append(one.payload)
                ends.append(asyncio.Event())
                await ends[-1].wait()

            subscription_id = await a.federation.subscribe_globally("w", "orders", "#", callback=slow)
            await flood(b, "a", subscription_id, 50)
            await clock.settle()
            assert begun == [["b", number] for number in range(3)]
            await flood(c, "a", subscription_id, 2)
            await clock.settle()
            assert begun[3:] == [["c", 0], ["c", 1]]
            del begun[3:], ends[3:]
            for number in range(1, 50):
                ends[number].set()
                await clock.settle()
                assert len(begun) == min(50, number + 3)
            assert begun == [["b", number] for number in range(50)]

    asyncio.run(story())


def test_answers_about_unknown_subscriptions_are_no_more_than_a_cluster_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given answers that are slow to go, when a cluster forwards for a subscription that is not there, then only so
    many are under way, and each is answered in the end."""
    monkeypatch.setattr(federation, "MOST_BEGUN", 3)

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("b", "a", clock=clock) as (b, a):
            answering: list[Any] = []
            go_on = asyncio.Event()

            async def answer(request: Any, error: str | None, **more: Any) -> None:
                answering.append(error)
                await go_on.wait()

            monkeypatch.setattr(a.federation._outgoing, "answer", answer)
            await flood(b, "a", "gone", 50)
            await clock.settle()
            assert len(answering) == 3
            go_on.set()
            await clock.settle()
            assert answering == ["cluster 'a' has no subscription gone"] * 50

    asyncio.run(story())


def test_what_waits_to_be_delivered_is_not_begun_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more messages of another cluster than may be under way, when the plugin is unregistered, then the callbacks
    that run are cancelled, and no other one is called."""
    monkeypatch.setattr(federation, "MOST_BEGUN", 3)

    async def story() -> None:
        clock = VirtualClock()
        async with clusters("b", "a", clock=clock) as (b, a):
            begun: list[Any] = []

            async def slow(one: QueuedMessage) -> None:
                begun.append(one.payload)
                await asyncio.Event().wait()

            subscription_id = await a.federation.subscribe_globally("w", "orders", "#", callback=slow)
            await flood(b, "a", subscription_id, 10)
            await clock.settle()
            await a.unregister()
            await clock.settle()
            assert begun == [["b", number] for number in range(3)]

    asyncio.run(story())


# --- what cannot be sent, and what cannot be read -------------------------------------------------------------


def test_a_payload_that_mpreg_cannot_transport_fails_at_once_and_alone() -> None:
    """Given a payload that MPREG's JSON does not hold, when it is sent to another cluster or waits for a subscriber of
    one, then the sender hears why, the subscriber's attempt has failed for that reason, nothing is in flight, and the
    subscriber gets the next message."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_retries=0))
            a.host.server.fabric.loses = lambda one: not json.dumps(one.payload)

            answer = await a.federation.send_confirmed("jobs", "t", b"bytes", transmissions=3)
            assert not answer.success
            assert "TypeError: Object of type bytes is not JSON serializable" in str(answer.error_message)
            sent = await a.federation.send_message_globally("jobs", "t", b"bytes")
            assert sent.error_message == answer.error_message
            counts = a.get_federation_statistics()["b"]
            assert (counts.sent, counts.undeliverable, counts.in_flight, counts.timed_out) == (0, 2, 0, 0)

            got: list[Any] = []
            await a.federation.subscribe_globally("w", "jobs", "#", callback=lambda one: got.append(one.payload))
            for payload in (b"bytes", "text"):
                await b.manager.send_message("jobs", "t", payload)
            await until(lambda: got == ["text"])
            await until(lambda: b.manager.queue("jobs").get_statistics().messages_acknowledged == 1)
            (dead,) = b.manager.list_dead_letters("jobs")
            assert "not JSON serializable" in str(dead.last_error)
            counts = b.get_federation_statistics()["a"]
            assert (counts.forwarded, counts.forward_failures, counts.in_flight, counts.timed_out) == (1, 1, 0, 0)

    asyncio.run(story())


@pytest.mark.parametrize("error", [ValueError("a \ud800"), ValueError("x" * 1_000_000), UnspeakableError()])
def test_a_callback_may_raise_anything_and_its_cluster_is_answered(error: Exception) -> None:
    """Given a callback of another cluster whose error JSON cannot hold, or nobody would read, or has no text, then the
    attempt has failed at once, with what of it can be said in a thousand characters."""

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs", QueueConfiguration("jobs", max_retries=0))
            a.host.server.fabric.loses = lambda one: not json.dumps(one.payload, ensure_ascii=False).encode()

            def fail(one: QueuedMessage) -> None:
                raise error

            await a.federation.subscribe_globally("w", "jobs", "#", callback=fail)
            await b.manager.send_message("jobs", "t", 1)
            await until(lambda: len(b.manager.list_dead_letters("jobs")) == 1)
            counts = b.get_federation_statistics()["a"]
            assert (counts.refused, counts.in_flight) == (1, 0)
            assert len(str(counts.last_error)) <= 1000
            assert type(error).__name__ in str(counts.last_error)

    asyncio.run(story())


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "queue_request"},
        {"kind": "queue_request", "delivery_guarantee": "by pigeon"},
        {"kind": "queue_request", "subscription_id": ["x"]},
        {"kind": "queue_ack", "ack_token": ["x"]},
        {"kind": "queue_subscribe", "delivery_guarantee": None},
    ],
)
def test_what_cannot_be_read_ends_no_connection(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Given messages of another cluster that cannot be read, more than may be under way, then nothing is raised to
    MPREG, which would end the connection, and the next request is answered."""
    monkeypatch.setattr(federation, "MOST_BEGUN", 2)

    async def story() -> None:
        async with clusters("a", "b") as (a, b):
            await b.manager.create_queue("jobs")
            outgoing = a.federation._outgoing
            whole = outgoing.request("jobs", "t", 1, outgoing._guarantee(None), "b", None).to_dict()
            unreadable = content if content == {"kind": "queue_request"} else {**whole, **content}
            headers = SimpleNamespace(source_cluster="a", target_cluster="b")
            for _ in range(3):
                await b.federation.handle_fabric_message(SimpleNamespace(payload=unreadable, headers=headers))
            assert (await a.federation.send_confirmed("jobs", "t", 2)).success
            assert [one.payload for one in b.manager.queue("jobs").pending_messages] == [2]

    asyncio.run(story())
