"""The simulated disk, and the journal that writes to it in steps of a loop."""

from __future__ import annotations

import pytest

from mpreg_mq.actors.store import Store
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Append
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.testing.disk import SimulatedDisk, SimulatedJournal
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
