"""A log in an SQLite file whose disk is waited for by whoever writes, as long as it is quick."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events import SQLiteEventLog
from mpreg_mq.events.sqlite.quick import PAUSE, QUICK_SECONDS, SQLiteQuickWriter
from mpreg_mq.events.sqlite.writer_file import read_head
from tests.support.faulty_disk import Disk, on_disk, open_on
from tests.support.quick_sqlite import batch
from tests.support.sqlite_logs import stored

LONGEST = 0.002


class Clock:
    """Time that passes when a test says so, and while the disk is waited for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.disk_takes = 0.0

    def __call__(self) -> float:
        return self.now

    def wait_for_disk(self, number: int, name: str) -> None:
        """A disk's fault, which is none."""
        if name == "sync":
            self.now += self.disk_takes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(tmp_path: Path, clock: Clock) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    made.directory.mkdir()
    made.fault = clock.wait_for_disk
    made.ending = lambda under_way: ()
    with on_disk(made):
        yield made


@pytest.fixture
def log(disk: Disk) -> Iterator[SQLiteEventLog]:
    with closing(open_on(disk, loop_waits_seconds=LONGEST)) as log:
        yield log


@pytest.fixture
def writer(log: SQLiteEventLog, clock: Clock) -> SQLiteQuickWriter:
    writer = log.quick_writer()
    assert isinstance(writer, SQLiteQuickWriter)
    writer._now = clock
    return writer


# --- who waits ----------------------------------------------------------------------------------------------


def test_nobody_waits_unless_that_is_asked_for(disk: Disk) -> None:
    """Given a log that is written on a loop without a word about it, then the kernel waits for the disk."""
    with closing(open_on(disk)) as log:
        writer = log.quick_writer()
        assert writer is not None
        assert not writer.waits


@pytest.mark.parametrize("given", [-0.001, 60.1, 10**400, math.inf, math.nan, "1", None, True])
def test_a_longest_wait_is_a_number_of_seconds(tmp_path: Path, given: object) -> None:
    """Given anything but a number of seconds, then opening raises and says what was given."""
    with pytest.raises(ConfigurationError, match=r"loop_waits_seconds: got .*expected 0 to 60 seconds"):
        SQLiteEventLog(tmp_path / "log.db", writes_on_loop=True, loop_waits_seconds=given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_only_a_loop_that_writes_can_wait(tmp_path: Path) -> None:
    """Given a longest wait for a log that a thread writes, then opening raises and says what is missing."""
    with pytest.raises(ConfigurationError, match="without writes_on_loop=True"):
        SQLiteEventLog(tmp_path / "log.db", loop_waits_seconds=LONGEST)
    assert list(tmp_path.iterdir()) == []


# --- how many -----------------------------------------------------------------------------------------------


def test_a_quick_disk_has_one_sync_at_a_time_and_a_slow_one_two(
    log: SQLiteEventLog, writer: SQLiteQuickWriter, clock: Clock
) -> None:
    """Given syncs that end soon, then the next one is to wait for the one before; given one that took its time, or
    nothing that is known of the disk, then two may be under way."""
    found = [writer.most_under_way]
    for number, seconds in enumerate((0.5, 2.0, 0.5)):
        assert writer.write(batch(log, number))
        writer.begin_sync()
        clock.now += seconds * QUICK_SECONDS
        assert writer.end_sync(wait=True) == 1
        found.append(writer.most_under_way)
    assert found == [2, 1, 2, 1]


def test_of_two_that_are_under_way_each_counts_from_the_end_of_the_one_before(
    log: SQLiteEventLog, writer: SQLiteQuickWriter, clock: Clock
) -> None:
    """Given two syncs at once on a slow disk, when the second ends soon after the first, then the disk was quick."""
    found = []
    for number in range(2):
        assert writer.write(batch(log, number))
        writer.begin_sync()
    for seconds in (2.0, 0.5):
        clock.now += seconds * QUICK_SECONDS
        assert writer.end_sync(wait=True) == 1
        found.append(writer.most_under_way)
    assert found == [2, 1]


# --- how long -----------------------------------------------------------------------------------------------


def test_a_quick_disk_is_waited_for_again_and_again(
    log: SQLiteEventLog, writer: SQLiteQuickWriter, clock: Clock
) -> None:
    """Given syncs that take no longer than they may, then each is waited for, and the next one may be as well."""
    clock.disk_takes = 0.75 * LONGEST
    for number in range(5):
        assert writer.waits
        assert writer.write(batch(log, number))
        writer.sync_here()
        assert writer.end_sync(wait=False) == 1


@pytest.mark.parametrize("times", [2, 100])
def test_after_a_wait_that_was_too_long_the_kernel_waits_for_a_while(
    log: SQLiteEventLog, writer: SQLiteQuickWriter, clock: Clock, times: int
) -> None:
    """Given one sync that took longer than it may, then it counts, none is waited for until a pause of so many times as
    long is over, and then the disk is tried again."""
    assert writer.write(batch(log, 0))
    clock.disk_takes = times * LONGEST
    writer.sync_here()
    assert writer.end_sync(wait=False) == 1
    assert not writer.waits
    clock.now += 0.9 * PAUSE * times * LONGEST
    assert not writer.waits
    clock.now += 0.2 * PAUSE * times * LONGEST
    assert writer.waits


# --- what is said to be on disk -----------------------------------------------------------------------------


def test_a_batch_that_was_waited_for_is_on_disk(
    disk: Disk, log: SQLiteEventLog, writer: SQLiteQuickWriter, tmp_path: Path
) -> None:
    """Given a batch that is written, then the head that is kept apart does not say so before its sync was waited for
    and told of, and what the sync covered is all there when the power fails after that."""
    for number in range(3):
        before = read_head(disk.directory / "log.db")
        assert writer.write(batch(log, number))
        writer.sync_here()
        assert read_head(disk.directory / "log.db") == before
        assert writer.end_sync(wait=False) == 1
        found = read_head(disk.directory / "log.db")
        assert found is not None
        assert (found.head.position, found.certain) == (number + 1, True)
        assert disk.unsynced.get("log.db-wal", []) == []


def test_a_disk_that_refuses_leaves_the_batch_to_be_settled(
    disk: Disk, log: SQLiteEventLog, writer: SQLiteQuickWriter
) -> None:
    """Given a disk that refuses the sync that is waited for, then that raises, nothing is told of the batch and nothing
    more is taken until it is settled: it is in the log then, and the next one is waited for again."""
    assert writer.write(batch(log, 0))
    disk.fault = lambda number, name: apsw.IOError("the disk is on fire") if name == "sync" else None
    with pytest.raises(OSError, match="on fire"):
        writer.sync_here()
    assert writer.end_sync(wait=False) == 0
    assert not writer.write(batch(log, 1))
    disk.fault = None
    assert writer.settle() == 1
    assert writer.write(batch(log, 1))
    writer.sync_here()
    assert writer.end_sync(wait=False) == 1
    assert len(stored(log)) == 2
