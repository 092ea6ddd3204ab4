"""A sender that nobody else is beside has its commit at once, where the loop may wait for the disk (S1)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mpreg_mq import MessageQueue
from mpreg_mq.actors.turns import LONE_SENDS
from mpreg_mq.events import types as e
from tests.support.journals import settled
from tests.support.quick_logs import QuickLog
from tests.support.running import Recorder, assert_fold_equality, make_queue, until

Story = Callable[[MessageQueue], Awaitable[None]]


class DiskLog(QuickLog):
    """A log whose disk has to be waited for, which the loop may do."""

    blocking = True

    def __init__(self, *, waits: bool = True) -> None:
        super().__init__()
        self.writer.waits = waits


def tell(log: DiskLog, story: Story) -> None:
    """Run a story with a queue on this log."""

    async def told() -> None:
        queue = make_queue(log=log)
        try:
            await story(queue)
            journal = queue._actor._store.journal
            assert journal is not None
            await settled()
            await asyncio.to_thread(journal.flush)
            assert_fold_equality(queue)
        finally:
            await queue.shutdown()

    asyncio.run(told())


async def commits_of(log: DiskLog, work: Awaitable[object]) -> int:
    """How many batches a piece of work has written."""
    await asyncio.sleep(0.01)
    before = len(log.writer.batches)
    await work
    return len(log.writer.batches) - before


def test_each_send_of_a_lone_sender_is_one_commit_that_is_there_at_once() -> None:
    """Given one sender that has sent a little, then each of its sends is a commit by itself, which is on disk when the
    send is answered, and in which the end of the message before goes along."""
    log = DiskLog()

    async def story(queue: MessageQueue) -> None:
        seen = Recorder()
        queue.subscribe("s", "#", seen)

        for number in range(LONE_SENDS):
            assert (await queue.send_message("t", number)).success

        async def send() -> None:
            for number in range(LONE_SENDS, LONE_SENDS + 20):
                assert (await queue.send_message("t", number)).success
                assert log.writer.doubtful == []
                assert seen.payloads == list(range(number + 1)), "others ran before the sender went on"

        assert await commits_of(log, send()) == 20
        assert all(type(event) is not e.MessageEnqueued for batch in log.slow for one in batch for event in one.events)

    tell(log, story)


def test_other_tasks_run_between_two_sends_of_a_lone_sender() -> None:
    """Given a sender that never waits for anything else, then another task gets a turn for each of its sends."""
    log = DiskLog()

    async def story(queue: MessageQueue) -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        for _ in range(50):
            await queue.send_message("t", None)
        assert turns >= 50
        other.cancel()

    tell(log, story)


@pytest.mark.parametrize("senders", [2, 50])
def test_senders_that_send_together_share_their_commits(senders: int) -> None:
    """Given several senders, each of which sends again when it is answered, whether one of them has been alone before
    or not, then hardly more commits are made than for one of them."""
    log = DiskLog()

    async def story(queue: MessageQueue) -> None:
        async def send() -> None:
            for number in range(20):
                assert (await queue.send_message("t", number)).success

        async def together() -> None:
            await asyncio.gather(*(send() for _ in range(senders)))

        assert await commits_of(log, together()) == 20
        assert await commits_of(log, send()) == 20
        assert await commits_of(log, together()) <= 20 + 2
        assert queue.get_statistics().messages_sent == 20 * (2 * senders + 1)

    tell(log, story)


def test_a_sender_that_is_cancelled_after_its_commit_leaves_no_trace_of_itself() -> None:
    """Given a send that is cancelled while others are let do something after its commit, then the message is there,
    and the next sender is taken for a lone one."""
    log = DiskLog()

    async def story(queue: MessageQueue) -> None:
        task = asyncio.create_task(queue.send_message("t", "cancelled"))
        await asyncio.sleep(0)
        assert queue.get_statistics().messages_sent == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue._actor.turns.senders == 0

        async def send() -> None:
            await queue.send_message("t", "next")

        assert await commits_of(log, send()) == 1
        assert [message.payload for message in queue.pending_messages] == ["cancelled", "next"]

    tell(log, story)


@pytest.mark.parametrize("survive", [0, 1])
def test_a_commit_that_fails_is_answered_with_what_became_of_it(survive: int) -> None:
    """Given a write that fails, whether it is found in the log or written once more, then the lone sender hears of its
    success from the thread, and the queue goes on."""
    log = DiskLog()

    async def story(queue: MessageQueue) -> None:
        assert (await queue.send_message("t", 1)).success
        log.writer.write_error, log.writer.survive = OSError("the disk refuses"), survive
        assert (await queue.send_message("t", 2)).success
        log.writer.write_error = None
        assert (await queue.send_message("t", 3)).success
        assert [message.payload for message in queue.pending_messages] == [1, 2, 3]

    tell(log, story)


def test_a_slow_disk_is_not_waited_for_within_a_send() -> None:
    """Given a disk that has become slow, then a lone sender waits like any other, while the loop goes on."""
    log = DiskLog()

    async def story(queue: MessageQueue) -> None:
        assert (await queue.send_message("t", 1)).success
        log.writer.waits = False
        task = asyncio.create_task(queue.send_message("t", 2))
        await until(lambda: len(log.writer.doubtful) == 1)
        assert not task.done()
        log.writer.end()
        assert (await task).success
        log.writer.waits = True
        assert (await queue.send_message("t", 3)).success

    tell(log, story)
