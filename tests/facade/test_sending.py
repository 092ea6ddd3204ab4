"""Sending to one queue: copies, bad input, batches, and a queue that is full."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import (
    DeliveryGuarantee,
    Durability,
    InvalidOptionError,
    MessageQueueManager,
    OverflowPolicy,
    QueueConfiguration,
    QueuedMessage,
    QueueType,
    RejectionReason,
    VirtualClock,
)
from mpreg_mq.actors import turns
from mpreg_mq.actors.dispatching import BURST_LIMIT, MOST_TURNS_PLANNED, RUN_LIMIT, STEPS_BETWEEN_LOOKS
from mpreg_mq.actors.turns import SLICE_SECONDS
from tests.support.running import Recorder, assert_fold_equality, make_queue, until


def test_s3_payloads_are_copies() -> None:
    """Given a payload that the sender and a subscriber change afterwards, then nobody else sees that."""

    async def story() -> None:
        queue = make_queue()
        payload: dict[str, Any] = {"items": [1]}
        seen: list[Any] = []

        def spoil(message: QueuedMessage) -> None:
            seen.append(message.payload["items"][:])
            message.payload["items"].append("spoiled")

        queue.subscribe("a", "#", spoil)
        queue.subscribe("b", "#", spoil)
        await queue.send_message("t", payload, DeliveryGuarantee.BROADCAST)
        payload["items"].append("too late")
        await until(lambda: len(seen) == 2)
        assert seen == [[1], [1]]
        await queue.shutdown()

    asyncio.run(story())


def test_o2_a_burst_is_enqueued_before_the_first_dispatch() -> None:
    """Given 5,000 sends awaited without a pause on a priority queue, then they are delivered in priority order."""

    async def story() -> None:
        queue = make_queue(queue_type=QueueType.PRIORITY)
        seen = Recorder()
        queue.subscribe("s", "#", seen)
        for number in range(5000):
            await queue.send_message("a", number, priority=number * 7919 % 100)
        await until(lambda: len(seen.messages) == 5000)
        priorities = [message.priority for message in seen.messages]
        assert priorities == sorted(priorities, reverse=True)
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("slice_seconds", [1e-9, 3600.0])
@pytest.mark.parametrize("senders", [1, 3])
def test_o2_only_the_first_part_of_a_long_run_is_a_burst(
    monkeypatch: pytest.MonkeyPatch, slice_seconds: float, senders: int
) -> None:
    """Given senders that never pause, on a machine that delivers everything in a turn or one that delivers little, then
    10,000 messages are accepted before the first is delivered, and at most 1,000 between later deliveries; after a
    pause of an iteration there is room for a burst again."""
    monkeypatch.setattr(turns, "SLICE_SECONDS", slice_seconds)

    async def story() -> None:
        queue = make_queue(max_size=1_000_000)
        seen = sent = sent_before = 0
        runs: list[int] = []

        def count(message: QueuedMessage) -> None:
            nonlocal seen, sent_before
            seen += 1
            if sent > sent_before:
                runs.append(sent - sent_before)
                sent_before = sent

        async def send(messages: int) -> None:
            nonlocal sent
            for _ in range(messages):
                assert (await queue.send_message("a", 1)).success
                sent += 1

        queue.subscribe("s", "#", count)
        await asyncio.gather(*(send(BURST_LIMIT + 3 * RUN_LIMIT) for _ in range(senders)))
        assert runs[0] == BURST_LIMIT
        assert max(runs[1:]) <= RUN_LIMIT
        await until(lambda: seen == sent)
        for _ in range(3):
            await asyncio.sleep(0)
        runs.clear()
        await send(BURST_LIMIT)
        assert runs == []
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("durability", [Durability.COMMITTED, Durability.MEMORY])
def test_c1_a_sender_to_many_queues_lets_them_deliver_now_and_then(durability: Durability, tmp_path: Path) -> None:
    """Given a sender that never waits and sends to 500 queues in turn, then a few dozen messages wait at most."""

    async def story() -> None:
        # Queues that are only in memory do not wait for the disk of their manager's log either.
        log = "memory:" if durability is Durability.COMMITTED else tmp_path / "mq.db"
        manager = MessageQueueManager(log=log)
        names = [f"q{number}" for number in range(500)]
        seen = 0

        def count(message: QueuedMessage) -> None:
            nonlocal seen
            seen += 1

        for name in names:
            await manager.create_queue(name, QueueConfiguration(name, durability=durability))
            manager.subscribe_to_queue(name, "s", "#", count)
        waiting = []
        for sent in range(1, 2001):
            result = await manager.send_message(names[sent % len(names)], "a", sent)
            assert result.success
            waiting.append(sent - seen)
        assert 32 <= max(waiting) <= 65
        await until(lambda: seen == 2000)
        await manager.shutdown()

    asyncio.run(story())


def test_c1_a_sender_lets_other_queues_deliver_once_for_each_send() -> None:
    """Given a queue with a backlog, and traffic that plans the turns of many others over and over, when somebody sends
    to that queue, then the send is through after a turn or two, not after the backlog."""

    async def story() -> None:
        manager = MessageQueueManager()
        others = [f"q{number}" for number in range(MOST_TURNS_PLANNED)]
        for name in others:
            await manager.create_queue(name)
            manager.subscribe_to_queue(name, "s", "#", lambda message: None)
        await manager.create_queue("slow")
        for number in range(2000):
            await manager.send_message("slow", "t", number)
        delivered = 0
        ended = False

        def take_long(message: QueuedMessage) -> None:
            nonlocal delivered
            delivered += 1
            # A slice of a turn ends by the time that it took.
            ends_at = time.perf_counter() + SLICE_SECONDS / STEPS_BETWEEN_LOOKS
            while time.perf_counter() < ends_at:
                pass

        async def fan_out() -> None:
            while not ended:
                for name in others:
                    await manager.send_message(name, "t", 1)
                await asyncio.sleep(0)

        manager.subscribe_to_queue("slow", "s", "#", take_long)
        traffic = asyncio.create_task(fan_out())
        for _ in range(3):
            await asyncio.sleep(0)
        before = delivered
        assert (await asyncio.create_task(manager.send_message("slow", "t", "one more"))).success
        assert delivered - before <= 20 * STEPS_BETWEEN_LOOKS
        ended = True
        await traffic
        await manager.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_c1_a_long_run_of_sends_is_never_refused_while_delivery_keeps_pace(kind: str) -> None:
    """Given far more awaited sends than max_size and a fast subscriber, then none is refused."""

    async def story() -> None:
        queue = make_queue(max_size=500)
        seen = 0

        def count(message: QueuedMessage) -> None:
            nonlocal seen
            seen += 1

        async def count_later(message: QueuedMessage) -> None:
            count(message)

        queue.subscribe("s", "#", count if kind == "function" else count_later)
        for number in range(20_000):
            result = await queue.send_message("a", number)
            assert result.success, (number, result)
        await until(lambda: seen == 20_000)
        await queue.shutdown()

    asyncio.run(story())


def test_c1_wait_lets_a_sender_in_when_there_is_room_and_gives_up_in_time() -> None:
    """Given a full queue that waits, then one sender gets in after a fetch, one is refused in time, one gives up."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, max_size=1, overflow_policy=OverflowPolicy.WAIT, overflow_wait_seconds=10)
        await queue.send_message("a", 0)
        waiting = asyncio.create_task(queue.send_message("a", 1))
        await clock.settle()
        assert not waiting.done()
        assert [message.payload for message in await queue.receive_messages("p")] == [0]
        assert (await waiting).success
        refused = asyncio.create_task(queue.send_message("a", 2))
        gone = asyncio.create_task(queue.send_message("a", 3))
        await clock.settle()
        gone.cancel()
        await clock.advance(10)
        assert (await refused).rejection is RejectionReason.CAPACITY
        await queue.purge_queue()
        await clock.settle()
        assert queue.get_statistics().current_queue_size == 0
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_c1_who_was_let_in_last_is_delivered_as_well(kind: str) -> None:
    """Given a full queue with senders that wait, when a callback comes, then it gets what all of them have sent."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, max_size=1, overflow_policy=OverflowPolicy.WAIT)
        sends = [asyncio.create_task(queue.send_message("a", number)) for number in range(3)]
        await clock.settle()
        seen = Recorder()

        async def coroutine(message: QueuedMessage) -> None:
            seen(message)

        queue.subscribe("s", "#", seen if kind == "function" else coroutine)
        await clock.settle()
        assert seen.payloads == [0, 1, 2]
        assert all(result.success for result in await asyncio.gather(*sends))
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


class Unencodable:
    """Nothing msgspec knows."""


class BrokenRepr:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("topic", "payload", "options", "reason"),
    [
        ("", 1, {}, RejectionReason.INVALID_TOPIC),
        ("a..b", 1, {}, RejectionReason.INVALID_TOPIC),
        ("a.*", 1, {}, RejectionReason.INVALID_TOPIC),
        ("x" * 10_000, 1, {}, RejectionReason.INVALID_TOPIC),
        (None, 1, {}, RejectionReason.INVALID_TOPIC),
        ("a", Unencodable(), {}, RejectionReason.PAYLOAD_NOT_ENCODABLE),
        ("a", CYCLE, {}, RejectionReason.PAYLOAD_NOT_ENCODABLE),
        ("a", 2**80, {}, RejectionReason.PAYLOAD_NOT_ENCODABLE),
        ("a", "x" * 2000, {}, RejectionReason.PAYLOAD_TOO_LARGE),
        ("a", 1, {"prioritaet": 1}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"priority": 1.5}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"delay_seconds": -1}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"delay_seconds": float("nan")}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"delay_seconds": float("inf")}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"message_ttl_seconds": 0}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"max_retries": -1}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"max_retries": True}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"required_acknowledgments": 0}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"required_acknowledgments": 10**7}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"headers": {"a": 1}}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"headers": "a=1"}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"deduplication_id": ""}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"group_id": "g" * 300}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"group_id": "\ud800"}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"deduplication_id": "\ud800"}, RejectionReason.INVALID_OPTION),
        ("a", 1, {"headers": {"a": "\ud800"}}, RejectionReason.INVALID_OPTION),
        pytest.param("a", 1, {"delay_seconds": 10**400}, RejectionReason.INVALID_OPTION, id="long-delay"),
        pytest.param("a", 1, {"priority": 10**5000}, RejectionReason.INVALID_OPTION, id="long-priority"),
        pytest.param("a", 10**5000, {}, RejectionReason.PAYLOAD_NOT_ENCODABLE, id="long-payload"),
        pytest.param("a", BrokenRepr(), {}, RejectionReason.PAYLOAD_NOT_ENCODABLE, id="broken-repr"),
    ],
)
def test_s2_bad_input_is_an_answer_with_a_reason(
    topic: Any, payload: Any, options: dict[str, Any], reason: RejectionReason
) -> None:
    """Given bad input, then the send is refused with its reason, logged, and nothing else changes."""

    async def story() -> None:
        queue = make_queue(max_payload_bytes=1000, enable_deduplication=True)
        result = await queue.send_message(topic, payload, **options)
        assert not result.success
        assert result.rejection is reason
        assert result.error_message
        counts = queue.get_statistics()
        assert (counts.messages_rejected, counts.messages_sent, counts.current_queue_size) == (1, 0, 0)
        assert counts.current_deduplication_key_count == 0
        (in_batch,) = await queue.send_messages([(topic, payload)], **options)
        assert in_batch.rejection is reason
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_s2_none_means_default_and_guarantees_come_in_any_form() -> None:
    """Given explicit None options and a like-named enum, then they are taken as MPREG's federation sends them."""
    from enum import Enum

    class Theirs(Enum):
        AT_LEAST_ONCE = "at_least_once"

    async def story() -> None:
        queue = make_queue()
        result = await queue.send_message("a", 1, Theirs.AT_LEAST_ONCE, priority=None, headers=None)  # type: ignore[arg-type]
        assert result.success
        assert (await queue.send_message("a", 1, "quorum")).success  # type: ignore[arg-type]
        refused = await queue.send_message("a", 1, "never")  # type: ignore[arg-type]
        assert refused.rejection is RejectionReason.INVALID_OPTION
        await queue.shutdown()

    asyncio.run(story())


def test_s5_a_batch_takes_pairs_and_mappings() -> None:
    """Given pairs and mappings with options of their own, then each is sent, in order; other entries are errors."""

    async def story() -> None:
        queue = make_queue(queue_type=QueueType.PRIORITY)
        results = await queue.send_messages(
            [("a", 1), {"topic": "a", "payload": 2, "priority": 9}, ("a..b", 3)], priority=1
        )
        assert [result.success for result in results] == [True, True, False]
        assert [(message.payload, message.priority) for message in queue.pending_messages] == [(2, 9), (1, 1)]
        assert await queue.send_messages([]) == []
        fired = await queue.send_messages([("a", 1)], DeliveryGuarantee.FIRE_AND_FORGET)
        assert fired[0].success
        for entries in (["a"], [("a",)], [{"topic": "a"}], [("a", 1)] * 10_001):
            with pytest.raises(InvalidOptionError, match="messages"):
                await queue.send_messages(entries)  # type: ignore[arg-type]
        await queue.shutdown()

    asyncio.run(story())
