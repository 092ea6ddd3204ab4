"""Retention of a simulated log: the compactor's steps on a loop, and what is checked of a log that was cut."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration, RetentionPolicy
from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import Snapshot
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.testing.checks import check_what_is_left
from mpreg_mq.testing.disk import Cut, SimulatedDisk
from mpreg_mq.testing.loop import SimulatedClock, SimulatedLoop
from mpreg_mq.testing.retention import SimulatedRetention
from mpreg_mq.testing.seams import deterministic

POLICY = RetentionPolicy(keep_events=0, least_events=1, check_seconds=5.0)


def send(disk: SimulatedDisk, policy: RetentionPolicy = POLICY, messages: int = 10, seconds: float = 60.0) -> None:
    """Send messages to a queue whose log is cut, and give it so much time."""
    loop = SimulatedLoop()

    async def story() -> None:
        config = QueueManagerConfiguration(retention=policy, snapshot_every_events=4)
        manager = MessageQueueManager(config, log=disk.open(loop), clock=SimulatedClock(loop))
        await manager.create_queue("q", QueueConfiguration("q", enable_deduplication=True))
        for number in range(messages):
            assert (await manager.send_message("q", "t", {"key": number})).success
        await asyncio.sleep(seconds)
        await manager.shutdown()

    with deterministic(Random(1)):
        loop.run_until_complete(story())


def cuts(disk: SimulatedDisk) -> list[Cut]:
    return [change for change in disk.changes if isinstance(change, Cut)]


def test_a_log_is_cut_now_and_then_by_the_loop() -> None:
    """Given a policy that keeps nothing, then the log is cut after a while, and what is left breaks no rule."""
    disk = SimulatedDisk()
    send(disk, seconds=4.0)
    assert cuts(disk) == []
    disk = SimulatedDisk()
    send(disk)
    assert [cut.position for cut in cuts(disk)] == [11]
    assert any(isinstance(change, Snapshot) for change in disk.changes)
    assert check_what_is_left(disk, disk.records()) == []


def test_what_is_cut_off_is_archived_on_the_disk() -> None:
    """Given a policy with archives, then they hold what is cut off; where one does not, that breaks I4."""
    disk = SimulatedDisk()
    send(disk, RetentionPolicy(keep_events=0, least_events=1, check_seconds=5.0, archive_directory="archive"))
    assert [record for archive in disk.archives.values() for record in archive] == disk.records()[:11]
    assert check_what_is_left(disk, disk.records()) == []
    next(iter(disk.archives.values())).pop()
    (violation,) = check_what_is_left(disk, disk.records())
    assert "in no archive" in str(violation)


def test_a_cut_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Given a disk that refuses the first cut, then that is logged, and the next one is done."""
    refusals = 1

    def fault() -> None:
        nonlocal refusals
        if refusals and len(disk.records()) == 11:
            refusals -= 1
            raise EventLogError("no space left")

    disk = SimulatedDisk(fault=fault, survivors=lambda least, most: least)
    send(disk)
    assert "retention: a compaction failed" in caplog.text
    assert len(cuts(disk)) == 1


def test_compacting_at_once_ends_what_is_under_way_first() -> None:
    """Given a compaction that is under way, when somebody asks for one, then both are done, and say what they did."""
    disk, loop = SimulatedDisk(latency=lambda: 1.0), SimulatedLoop()
    send(disk, RetentionPolicy(keep_events=1000), seconds=0.0)
    with deterministic(Random(1)):
        log = disk.open(loop)
        retention = SimulatedRetention(log, POLICY, lambda: 0.0)
        loop.run(seconds=5.5)
        done = retention.compact_now()
        assert log.base_position() == log.last_position()
        assert done is None or done.position == log.last_position()
        assert retention.compact_now() is None
        retention.stop()
        loop.run(seconds=60.0)
    assert len(cuts(disk)) == 1


def test_other_logs_are_cut_by_a_thread() -> None:
    """Given a log that is not simulated, then its retention is the one with a thread."""
    retention = SimulatedRetention.start(MemoryEventLog(), POLICY, lambda: 0.0)
    assert not isinstance(retention, SimulatedRetention)
    retention.stop()


def test_a_base_that_says_something_else_is_told() -> None:
    """Given a cut whose base is that of an empty queue, then what is loaded from it breaks I4."""
    disk = SimulatedDisk()
    send(disk)
    (cut,) = cuts(disk)
    body = next(change.body for change in disk.changes if isinstance(change, Snapshot))
    disk.changes[disk.changes.index(cut)] = Cut(cut.position, {"queue:q": Snapshot("queue:q", 11, body)})
    found = check_what_is_left(disk, disk.records())
    assert found
    assert {violation.rule for violation in found} == {"I4"}
