"""The simulated disk, and the journal that writes to it in steps of a loop."""

from __future__ import annotations

import pytest

from mpreg_mq.actors.store import Store
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Append
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.testing.disk import SimulatedDisk, SimulatedJournal, SimulatedLog, Writing
from mpreg_mq.testing.loop import SimulatedLoop

PAUSED = e.QueuePaused(1.0)


def test_what_was_appended_survives_a_crash() -> None:
    """Given appended events, when the process crashes, then the next one reads them and the old one writes no more."""
    disk, loop = SimulatedDisk(), SimulatedLoop()
    old = disk.open(loop)
    old.append((Append("s", 0, (PAUSED, e.QueueResumed(2.0))),))
    before = disk.hash()
    new = disk.open(loop)
    assert [record.event for record in new.read_stream("s")] == [PAUSED, e.QueueResumed(2.0)]
    with pytest.raises(EventLogError, match="crashed"):
        old.append((Append("s", 2, (PAUSED,)),))
    assert disk.hash() == before


def test_what_was_only_submitted_is_lost_in_a_crash() -> None:
    """Given an append that the journal has not written, when the process crashes, then it is not there."""
    disk, loop = SimulatedDisk(latency=lambda: 1.0), SimulatedLoop()
    log = disk.open(loop)
    store = Store(log, SimulatedJournal.start(log))
    outcomes: list[BaseException | None] = []
    store.submit("s", 0, (PAUSED,), outcomes.append, loop)
    loop.run(seconds=0.5)
    assert outcomes == []
    log.crash()
    assert disk.records() == []


def test_a_commit_takes_the_disks_time() -> None:
    """Given a slow disk, then completions come after its latency, and a flush does not wait for it."""
    disk, loop = SimulatedDisk(latency=lambda: 1.0), SimulatedLoop()
    log = disk.open(loop)
    store = Store(log, SimulatedJournal.start(log))
    outcomes: list[BaseException | None] = []
    store.submit("s", 0, (PAUSED,), outcomes.append, loop)
    loop.run(seconds=0.9)
    assert outcomes == []
    loop.run(seconds=0.2)
    assert outcomes == [None]
    store.append("s", 1, (PAUSED,))
    assert disk.commits == 2
    store.stop()


def test_a_refusing_disk_keeps_nothing() -> None:
    """Given a disk that refuses, then the append fails, and nothing of it is there."""

    def refuse() -> None:
        raise EventLogError("full")

    disk = SimulatedDisk(fault=refuse)
    log = disk.open(SimulatedLoop())
    with pytest.raises(EventLogError, match="full"):
        log.append((Append("s", 0, (PAUSED,)),))
    assert (log.last_position(), disk.records()) == (0, [])


def test_other_logs_keep_their_own_journal() -> None:
    """Given a log that is not simulated, then its journal is the one with a thread."""
    journal = SimulatedJournal.start(MemoryEventLog())
    assert not isinstance(journal, SimulatedJournal)
    journal.stop_and_close()


# --- where the loop writes ----------------------------------------------------------------------------------


def on_loop(disk: SimulatedDisk, loop: SimulatedLoop, writing: Writing = Writing.LOOP) -> tuple[SimulatedLog, Store]:
    log = disk.open(loop, writing=writing)
    return log, Store(log, SimulatedJournal.start(log))


def submit(loop: SimulatedLoop, store: Store, version: int, outcomes: list[BaseException | None]) -> None:
    """As a task of the loop does."""
    loop.call_soon(lambda: store.submit("s", version, (PAUSED,), outcomes.append, loop))


def test_what_the_loop_writes_is_on_the_disk_when_it_is_answered() -> None:
    """Given a slow disk and a loop that writes, then what it wrote is readable at once, and on the disk when it has
    taken its time, which is when it is answered."""
    disk, loop = SimulatedDisk(latency=lambda: 1.0), SimulatedLoop()
    log, store = on_loop(disk, loop)
    outcomes: list[BaseException | None] = []
    submit(loop, store, 0, outcomes)
    loop.run(seconds=0.9)
    assert (log.last_position(), disk.commits, outcomes) == (1, 0, [])
    loop.run(seconds=0.2)
    assert (disk.commits, outcomes) == (1, [None])
    store.append("s", 1, (PAUSED,))
    assert disk.commits == 2
    store.stop()


def test_a_loop_that_waits_has_its_answer_when_the_time_has_passed() -> None:
    """Given a loop that waits for its disk, then nothing runs meanwhile, and the answer is there after it."""
    disk, loop = SimulatedDisk(latency=lambda: 1.0), SimulatedLoop()
    _, store = on_loop(disk, loop, Writing.WAITING)
    outcomes: list[BaseException | None] = []
    seen: list[float] = []
    submit(loop, store, 0, outcomes)
    loop.call_later(0.5, lambda: seen.append(loop.time()))
    loop.run(steps=2)
    assert (loop.time(), outcomes, disk.commits) == (1.0, [None], 1)
    loop.run(seconds=0.0)
    assert seen == [1.0]
    store.stop()


@pytest.mark.parametrize("survive", [0, 1, 2])
def test_a_crash_leaves_the_oldest_of_what_was_under_way(survive: int) -> None:
    """Given batches under way, when the process crashes, then so many of the oldest are there as the disk says, and
    nobody is told that one is."""
    disk = SimulatedDisk(latency=lambda: 1.0, survivors=lambda least, most: survive)
    loop = SimulatedLoop()
    log, store = on_loop(disk, loop)
    outcomes: list[BaseException | None] = []
    for version in range(2):
        submit(loop, store, version, outcomes)
        loop.run(seconds=0.1)
    assert log.last_position() == 2
    log.crash()
    loop.run(seconds=5.0)
    assert [record.version for record in disk.records()] == list(range(1, survive + 1))
    assert disk.open(SimulatedLoop()).last_position() == survive
    assert None not in outcomes


@pytest.mark.parametrize("writing", [Writing.LOOP, Writing.WAITING])
@pytest.mark.parametrize("survive", [0, 1])
@pytest.mark.parametrize("failing", [1, 2])
def test_what_failed_is_found_out_about(writing: Writing, survive: int, failing: int) -> None:
    """Given a write, or a sync, that fails, then the batch is on the disk once in the end, whether or not it was there
    already, and is answered."""
    asked = 0

    def fault() -> None:
        nonlocal asked
        asked += 1
        if asked == failing:
            raise EventLogError("simulated: the disk is on fire")

    disk = SimulatedDisk(fault=fault, survivors=lambda least, most: survive)
    loop = SimulatedLoop()
    log, store = on_loop(disk, loop, writing)
    outcomes: list[BaseException | None] = []
    submit(loop, store, 0, outcomes)
    loop.run(seconds=1.0)
    assert asked >= failing
    assert outcomes == [None]
    assert [record.version for record in disk.records()] == [1]
    assert [record.version for record in log.read_stream("s")] == [1]
    store.stop()


def test_a_loop_leaves_a_busy_disk_to_the_thread() -> None:
    """Given a log that others keep busy, then the journal writes, and everything is answered."""
    disk, loop = SimulatedDisk(busy=lambda: True), SimulatedLoop()
    _, store = on_loop(disk, loop)
    outcomes: list[BaseException | None] = []
    for version in range(3):
        submit(loop, store, version, outcomes)
        loop.run(seconds=0.1)
    assert outcomes == [None] * 3
    assert [record.version for record in disk.records()] == [1, 2, 3]
    store.stop()
