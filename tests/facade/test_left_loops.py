"""A queue whose loop has its last turn while an append is on its way: the next one hears what became of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from mpreg_mq import Durability, MessageQueueManager, QueueConfiguration
from mpreg_mq.actors import commands as c
from mpreg_mq.actors import futures
from mpreg_mq.actors.queue_actor import QueueActor
from mpreg_mq.errors import VersionConflictError
from tests.support import journals, quick_logs
from tests.support.running import PATIENCE_SECONDS, Recorder, until, wait_until


class GatedLog(journals.GatedLog):
    blocking = True


class QuickLog(quick_logs.QuickLog):
    blocking = True


class LeftLoop:
    """An event loop on a thread of its own, which a test has end between two of its turns."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something there, and wait for it on this thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_SECONDS)

    def leave(self, when: Callable[[], object], *, closed: bool) -> None:
        """Have the loop stop at the end of the turn in which that holds, and wait for it; it may be ``closed`` then."""

        def look() -> None:
            if when():
                self.loop.stop()
            else:
                self.loop.call_soon(look)

        self.loop.call_soon_threadsafe(look)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        if closed:
            self.loop.close()

    def run_again(self) -> None:
        """Come to what the loop was told after its last turn, where it is not closed."""
        if not self.loop.is_closed():
            self.loop.run_until_complete(asyncio.sleep(0))

    def end(self) -> None:
        if self._thread.is_alive():
            self.leave(lambda: True, closed=True)
        self.loop.close()


@pytest.fixture
def left() -> Iterator[LeftLoop]:
    left = LeftLoop()
    yield left
    left.end()


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks soon whether a loop is no more."""
    monkeypatch.setattr(futures, "STRANDED_CHECK_SECONDS", 0.001)


def queue_of(left: LeftLoop, log: Any, callback: Any = None, **settings: Any) -> tuple[MessageQueueManager, QueueActor]:
    """A manager and the actor of its queue, which that loop handles."""

    async def make() -> MessageQueueManager:
        manager = MessageQueueManager(log=log)
        await manager.create_queue("q", QueueConfiguration("q", **settings))
        if callback is not None:
            manager.subscribe_to_queue("q", "s", "#", callback)
        await until(lambda: manager.queue("q")._actor._unsent is None)
        await asyncio.to_thread(manager.queue("q")._actor._store.journal.flush)  # type: ignore[union-attr]
        await until(lambda: manager.queue("q")._actor._outstanding == 0)
        return manager

    manager = left.run(make())
    return manager, manager.queue("q")._actor


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_what_became_of_an_append_is_heard_on_the_next_loop(
    left: LeftLoop, closed: bool, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a send from another loop whose commit ends after the queue's loop has, then it is answered on that other
    loop, the queue reads its log again where it has failed, and goes on; what the loop comes to when it runs again
    changes nothing."""
    log, recorder = GatedLog(), Recorder()
    manager, actor = queue_of(left, log, recorder)
    log.gate.clear()

    async def story() -> None:
        send = asyncio.create_task(manager.send_message("q", "t", 1))
        await asyncio.to_thread(left.leave, lambda: actor._handed_over, closed=closed)
        if fails:
            log.failure = OSError("the disk is on fire")
        log.gate.set()
        assert (await asyncio.wait_for(send, PATIENCE_SECONDS)).success is not fails
        log.failure = None
        assert (await manager.send_message("q", "t", 2)).success
        expected = [2] if fails else [1, 2]
        await until(lambda: recorder.payloads == expected)
        await asyncio.to_thread(left.run_again)
        assert (await manager.send_message("q", "t", 3)).success
        await until(lambda: recorder.payloads == [*expected, 3])
        await manager.shutdown()
        assert not actor._handed_over

    asyncio.run(story())
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize("closed", [False, True])
def test_what_became_of_what_a_loop_has_written_itself_is_heard_on_the_next(
    left: LeftLoop, closed: bool, survives: bool
) -> None:
    """Given a loop that writes a send itself and ends before the disk has it, then the send is answered on the loop
    that waits for it, also where its sync fails."""
    log = QuickLog()
    log.writer.at_once = True
    manager, _ = queue_of(left, log)
    log.writer.at_once = False

    async def story() -> None:
        send = asyncio.create_task(manager.send_message("q", "t", 1))
        await asyncio.to_thread(left.leave, lambda: log.writer.doubtful, closed=closed)
        log.writer.at_once = True
        if survives:
            log.writer.end()
        else:
            log.writer.fail(OSError("the disk is on fire"))
        # What a failed sync has lost is written once more.
        assert (await asyncio.wait_for(send, PATIENCE_SECONDS)).success
        assert (await manager.send_message("q", "t", 2)).success
        await asyncio.to_thread(left.run_again)
        assert [message.payload for message in await manager.receive_messages("q", "s", 10)] == [1, 2]
        await manager.shutdown()

    asyncio.run(story())


def test_who_is_to_hear_may_end_as_well(left: LeftLoop) -> None:
    """Given a second loop that has the queue's ends of appends told, when it ends too before it hears of any, then the
    third one does."""
    log, second = GatedLog(), LeftLoop()
    manager, actor = queue_of(left, log)
    log.gate.clear()

    async def story() -> None:
        send = asyncio.create_task(manager.send_message("q", "t", 1))
        await until(lambda: bool(actor._handed_over))
        actor.bind(second.loop)
        second.run(asyncio.sleep(0))
        await asyncio.to_thread(left.leave, lambda: True, closed=False)
        await asyncio.to_thread(second.leave, lambda: True, closed=False)
        log.gate.set()
        assert (await asyncio.wait_for(send, PATIENCE_SECONDS)).success
        await asyncio.to_thread(left.run_again)
        await asyncio.to_thread(second.run_again)
        assert (await manager.send_message("q", "t", 2)).success
        await manager.shutdown()

    try:
        asyncio.run(story())
    finally:
        second.end()


@pytest.mark.parametrize("closed", [False, True])
def test_a_thread_without_a_loop_finds_out_itself(left: LeftLoop, closed: bool) -> None:
    """Given a thread that waits for a reply, when the queue's loop ends before the commit, then the thread gets it,
    although no other loop ever uses the queue."""
    log = GatedLog()
    manager, actor = queue_of(left, log)
    log.gate.clear()
    replies: list[Any] = []
    asking = threading.Thread(
        target=lambda: replies.append(actor.call(c.Send("t", b"1")).get(timeout=PATIENCE_SECONDS))
    )
    asking.start()
    left.leave(lambda: actor._handed_over, closed=closed)
    log.gate.set()
    asking.join()
    assert [reply.success for reply in replies] == [True]
    left.run_again()
    manager.shutdown_sync()


def test_a_queue_that_fails_without_a_loop_comes_back(left: LeftLoop) -> None:
    """Given a failed append whose end only the loop before was told, when a thread without a loop asks for something,
    then the queue reads its log again and does that."""
    log = GatedLog()
    manager, actor = queue_of(left, log)
    log.gate.clear()
    log.failure = OSError("the disk is on fire")
    asking = threading.Thread(target=lambda: actor.actor_ref.tell(c.Send("t", b"1")))
    asking.start()
    left.leave(lambda: actor._handed_over, closed=False)
    log.gate.set()
    asking.join()
    actor._store.journal.flush()  # type: ignore[union-attr]
    log.failure = None
    with pytest.raises(VersionConflictError):
        # Which finds out that the log is not where the state is.
        actor.call_now(c.Send("t", b"2"))
    assert actor.call_now(c.Send("t", b"3")).success
    manager.shutdown_sync()


def test_an_actor_that_stops_without_its_loop_answers_who_waits(
    left: LeftLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a send from another loop that nobody looks after, when a manager is closed on a thread without a loop after
    the queue's loop has ended, then the send is answered."""
    monkeypatch.setattr(futures, "STRANDED_CHECK_SECONDS", 10 * PATIENCE_SECONDS)
    log = GatedLog()
    manager, actor = queue_of(left, log)
    log.gate.clear()

    async def story() -> None:
        send = asyncio.create_task(manager.send_message("q", "t", 1))
        await asyncio.to_thread(left.leave, lambda: actor._handed_over, closed=False)
        log.gate.set()
        await asyncio.to_thread(manager.shutdown_sync)
        assert (await asyncio.wait_for(send, PATIENCE_SECONDS)).success

    asyncio.run(story())


def test_who_waits_for_an_actor_that_has_stopped_is_answered(left: LeftLoop) -> None:
    """Given a queue whose actor stops before a commit, and whose loop ends after that, then a send from another loop
    is answered all the same."""
    log = GatedLog()
    manager, actor = queue_of(left, log)
    log.gate.clear()

    async def story() -> None:
        send = asyncio.create_task(manager.send_message("q", "t", 1))
        await until(lambda: bool(actor._handed_over))
        actor.actor_ref.stop(block=False)
        await asyncio.to_thread(left.leave, lambda: actor.actor_inbox.closed, closed=False)
        log.gate.set()
        assert (await asyncio.wait_for(send, PATIENCE_SECONDS)).success
        await asyncio.to_thread(left.run_again)

    asyncio.run(story())
    actor._store.close()


def test_the_journals_thread_handles_nothing_for_a_loop_that_was_closed(
    left: LeftLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a send that waits for the queue's loop when that is closed, and one whose commit has not ended, when it
    does, then both are accepted: the journal's thread cannot wait for itself."""
    monkeypatch.undo()
    log = GatedLog()
    manager, actor = queue_of(left, log)
    log.gate.clear()

    async def story() -> None:
        first = asyncio.create_task(manager.send_message("q", "t", 1))
        await until(lambda: bool(actor._handed_over))
        last_turn = threading.Event()

        def is_left() -> bool:
            # Within one turn: the message arrives, and the loop ends before it gets to it.
            last_turn.set()
            wait_until(lambda: len(actor.actor_inbox) > 0)
            return True

        leaving = asyncio.create_task(asyncio.to_thread(left.leave, is_left, closed=True))
        await until(last_turn.is_set)
        second = asyncio.create_task(manager.send_message("q", "t", 2))
        await leaving
        log.gate.set()
        for send in (first, second):
            assert (await asyncio.wait_for(send, PATIENCE_SECONDS)).success
        await manager.shutdown()

    asyncio.run(story())


def test_a_buffered_queue_need_not_wait_again_after_its_loop_was_left(left: LeftLoop) -> None:
    """Given a buffered append whose end only the loop before was told, when another loop uses the queue, then nothing
    is taken to be on its way any more, for which replies would wait."""
    log = GatedLog()
    manager, actor = queue_of(left, log, durability=Durability.BUFFERED)
    log.gate.clear()
    log.entered.clear()

    async def story() -> None:
        assert (await manager.send_message("q", "t", 1)).success
        await asyncio.to_thread(left.leave, lambda: actor._handed_over and log.entered.is_set(), closed=False)
        log.gate.set()
        assert (await manager.send_message("q", "t", 2)).success
        await asyncio.to_thread(actor._store.journal.flush)  # type: ignore[union-attr]
        await until(lambda: not actor._on_their_way and not actor._handed_over)
        await manager.shutdown()

    asyncio.run(story())
