"""A journal that writes on a loop, among other loops and threads: who is answered, where, and in what order (S1)."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextvars import ContextVar

import pytest

from mpreg_mq.actors import journal as journal_module
from mpreg_mq.actors import submissions
from mpreg_mq.actors.journal import Journal
from mpreg_mq.actors.submissions import Intake, Outcome, Submission
from tests.support.journals import PATIENCE, Answers, append, run, settled, until
from tests.support.quick_logs import QuickLog, Writer

# --- flushing, stopping and other threads -------------------------------------------------------------------


@pytest.mark.parametrize("end", ["flush", "stop"])
def test_a_wait_for_everything_waits_for_what_is_under_way(
    log: QuickLog, writer: Writer, journal: Journal, end: str
) -> None:
    """Given a batch under way and one that waits, when the loop's own thread flushes or stops the journal, then both
    are on disk when it returns, and are answered once in the loop's next iteration."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        journal.submit(append("queue:a", 1), answers, loop, urgent=False)
        threading.Timer(0.0, writer.end).start()
        if end == "flush":
            journal.flush(PATIENCE)
        else:
            journal.stop()
        assert writer.doubtful == []
        assert log.stream_version("queue:a") == 2
        await settled()
        assert answers.errors == [None, None]

    run(story)


def test_a_task_comes_after_what_was_submitted_before(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a batch under way and a task, then the task is done when the batch is on disk."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        found: list[int] = []
        journal.submit(append("queue:a", 0), Answers(), loop)
        await settled()
        journal.do(lambda: found.append(len(writer.doubtful)))
        await settled()
        assert found == []
        writer.end()
        await until(lambda: found)
        assert found == [0]

    run(story)


def test_appends_of_threads_keep_their_order_with_those_of_the_loop(log: QuickLog, journal: Journal) -> None:
    """Given threads without a loop that submit while a loop does, then each is answered once, and the log has all of
    them in the order of their submission."""
    log.writer.at_once = True
    answers = [Answers() for _ in range(3)]

    def work(number: int) -> None:
        for version in range(300):
            journal.submit(append(f"queue:{number}", version), answers[number], None)

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        for version in range(300):
            journal.submit(append("queue:0", version), answers[0], loop)
            if version % 7 == 0:
                await asyncio.sleep(0)
        await until(lambda: all(len(one.errors) == 300 for one in answers))
        for thread in threads:
            thread.join()

    run(story)
    assert all(one.errors == [None] * 300 for one in answers)
    assert log.last_position() == 900


def test_another_loop_writes_when_the_first_has_ended(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a second loop while the first runs, then the thread writes for it; when the first has ended, the second
    writes itself, and hears of what the first had under way."""
    left = Answers()

    async def first(loop: asyncio.AbstractEventLoop) -> None:
        writer.at_once = True
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: answers.errors)

        def in_thread() -> None:
            async def other(loop: asyncio.AbstractEventLoop) -> None:
                mine = Answers()
                journal.submit(append("queue:b", 0), mine, loop)
                await until(lambda: mine.errors)
                assert mine.errors == [None]
                assert mine.threads == {threading.get_ident()}

            run(other)

        await asyncio.to_thread(in_thread)
        assert [one.stream for batch in log.slow for one in batch] == ["queue:b"]
        writer.at_once = False
        journal.submit(append("queue:a", 1), left, loop)
        await settled()

    async def second(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:c", 0), answers, loop)
        await settled()
        assert [batch[0].stream for batch in writer.batches] == ["queue:a", "queue:a", "queue:c"]
        writer.end(2)
        await until(lambda: answers.errors)

    run(first)
    run(second)
    # The first loop is closed, so this was called where there was a thread for it.
    assert left.errors == [None]


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "WATCH_SECONDS", 0.01)


@pytest.mark.usefixtures("watchful")
def test_the_thread_sees_to_what_a_loop_that_ended_has_left(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a loop that ended with a batch under way and something that nobody waits for, then the thread commits both
    before long, without anybody asking."""
    answers, held = Answers(), Answers()

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        journal.submit(append("queue:a", 0), answers, loop)
        journal.submit(append("queue:a", 1), held, loop, urgent=False)
        await settled()

    run(story)
    writer.end()
    assert answers.came.wait(PATIENCE)
    assert held.came.wait(PATIENCE)
    assert (answers.errors, held.errors) == ([None], [None])
    assert log.stream_version("queue:a") == 2


@pytest.mark.usefixtures("watchful")
def test_the_thread_commits_for_a_loop_that_is_blocked(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a loop that is busy with something else for long, then what it submitted is committed meanwhile."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop, urgent=False)
        assert log.appended.wait(PATIENCE)
        await settled()
        assert answers.errors == [None]

    run(story)


def test_a_loop_that_cannot_watch_leaves_writing_to_the_thread(log: QuickLog, journal: Journal) -> None:
    """Given a loop that has no way to watch a descriptor, then the thread writes, as for any other log."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        def add_reader(*_: object) -> None:
            # As asyncio's own base class of loops.
            raise NotImplementedError

        loop.add_reader = add_reader  # type: ignore[method-assign,assignment]
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: answers.errors)
        assert answers.errors == [None]
        assert len(log.slow) == 1

    run(story)


def test_after_a_stop_nothing_is_watched(log: QuickLog, writer: Writer) -> None:
    """Given a journal that is stopped on its loop or from another thread, then the loop watches its descriptor no
    more, which is closed."""
    for stop in ("here", "elsewhere"):
        other = QuickLog()
        journal = Journal.start(other)

        async def story(loop: asyncio.AbstractEventLoop, journal: Journal = journal, other: QuickLog = other) -> None:
            answers = Answers()
            other.writer.at_once = True
            journal.submit(append("queue:a", 0), answers, loop)
            await until(lambda: answers.errors)
            if stop == "here":  # noqa: B023
                journal.stop_and_close()
            else:
                await asyncio.to_thread(journal.stop_and_close)
                await until(lambda: other.writer.closed)
            assert not loop.remove_reader(other.writer.descriptor)

        run(story)
        assert other.writer.closed


# --- answers ------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_events(
    log: QuickLog, writer: Writer, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an append that the thread has committed, and another that the loop commits right after that, then the first
    is answered first, however long the thread takes to go on."""
    second_is_answered = threading.Event()
    complete = submissions.run_all

    def slowly(outcomes: list[Outcome]) -> None:
        # Without the turn, whatever it has to do.
        assert not journal._intake.turn.locked()
        released.set()
        second_is_answered.wait(1.0)
        complete(outcomes)

    released = threading.Event()
    monkeypatch.setattr(journal_module, "run_all", slowly)

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        order: list[int] = []

        def second(_: BaseException | None) -> None:
            order.append(1)
            second_is_answered.set()

        writer.refuse = True
        journal.submit(append("queue:a", 0), lambda _: order.append(0), loop)
        # The loop does nothing else meanwhile, so that it has not yet looked at what was posted.
        assert released.wait(PATIENCE)
        writer.refuse, writer.at_once = False, True
        journal.submit(append("queue:a", 1), second, loop)
        await until(lambda: len(order) == 2)
        assert order == [0, 1]

    run(story)


def test_what_the_loop_answers_comes_after_what_the_thread_has_posted(writer: Writer, journal: Journal) -> None:
    """Given an answer that the thread has posted, and the end of a later sync that the loop hears of in the same
    iteration and before it comes to that, then the earlier append is still answered first."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        order: list[int] = []
        writer.at_once = True
        journal.submit(append("queue:b", 0), lambda _: None, loop)
        await settled()

        def busy() -> None:
            writer.refuse = True
            journal.submit(append("queue:a", 0), lambda _: order.append(0), loop)
            journal.flush(PATIENCE)
            writer.refuse = False
            journal.submit(append("queue:a", 1), lambda _: order.append(1), loop)
            assert journal._on_loop is not None
            assert journal._on_loop._stay is not None
            journal._on_loop._on_synced(journal._on_loop._stay)

        loop.call_soon(busy)
        await until(lambda: len(order) == 2)
        assert order == [0, 1]

    run(story)


def test_an_interruption_of_the_next_write_keeps_no_answer_back(
    log: QuickLog, writer: Writer, journal: Journal
) -> None:
    """Given batches that are on disk, and Ctrl-C while what waited for them is written, then it reaches the program,
    and everything is answered once and in the log once."""
    answers = [Answers() for _ in range(3)]
    loop = asyncio.new_event_loop()

    async def story() -> None:
        for version in range(2):
            journal.submit(append("queue:a", version), answers[version], loop)
            await settled()
        journal.submit(append("queue:a", 2), answers[2], loop)
        writer.write_error = KeyboardInterrupt()
        writer.end(2)
        await asyncio.sleep(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(story())
    writer.write_error = None
    loop.run_until_complete(until(lambda: all(one.errors for one in answers)))
    assert [one.errors for one in answers] == [[None]] * 3
    assert [record.version for record in log.read_stream("queue:a")] == [1, 2, 3]
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(settled())
    loop.close()


def test_an_interruption_before_the_write_loses_nothing(
    log: QuickLog, writer: Writer, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given Ctrl-C while a batch is taken, then it reaches the program, and everything is in the log once, in order."""
    answers = Answers()
    take = Intake.take_quick

    class Interrupted(deque[Submission]):
        def popleft(self) -> Submission:
            self.popleft = super().popleft  # type: ignore[method-assign]
            raise KeyboardInterrupt

    def take_quick(self: Intake, events: int, taken: list[Submission]) -> None:
        monkeypatch.undo()
        self.queue = Interrupted(self.queue)
        take(self, events, taken)

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        for version in range(2):
            journal.submit(append("queue:a", version), answers, loop, urgent=False)
        monkeypatch.setattr(Intake, "take_quick", take_quick)
        with pytest.raises(KeyboardInterrupt):
            journal.submit(append("queue:a", 2), answers, loop)
        await until(lambda: len(answers.errors) == 3)

    run(story)
    assert answers.errors == [None] * 3
    assert [record.version for record in log.read_stream("queue:a")] == [1, 2, 3]


def test_a_sync_whose_end_was_lost_keeps_nobody_waiting(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a batch of whose sync nothing will be heard any more, because an interruption came as it was, then the
    thread asks the log, and everybody is answered."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.survive = 1
        journal.submit(append("queue:a", 0), answers, loop)
        writer.lost = True
        await asyncio.to_thread(journal.flush, PATIENCE)
        await until(lambda: answers.errors)
        assert answers.errors == [None]

    run(story)


def test_an_interruption_right_after_a_sync_was_begun_loses_nothing(
    log: QuickLog, writer: Writer, journal: Journal
) -> None:
    """Given a batch under way, and Ctrl-C when the sync of the next was just begun, then both are answered as done when
    the disk has both, and nothing is appended again."""
    answers = Answers()

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        journal.submit(append("queue:a", 0), answers, loop)
        await settled()
        journal.submit(append("queue:a", 1), answers, loop)
        writer.begin_error = KeyboardInterrupt()
        assert journal._on_loop is not None
        assert journal._on_loop._stay is not None
        with pytest.raises(KeyboardInterrupt):
            journal._on_loop._write(journal._on_loop._stay)
        writer.begin_error = None
        writer.end(2)
        await until(lambda: len(answers.errors) == 2)

    run(story)
    assert answers.errors == [None, None]
    assert log.slow == []


def test_an_answer_is_nobodys_callback(writer: Writer, journal: Journal) -> None:
    """Given a context variable that the first submitter has set, then no answer runs in that context."""
    variable: ContextVar[str] = ContextVar("request", default="none")
    found: list[str] = []

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        writer.at_once = True

        async def request(version: int) -> None:
            variable.set("somebody's")
            journal.submit(append("queue:a", version), lambda _: found.append(variable.get()), loop)

        for version in range(2):
            await asyncio.create_task(request(version))
            await until(lambda: len(found) > version)  # noqa: B023
        assert found == ["none", "none"]

    run(story)
