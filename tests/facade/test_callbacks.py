"""Callbacks of one queue, through real actors on a virtual clock: who is called, and what their ends mean."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from mpreg_mq import DeliveryGuarantee, QueuedMessage, RejectionReason, VirtualClock
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


class Begun:
    """A coroutine that runs within the call that makes this, as far as it gets; awaiting this goes on with it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._result: Any = None
        self._suspended_at: Any = None
        self.done = False
        try:
            self._suspended_at = coroutine.send(None)
        except StopIteration as ended:
            self.done, self._result = True, ended.value

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self.done:
            yield self._suspended_at
            self._result = yield from self._coroutine.__await__()
        return self._result


@pytest.mark.parametrize("how", ["fire and forget", "broadcast", "batch"])
def test_u1_a_key_is_held_while_its_fire_and_forget_attempt_is_made(how: str) -> None:
    """Given a callback that sends the key it is called for, and another key, then only the other one is accepted."""

    async def story() -> None:
        queue = make_queue(enable_deduplication=True)
        begun: list[Begun] = []
        waited: list[bool] = []

        def sends(message: QueuedMessage) -> None:
            if message.payload != "first" or begun:
                return
            guarantee = DeliveryGuarantee.FIRE_AND_FORGET if how == "fire and forget" else DeliveryGuarantee.BROADCAST
            for key in ("k", "other"):
                if how == "batch":
                    entry = {"topic": "t", "payload": "again", "deduplication_id": key}
                    begun.append(Begun(queue.send_messages([entry])))
                else:
                    begun.append(Begun(queue.send_message("t", "again", guarantee, deduplication_id=key)))
            waited.extend(not send.done for send in begun)

        queue.subscribe("s", "#", sends)
        first = await queue.send_message("t", "first", DeliveryGuarantee.FIRE_AND_FORGET, deduplication_id="k")
        assert first.success
        assert waited == [True, False]
        same, other = [await send for send in begun]
        if how == "batch":
            (same,), (other,) = same, other
        assert (same.rejection, same.duplicate_of) == (RejectionReason.DUPLICATE, first.message_id)
        assert other.success
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


def test_g1_a_subscriber_that_a_message_probes_gets_no_other_meanwhile() -> None:
    """Given a half-open circuit, then fire-and-forget reaches its subscriber before the probe, fails there during the
    probe, and reaches it again afterwards (R3)."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(
            clock, circuit_breaker_failure_threshold=1, circuit_breaker_recovery_seconds=10, max_retries=0
        )
        seen: list[Any] = []
        probed = asyncio.Event()

        async def handle(message: QueuedMessage) -> None:
            seen.append(message.payload)
            if message.payload == "bad":
                raise ValueError
            if message.payload == "probe":
                await probed.wait()

        async def fire(payload: str) -> tuple[set[str], set[str]]:
            result = await queue.send_message("a", payload, DeliveryGuarantee.FIRE_AND_FORGET)
            await clock.settle()
            return set(result.delivered_to), set(result.failed_deliveries)

        queue.subscribe("s", "#", handle)
        await queue.send_message("a", "bad")
        await clock.advance(10)
        assert await fire("before") == ({"s"}, set())
        await queue.send_message("a", "probe")
        await clock.settle()
        assert await fire("during") == (set(), {"s"})
        probed.set()
        await clock.settle()
        assert await fire("after") == ({"s"}, set())
        assert seen == ["bad", "before", "probe", "after"]
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_g1_a_callback_may_end_the_subscription_of_the_next_that_has_a_lease() -> None:
    """Given a subscriber that has not acknowledged yet, when the callback before it ends its subscription, then the
    message reaches those who are left, and the send succeeds."""

    async def story() -> None:
        queue = make_queue()
        second = Recorder()
        first = Recorder()
        subscription_id = ""

        def ends_second(message: QueuedMessage) -> None:
            first(message)
            assert queue.unsubscribe(subscription_id)

        queue.subscribe("first", "fired", ends_second)
        subscription_id = queue.subscribe("second", "#", second, auto_acknowledge=False)
        await queue.send_message("leased", 1)
        await until(lambda: second.payloads == [1])
        result = await queue.send_message("fired", 2, DeliveryGuarantee.FIRE_AND_FORGET)
        assert result.success
        assert result.delivered_to == {"first"}
        assert not result.failed_deliveries
        assert (first.payloads, second.payloads) == ([2], [1])
        assert await queue.acknowledge_message(second.messages[0].id, "second")
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_g1_who_fetches_now_and_had_a_callback_is_no_failure() -> None:
    """Given a subscriber that had a callback, which still runs, and fetches now, then fire-and-forget passes it by."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        started, release = asyncio.Event(), asyncio.Event()

        async def handle(message: QueuedMessage) -> None:
            started.set()
            await release.wait()

        called = queue.subscribe("s", "#", handle)
        await queue.send_message("a", 1)
        await started.wait()
        queue.unsubscribe(called)
        queue.subscribe("s", "#")
        result = await queue.send_message("a", 2, DeliveryGuarantee.FIRE_AND_FORGET)
        assert (result.success, len(result.delivered_to), len(result.failed_deliveries)) == (True, 0, 0)
        assert queue.get_statistics().delivery_failures == 0
        release.set()
        await clock.settle()
        assert queue.get_statistics().messages_acknowledged == 1
        assert_fold_equality(queue)
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
        if kind == "blocking" or not isinstance(error, KeyboardInterrupt)
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


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_l4_ctrl_c_in_a_callback_fails_the_attempt_and_ends_the_loop(kind: str) -> None:
    """Given an interruption that comes while a callback runs, then its message is dead with the reason, and whoever
    runs the loop is interrupted; when the loop runs again, the queue goes on."""
    loop = asyncio.new_event_loop()
    queue = make_queue(max_retries=0)
    seen = Recorder()

    def interrupted(message: QueuedMessage) -> None:
        if message.payload == "bad":
            raise KeyboardInterrupt
        seen(message)

    async def interrupted_later(message: QueuedMessage) -> None:
        interrupted(message)

    async def story() -> None:
        await queue.send_message("a", "bad")
        await queue.send_message("a", "good")
        await until(lambda: seen.payloads == ["good"])
        await asyncio.sleep(0)

    queue.subscribe("s", "#", interrupted if kind == "function" else interrupted_later)
    task = loop.create_task(story())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    (entry,) = queue.dead_letter_queue
    assert (entry.payload, entry.last_error) == ("bad", "KeyboardInterrupt")
    loop.run_until_complete(queue.shutdown())
    loop.close()


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

        clock = VirtualClock(blocking_seconds=0.0)
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


@pytest.mark.parametrize("blocking", [False, True])
def test_r2_time_waits_for_callbacks_that_are_at_work(blocking: bool) -> None:
    """Given callbacks that take many turns of the loop before they raise, when hours pass at once, then each attempt
    has failed by itself, as early as it did, and none has lost its lease."""

    async def story() -> None:
        clock = VirtualClock(start=0.0)
        queue = make_queue(
            clock,
            max_retries=3,
            retry_backoff_seconds=1,
            retry_jitter=0.0,
            default_acknowledgment_timeout_seconds=20,
        )
        loop = asyncio.get_running_loop()
        called: list[float] = []

        async def work() -> None:
            for _ in range(100):
                await asyncio.sleep(0)

        async def on_loop(message: QueuedMessage) -> None:
            called.append(clock.now())
            await work()
            raise ValueError("no")

        def on_thread(message: QueuedMessage) -> None:
            called.append(clock.now())
            asyncio.run_coroutine_threadsafe(work(), loop).result()
            raise ValueError("no")

        queue.subscribe("s", "#", on_thread if blocking else on_loop, blocking=blocking)
        await queue.send_message("a", 1)
        await clock.advance(7200)
        assert called == [0.0, 1.0, 3.0, 7.0]
        assert len(queue.list_dead_letters()) == 1
        assert queue.get_statistics().leases_expired == 0
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


@pytest.mark.parametrize("blocking", [False, True])
def test_a_subscriber_whose_actor_was_stopped_fails_its_attempts(blocking: bool) -> None:
    """Given a subscriber whose actor somebody stopped, as who stops all actors of a process may do in any order, then a
    delivery to it is a failed attempt, and the queue goes on."""

    async def story() -> None:
        queue = make_queue(max_retries=0)
        seen = Recorder()
        queue.subscribe("gone", "a", Recorder(), blocking=blocking)
        queue.subscribe("there", "b", seen)
        attachment = queue._actor._attachments["gone"]
        (subscribe,) = attachment.subscriptions.values()
        ref = attachment._ref(subscribe)
        assert ref is not None
        ref.stop()
        await queue.send_message("a", 1)
        await queue.send_message("b", 2)
        await until(lambda: queue.get_statistics().messages_acknowledged == 1)
        (letter,) = queue.list_dead_letters()
        assert "stopped" in str(letter.last_error)
        assert seen.payloads == [2]
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())
