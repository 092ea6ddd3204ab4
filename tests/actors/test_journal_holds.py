"""The journal commits what nobody waits for together with what somebody waits for, and soon."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mpreg_mq.actors.journal import Journal
from mpreg_mq.actors.submissions import MAX_APPENDS_PER_COMMIT
from tests.support.journals import PATIENCE, Answers, GatedLog, append, hold

FOR_EVER = 3600.0
"""A hold that only its end by another cause can end, within a test's patience."""


@pytest.fixture
def log() -> GatedLog:
    return GatedLog()


@pytest.fixture
def patient(log: GatedLog) -> Iterator[Journal]:
    """A journal that leaves what nobody waits for alone."""
    journal = Journal.start(log, hold_seconds=FOR_EVER)
    yield journal
    log.gate.set()
    journal.stop_and_close()


def test_what_nobody_waits_for_goes_with_what_somebody_waits_for(log: GatedLog, patient: Journal) -> None:
    """Given an append that nobody waits for, then it causes no commit, and goes with the next that is waited for."""
    held, urgent = Answers(), Answers()
    for version in range(3):
        patient.submit(append("queue:a", version), held, None, urgent=False)
    patient.submit(append("queue:a", 3), urgent, None)
    assert urgent.came.wait(PATIENCE)
    assert [len(batch) for batch in log.transactions] == [4]
    assert held.errors == [None] * 3
    assert urgent.errors == [None]


def test_what_nobody_waits_for_stands_in_nobodys_way(log: GatedLog, patient: Journal) -> None:
    """Given one that is submitted during a commit, then no commit of its own comes before the next urgent append."""
    held, committed, urgent = Answers(), Answers(), Answers()
    log.gate.clear()
    patient.submit(append("queue:b", 0), committed, None)
    assert log.entered.wait(PATIENCE)
    patient.submit(append("queue:a", 0), held, None, urgent=False)
    log.gate.set()
    assert committed.came.wait(PATIENCE)
    patient.submit(append("queue:b", 1), urgent, None)
    assert urgent.came.wait(PATIENCE)
    assert [[one.stream for one in batch] for batch in log.transactions] == [["queue:b"], ["queue:a", "queue:b"]]


def test_what_nobody_waits_for_waits_at_most_so_long(log: GatedLog) -> None:
    """Given nothing else to commit, then it is committed by itself when the hold is over, again and again."""
    journal = Journal.start(log, hold_seconds=0.0)
    try:
        for version in range(20):
            held = Answers()
            journal.submit(append("queue:a", version), held, None, urgent=False)
            assert held.came.wait(PATIENCE)
        assert [len(batch) for batch in log.transactions] == [1] * 20
    finally:
        journal.stop_and_close()


@pytest.mark.parametrize("end", ["flush", "task", "stop"])
def test_what_nobody_waits_for_is_taken_along(log: GatedLog, patient: Journal, end: str) -> None:
    """Given one that is held, then a flush, a task and a stop find it in the log."""
    held = Answers()
    patient.submit(append("queue:a", 0), held, None, urgent=False)
    if end == "flush":
        patient.flush(PATIENCE)
    elif end == "task":
        found: list[int] = []
        done = threading.Event()

        def look() -> None:
            found.append(log.stream_version("queue:a"))
            done.set()

        patient.do(look)
        assert done.wait(PATIENCE)
        assert found == [1]
        patient.flush(PATIENCE)
    else:
        patient.stop()
    assert held.errors == [None]
    assert log.stream_version("queue:a") == 1


def test_somebody_who_waits_behind_a_full_commit_is_not_held(log: GatedLog, patient: Journal) -> None:
    """Given more held appends than one commit takes and an urgent one behind them, then all are committed at once."""
    held, done = Answers(), threading.Event()
    hold(log, patient)
    for version in range(MAX_APPENDS_PER_COMMIT):
        patient.submit(append("queue:a", version), held, None, urgent=False)
    patient.submit(append("queue:a", MAX_APPENDS_PER_COMMIT), lambda error: done.set(), None)
    log.gate.set()
    assert done.wait(PATIENCE)
    assert [len(batch) for batch in log.transactions] == [1, MAX_APPENDS_PER_COMMIT, 1]
