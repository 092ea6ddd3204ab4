"""A journal writes on the loop that submits, where its log can be written without waiting (S1)."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mpreg_mq.actors.journal import Journal
from mpreg_mq.actors.loop_writing import MOST_EVENTS_ON_LOOP
from mpreg_mq.errors import EventLogError, VersionConflictError
from mpreg_mq.events import Append
from tests.support.journals import PATIENCE, Answers, append, run, settled, until
from tests.support.numbered_events import event
from tests.support.quick_logs import QuickLog, Writer

# --- writing on the loop ------------------------------------------------------------------------------------


def test_an_append_is_written_here_and_answered_when_it_is_on_disk(
    log: QuickLog, writer: Writer, journal: Journal
) -> None:
    """Given an append that somebody waits for, then this thread writes it, and it is answered, on the loop, when its
    sync has ended and not before; no thread had to do anything."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await settled()
        assert writer.threads == {threading.get_ident()}
        assert answers.errors == []
        writer.end()
        await until(lambda: answers.errors)
        assert answers.errors == [None]
        assert answers.threads == {threading.get_ident()}
        assert (log.slow, writer.waited) == ([], 0)

    run(story)


def test_appends_gather_while_the_disk_is_at_work(writer: Writer, journal: Journal) -> None:
    """Given as many batches under way as may be, then what is submitted meanwhile waits, and goes together, in order,
    when one has ended."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        for version in range(2):
            journal.submit(append("queue:a", version), answers, loop)
            await settled()
        for version in range(2, 12):
            journal.submit(append("queue:a", version), answers, loop)
            await settled()
        assert [len(batch) for batch in writer.batches] == [1, 1]
        writer.end()
        await until(lambda: len(writer.batches) == 3)
        assert [one.expected_version for batch in writer.batches for one in batch] == list(range(12))
        assert len(writer.batches[2]) == 10
        await until(lambda: answers.errors == [None])
        writer.end(2)
        await until(lambda: answers.errors == [None] * 12)

    run(story)


def test_one_sync_may_bring_several_batches_to_disk(writer: Writer, journal: Journal) -> None:
    """Given two batches under way, when the disk has both at once, then both are answered, in order."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        order: list[int] = []
        for version in range(2):
            journal.submit(append("queue:a", version), lambda _, version=version: order.append(version), loop)  # type: ignore[misc]
            await settled()
        writer.end(2)
        await until(lambda: len(order) == 2)
        assert order == [0, 1]

    run(story)


def test_what_nobody_waits_for_goes_with_what_somebody_waits_for(writer: Writer, journal: Journal) -> None:
    """Given appends that nobody waits for, then they cause no batch, and go with the next that is waited for."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.at_once = True
        for version in range(3):
            journal.submit(append("queue:a", version), answers, loop, urgent=False)
            await settled()
        assert writer.batches == []
        journal.submit(append("queue:a", 3), answers, loop)
        await until(lambda: len(answers.errors) == 4)
        assert [len(batch) for batch in writer.batches] == [4]

    run(story)


def test_what_nobody_waits_for_waits_at_most_so_long(log: QuickLog, writer: Writer) -> None:
    """Given nothing else to write, then it is written by itself when the hold is over, again and again."""
    journal = Journal.start(log, hold_seconds=0.0)

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        writer.at_once = True
        for version in range(5):
            answers = Answers()
            journal.submit(append("queue:a", version), answers, loop, urgent=False)
            await until(lambda: answers.errors)  # noqa: B023
        assert [len(batch) for batch in writer.batches] == [1] * 5
        assert log.slow == []

    run(story)
    journal.stop_and_close()


def test_the_thread_does_what_was_put_off(writer: Writer, journal: Journal) -> None:
    """Given a log that wants to be tidied after a batch, then the journal's thread does it, and no loop."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        writer.at_once = writer.untidy = True
        journal.submit(append("queue:a", 0), Answers(), loop)
        await until(lambda: writer.tidied)
        assert writer.tidied != [threading.get_ident()]

    run(story)


# --- what is left to the thread -----------------------------------------------------------------------------


def test_what_would_have_to_wait_is_left_to_the_thread(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a log that cannot be written now without waiting, then the thread appends, in order, and everything is
    answered on the loop; when it can be again, the loop writes again."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.refuse = True
        for version in range(5):
            journal.submit(append("queue:a", version), answers, loop)
        await until(lambda: len(answers.errors) == 5)
        assert answers.errors == [None] * 5
        assert [one.expected_version for batch in log.slow for one in batch] == list(range(5))
        assert threading.get_ident() not in log.slow_threads
        writer.refuse, writer.at_once = False, True
        journal.flush(PATIENCE)
        journal.submit(append("queue:a", 5), answers, loop)
        await until(lambda: len(answers.errors) == 6)
        assert [len(batch) for batch in writer.batches] == [1]

    run(story)


def test_too_much_for_the_loop_is_left_to_the_thread(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given one append of more events than a loop should write at once between two small ones, then the thread writes
    it, and the order is kept."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.at_once = True
        many = tuple(event(number) for number in range(1, MOST_EVENTS_ON_LOOP + 2))
        journal.submit(append("queue:a", 0), answers, loop)
        journal.submit(Append("queue:a", 1, many), answers, loop)
        journal.submit(append("queue:a", 1 + len(many)), answers, loop)
        await until(lambda: len(answers.errors) == 3)
        assert answers.errors == [None] * 3
        assert len(many) in [len(one.events) for batch in log.slow for one in batch]
        assert log.stream_version("queue:a") == 2 + len(many)

    run(story)


def test_one_queues_conflict_fails_no_other(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a batch with one append that does not fit, then only that one gets an error, its own."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        good, bad = Answers(), Answers()
        writer.at_once = True
        journal.submit(append("queue:z", 0), good, loop, urgent=False)
        journal.submit(append("queue:b", 7), bad, loop, urgent=False)
        journal.submit(append("queue:a", 0), good, loop)
        await until(lambda: len(good.errors) == 2 and bad.errors)
        assert good.errors == [None] * 2
        assert [type(error) for error in bad.errors] == [VersionConflictError]
        assert (log.stream_version("queue:a"), log.stream_version("queue:b"), log.stream_version("queue:z")) == (
            1,
            0,
            1,
        )

    run(story)


@pytest.mark.parametrize("survive", [0, 1, 2])
def test_after_a_sync_that_failed_the_log_is_asked_what_it_has(
    log: QuickLog, writer: Writer, journal: Journal, survive: int
) -> None:
    """Given two batches under way when the disk refuses a sync, and so many of them found in the log, then those are
    answered so, and the others are appended again: each event is in the log once, and everything is answered once."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        for version in range(2):
            journal.submit(append("queue:a", version), answers, loop)
            await settled()
        journal.submit(append("queue:a", 2), answers, loop)
        writer.survive, writer.at_once = survive, True
        writer.fail(OSError(5, "the disk is on fire"))
        await until(lambda: len(answers.errors) == 3)
        assert answers.errors == [None] * 3
        assert answers.threads == {threading.get_ident()}
        assert [record.version for record in log.read_stream("queue:a")] == [1, 2, 3]
        again = [one.expected_version for batch in log.slow for one in batch if one.expected_version < 2]
        assert again == list(range(survive, 2))

    run(story)


@pytest.mark.parametrize("survive", [0, 1])
def test_what_was_under_way_is_older_than_what_was_refused(
    log: QuickLog, writer: Writer, journal: Journal, survive: int
) -> None:
    """Given a batch that could not be written without waiting, when the sync of the one before fails after that, then
    what the log has is taken for the older batch, and each is in the log once, in order."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await settled()
        writer.refuse = True
        journal.submit(append("queue:a", 1), answers, loop)
        await settled()
        writer.survive = survive
        writer.fail(OSError(5, "the disk is on fire"))
        await until(lambda: len(answers.errors) == 2)
        assert answers.errors == [None, None]
        assert [record.version for record in log.read_stream("queue:a")] == [1, 2]
        assert [one.expected_version for batch in log.slow for one in batch] == list(range(survive, 2))

    run(story)


@pytest.mark.parametrize("survive", [0, 1])
@pytest.mark.parametrize("step", ["write", "begin"])
def test_a_failure_on_the_loop_reaches_nobody_who_need_not_know(
    log: QuickLog, writer: Writer, journal: Journal, step: str, survive: int
) -> None:
    """Given an error while a batch is written, or while its sync is begun, then the thread finds out what became of it,
    and the batch is in the log once."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers = Answers()
        writer.survive = survive
        if step == "write":
            writer.write_error = EventLogError("it may have been written")
        else:
            writer.begin_error = OSError(11, "too many requests")
        journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: answers.errors)
        assert answers.errors == [None]
        assert [record.version for record in log.read_stream("queue:a")] == [1]
        assert len(log.slow) == 1 - survive

    run(story)


def test_what_cannot_be_found_out_is_answered_so(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given a failed sync and a log that cannot be asked, then everybody of that batch gets that error, and the journal
    goes on when the log does."""

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        answers, later = Answers(), Answers()
        journal.submit(append("queue:a", 0), answers, loop)
        await settled()
        writer.settle_error = EventLogError("whether the events are in the log is not known")
        writer.fail(OSError(5, "the disk is on fire"))
        await until(lambda: answers.errors)
        assert answers.errors == [writer.settle_error]
        writer.settle_error = None
        journal.submit(append("queue:b", 0), later, loop)
        await until(lambda: writer.doubtful or later.errors)
        if writer.doubtful:
            writer.end(len(writer.doubtful))
        await until(lambda: later.errors)
        assert later.errors == [None]

    run(story)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_while_writing_loses_nothing(log: QuickLog, writer: Writer, journal: Journal) -> None:
    """Given Ctrl-C in the middle of a write, then it reaches the program, and the batch is in the log once."""
    answers = Answers()
    writer.write_error = KeyboardInterrupt()

    async def story(loop: asyncio.AbstractEventLoop) -> None:
        with pytest.raises(KeyboardInterrupt):
            journal.submit(append("queue:a", 0), answers, loop)
        await until(lambda: answers.errors)

    run(story)
    assert answers.errors == [None]
    assert [record.version for record in log.read_stream("queue:a")] == [1]
