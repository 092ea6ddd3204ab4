"""Supervision: a queue actor that fails is rebuilt from its log, and nobody is told what is not so (S1)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mpreg_mq import DeliveryGuarantee, RejectionReason, VirtualClock
from mpreg_mq.actors import accepting
from mpreg_mq.actors.commands import Send
from mpreg_mq.actors.decider import DECIDERS, Context, Decision
from mpreg_mq.events import Append
from mpreg_mq.projections import QueueState
from tests.support.running import FlakyLog, Recorder, assert_fold_equality, make_queue, until


@pytest.mark.parametrize("blocking", [False, True])
def test_s1_a_store_error_answers_the_sender_and_leaves_nothing_pending(blocking: bool) -> None:
    """Given a log that fails, then the send is refused, its key is free, and the queue goes on when it works again."""

    async def story() -> None:
        log = FlakyLog(blocking)
        clock = VirtualClock()
        queue = make_queue(clock, log, enable_deduplication=True)
        assert (await queue.send_message("a", 1, deduplication_id="first")).success
        log.failing = True
        result = await queue.send_message("a", 2, deduplication_id="key")
        assert not result.success
        assert result.rejection is RejectionReason.STORE_ERROR
        assert "disk on fire" in str(result.error_message)
        assert [message.payload for message in queue.pending_messages] == [1]
        refused = await queue.send_messages([("a", 3), ("a", 4)])
        assert [one.rejection for one in refused] == [RejectionReason.STORE_ERROR] * 2
        log.failing = False
        assert (await queue.send_message("a", 2, deduplication_id="key")).success
        seen = Recorder()
        queue.subscribe("s", "#", seen)
        await clock.advance(10)
        await until(lambda: queue.get_statistics().messages_acknowledged == 2)
        assert seen.payloads == [1, 2]
        await until(lambda: queue._actor._outstanding == 0)
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("blocking", [False, True])
def test_deliveries_go_on_when_the_store_works_again(blocking: bool) -> None:
    """Given a store that fails while messages are delivered, then they are delivered once it works, none is lost."""

    async def story() -> None:
        clock = VirtualClock()
        log = FlakyLog(blocking)
        queue = make_queue(clock, log, default_acknowledgment_timeout_seconds=5)
        for number in range(3):
            await queue.send_message("a", number)
        seen = Recorder()
        queue.subscribe("s", "#", seen)
        log.failing = True
        await clock.advance(1)
        await until(lambda: queue._actor._outstanding == 0)
        log.failing = False

        for _ in range(200):
            if queue.get_statistics().messages_acknowledged == 3:
                break
            await clock.advance(1)
        assert set(seen.payloads) == {0, 1, 2}
        await until(lambda: queue._actor._outstanding == 0)
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_a_faulty_decision_rebuilds_the_queue_and_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a decider that raises once, then the sender is told, and the next send works."""

    async def story() -> None:
        queue = make_queue()
        await queue.send_message("a", 1)
        before = queue._actor.state

        def faulty(state: QueueState, command: Any, context: Context) -> Decision:
            raise ZeroDivisionError("a fault of ours")

        with monkeypatch.context() as fault:
            deciders: dict[type[Any], Any] = {**DECIDERS, Send: faulty}
            fault.setattr(accepting, "DECIDERS", deciders)
            result = await queue.send_message("a", 2)
        assert "ZeroDivisionError" in str(result.error_message)
        assert queue._actor.state is not before
        assert [message.payload for message in queue.pending_messages] == [1]
        assert (await queue.send_message("a", 3)).success
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_a_payload_that_cannot_be_decoded_is_a_failed_attempt() -> None:
    """Given stored bytes that are no payload, then push and pull both count it as a failure and go on."""

    async def story() -> None:
        queue = make_queue(max_retries=0)
        seen = Recorder()
        queue.subscribe("s", "push", seen)
        await queue._ask(Send("push", b"\xc1"))
        await queue.send_message("push", "good")
        await until(lambda: seen.payloads == ["good"])
        await queue._ask(Send("pull", b"\xc1"))
        assert await queue.receive_messages("p", topic_pattern="pull") == []
        assert queue.get_statistics().messages_dead_lettered == 2
        await queue.shutdown()

    asyncio.run(story())


def test_purging_stops_what_runs() -> None:
    """Given a coroutine in the middle of its message, when the queue is purged, then it is cancelled."""

    async def story() -> None:
        queue = make_queue()
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def work(message: Any) -> None:
            try:
                started.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        queue.subscribe("s", "#", work)
        await queue.send_message("a", 1)
        await asyncio.wait_for(started.wait(), 10)
        assert await queue.purge_queue() == 1
        await asyncio.wait_for(cancelled.wait(), 10)
        fired = await queue.send_message("a", 1, DeliveryGuarantee.FIRE_AND_FORGET)
        assert fired.delivered_to == {"s"}
        await queue.shutdown()

    asyncio.run(story())


def test_unknown_messages_are_refused() -> None:
    """Given something that is no command, then the actor says what it expected and goes on."""
    queue = make_queue()
    with pytest.raises(TypeError, match="expected a command"):
        queue._actor.actor_ref.ask("hello")
    assert queue._actor.actor_ref.is_alive()
    queue.shutdown_sync()


def test_sends_of_one_loop_iteration_reach_the_log_as_one_append() -> None:
    """Given senders that are all ready, then the journal gets their events together, and each has its own answer."""

    async def story() -> None:
        log = FlakyLog(blocking=True)
        queue = make_queue(log=log)
        await until(lambda: queue._actor._outstanding == 0)
        appends: list[int] = []
        append = log.append

        def counting(batch: Sequence[Append]) -> None:
            appends.extend(len(one.events) for one in batch)
            append(batch)

        log.append = counting  # type: ignore[method-assign]
        results = await asyncio.gather(*(queue.send_message("a", number) for number in range(50)))
        assert [result.success for result in results] == [True] * 50
        assert appends == [50]
        assert [message.payload for message in queue.pending_messages] == list(range(50))
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_what_was_gathered_is_not_lost_with_its_loop() -> None:
    """Given a loop that ended before it sent off what it had gathered, then the next use of the queue stores it."""
    log = FlakyLog(blocking=True)
    queue = make_queue(log=log)

    async def send_and_leave() -> None:
        sending = asyncio.create_task(queue.send_message("a", 1))
        await asyncio.sleep(0)
        assert queue._actor._unsent is not None
        asyncio.get_running_loop().stop()
        await sending

    loop = asyncio.new_event_loop()
    task = loop.create_task(send_and_leave())
    loop.run_forever()
    assert not task.done()
    for left in asyncio.all_tasks(loop):
        left.cancel()

    async def read() -> None:
        assert [message.payload for message in queue.pending_messages] == [1]
        assert (await queue.send_message("a", 2)).success
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(read())
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
