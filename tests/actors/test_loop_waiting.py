"""A journal waits for a quick disk on the loop that submits, where its log says so (S1)."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from mpreg_mq.actors import journal as journal_module
from mpreg_mq.actors.journal import Journal
from mpreg_mq.actors.loop_writing import MOST_EVENTS_ON_LOOP
from tests.support.journals import PATIENCE, Answers, append, run, settled, until
from tests.support.quick_logs import QuickLog, Writer

WHOSE = ContextVar("whose", default="nobody's")


@pytest.fixture(autouse=True)
def waits(writer: Writer) -> None:
    writer.waits = True


def test_appends_of_one_iteration_share_a_wait(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given several tasks that submit in one iteration of the loop, then all of it is one batch, whose disk is waited
    for here, and everything is answered on the loop; no thread had to do anything, and nothing is under way."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        for round_ in range(3):
            for queue in "abc":
                journal.submit(append(f"queue:{queue}", round_), answers, loop)
            assert len(writer.batches) == round_, "not before the iteration is over"
            await until(lambda: len(answers.errors) == 3 * len(writer.batches) == 3 * (round_ + 1))  # noqa: B023
        assert answers.errors == [None] * 9
        assert answers.threads == writer.threads == {threading.get_ident()}
        assert [len(batch) for batch in writer.batches] == [3, 3, 3]
        assert writer.waited_for == [1, 2, 3]
        assert (log.slow, writer.doubtful) == ([], [])

    run(story)


def test_nobody_is_answered_within_a_submission(journal: Journal) -> None:
    """Given an append, then it is answered later, in a context that is nobody's: a callback that sends must not be
    called from within itself, and whoever submits first is not to be kept."""
    answered: list[str] = []

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        WHOSE.set("the sender's")
        for version in range(2):
            journal.submit(append("queue:a", version), lambda _: answered.append(WHOSE.get()), loop)
            assert len(answered) == version
            await until(lambda: len(answered) > version)  # noqa: B023
        # What nobody waits for is answered in that context as well, with the next that somebody waits for.
        journal.submit(append("queue:a", 2), lambda _: answered.append(WHOSE.get()), loop, urgent=False)
        journal.submit(append("queue:a", 3), lambda _: answered.append(WHOSE.get()), loop)
        await until(lambda: len(answered) == 4)

    run(story)
    assert answered == ["nobody's"] * 4


def test_what_is_to_be_done_at_once_is_answered_within_its_submission(
    log: QuickLog, writer: Writer, journal: Journal
) -> None:
    """Given an append that is to be done at once, then it is one batch with what was submitted before, and all of it is
    answered in its order before the submission is over, in a context that is nobody's."""
    answered: list[tuple[int, str]] = []

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        WHOSE.set("the sender's")

        def submit(version: int, *, urgent: bool = True, at_once: bool = False) -> None:
            journal.submit(
                append("queue:a", version),
                lambda _: answered.append((version, WHOSE.get())),
                loop,
                urgent=urgent,
                at_once=at_once,
            )

        submit(0, urgent=False)
        assert answered == []
        submit(1, at_once=True)
        assert answered == [(0, "nobody's"), (1, "nobody's")]
        submit(2, at_once=True)
        assert [len(batch) for batch in writer.batches] == [2, 1]
        assert len(answered) == 3
        await settled()
        assert (len(answered), writer.waited_for, log.slow) == (3, [1, 2], [])

    run(story)


def test_what_is_to_be_done_at_once_waits_for_what_was_planned(writer: Writer, journal: Journal) -> None:
    """Given an append that waits for the end of the iteration, when another is to be done at once, then they are one
    batch, at the end of the iteration."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        journal.submit(append("queue:b", 0), answers, loop, at_once=True)
        assert (answers.errors, writer.batches) == ([], [])
        await settled()
        assert (answers.errors, [len(batch) for batch in writer.batches]) == ([None, None], [2])

    run(story)


def test_what_is_to_be_done_at_once_is_not_where_the_disk_is_slow(writer: Writer, journal: Journal) -> None:
    """Given a disk that is not quick now, then the submission does not wait for it, and is answered when that ends."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.waits = False
        journal.submit(append("queue:a", 0), answers, loop, at_once=True)
        await settled()
        assert (answers.errors, len(writer.batches), writer.waited_for) == ([], 1, [])
        writer.end()
        await until(lambda: answers.errors == [None])

    run(story)


@pytest.mark.parametrize("survive", [0, 1])
def test_an_error_at_once_is_left_to_the_thread(log: QuickLog, writer: Writer, journal: Journal, survive: int) -> None:
    """Given a write that fails, whether it is found in the log after that or not, then the submission is over with no
    answer, and the thread gives the right one."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.write_error, writer.survive = OSError("the disk refuses"), survive
        journal.submit(append("queue:a", 0), answers, loop, at_once=True)
        assert answers.errors == []
        await until(lambda: len(answers.errors) == 1)
        assert answers.errors == [None]
        assert log.stream_version("queue:a") == 1
        assert len(log.slow) == 1 - survive

    run(story)


def test_what_nobody_waits_for_is_answered_when_its_hold_is_over(log: QuickLog, writer: Writer) -> None:
    """Given appends that nobody waits for, and nothing else, then they are written and waited for when it is time."""
    journal = Journal.start(log, hold_seconds=0.0)

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        WHOSE.set("the sender's")
        journal.submit(append("queue:a", 0), lambda _: answers(None if WHOSE.get() == "nobody's" else KeyError()), loop)
        journal.submit(append("queue:a", 1), answers, loop, urgent=False)
        await until(lambda: len(answers.errors) == 2)
        journal.submit(append("queue:a", 2), answers, loop, urgent=False)
        await until(lambda: len(answers.errors) == 3)
        assert answers.errors == [None] * 3
        assert writer.waited_for == [1, 2]

    run(story)
    journal.stop_and_close()


def test_a_disk_that_is_slow_now_is_waited_for_by_the_kernel(writer: Writer, journal: Journal) -> None:
    """Given a disk that is not quick any more, then syncs are begun and the loop goes on meanwhile, and everything is
    answered in its order; when the disk is quick again, it is waited for, after what was under way."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        order: list[int] = []

        def submit(version: int) -> None:
            journal.submit(append("queue:a", version), lambda _: order.append(version), loop)

        submit(0)
        await until(lambda: order == [0])
        writer.waits = False
        submit(1)
        await settled()
        assert (order, writer.waited_for) == ([0], [1])
        writer.waits = True
        submit(2)
        await settled()
        assert (order, writer.waited_for, len(writer.batches)) == ([0], [1], 3)
        submit(3)
        await settled()
        assert len(writer.batches) == 3, "as much is under way as may be"
        writer.end(2)
        await until(lambda: order == [0, 1, 2, 3])
        assert writer.waited_for == [1, 4]

    run(story)


def test_more_than_one_batch_takes_is_written_in_one_go(
    log: QuickLog, writer: Writer, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given more events in one iteration than go into one batch, then the loop goes on with the rest by itself."""
    # A machine that is busy may take longer for them than a loop that writes may stand still.
    monkeypatch.setattr(journal_module, "WATCH_SECONDS", PATIENCE)

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        for version in range(MOST_EVENTS_ON_LOOP + 1):
            journal.submit(append("queue:a", version), answers, loop)
        await settled()
        assert len(answers.errors) == MOST_EVENTS_ON_LOOP + 1
        assert [len(batch) for batch in writer.batches] == [MOST_EVENTS_ON_LOOP, 1]
        assert log.slow == []

    run(story)


def test_answers_keep_their_order_however_many_follow_what_the_thread_posted(writer: Writer, journal: Journal) -> None:
    """Given an answer that the thread has posted, the end of a sync, and a hold that is over, all in one iteration,
    then the appends are answered in the order in which they were submitted."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        order: list[int] = []

        def submit(version: int, *, urgent: bool = True) -> None:
            journal.submit(append("queue:a", version), lambda _: order.append(version), loop, urgent=urgent)

        writer.waits = False
        submit(0, urgent=False)
        journal.flush(PATIENCE)
        await until(lambda: order == [0])
        submit(1)
        submit(2, urgent=False)
        writer.waits = True
        writer.end(1)
        assert journal._on_loop is not None
        stay = journal._on_loop._stay
        assert stay is not None
        journal._on_loop._on_synced(stay)
        journal._on_loop._end_hold(stay)
        await until(lambda: len(order) == 3)
        assert order == [0, 1, 2]

    run(story)


def test_a_loop_that_is_left_does_nothing_any_more(log: QuickLog, writer: Writer) -> None:
    """Given a loop that ended with a hold and a write still planned, and another that took over, when the first runs
    again, then it answers for nobody; what is submitted on the other is written and answered there."""
    journal = Journal.start(log, hold_seconds=0.0)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    answers = Answers()

    async def submits(version: int, urgent: bool) -> None:
        journal.submit(append("queue:a", version), answers, asyncio.get_running_loop(), urgent=urgent)

    first.run_until_complete(submits(0, urgent=False))
    first.run_until_complete(submits(1, urgent=True))
    journal.flush(PATIENCE)
    second.run_until_complete(submits(2, urgent=True))
    waited_for = list(writer.waited_for)
    first.run_until_complete(settled())
    assert writer.waited_for == waited_for
    assert journal._on_loop is not None
    assert journal._on_loop._stay is not None
    assert journal._on_loop._stay.loop is second
    second.run_until_complete(settled())
    assert answers.errors == [None] * 3
    assert log.stream_version("queue:a") == 3
    journal.stop_and_close()
    first.close()
    second.close()


def test_an_interruption_of_what_was_planned_is_made_good(writer: Writer, journal: Journal) -> None:
    """Given a planned write that never began, because Ctrl-C came first, then the thread writes it, and the loop goes
    on writing after that."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: answers.errors)
        assert journal._on_loop is not None
        stay = journal._on_loop._stay
        assert stay is not None
        stay.planned = True
        journal.submit(append("queue:a", 1), answers, loop)
        await until(lambda: len(answers.errors) == 2)
        journal.submit(append("queue:a", 2), answers, loop)
        await until(lambda: len(answers.errors) == 3)
        assert writer.batches[-1][0].expected_version == 2

    run(story)


@pytest.mark.parametrize("survive", [0, 1])
@pytest.mark.parametrize("step", ["write", "sync"])
def test_a_failure_is_found_out_about_by_the_thread(
    log: QuickLog, writer: Writer, journal: Journal, step: str, survive: int
) -> None:
    """Given an error while a batch is written, or its disk is waited for, then the thread asks the log what became of
    it, the batch is in the log once, and the loop waits again the next time."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.survive = survive
        if step == "write":
            writer.write_error = OSError(5, "the disk is on fire")
        else:
            writer.begin_error = OSError(5, "the disk is on fire")
        journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: answers.errors)
        assert (answers.errors, writer.waited_for) == ([None], [])
        writer.write_error = writer.begin_error = None
        # While it has the turn, what is submitted is left to it.
        await until(lambda: not journal._intake.turn.locked())
        journal.submit(append("queue:a", 1), answers, loop)
        await until(lambda: len(answers.errors) == 2)
        assert answers.errors == [None] * 2
        assert [record.version for record in log.read_stream("queue:a")] == [1, 2]
        assert len(log.slow) == 1 - survive
        assert writer.waited_for == [2]

    run(story)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("survive", [0, 1])
def test_an_interruption_while_waiting_loses_nothing(
    log: QuickLog, writer: Writer, journal: Journal, survive: int
) -> None:
    """Given Ctrl-C while the disk is waited for, then it ends the loop, and the batch is in the log once; a later loop
    goes on, and its disk is waited for."""
    answers = Answers()

    async def interrupted(loop: asyncio.AbstractEventLoop) -> None:
        writer.begin_error, writer.survive = KeyboardInterrupt(), survive
        # Whoever waits for this one ends with the loop.
        journal.submit(append("queue:a", 0), Answers(), loop)
        await until(lambda: False)

    async def later(loop: asyncio.AbstractEventLoop) -> None:
        writer.begin_error = None
        journal.flush(PATIENCE)
        journal.submit(append("queue:a", 1), answers, loop)
        await until(lambda: answers.errors)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
    run(later)
    assert answers.errors == [None]
    assert [record.version for record in log.read_stream("queue:a")] == [1, 2]
    assert writer.waited_for == [2]
