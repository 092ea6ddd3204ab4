"""The façade of one queue, through real actors on a virtual clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mpreg_mq import (
    DeliveryGuarantee,
    InvalidOptionError,
    InvalidTopicError,
    MessageQueue,
    OverflowPolicy,
    QueueClosedError,
    QueueConfiguration,
    QueuedMessage,
    QueueType,
    RejectionReason,
    VirtualClock,
)
from mpreg_mq.events import MemoryEventLog
from tests.support.running import Recorder, assert_fold_equality, make_queue, until


def test_g1_fire_and_forget_has_run_its_callbacks_before_it_returns() -> None:
    """Given a good and a raising subscriber, then the result names both, and nobody without one is an error."""

    async def story() -> None:
        queue = make_queue()
        seen = Recorder()

        def broken(message: QueuedMessage) -> None:
            raise SystemExit("not me")

        queue.subscribe("good", "a.*", seen)
        queue.subscribe("bad", "a.*", broken)
        queue.subscribe("pull", "a.*")
        result = await queue.send_message("a.b", 1, DeliveryGuarantee.FIRE_AND_FORGET)
        assert result.delivered_to == {"good"}
        assert result.failed_deliveries == {"bad"}
        assert seen.payloads == [1]
        assert (await queue.send_message("z", 2, DeliveryGuarantee.FIRE_AND_FORGET)).success
        assert queue.get_statistics().messages_sent == 2
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_g1_a_paused_queue_and_an_open_circuit_reach_nobody() -> None:
    """Given a paused queue, then fire-and-forget succeeds and nobody gets it; with an open circuit it failed there."""

    async def story() -> None:
        queue = make_queue(circuit_breaker_failure_threshold=1, max_retries=0)

        def broken(message: QueuedMessage) -> None:
            raise ValueError

        queue.subscribe("s", "#", broken)
        assert queue.pause_queue()
        assert (await queue.send_message("a", 1, DeliveryGuarantee.FIRE_AND_FORGET)).delivered_to == frozenset()
        assert queue.resume_queue()
        await queue.send_message("a", 1)
        await until(lambda: queue.get_statistics().circuits_opened == 1)
        result = await queue.send_message("a", 1, DeliveryGuarantee.FIRE_AND_FORGET)
        assert result.failed_deliveries == {"s"}
        await queue.shutdown()

    asyncio.run(story())


def test_l4_callbacks_of_every_kind_acknowledge_when_they_are_over() -> None:
    """Given a function, a coroutine function and a blocking function, then each message is acknowledged once."""

    async def story() -> None:
        queue = make_queue()
        seen: list[str] = []

        async def coroutine(message: QueuedMessage) -> None:
            await asyncio.sleep(0)
            seen.append("coroutine")

        async def on_a_thread(message: QueuedMessage) -> None:
            seen.append("coroutine on a thread")

        queue.subscribe("f", "f", lambda message: seen.append("function"))
        queue.subscribe("c", "c", coroutine)
        queue.subscribe("b", "b", lambda message: seen.append("blocking"), blocking=True)
        queue.subscribe("t", "t", on_a_thread, blocking=True)
        for topic in "fcbt":
            await queue.send_message(topic, None)
        await until(lambda: queue.get_statistics().messages_acknowledged == 4)
        assert sorted(seen) == ["blocking", "coroutine", "coroutine on a thread", "function"]
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (kind, error)
        for kind in ("function", "coroutine", "blocking")
        for error in (KeyError("sku"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit())
    ],
)
def test_l4_a_callback_may_raise_anything_and_the_queue_goes_on(kind: str, error: BaseException) -> None:
    """Given a callback that raises, then its message is dead with the reason, and the next one is delivered."""

    async def story() -> None:
        queue = make_queue(max_retries=0)

        def fail(message: QueuedMessage) -> None:
            if message.payload == "bad":
                raise error

        async def fail_later(message: QueuedMessage) -> None:
            fail(message)

        queue.subscribe("s", "#", fail_later if kind == "coroutine" else fail, blocking=kind == "blocking")
        await queue.send_message("a", "bad")
        await queue.send_message("a", "good")
        await until(lambda: queue.get_statistics().messages_acknowledged == 1)
        (entry,) = queue.dead_letter_queue
        assert entry.payload == "bad"
        assert type(error).__name__ in entry.failure_reason
        assert len(queue.dead_letter_queue) == 1
        assert queue.dead_letter_queue[0] == entry
        await queue.shutdown()

    asyncio.run(story())


def test_l1_a_callback_that_hangs_loses_its_lease_and_the_message_goes_to_another() -> None:
    """Given a coroutine that never ends, when its lease runs out, then the other subscriber gets the message."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, default_acknowledgment_timeout_seconds=5, retry_backoff_seconds=0)
        cancelled = asyncio.Event()

        async def hang(message: QueuedMessage) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        hanging = queue.subscribe("hangs", "#", hang)
        await queue.send_message("a", 1)
        await clock.settle()
        other = Recorder()
        queue.subscribe("works", "#", other)
        queue.unsubscribe(hanging)
        await clock.advance(5)
        assert other.payloads == [1]
        assert queue.get_statistics().leases_expired == 1
        await queue.shutdown(0.0)
        assert cancelled.is_set()

    asyncio.run(story())


def test_l1_a_blocking_callback_that_never_returns_does_not_stop_its_subscriber() -> None:
    """Given a thread that hangs in a callback, when the lease runs out, then a new thread takes the next attempt."""

    async def story() -> None:
        import threading

        clock = VirtualClock()
        queue = make_queue(clock, default_acknowledgment_timeout_seconds=5, retry_backoff_seconds=0)
        release = threading.Event()
        attempts: list[int] = []

        def hang_once(message: QueuedMessage) -> None:
            attempts.append(message.delivery_attempt)
            if message.delivery_attempt == 1:
                release.wait()

        queue.subscribe("s", "#", hang_once, blocking=True)
        await queue.send_message("a", 1)
        await until(lambda: attempts == [1])
        await clock.advance(5)
        await until(lambda: queue.get_statistics().messages_acknowledged == 1)
        assert attempts == [1, 2]
        release.set()
        await queue.shutdown()

    asyncio.run(story())


def test_callbacks_may_ask_their_own_queue() -> None:
    """Given a callback that subscribes, looks and sends by a task, then all of it works."""

    async def story() -> None:
        queue = make_queue()
        later = Recorder()
        tasks: list[asyncio.Task[Any]] = []

        def busy(message: QueuedMessage) -> None:
            assert queue.get_statistics().current_in_flight_count == 1
            queue.subscribe("later", "second", later)
            tasks.append(asyncio.get_running_loop().create_task(queue.send_message("second", 2)))

        subscription = queue.subscribe("busy", "first", busy)
        await queue.send_message("first", 1)
        await until(lambda: later.payloads == [2])
        assert queue.unsubscribe(subscription)
        assert not queue.unsubscribe(subscription)
        assert [entry.subscriber_id for entry in queue.subscriptions.values()] == ["later"]
        await queue.shutdown()

    asyncio.run(story())


def test_l2_l3_manual_settling() -> None:
    """Given a subscriber that settles by hand, then acknowledging, returning and extending answer truthfully."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, default_acknowledgment_timeout_seconds=10)
        seen = Recorder()
        queue.subscribe("s", "#", seen, auto_acknowledge=False)
        first = (await queue.send_message("a", 1)).message_id
        assert first is not None
        await clock.settle()
        assert queue.in_flight_messages[first.id].delivered_to == {"s"}
        assert await queue.extend_lease(first, "s", 100)
        assert not await queue.extend_lease(first, "x", 100)
        await clock.advance(50)
        assert await queue.negative_acknowledge(first, "s", "busy")
        await clock.settle()
        assert [message.delivery_attempt for message in seen.messages] == [1, 2]
        assert not await queue.acknowledge_message(first.id, "stranger")
        assert await queue.acknowledge_message(first.id, "s")
        assert not await queue.acknowledge_message(first.id, "s")
        with pytest.raises(InvalidOptionError, match="delay_seconds"):
            await queue.negative_acknowledge(first, "s", delay_seconds=-1)
        with pytest.raises(InvalidOptionError, match="seconds_from_now"):
            await queue.extend_lease(first, "s", float("nan"))
        await queue.shutdown()

    asyncio.run(story())


def test_r2_retries_come_after_their_backoff_and_end_in_a_dead_letter() -> None:
    """Given a callback that always fails, then attempts are spaced by the backoff and the last makes a dead letter."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, max_retries=2, retry_backoff_seconds=10, retry_jitter=0)
        times: list[float] = []
        start = clock.now()

        def fail(message: QueuedMessage) -> None:
            times.append(clock.now() - start)
            raise RuntimeError("no")

        queue.subscribe("s", "#", fail)
        await queue.send_message("a", {"x": 1})
        await clock.advance(100)
        assert times == [0, 10, 30]
        (entry,) = queue.dead_letter_queue
        assert (entry.attempts, entry.last_error, entry.subscriber_id) == (3, "RuntimeError: no", "s")
        assert (entry.payload, entry.topic, entry.headers) == ({"x": 1}, "a", {})
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_d1_redrive_dry_run_some_and_to_another_queue() -> None:
    """Given dead letters, then a dry run changes nothing, and redriven ones are gone from here."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, max_retries=0)
        other = MessageQueue(QueueConfiguration("other"), clock=clock)

        def fail(message: QueuedMessage) -> None:
            raise RuntimeError

        subscription = queue.subscribe("s", "#", fail)
        ids = [(await queue.send_message("a", number)).message_id for number in range(3)]
        await clock.settle()
        queue.unsubscribe(subscription)
        assert await queue.redrive_dead_letters(dry_run=True, limit=2) == ids[:2]
        assert len(queue.dead_letter_queue) == 3
        moved = await queue.redrive_dead_letters([str(ids[2])], target=other)
        assert [message.redriven_from for message in other.pending_messages] == [f"q/{ids[2]}"]
        assert [message.id for message in other.pending_messages] == moved
        assert len(await queue.redrive_dead_letters()) == 2
        assert [message.payload for message in queue.pending_messages] == [0, 1]
        assert await queue.purge_dead_letters() == 0
        with pytest.raises(InvalidOptionError, match="limit"):
            await queue.redrive_dead_letters(limit=0)
        await queue.shutdown()
        await other.shutdown()

    asyncio.run(story())


def test_t1_and_o3_happen_at_their_moment() -> None:
    """Given a TTL and a delay, then expiry and delivery come at their moments without polling."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        seen = Recorder()
        await queue.send_message("gone", 1, message_ttl_seconds=10)
        queue.subscribe("s", "due", seen)
        await queue.send_message("due", 2, delay_seconds=5)
        await clock.settle()
        assert clock.next_timer() == clock.now() + 5
        await clock.advance(5)
        assert seen.payloads == [2]
        await clock.advance(5)
        assert queue.get_statistics().messages_expired == 1
        assert clock.next_timer() is None
        await queue.shutdown()

    asyncio.run(story())


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


def test_pull_waits_for_a_message_and_no_longer_than_it_said() -> None:
    """Given receivers that wait, then a send wakes one, a timeout answers one, and a cancelled one loses nothing."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        first = asyncio.create_task(queue.receive_messages("p", wait_seconds=30, visibility_timeout_seconds=50))
        await clock.settle()
        await queue.send_message("a", 1)
        assert [message.payload for message in await first] == [1]
        second = asyncio.create_task(queue.receive_messages("p", wait_seconds=30))
        await clock.advance(29)
        assert not second.done()
        await clock.advance(1)
        assert await second == []
        cancelled = asyncio.create_task(queue.receive_messages("p", wait_seconds=30))
        await clock.settle()
        cancelled.cancel()
        await clock.settle()
        await queue.send_message("a", 2)
        await clock.settle()
        assert [message.payload for message in queue.pending_messages] == [2]
        assert [message.payload for message in await queue.receive_messages("p", 5)] == [2]
        await clock.advance(60)
        assert {message.payload for message in await queue.receive_messages("p", 5)} == {1, 2}
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_a_receiver_that_gives_up_on_another_thread_takes_no_message_with_it() -> None:
    """Given a receiver on another thread's loop that was cancelled, then the next message goes to who still asks."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        queue.subscribe("gone", "a")

        async def wait_and_give_up() -> None:
            waiting = asyncio.create_task(queue.receive_messages("gone", wait_seconds=30))
            while not waiting.cancelled():
                await asyncio.sleep(0)
                if queue._actor._receivers:
                    waiting.cancel()
                    await asyncio.wait([waiting])

        await asyncio.to_thread(asyncio.run, wait_and_give_up())
        await until(lambda: not queue._actor._receivers)
        await queue.send_message("a", 1)
        await clock.settle()
        assert [message.payload for message in queue.pending_messages] == [1]
        assert [message.payload for message in await queue.receive_messages("still here")] == [1]
        await queue.shutdown()

    asyncio.run(story())


def test_pull_is_for_subscribers_without_a_callback() -> None:
    """Given a subscriber that is called, then it cannot fetch; and a receiver's arguments are checked."""

    async def story() -> None:
        queue = make_queue()
        queue.subscribe("push", "#", Recorder())
        with pytest.raises(InvalidOptionError, match="callback"):
            await queue.receive_messages("push")
        for arguments in ({"max_messages": 0}, {"wait_seconds": -1}, {"visibility_timeout_seconds": 0}):
            with pytest.raises(InvalidOptionError):
                await queue.receive_messages("p", **arguments)  # type: ignore[arg-type]
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


def test_subscribing_checks_its_arguments() -> None:
    """Given a malformed pattern, a callback that is none or other bad arguments, then the error says so."""
    queue = make_queue()
    for pattern in ("", "a..b", "a*", "#.", 5):
        with pytest.raises(InvalidTopicError):
            queue.subscribe("s", pattern)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="callback"):
        queue.subscribe("s", "#", "print")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="subscriber_id"):
        queue.subscribe("", "#")
    with pytest.raises(InvalidOptionError, match="max_in_flight"):
        queue.subscribe("s", "#", max_in_flight=0)
    with pytest.raises(InvalidOptionError, match="metadata"):
        queue.subscribe("s", "#", team=5)  # type: ignore[arg-type]
    assert queue.subscriptions == {}
    queue.shutdown_sync()


def test_c3_shutdown_gives_callbacks_their_time_and_ends_leases() -> None:
    """Given one callback that ends in time and one that does not, then the first counts and the second is cut off."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock, MemoryEventLog())
        ends = asyncio.Event()

        async def work(message: QueuedMessage) -> None:
            await (ends.wait() if message.payload == "short" else asyncio.Event().wait())

        queue.subscribe("s", "#", work)
        await queue.send_message("a", "short")
        await queue.send_message("a", "endless")
        waiting = asyncio.create_task(queue.receive_messages("p", wait_seconds=60))
        await clock.settle()
        closing = asyncio.create_task(queue.shutdown(10))
        await clock.settle()
        assert await waiting == []
        assert (await queue.send_message("a", "late")).rejection is RejectionReason.CLOSING
        ends.set()
        await clock.advance(9)
        assert not closing.done()
        await clock.advance(1)
        await closing
        counts = queue.get_statistics()
        assert (counts.messages_acknowledged, counts.leases_expired) == (1, 1)
        assert (counts.current_queue_size, counts.current_in_flight_count) == (1, 0)
        assert_fold_equality(queue)
        await queue.shutdown()
        with pytest.raises(QueueClosedError):
            queue.subscribe("s", "#")
        assert (await queue.send_message("a", 1)).rejection is RejectionReason.CLOSING
        assert not await queue.acknowledge_message("x", "s")
        assert not queue.unsubscribe("x")
        assert "closed" in repr(queue)

    asyncio.run(story())


def test_a_queue_works_without_an_event_loop_and_over_several() -> None:
    """Given no loop, then a queue can be made, looked at and closed; two loops in a row may use it."""
    queue = make_queue()
    seen = Recorder()
    queue.subscribe("s", "#", seen)
    assert queue.get_statistics().messages_sent == 0

    async def send(payload: int) -> None:
        await queue.send_message("a", payload)
        await until(lambda: payload in seen.payloads)

    asyncio.run(send(1))
    asyncio.run(send(2))
    assert seen.payloads == [1, 2]
    queue.shutdown_sync()
    queue.shutdown_sync()
    assert queue.get_statistics().messages_acknowledged == 2


def test_autostart_false_delivers_only_after_start_workers() -> None:
    """Given autostart off, then messages wait until the workers are started."""

    async def story() -> None:
        queue = MessageQueue(QueueConfiguration("q"), autostart=False)
        seen = Recorder()
        queue.subscribe("s", "#", seen)
        await queue.send_message("a", 1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert seen.payloads == []
        queue.start_workers()
        await until(lambda: seen.payloads == [1])
        async with queue:
            pass

    asyncio.run(story())
