"""A log in an SQLite file that is written without waiting for its disk: the rules of a quick writer."""

from __future__ import annotations

import os
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.errors import ConfigurationError, EventLogError, VersionConflictError
from mpreg_mq.events import Append, MessageEnqueued, Snapshot, SQLiteEventLog
from mpreg_mq.events.log import QuickWriter, quick_writer
from mpreg_mq.events.sqlite.kernel_sync import KernelSync
from mpreg_mq.events.sqlite.quick import _MOST_BYTES
from tests.support.quick_sqlite import STREAM, batch, land, quick, write
from tests.support.sqlite_logs import events, opened, stored


def pragmas(log: SQLiteEventLog) -> list[int]:
    """How commits wait: for the disk, for a checkpoint when it is time, for others."""
    writer: Any = log._file._writer
    names = ("synchronous", "wal_autocheckpoint", "busy_timeout")
    return [writer.execute(f"PRAGMA {name}").fetchone()[0] for name in names]


# --- who has one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_a_log_that_waits_for_no_disk_has_none(path: Path, synchronous: str) -> None:
    """Given another synchronous mode than FULL, then there is no quick writer: an append does not wait there."""
    with opened(path, synchronous, writes_on_loop=True) as log:
        assert log.quick_writer() is None
        assert quick_writer(log) is None


def test_a_log_has_none_unless_that_is_asked_for(path: Path) -> None:
    """Given a log that is opened without a word about it, then its commits wait for the disk."""
    with opened(path) as log:
        assert log.quick_writer() is None


def test_only_yes_or_no_says_whether_a_loop_writes(path: Path) -> None:
    """Given anything but True or False, then opening raises and says what was given."""
    with pytest.raises(ConfigurationError, match=r"writes_on_loop: got 'yes'"):
        SQLiteEventLog(path, writes_on_loop="yes")  # type: ignore[arg-type]
    assert not path.exists()


def test_a_log_whose_kernel_cannot_has_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a system that does not sync a file meanwhile, then there is no quick writer, and appends wait."""
    monkeypatch.setattr(KernelSync, "of", lambda _: None)
    with opened(path, writes_on_loop=True) as log:
        assert log.quick_writer() is None
        log.append(batch(log, 1))


def test_a_log_with_an_append_of_its_own_has_none(path: Path) -> None:
    """Given a log that does something else in its append, then no writer passes that by."""

    class Counting(SQLiteEventLog):
        def append(self, batch: Any) -> None:
            super().append(batch)

    with closing(Counting(path, writes_on_loop=True)) as log:
        assert log.quick_writer() is None


def test_a_log_that_is_not_written_has_none(path: Path) -> None:
    """Given a log that is open for reading, or closed, then asking for a quick writer raises."""
    with opened(path, writes_on_loop=True) as log:
        reader = SQLiteEventLog(path, read_only=True, writes_on_loop=True)
        with pytest.raises(EventLogError, match="read-only"):
            reader.quick_writer()
        reader.close()
    with pytest.raises(EventLogError, match="is closed"):
        log.quick_writer()


# --- writing ------------------------------------------------------------------------------------------------


def test_a_batch_is_readable_at_once_and_counted_when_it_is_on_disk(path: Path) -> None:
    """Given batches, up to two under way, then each is in the log as soon as it is written, is counted once, and is
    there when the log is opened again."""
    with quick(path) as (log, writer):
        landed = 0
        for number in range(1, 11):
            assert writer.write([Append(STREAM, number - 1, events(number)), Append(f"queue:{number}", 0, events(0))])
            writer.begin_sync()
            assert (log.stream_version(STREAM), log.stream_version(f"queue:{number}")) == (number, 1)
            if number - landed >= writer.most_under_way:
                landed += writer.end_sync(wait=True)
        land(writer, 10 - landed)
        assert writer.end_sync(wait=False) == 0
        before = stored(log)
    assert len(before) == 20
    with opened(path) as log:
        assert stored(log) == before


def test_a_version_that_does_not_fit_does_nothing(path: Path) -> None:
    """Given a batch of which one append expects another version, then it raises, and nothing is written or under
    way."""
    with quick(path) as (log, writer):
        write(log, writer, 1)
        with pytest.raises(VersionConflictError):
            writer.write([Append("queue:b", 0, events(2)), Append(STREAM, 5, events(2))])
        assert log.streams() == [STREAM]
        land(writer)
        assert writer.end_sync(wait=False) == 0
        assert writer.write(batch(log, 2))


def test_a_batch_without_events_is_counted_as_any_other(path: Path) -> None:
    """Given a batch that only checks a version between two others, then three batches are counted."""
    with quick(path) as (log, writer):
        write(log, writer, 1)
        assert writer.write([Append(STREAM, 1, ())])
        writer.begin_sync()
        land(writer, 2)
        write(log, writer, 2)
        land(writer)
        assert log.last_position() == 2


# --- what would have to wait --------------------------------------------------------------------------------


def refused(log: SQLiteEventLog, writer: QuickWriter, number: int) -> bool:
    """Whether a batch is refused, with nothing done."""
    position = log.last_position()
    was_refused = not writer.write(batch(log, number))
    if was_refused:
        assert (log.last_position(), len(stored(log))) == (position, position)
        assert writer.end_sync(wait=False) == 0
    return was_refused


def test_a_log_that_is_in_use_is_not_waited_for(path: Path) -> None:
    """Given somebody else who writes through the same log, then a batch is refused at once."""

    class Held:
        def acquire(self, *, blocking: bool = True, timeout: float = -1.0) -> bool:
            assert not blocking
            return False

    with quick(path) as (log, writer):
        held: Any = writer
        held._lock, lock = Held(), held._lock
        assert refused(log, writer, 1)
        held._lock = lock
        with lock:
            assert refused(log, writer, 1)
        assert not refused(log, writer, 1)


def test_another_program_is_not_waited_for(path: Path) -> None:
    """Given another program that has the database locked, then a batch is refused, of a new stream or of an old one,
    and is written when the lock is gone; an append would have waited."""
    with quick(path) as (log, writer), closing(sqlite3.connect(path, isolation_level=None)) as other:
        for number in range(1, 3):
            other.execute("BEGIN IMMEDIATE")
            assert refused(log, writer, number)
            assert pragmas(log)[2] == 0
            other.execute("ROLLBACK")
            write(log, writer, number)
            land(writer)
        assert log.last_position() == 2


def test_a_large_batch_is_refused(path: Path) -> None:
    """Given more bytes than can be written in a moment, then the batch is refused; a little less is written."""
    with quick(path) as (log, writer):
        half = bytes(_MOST_BYTES // 2)
        for sizes, is_written in (((half, half), False), ((half, half[:-1000]), True)):
            large = [MessageEnqueued(1.0, "m", "t", payload) for payload in sizes]
            assert writer.write([Append(STREAM, 0, large)]) == is_written
            assert log.stream_version(STREAM) == (2 if is_written else 0)


def test_without_a_reserve_every_batch_is_refused(path: Path) -> None:
    """Given a disk that had no room, then a batch is refused, until there is room again."""
    with quick(path) as (log, writer):
        head = log._file._head_file
        assert head is not None
        head.give_up_reserve()
        assert refused(log, writer, 1)
        assert log.has_room()
        assert not refused(log, writer, 1)


def test_a_forked_child_writes_nothing(path: Path) -> None:
    """Given a child forked with a log open, then its batches are refused, and the parent's go on."""
    with quick(path) as (log, writer):
        write(log, writer, 1)
        with warnings.catch_warnings():
            # Newer Pythons warn of threads in a forking process: those of other tests.
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            outcome = 9
            try:
                outcome = int(writer.write([Append(STREAM, 1, events(7))]))
                writer.tidy()
            finally:
                os._exit(outcome)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        land(writer)
        write(log, writer, 2)
        land(writer)
        assert [record.event for record in log.read_all()] == list(events(1, 2))


# --- appends that wait --------------------------------------------------------------------------------------


def test_an_append_waits_again(path: Path) -> None:
    """Given quick batches before it, then an append waits for the disk and for others, as it always did, and so does
    everything else that is not quick; the next batch does not."""
    with quick(path) as (log, writer):
        usual = pragmas(log)
        assert usual[0] == 2
        assert usual[2] > 0
        thorough = [
            lambda: log.append(batch(log, 0)),
            lambda: log.save_snapshot(Snapshot(STREAM, 1, b"state")),
            lambda: log.truncate(1, {STREAM: Snapshot(STREAM, 1, b"base")}),
            log.reclaim,
            log.sync,
            log._file.restart,
        ]
        for number, do in enumerate(thorough, 1):
            assert writer.write(batch(log, number))
            assert pragmas(log) == [1, 0, 0]
            do()
            assert pragmas(log) == usual, number
            writer.begin_sync()
            land(writer)


def test_an_append_comes_after_what_was_written_before_it(path: Path) -> None:
    """Given a batch under way, then an append for the same stream goes on where it ends, and both stay."""
    with quick(path) as (log, writer):
        write(log, writer, 1)
        log.append(batch(log, 2))
        write(log, writer, 3)
        land(writer, 2)
        assert [record.event for record in log.read_all()] == list(events(1, 2, 3))


# --- the end, and two of them -------------------------------------------------------------------------------


def test_a_log_can_be_closed_with_a_sync_under_way(path: Path) -> None:
    """Given a batch under way when the log is closed, then it is there when the log is opened again, and the writer
    refuses everything at once, without waiting for what nobody tells of any more."""
    with quick(path) as (log, writer):
        write(log, writer, 1)
        log.close()
        with pytest.raises(OSError, match="not synced any more"):
            writer.end_sync(wait=True)
        with pytest.raises(EventLogError, match="is closed"):
            writer.settle()
        assert not writer.write([Append(STREAM, 1, events(2))])
        writer.heard()
        writer.tidy()
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    with opened(path) as log:
        assert [record.event for record in log.read_all()] == list(events(1))


def test_a_closed_writer_leaves_its_log_open(path: Path) -> None:
    """Given a batch that is written when its writer is closed, then the log goes on, has it, and can make another
    writer."""
    with quick(path) as (log, writer):
        write(log, writer, 1)
        writer.close()
        log.append(batch(log, 2))
        other = log.quick_writer()
        assert other is not None
        write(log, other, 3)
        land(other)
        other.close()
    with opened(path) as log:
        assert [record.event for record in log.read_all()] == list(events(1, 2, 3))


def test_two_writers_count_each_its_own(path: Path) -> None:
    """Given two writers of one log that take turns, then each counts its own batches, and one that settles leaves what
    the other has under way in the log."""
    with quick(path) as (log, writer):
        other = log.quick_writer()
        assert other is not None
        write(log, writer, 1)
        write(log, other, 2)
        write(log, writer, 3)
        land(other)
        assert writer.settle() == 2
        write(log, other, 4)
        write(log, writer, 5)
        assert other.settle() == 1
        land(writer)
        assert (writer.settle(), other.settle()) == (0, 0)
        assert [record.event for record in log.read_all()] == list(events(1, 2, 3, 4, 5))
        other.close()


def test_what_is_not_on_disk_yet_is_not_truncated(path: Path) -> None:
    """Given a batch whose sync has not ended, then a log can be truncated before it, because it may turn out not to be
    there; and behind it when the sync has ended."""
    with quick(path) as (log, writer):
        log.append(batch(log, 1))
        assert log.record_end(100) == 1
        write(log, writer, 2, 3)
        write(log, writer, 4)
        assert (log.last_position(), log.record_end(100)) == (4, 1)
        land(writer, 2)
        assert log.record_end(100) == 4
        assert log.record_end(2) == 1
