"""The simulated disk, and the journal that writes to it in steps of a loop."""

from __future__ import annotations

import pytest

from mpreg_mq.actors.store import Store
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Append, Snapshot
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.testing.disk import EVENT_BYTES, SimulatedDisk, SimulatedJournal, SimulatedLog, Synchronous, Writing
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


# --- what a power cut takes, and what is cut off ------------------------------------------------------------


@pytest.mark.parametrize(
    ("synchronous", "checkpoint", "least"),
    [
        (Synchronous.FULL, False, 3),
        (Synchronous.NORMAL, False, 0),
        (Synchronous.NORMAL, True, 2),
        (Synchronous.OFF, True, 0),
    ],
)
def test_a_power_cut_takes_what_the_disk_was_not_made_to_keep(
    synchronous: Synchronous, checkpoint: bool, least: int
) -> None:
    """Given three commits, with or without a checkpoint after the second, when the power fails, then as many of the
    first ones are there as must be, at least; with FULL all of them are."""
    disk = SimulatedDisk(
        survivors=lambda least, most: least,
        synchronous=synchronous,
        checkpoint=lambda: checkpoint and disk.commits == 2,
    )
    log = disk.open(SimulatedLoop())
    for version in range(3):
        log.append((Append("s", version, (PAUSED,)),))
    disk.cut_power()
    with pytest.raises(EventLogError, match="crashed"):
        log.append((Append("s", 3, (PAUSED,)),))
    assert len(disk.records()) == least
    assert disk.open(SimulatedLoop()).stream_version("s") == least


def test_snapshots_and_cuts_are_on_the_disk() -> None:
    """Given a log with a snapshot whose beginning is cut, when its process crashes, then the next one finds the
    snapshot and the base, and nothing before it; all events are still known to the disk."""
    disk = SimulatedDisk()
    log = disk.open(SimulatedLoop())
    log.append((Append("s", 0, (PAUSED, e.QueueResumed(2.0), PAUSED)),))
    log.save_snapshot(Snapshot("s", 3, b"three"))
    log.truncate(2, {"s": Snapshot("s", 2, b"two")})
    log.crash()
    found = disk.open(SimulatedLoop())
    assert [snapshot.body for snapshot in found.snapshots("s")] == [b"three", b"two"]
    assert (found.base_position(), found.base_version("s"), found.last_position()) == (2, 2, 3)
    assert [record.position for record in found.read_all()] == [3]
    assert found.size_bytes() == EVENT_BYTES
    assert [record.position for record in disk.records()] == [1, 2, 3]


def test_a_power_cut_takes_a_cut_with_what_came_after_it() -> None:
    """Given a cut that a power cut takes, then the events before it are there again."""
    disk = SimulatedDisk(survivors=lambda least, most: 1, synchronous=Synchronous.OFF)
    log = disk.open(SimulatedLoop())
    log.append((Append("s", 0, (PAUSED,)),))
    log.truncate(1, {"s": Snapshot("s", 1, b"one")})
    disk.cut_power()
    assert disk.open(SimulatedLoop()).base_position() == 0


@pytest.mark.parametrize("done", [0, 1])
def test_a_cut_that_was_refused_may_have_been_done(done: int) -> None:
    """Given a disk that refuses a cut, then whoever asked for it is told, and the log says whether it was done."""
    failing = False

    def fault() -> None:
        if failing:
            raise EventLogError("simulated: the disk is on fire")

    disk = SimulatedDisk(fault=fault, survivors=lambda least, most: done)
    log = disk.open(SimulatedLoop())
    log.append((Append("s", 0, (PAUSED,)),))
    failing = True
    with pytest.raises(EventLogError, match="on fire"):
        log.truncate(1, {"s": Snapshot("s", 1, b"one")})
    assert log.base_position() == done
    assert disk.open(SimulatedLoop()).base_position() == done


def test_what_the_loop_wrote_comes_to_the_disk_with_a_commit_of_others() -> None:
    """Given a batch whose sync has not ended, then it cannot be cut off; when somebody else saves a snapshot, it is on
    the disk, once."""
    disk, loop = SimulatedDisk(latency=lambda: 1.0, survivors=lambda least, most: least), SimulatedLoop()
    log, store = on_loop(disk, loop)
    outcomes: list[BaseException | None] = []
    submit(loop, store, 0, outcomes)
    loop.run(seconds=0.1)
    assert (log.last_position(), log.record_end(1), disk.commits) == (1, 0, 0)
    log.save_snapshot(Snapshot("s", 1, b"one"))
    assert (log.record_end(1), disk.commits, outcomes) == (1, 2, [])
    loop.run(seconds=2.0)
    assert (len(disk.records()), disk.commits, outcomes) == (1, 2, [None])
    submit(loop, store, 1, outcomes)
    loop.run(seconds=0.1)
    log.save_snapshot(Snapshot("s", 2, b"two"))
    log.crash()
    assert len(disk.records()) == 2


def test_a_log_that_a_power_cut_can_shorten_is_not_written_by_the_loop() -> None:
    """Given another mode than FULL, then the log has nothing that the loop could write with."""
    disk = SimulatedDisk(synchronous=Synchronous.NORMAL)
    assert disk.open(SimulatedLoop(), writing=Writing.LOOP).quick_writer() is None
