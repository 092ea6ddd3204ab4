"""Who is answered by a commit goes on before anything is delivered, so that the log has something to do meanwhile; what
nobody waits for goes with what comes next (S1, L4, principle "log first")."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from mpreg_mq import DeliveryResult, RejectionReason, VirtualClock
from mpreg_mq.actors.messages import Committed, Inspect
from mpreg_mq.actors.queue_actor import QueueActor
from mpreg_mq.actors.store import Store
from mpreg_mq.actors.submissions import Submission, run_all
from mpreg_mq.events import Append, MessageAcknowledged, MessageDelivered, MessageEnqueued
from mpreg_mq.queue import MessageQueue
from tests.support.journals import PATIENCE
from tests.support.running import FlakyLog, Recorder, assert_fold_equality, make_queue, until, wait_until

Answers = list[DeliveryResult]


class HeldLog(FlakyLog):
    """A log that can hold up one of the next appends."""

    def __init__(self) -> None:
        super().__init__(blocking=True)
        self.before_held: int | None = None
        self.held = threading.Event()
        self.gate = threading.Event()

    def append(self, batch: Sequence[Append]) -> None:
        if self.before_held is not None:
            self.before_held -= 1
            if self.before_held < 0:
                self.before_held = None
                self.held.set()
                assert self.gate.wait(PATIENCE)
        super().append(batch)


async def send_each(queue: MessageQueue, senders: int, rounds: int) -> Answers:
    """Have tasks send one message after another; all of them begin together."""

    async def send(sender: int) -> Answers:
        return [await queue.send_message("t", (sender, number)) for number in range(rounds)]

    return [result for results in await asyncio.gather(*map(send, range(senders))) for result in results]


async def begun(clock: VirtualClock) -> tuple[MessageQueue, HeldLog, Recorder]:
    """A queue with a subscriber, whose log has a journal."""
    log, recorder = HeldLog(), Recorder()
    queue = make_queue(clock, log)
    queue.subscribe("worker", "#", recorder)
    await until(lambda: queue._actor._outstanding == 0)
    log.appended.clear()
    return queue, log, recorder


async def with_ends_that_wait(queue: MessageQueue, log: HeldLog, recorder: Recorder) -> asyncio.Task[Answers]:
    """A task that has sent a message, which was delivered, and after it another one, whose commit is held up."""
    log.before_held = 1
    sending = asyncio.create_task(send_each(queue, senders=1, rounds=2))
    await until(lambda: recorder.payloads == [[0, 0]] and log.held.is_set())
    assert queue._actor._unsent is not None
    return sending


@contextmanager
def left_with_a_commit_under_way() -> Iterator[tuple[MessageQueue, HeldLog, Recorder]]:
    """A queue whose loop stands still after a delivery, the end of which is held up; the loop is closed at last."""
    log, recorder = HeldLog(), Recorder()
    queue = make_queue(VirtualClock(), log)
    queue.subscribe("worker", "#", recorder)

    async def story() -> None:
        log.before_held = 1
        await queue.send_message("t", 1)
        await until(lambda: recorder.payloads == [1] and log.held.is_set())

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(story())
        yield queue, log, recorder
    finally:
        loop.close()


async def end(queue: MessageQueue) -> None:
    await until(lambda: queue._actor._outstanding == 0)
    assert_fold_equality(queue)
    await queue.shutdown()


def kinds(append: Append) -> list[str]:
    return [type(event).__name__ for event in append.events]


def test_those_who_are_answered_send_before_anything_is_delivered() -> None:
    """Given tasks that each send again when they are answered, then what they send stands in the log before the
    deliveries of what they had sent before."""

    async def story() -> None:
        queue, log, recorder = await begun(VirtualClock())
        await send_each(queue, senders=3, rounds=4)
        await until(lambda: len(recorder.messages) == 12)
        await end(queue)
        number_of = {message.id.id: message.payload[1] for message in recorder.messages}
        sent, behind = [0] * 4, []
        for record in log.read_stream(queue._actor.stream):
            if isinstance(record.event, MessageEnqueued):
                sent[number_of[record.event.message_id]] += 1
            elif isinstance(record.event, MessageDelivered):
                number = number_of[record.event.message_id]
                behind.append(number == 3 or sent[number + 1] == 3)
        assert behind == [True] * 12

    asyncio.run(story())


@pytest.mark.parametrize("senders", [1, 3])
def test_ends_of_messages_go_with_what_is_sent_next(senders: int) -> None:
    """Given tasks that send one message after another, then what each commit adds is one append: the ends of the
    messages before, and the new ones behind them."""

    async def story() -> None:
        queue, log, recorder = await begun(VirtualClock())
        await send_each(queue, senders=senders, rounds=5)
        assert [len(batch) for batch in log.appended] == [1] * 5
        appends = [batch[0] for batch in log.appended]
        assert kinds(appends[0]) == ["MessageEnqueued"] * senders
        for append in appends[1:]:
            ends = ["MessageDelivered", "MessageAcknowledged"] * senders
            assert kinds(append) in (ends + ["MessageEnqueued"] * senders, ["MessageEnqueued"] * senders)
        ended = [kind for append in appends for kind in kinds(append) if kind == "MessageAcknowledged"]
        # The latest two rounds at most are on their way.
        assert len(ended) >= 3 * senders
        await until(lambda: len(recorder.messages) == 5 * senders)
        await end(queue)

    asyncio.run(story())


def test_ends_that_wait_for_a_commit_come_when_nothing_is_sent_any_more() -> None:
    """Given deliveries that are made while a commit is under way, when nobody sends any more, then they are in the log
    soon after it."""

    async def story() -> None:
        queue, log, recorder = await begun(VirtualClock())
        await send_each(queue, senders=2, rounds=2)
        await until(lambda: len(recorder.messages) == 4)
        await end(queue)
        told = [kind for batch in log.appended for append in batch for kind in kinds(append)]
        assert told.count("MessageAcknowledged") == 4

    asyncio.run(story())


def test_ends_that_wait_for_a_commit_do_not_keep_a_queue_from_recovering() -> None:
    """Given deliveries that wait for a commit, when that fails, then the queue recovers, what was sent is refused, and
    what was delivered comes again, for its end was not stored."""

    clock = VirtualClock()

    async def story() -> None:
        queue, log, recorder = await begun(clock)
        sending = await with_ends_that_wait(queue, log, recorder)
        log.failing = True
        log.gate.set()
        assert [result.rejection for result in await sending] == [None, RejectionReason.STORE_ERROR]
        await until(lambda: queue._actor._outstanding == 0 and queue._actor._recovering is None)
        log.failing = False
        await clock.advance(1.0)
        assert (await queue.send_message("t", "last")).success
        await until(lambda: recorder.payloads[-1] == "last")
        assert recorder.payloads == [[0, 0], [0, 0], "last"]
        await end(queue)

    asyncio.run(story())


def test_who_asks_while_ends_wait_for_a_commit_does_not_wait_for_more() -> None:
    """Given deliveries that wait for a commit, when something is asked that has to be stored, then it is on its way at
    once, and nobody is left without an answer."""

    async def story() -> None:
        queue, log, recorder = await begun(VirtualClock())
        sending = await with_ends_that_wait(queue, log, recorder)
        batch = asyncio.create_task(queue.send_messages([("t", 3), ("t", 4)]))
        await until(lambda: queue._actor._unsent is None)
        log.gate.set()
        assert all(result.success for result in [*await sending, *await batch])
        await until(lambda: recorder.payloads == [[0, 0], [0, 1], 3, 4])
        await end(queue)

    asyncio.run(story())


def test_who_asks_between_the_answers_of_a_commit_and_what_follows_keeps_no_ends_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given deliveries that wait for a commit, when another thread asks for something right after its answers, then
    what was delivered is in the log soon, although nobody sends any more."""
    hears = QueueActor._hear

    def hears_and_is_asked(actor: QueueActor, message: Committed) -> bool:
        heard = hears(actor, message)
        other = threading.Thread(target=actor.actor_ref.tell, args=(Inspect(lambda state, now: None),))
        other.start()
        other.join()
        return heard

    async def story() -> None:
        queue, log, recorder = await begun(VirtualClock())
        sending = await with_ends_that_wait(queue, log, recorder)
        with monkeypatch.context() as patched:
            patched.setattr(QueueActor, "_hear", hears_and_is_asked)
            log.gate.set()
            await sending
            await until(lambda: queue._actor._outstanding == 0)
        assert len(recorder.messages) == 2
        await end(queue)

    asyncio.run(story())


def test_ends_do_not_wait_for_a_commit_that_another_loop_was_to_hear_of() -> None:
    """Given a loop that was left while a commit was under way, when another loop goes on with the queue, then what is
    delivered there is in the log soon, although nobody sends any more."""
    with left_with_a_commit_under_way() as (queue, log, recorder):

        def acknowledged() -> int:
            records = log.read_stream(queue._actor.stream)
            return sum(isinstance(record.event, MessageAcknowledged) for record in records)

        async def story() -> None:
            assert (await queue.send_message("t", 2)).success
            await until(lambda: recorder.payloads == [1, 2] and acknowledged() == 2)
            await queue.shutdown()

        log.gate.set()
        wait_until(lambda: acknowledged() == 1)
        asyncio.run(story())


def test_a_queue_recovers_although_a_loop_was_left_that_was_to_hear_of_a_commit() -> None:
    """Given a loop that was left and closed while a commit was under way, when a commit fails on another loop, then the
    queue recovers there, and takes messages again."""
    with left_with_a_commit_under_way() as (queue, log, _):
        before = len(log.appended)
        log.gate.set()
        wait_until(lambda: len(log.appended) > before)
        # The loop is told of it, and does nothing more.
        queue._actor._store.journal.flush()  # type: ignore[union-attr]

    async def story() -> None:
        assert (await queue.send_message("t", 2)).success
        log.failing = True
        assert (await queue.send_message("t", 3)).rejection is RejectionReason.STORE_ERROR
        log.failing = False
        async with asyncio.timeout(PATIENCE):
            assert (await queue.send_message("t", 4)).success
        await queue.shutdown()

    asyncio.run(story())


def test_a_state_that_cannot_be_saved_keeps_nothing_from_what_follows_a_commit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a commit after which the state is to be saved, when that fails, for one for want of memory, then what the
    commit brought is delivered, and the queue says that it could not."""

    async def story() -> None:
        queue, _, recorder = await begun(VirtualClock())
        saving = mock.Mock(side_effect=MemoryError)
        monkeypatch.setattr(Store, "save", saving)
        queue._actor._next_snapshot = queue._actor.state.version + 1
        assert (await queue.send_message("t", 1)).success
        await until(lambda: recorder.payloads == [1])
        saving.assert_called_once()
        await end(queue)

    asyncio.run(story())
    assert "its state could not be saved" in caplog.text


def test_what_follows_is_called_when_all_of_a_commit_are_told_and_once() -> None:
    """Given completions that ask for something to be called afterwards, then that comes after all of them, once for
    those in a row that ask for the same, and whatever one of them raises keeps no other from it."""
    called: list[Any] = []

    def looks_on() -> None:
        called.append("looks on")
        raise ValueError("of ours")

    def submission(name: str, after: Any) -> Submission:
        def done(_: BaseException | None) -> Any:
            called.append(name)
            return after

        return Submission(Append("s", 0, (MessageEnqueued(0.0, "m", "t", b""),)), done, None)

    def last() -> None:
        called.append("last")

    outcomes = [submission("1", looks_on), submission("2", looks_on), submission("3", None), submission("4", last)]
    run_all([(one, None) for one in outcomes])
    assert called == ["1", "2", "3", "4", "looks on", "last"]
