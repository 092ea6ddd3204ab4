"""What tasks send in one iteration of their loop, to a log with a journal, is accepted together (S1-S5, C1)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pykka
import pytest

from mpreg_mq import DeliveryGuarantee, DeliveryResult, OverflowPolicy, RejectionReason, VirtualClock
from mpreg_mq.actors import recording
from mpreg_mq.actors.commands import SendEach
from mpreg_mq.actors.decider import DECIDERS, Context, Decision
from mpreg_mq.events import Append, MessageEnqueued, QueuePaused
from mpreg_mq.projections import QueueState
from mpreg_mq.queue import MessageQueue
from tests.support.running import FlakyLog, Recorder, assert_fold_equality, make_queue, until

Sending = asyncio.Task[DeliveryResult]


async def durable(**settings: Any) -> tuple[MessageQueue, FlakyLog]:
    """A queue whose log has a journal, and which has been used on this loop."""
    log = FlakyLog(blocking=True)
    queue = make_queue(settings.pop("clock", None), log, **settings)
    assert (await queue.send_message("first", 0)).success
    return queue, log


async def gathered(queue: MessageQueue, *payloads: Any, **options: Any) -> list[Sending]:
    """Tasks that have sent and whose messages are not accepted yet."""
    tasks = [asyncio.create_task(queue.send_message("t", payload, **options)) for payload in payloads]
    await asyncio.sleep(0)
    assert len(queue._actor._gathered) == len(payloads)
    return tasks


async def end(queue: MessageQueue) -> None:
    """Shut the queue down, once all is in its log: its state is the fold of that (I4)."""
    await until(lambda: queue._actor._outstanding == 0)
    assert_fold_equality(queue)
    await queue.shutdown()


def sent(log: FlakyLog, queue: MessageQueue) -> list[str]:
    """Topics of the messages in the log, in their order, and what else is there as its type."""
    return [
        record.event.topic if isinstance(record.event, MessageEnqueued) else type(record.event).__name__
        for record in log.read_stream(queue._actor.stream)
    ]


def test_s1_what_comes_together_is_accepted_together_and_in_order() -> None:
    """Given sends of many tasks in one iteration, then they are one append, and each has its own result."""

    async def story() -> None:
        queue, log = await durable()
        log.appended.clear()
        results = await asyncio.gather(*await gathered(queue, 1, 2, 3))
        assert all(result.success for result in results)
        ((append,),) = log.appended
        ids = [event.message_id for event in append.events if isinstance(event, MessageEnqueued)]
        assert ids == [result.message_id.id for result in results]  # type: ignore[union-attr]
        assert [message.payload for message in queue.pending_messages] == [0, 1, 2, 3]
        await end(queue)

    asyncio.run(story())


def test_what_is_asked_later_comes_later() -> None:
    """Given gathered sends, when the queue is paused and something else is sent in the same iteration, then the log
    has all of it in the order in which it was asked."""

    async def story() -> None:
        queue, log = await durable()
        tasks = await gathered(queue, 1, 2)
        queue.pause_queue()
        tasks += [
            asyncio.create_task(queue.send_message("urgent", 3, priority=1)),
            asyncio.create_task(queue.send_message("after", 4)),
        ]
        assert all(result.success for result in await asyncio.gather(*tasks))
        assert sent(log, queue)[-5:] == ["t", "t", QueuePaused.__name__, "urgent", "after"]
        await end(queue)

    asyncio.run(story())


def test_a_send_with_options_stays_behind_those_that_came_before() -> None:
    """Given sends of all kinds in one iteration, then they are accepted in the order in which they were sent."""

    async def story() -> None:
        queue, log = await durable()
        sends = [
            queue.send_message("a", 1),
            queue.send_message("b", 2, headers={"k": "v"}),
            queue.send_message("c", 3),
            queue.send_message("d", 4, DeliveryGuarantee.BROADCAST),
            queue.send_messages([("e", 5), ("f", 6)]),
            queue.send_message("g", 7),
        ]
        await asyncio.gather(*sends)
        assert sent(log, queue)[-7:] == list("abcdefg")
        await end(queue)

    asyncio.run(story())


def test_c1_those_beyond_the_capacity_are_refused() -> None:
    """Given more sends at once than there is room, then the first are accepted, the others refused, each told so."""

    async def story() -> None:
        queue, _ = await durable(max_size=3)
        results = await asyncio.gather(*await gathered(queue, 1, 2, 3, 4))
        assert [result.rejection for result in results] == [None, None, *[RejectionReason.CAPACITY] * 2]
        assert [message.payload for message in queue.pending_messages] == [0, 1, 2]
        await end(queue)

    asyncio.run(story())


def test_c1_the_oldest_make_room_for_those_beyond_the_capacity() -> None:
    """Given more sends at once than there is room and a queue that drops the oldest, then all are accepted."""

    async def story() -> None:
        queue, _ = await durable(max_size=3, overflow_policy=OverflowPolicy.DROP_OLDEST)
        results = await asyncio.gather(*await gathered(queue, 1, 2, 3, 4))
        assert all(result.success for result in results)
        assert [message.payload for message in queue.pending_messages] == [2, 3, 4]
        await end(queue)

    asyncio.run(story())


def test_c1_those_beyond_the_capacity_wait_for_room() -> None:
    """Given more sends at once than there is room and a queue whose senders wait, then the others are accepted once
    there is room, the one that is cancelled is not, and the one whose time is up is refused."""

    async def story() -> None:
        clock = VirtualClock()
        queue, _ = await durable(
            clock=clock, max_size=2, overflow_policy=OverflowPolicy.WAIT, overflow_wait_seconds=5.0
        )
        first, second, gone, late = await gathered(queue, 1, 2, 3, 4)
        assert (await first).success
        assert not second.done()
        gone.cancel()
        await asyncio.wait([gone])
        queue.subscribe("puller", "#")
        (taken,) = await queue.receive_messages("puller")
        assert (await second).success
        assert taken.payload == 0
        await clock.advance(6.0)
        assert (await late).rejection is RejectionReason.CAPACITY
        assert [message.payload for message in queue.pending_messages] == [1, 2]
        await end(queue)

    asyncio.run(story())


def test_s2_one_that_is_refused_is_no_harm_to_the_others() -> None:
    """Given a payload that is too large among gathered ones, then it alone is refused."""

    async def story() -> None:
        queue, _ = await durable(max_payload_bytes=100)
        results = await asyncio.gather(*await gathered(queue, 1, "x" * 200, 3))
        assert [result.rejection for result in results] == [None, RejectionReason.PAYLOAD_TOO_LARGE, None]
        assert [message.payload for message in queue.pending_messages] == [0, 1, 3]
        await end(queue)

    asyncio.run(story())


def test_a_sender_that_has_gone_leaves_the_others_theirs() -> None:
    """Given a sender that is cancelled before its message is accepted, then it is accepted as it would be a moment
    later, and the others are answered."""

    async def story() -> None:
        queue, _ = await durable()
        first, gone, last = await gathered(queue, 1, 2, 3)
        gone.cancel()
        assert [(await task).success for task in (first, last)] == [True, True]
        assert gone.cancelled()
        assert [message.payload for message in queue.pending_messages] == [0, 1, 2, 3]
        await end(queue)

    asyncio.run(story())


def test_c3_a_queue_that_closes_accepts_what_was_sent_before() -> None:
    """Given gathered sends when the queue is shut down, then they are accepted, and what comes later is not."""

    async def story() -> None:
        queue, log = await durable()
        tasks = await gathered(queue, 1, 2)
        closing = asyncio.create_task(queue.shutdown())
        late = asyncio.create_task(queue.send_message("late", 3))
        assert [(await task).success for task in tasks] == [True, True]
        assert (await late).rejection is RejectionReason.CLOSING
        await closing
        assert sent(log, queue)[-2:] == ["t", "t"]

    asyncio.run(story())


def test_c3_so_does_one_that_closes_at_once() -> None:
    """Given gathered sends when the queue is closed without waiting, then they are in the log, and answered."""

    async def story() -> None:
        queue, log = await durable()
        tasks = await gathered(queue, 1, 2)
        queue.shutdown_sync()
        assert [(await task).success for task in tasks] == [True, True]
        assert sent(log, queue)[-2:] == ["t", "t"]

    asyncio.run(story())


def stop_elsewhere(queue: MessageQueue) -> None:
    """Have another thread stop the actor, past the queue; it hears of it when the loop goes on."""
    stopping = threading.Thread(target=queue._actor.actor_ref.stop, kwargs={"block": False})
    stopping.start()
    stopping.join()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_actor_that_somebody_stops_accepts_what_was_sent_before(elsewhere: bool) -> None:
    """Given gathered sends when somebody stops the actor, on its own thread or another, then they are accepted, and
    what comes later is not."""

    async def story() -> None:
        queue, log = await durable()
        tasks = await gathered(queue, 1, 2)
        if elsewhere:
            stop_elsewhere(queue)
        else:
            queue._actor.actor_ref.stop(block=False)
        assert [(await task).success for task in tasks] == [True, True]
        assert (await queue.send_message("late", 3)).rejection is RejectionReason.CLOSING
        assert sent(log, queue)[-2:] == ["t", "t"]
        queue.shutdown_sync()

    asyncio.run(story())


def test_an_actor_that_somebody_stops_answers_those_whose_commit_comes_behind_that() -> None:
    """Given a commit whose end is told to an actor that will be stopped first, then the senders are answered."""

    async def story() -> None:
        queue, log = await durable()
        tasks = await gathered(queue, 1, 2)
        await until(lambda: queue._actor._outstanding == 1)
        journal = queue._actor._store.journal
        assert journal is not None
        journal.flush()
        stop_elsewhere(queue)
        assert [(await task).success for task in tasks] == [True, True]
        assert sent(log, queue)[-2:] == ["t", "t"]
        queue.shutdown_sync()

    asyncio.run(story())


def test_an_actor_that_somebody_stops_sends_away_those_who_wait() -> None:
    """Given a sender that waits for room and a receiver that waits for a message when somebody stops the actor, then
    neither waits for ever."""

    async def story() -> None:
        queue, _ = await durable(max_size=1, overflow_policy=OverflowPolicy.WAIT)
        queue.subscribe("puller", "#")
        assert len(await queue.receive_messages("puller")) == 1
        receiving = asyncio.create_task(queue.receive_messages("puller", wait_seconds=60.0))
        await until(lambda: bool(queue._actor._receivers))
        queue.pause_queue()
        first, waiting = await gathered(queue, 1, 2)
        assert (await first).success
        queue._actor.actor_ref.stop(block=False)
        assert (await waiting).rejection is RejectionReason.CLOSING
        assert await receiving == []
        queue.shutdown_sync()

    asyncio.run(story())


def test_s1_a_store_that_fails_is_told_to_each() -> None:
    """Given a log that fails, then each sender is told so, nothing is pending, and the queue goes on afterwards."""

    async def story() -> None:
        queue, log = await durable()
        log.failing = True
        results = await asyncio.gather(*await gathered(queue, 1, 2))
        assert [result.rejection for result in results] == [RejectionReason.STORE_ERROR] * 2
        log.failing = False
        assert all(result.success for result in await asyncio.gather(*await gathered(queue, 3, 4)))
        assert [message.payload for message in queue.pending_messages] == [0, 3, 4]
        await end(queue)

    asyncio.run(story())


class FailsOnce(FlakyLog):
    """A log that fails no more than once."""

    def append(self, batch: Sequence[Append]) -> None:
        try:
            super().append(batch)
        finally:
            self.failing = False


def test_sends_to_a_queue_that_recovers_are_accepted_after_it_has() -> None:
    """Given sends while a queue waits for others to fail, then they are accepted after it was rebuilt."""

    async def story() -> None:
        log = FailsOnce(blocking=True)
        queue = make_queue(None, log)
        assert (await queue.send_message("first", 0)).success
        log.failing = True
        (refused,) = await gathered(queue, 1)
        await until(lambda: queue._actor._outstanding == 1)
        queue._actor._recovering = OSError("disk on fire")
        (accepted,) = await gathered(queue, 2)
        assert (await refused).rejection is RejectionReason.STORE_ERROR
        assert (await accepted).success
        assert [message.payload for message in queue.pending_messages] == [0, 2]
        await end(queue)

    asyncio.run(story())


def test_a_fault_of_ours_is_told_to_each_and_the_queue_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a decider that raises, then each sender is told, and the next sends work."""

    async def story() -> None:
        queue, _ = await durable()
        before = queue._actor.state

        def faulty(state: QueueState, command: Any, context: Context) -> Decision:
            raise ZeroDivisionError("a fault of ours")

        with monkeypatch.context() as fault:
            deciders: dict[type[Any], Any] = {**DECIDERS, SendEach: faulty}
            fault.setattr(recording, "DECIDERS", deciders)
            results = await asyncio.gather(*await gathered(queue, 1, 2))
        assert all("ZeroDivisionError" in str(result.error_message) for result in results)
        assert queue._actor.state is not before
        assert all(result.success for result in await asyncio.gather(*await gathered(queue, 3)))
        assert [message.payload for message in queue.pending_messages] == [0, 3]
        await end(queue)

    asyncio.run(story())


def test_a_fault_of_the_fold_is_told_to_each_and_the_queue_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a projection that raises, then each sender is told, and the state is that of the log."""

    async def story() -> None:
        queue, _ = await durable()

        def faulty(self: QueueState, events: object) -> None:
            raise ZeroDivisionError("a fault of ours")

        tasks = await gathered(queue, 1, 2)
        with monkeypatch.context() as fault:
            fault.setattr(QueueState, "apply_all", faulty)
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks)
        assert all("ZeroDivisionError" in str(result.error_message) for result in results)
        assert [message.payload for message in queue.pending_messages] == [0]
        await end(queue)

    asyncio.run(story())


def test_a_callback_that_sends_finds_its_place_behind_what_was_gathered() -> None:
    """Given gathered sends when a turn delivers, then they come before whatever a callback asks for."""

    async def story() -> None:
        queue, _ = await durable()
        seen = Recorder()
        tasks: list[Sending] = []

        def handle(message: Any) -> None:
            seen(message)
            if message.payload == 0:
                queue.pause_queue()
                tasks.append(asyncio.ensure_future(queue.send_message("again", 9)))

        queue.subscribe("s", "#", handle)
        tasks += await gathered(queue, 1, 2)
        await until(lambda: bool(seen.payloads))
        assert all(result.success for result in await asyncio.gather(*tasks))
        assert seen.payloads == [0]
        queue.resume_queue()
        await until(lambda: queue.get_statistics().messages_acknowledged == 4)
        assert seen.payloads == [0, 1, 2, 9]
        await end(queue)

    asyncio.run(story())


def test_another_thread_finds_what_was_gathered_accepted() -> None:
    """Given gathered sends when another thread asks the queue, then what it is told includes them."""

    async def story() -> None:
        queue, _ = await durable()
        tasks = await gathered(queue, 1, 2)
        told: list[int] = []
        asking = threading.Thread(target=lambda: told.append(queue.get_statistics().messages_sent))
        asking.start()
        assert all(result.success for result in await asyncio.gather(*tasks))
        await asyncio.get_running_loop().run_in_executor(None, asking.join)
        assert told == [3]
        await queue.shutdown()

    asyncio.run(story())


def test_what_a_loop_left_behind_is_accepted_on_the_next() -> None:
    """Given a loop that ends while sends are gathered, then the next loop that uses the queue has them accepted."""
    queue, log = asyncio.run(durable())

    async def leave() -> None:
        await queue.send_message("second", 1)
        left.extend(await gathered(queue, 2))
        loop.stop()

    async def go_on() -> None:
        assert (await queue.send_message("last", 3)).success
        assert sorted(sent(log, queue)[-3:]) == ["last", "second", "t"]
        await end(queue)

    loop, left = asyncio.new_event_loop(), list[Sending]()
    left.append(loop.create_task(leave()))  # type: ignore[arg-type]
    loop.run_forever()
    loop.close()
    asyncio.run(go_on())
    for task in left:
        # Nobody is left to wait for it.
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_what_a_loop_left_behind_is_accepted_when_it_has_ended() -> None:
    """Given a loop that was closed while sends were gathered, when the queue is used without a loop, then they are
    accepted, and it closes."""
    queue, log = asyncio.run(durable())

    async def leave() -> None:
        await queue.send_message("second", 1)
        left.extend(await gathered(queue, 2, 3))
        loop.stop()

    loop, left = asyncio.new_event_loop(), list[Sending]()
    left.append(loop.create_task(leave()))  # type: ignore[arg-type]
    loop.run_forever()
    loop.close()
    assert queue.get_statistics().messages_sent == 4
    assert sent(log, queue)[-2:] == ["t", "t"]
    assert_fold_equality(queue)
    queue.shutdown_sync()
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_stopping_all_actors_leaves_nobody_waiting() -> None:
    """Given gathered sends when pykka stops every actor, then each sender is answered."""

    async def story() -> None:
        queue, _ = await durable()
        tasks = await gathered(queue, 1, 2)
        pykka.ActorRegistry.stop_all(block=False)
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        queue.shutdown_sync()

    asyncio.run(story())
