"""The journal commits in groups, and answers every append once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpreg_mq.actors.journal import Journal
from mpreg_mq.actors.submissions import MAX_APPENDS_PER_COMMIT
from mpreg_mq.errors import EventLogError, VersionConflictError
from mpreg_mq.events import MemoryEventLog, SQLiteEventLog
from tests.support.journals import PATIENCE, Answers, GatedLog, append, hold


@pytest.fixture
def log() -> GatedLog:
    return GatedLog()


@pytest.fixture
def journal(log: GatedLog) -> Iterator[Journal]:
    journal = Journal.start(log)
    yield journal
    log.gate.set()
    journal.stop_and_close()


# --- committing ---------------------------------------------------------------------------------------------


def test_an_append_is_answered_after_its_commit(log: GatedLog, journal: Journal) -> None:
    """Given an append, when on_done is called without an error, then the log holds its events."""
    held: list[int] = []
    journal.submit(append("queue:a", 0), lambda error: held.append(log.stream_version("queue:a")), None)
    journal.flush(PATIENCE)
    assert held == [1]


def test_appends_that_gather_are_committed_together(log: GatedLog, journal: Journal) -> None:
    """Given 1000 appends of many queues submitted during a commit, then they go into one transaction, in order."""
    answers = Answers()
    hold(log, journal)
    appends = [append(f"queue:{number % 10}", number // 10) for number in range(1000)]
    for one in appends:
        journal.submit(one, answers, None)
    log.gate.set()
    journal.flush(PATIENCE)
    assert log.transactions[1:] == [appends]
    assert answers.errors == [None] * 1000


def test_a_transaction_has_a_limit(log: GatedLog, journal: Journal) -> None:
    """Given more appends than one transaction takes, then they are split, and none is lost or moved."""
    hold(log, journal)
    answers = Answers()
    count = MAX_APPENDS_PER_COMMIT * 2 + 10
    for version in range(count):
        journal.submit(append("queue:a", version), answers, None)
    log.gate.set()
    journal.flush(PATIENCE)
    assert [len(batch) for batch in log.transactions[1:]] == [MAX_APPENDS_PER_COMMIT, MAX_APPENDS_PER_COMMIT, 10]
    assert answers.errors == [None] * count
    assert log.stream_version("queue:a") == count


def test_one_append_alone_needs_no_company(log: GatedLog, journal: Journal) -> None:
    """Given appends one at a time, then each is committed as it comes."""
    for version in range(5):
        journal.submit(append("queue:a", version), Answers(), None)
        journal.flush(PATIENCE)
    assert [len(batch) for batch in log.transactions] == [1] * 5


def test_threads_submit_at_once(log: GatedLog, journal: Journal) -> None:
    """Given many threads that submit for their own streams, then every append is committed and answered once."""
    answers = [Answers() for _ in range(8)]

    def work(number: int) -> None:
        for version in range(500):
            journal.submit(append(f"queue:{number}", version), answers[number], None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.flush(PATIENCE)
    assert all(one.errors == [None] * 500 for one in answers)
    assert log.last_position() == 4000


def test_a_disk_log_is_written_by_the_journal(tmp_path: Path) -> None:
    """Given an SQLite log, then what was submitted is in its file after the journal stopped."""
    journal = Journal.start(SQLiteEventLog(tmp_path / "log.db"))
    answers = Answers()
    for version in range(100):
        journal.submit(append("queue:a", version), answers, None)
    journal.stop_and_close()
    assert answers.errors == [None] * 100
    again = SQLiteEventLog(tmp_path / "log.db")
    assert again.stream_version("queue:a") == 100
    again.close()


# --- failing ------------------------------------------------------------------------------------------------


def test_one_queues_conflict_fails_no_other(log: GatedLog, journal: Journal) -> None:
    """Given a transaction with one append that does not fit, then only that one gets an error, its own."""
    good, bad = Answers(), Answers()
    hold(log, journal)
    journal.submit(append("queue:a", 0), good, None)
    journal.submit(append("queue:b", 7), bad, None)
    journal.submit(append("queue:a", 1), good, None)
    journal.submit(append("queue:c", 0), good, None)
    log.gate.set()
    journal.flush(PATIENCE)
    assert good.errors == [None] * 3
    assert [type(error) for error in bad.errors] == [VersionConflictError]
    assert (log.stream_version("queue:a"), log.stream_version("queue:b"), log.stream_version("queue:c")) == (2, 0, 1)


@pytest.mark.parametrize("failure", [EventLogError("disk full"), ZeroDivisionError("bug"), SystemExit(3)])
def test_whatever_the_log_raises_is_answered_and_survived(
    log: GatedLog, journal: Journal, failure: BaseException
) -> None:
    """Given a log that raises anything, then every append is told, and the journal works on when the log does."""
    answers = Answers()
    hold(log, journal)
    log.failure = failure
    for version in range(3):
        journal.submit(append("queue:a", version), answers, None)
    log.gate.set()
    journal.flush(PATIENCE)
    assert answers.errors == [failure] * 3
    log.failure = None
    journal.submit(append("queue:a", 0), answers, None)
    journal.flush(PATIENCE)
    assert answers.errors[3] is None


@pytest.mark.parametrize("raised", [ValueError("mine"), SystemExit(3)])
def test_a_completion_that_raises_stops_no_other(
    log: GatedLog, journal: Journal, caplog: pytest.LogCaptureFixture, raised: BaseException
) -> None:
    """Given an on_done that raises, then it is logged, and the others of its transaction and later ones are called."""
    answers = Answers()

    def fails(error: BaseException | None) -> None:
        raise raised

    hold(log, journal)
    journal.submit(append("queue:a", 0), fails, None)
    journal.submit(append("queue:a", 1), answers, None)
    with caplog.at_level(logging.ERROR, logger="mpreg_mq"):
        log.gate.set()
        journal.flush(PATIENCE)
        journal.submit(append("queue:a", 2), answers, None)
        journal.flush(PATIENCE)
    assert answers.errors == [None, None]
    assert "queue:a" in caplog.text


# --- answering on loops -------------------------------------------------------------------------------------


def test_completions_run_on_their_loop_with_one_wake_up(log: GatedLog, journal: Journal) -> None:
    """Given appends submitted from an event loop, then their completions run on its thread, all in one call."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake_ups: list[object] = []
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counting(*arguments: object, **options: object) -> object:
            wake_ups.append(arguments)
            return call_soon_threadsafe(*arguments, **options)  # type: ignore[arg-type]

        hold(log, journal)
        loop.call_soon_threadsafe = counting  # type: ignore[method-assign,assignment]
        answers = Answers()
        done = asyncio.Event()
        for version in range(100):
            journal.submit(append("queue:a", version), answers, loop)
        journal.submit(append("queue:a", 100), lambda error: done.set(), loop)
        log.gate.set()
        await asyncio.wait_for(done.wait(), PATIENCE)
        assert answers.errors == [None] * 100
        assert answers.threads == {threading.get_ident()}
        assert len(wake_ups) == 1

    asyncio.run(main())


def test_each_loop_gets_its_own_completions(log: GatedLog, journal: Journal) -> None:
    """Given appends of two event loops and of none in one transaction, then each is answered in its own place."""
    answers = {name: Answers() for name in ("first", "second", "none")}
    ready = threading.Barrier(3)

    def of_loop(name: str) -> None:
        async def main() -> None:
            done = asyncio.Event()
            loop = asyncio.get_running_loop()
            journal.submit(append(f"queue:{name}", 0), answers[name], loop)
            journal.submit(append(f"queue:{name}", 1), lambda error: done.set(), loop)
            ready.wait(PATIENCE)
            await asyncio.wait_for(done.wait(), PATIENCE)
            assert answers[name].threads == {threading.get_ident()}

        asyncio.run(main())

    hold(log, journal)
    threads = [threading.Thread(target=of_loop, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    journal.submit(append("queue:none", 0), answers["none"], None)
    ready.wait(PATIENCE)
    log.gate.set()
    for thread in threads:
        thread.join()
    journal.flush(PATIENCE)
    assert [one.errors for one in answers.values()] == [[None]] * 3
    assert len({thread for one in answers.values() for thread in one.threads}) >= 2
    assert len(log.transactions) == 2


def test_a_closed_loop_loses_no_completion(log: GatedLog, journal: Journal) -> None:
    """Given a loop that closed before the commit, then its completions run on the journal's thread."""
    loop = asyncio.new_event_loop()
    answers, on_journal = Answers(), Answers()
    hold(log, journal)
    journal.submit(append("queue:a", 0), answers, loop)
    journal.submit(append("queue:a", 1), on_journal, None)
    loop.close()
    log.gate.set()
    journal.flush(PATIENCE)
    assert answers.errors == [None]
    assert answers.threads == on_journal.threads
    assert threading.get_ident() not in answers.threads


# --- flushing and stopping ----------------------------------------------------------------------------------


def test_flush_waits_for_what_was_submitted_before(log: GatedLog, journal: Journal) -> None:
    """Given a commit under way, then a flush times out; when it is over, everything before is committed."""
    hold(log, journal)
    answers = Answers()
    journal.submit(append("queue:a", 0), answers, None)
    with pytest.raises(TimeoutError, match=r"memory:.*more than 0\.01 s"):
        journal.flush(0.01)
    assert answers.errors == []
    log.gate.set()
    journal.flush()
    assert answers.errors == [None]


def test_flush_posts_completions_to_loops_before_it_returns(log: GatedLog, journal: Journal) -> None:
    """Given a flush on a loop's own thread, then the loop's next turn runs the completions of all before it."""

    async def main() -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, asyncio.get_running_loop())
        journal.flush(PATIENCE)
        await asyncio.sleep(0)
        assert answers.errors == [None]

    asyncio.run(main())


def test_the_journals_own_thread_cannot_wait_for_itself(log: GatedLog, journal: Journal) -> None:
    """Given a completion that flushes or stops the journal, then it raises instead of hanging."""
    raised: list[str] = []

    def waits(error: BaseException | None) -> None:
        for wait in (journal.flush, journal.stop_and_close):
            try:
                wait()
            except RuntimeError as problem:
                raised.append(str(problem))

    journal.submit(append("queue:a", 0), waits, None)
    journal.flush(PATIENCE)
    assert [text.split(":")[0] for text in raised] == ["flush", "stop_and_close"]


def test_stopping_commits_everything_and_closes_the_log(log: GatedLog, journal: Journal) -> None:
    """Given appends that wait, when the journal is stopped, then all are committed and answered first (C3)."""
    hold(log, journal)
    answers = Answers()
    for version in range(MAX_APPENDS_PER_COMMIT + 100):
        journal.submit(append("queue:a", version), answers, None)
    stopper = threading.Thread(target=journal.stop_and_close)
    stopper.start()
    log.gate.set()
    stopper.join(PATIENCE)
    assert answers.errors == [None] * (MAX_APPENDS_PER_COMMIT + 100)
    assert log.closed


def test_stopping_can_be_repeated(log: GatedLog, journal: Journal) -> None:
    """Given a stopped journal, then stopping and flushing it again return at once."""
    journal.stop_and_close()
    journal.stop_and_close()
    journal.flush(PATIENCE)
    assert log.closed


def test_a_stop_through_pykka_commits_as_well(log: GatedLog, journal: Journal) -> None:
    """Given an actor that is stopped by pykka's registry, then what was submitted is committed, not dropped."""
    hold(log, journal)
    answers = Answers()
    journal.submit(append("queue:a", 0), answers, None)
    journal._actor.stop(block=False)
    journal.submit(append("queue:a", 1), answers, None)
    log.gate.set()
    journal.flush(PATIENCE)
    assert answers.errors == [None, None]


def test_after_a_stop_appends_are_refused_not_lost(log: GatedLog, journal: Journal) -> None:
    """Given a stopped journal, then an append's completion gets an error: on its loop, or else in the call."""
    journal.stop_and_close()
    here = Answers()
    journal.submit(append("queue:a", 0), here, None)
    assert [type(error) for error in here.errors] == [EventLogError]
    assert "journal of memory: is stopped" in str(here.errors[0])

    async def main() -> None:
        answers = Answers()
        journal.submit(append("queue:a", 0), answers, asyncio.get_running_loop())
        assert answers.errors == []
        await asyncio.sleep(0)
        assert [type(error) for error in answers.errors] == [EventLogError]

    asyncio.run(main())


@pytest.mark.parametrize("attempt", range(20))
def test_appends_that_race_with_a_stop_are_answered_once(attempt: int) -> None:
    """Given threads that submit while the journal stops, then each append is answered once, and truly."""
    log = MemoryEventLog()
    journal = Journal.start(log)
    answers = [Answers() for _ in range(4)]
    started = threading.Barrier(5)

    def work(number: int) -> None:
        started.wait()
        for version in range(50 + attempt):
            journal.submit(append(f"queue:{number}", version), answers[number], None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    journal.stop_and_close()
    for thread in threads:
        thread.join()
    journal.flush(PATIENCE)
    assert [len(one.errors) for one in answers] == [50 + attempt] * 4
    committed = sum(error is None for one in answers for error in one.errors)
    assert committed == log._last_position()


# --- tasks --------------------------------------------------------------------------------------------------


def test_a_task_is_done_after_what_was_submitted_before(log: GatedLog, journal: Journal) -> None:
    """Given appends and a task between them, then the task finds what was submitted before it in the log."""
    found: list[int] = []
    hold(log, journal)
    journal.submit(append("queue:a", 0), Answers(), None)
    journal.do(lambda: found.append(log.stream_version("queue:a")))
    assert found == []
    log.gate.set()
    journal.flush(PATIENCE)
    assert found == [1]


def test_a_task_is_done_before_what_is_submitted_later(log: GatedLog, journal: Journal) -> None:
    """Given an append that fails, a task, and an append that takes the place of the first, when they wait for one
    commit, then the task does not find the events of the second: a state that was to be saved is not theirs (I4)."""
    found: list[int] = []
    answers = Answers()
    hold(log, journal)
    journal.submit(append("queue:a", 1), answers, None)
    journal.do(lambda: found.append(log.stream_version("queue:a")))
    journal.submit(append("queue:a", 0), answers, None)
    log.gate.set()
    journal.flush(PATIENCE)
    assert found == [0]
    assert [type(error) for error in answers.errors] == [VersionConflictError, type(None)]
    assert log.stream_version("queue:a") == 1


def test_a_task_that_raises_stops_nothing(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """Given a task that raises, then that is logged, and appends and tasks after it are done."""
    done: list[str] = []
    answers = Answers()

    def fail() -> None:
        raise SystemExit("task")

    with caplog.at_level(logging.CRITICAL, "mpreg_mq"):
        journal.do(fail)
        journal.submit(append("queue:a", 0), answers, None)
        journal.do(lambda: done.append("after"))
        journal.flush(PATIENCE)
    assert answers.errors == [None]
    assert done == ["after"]
