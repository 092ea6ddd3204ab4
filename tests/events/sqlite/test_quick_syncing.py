"""When a batch that a quick writer wrote is on disk, who says so, and what is found out after a failure."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from mpreg_mq.errors import EventLogError, LogFullError
from mpreg_mq.events import Append, MessageEnqueued, Snapshot, SQLiteEventLog
from mpreg_mq.events.log import QuickWriter
from mpreg_mq.events.sqlite import file as file_module
from mpreg_mq.events.sqlite.writer_file import read_head
from tests.support.faulty_disk import Disk, on_disk, open_on
from tests.support.sqlite_logs import events, stored

STREAM = "queue:a"
WAL = "log.db-wal"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk on which the syncs that the kernel is asked for end when somebody waits, one by one."""
    made = Disk(tmp_path / "disk")
    made.directory.mkdir()
    made.ending = lambda under_way: ()
    with on_disk(made):
        yield made


@pytest.fixture
def log(disk: Disk) -> Iterator[SQLiteEventLog]:
    log = open_on(disk)
    log.append([Append(STREAM, 0, events(0))])
    yield log
    disk.fault = None
    log.close()


@pytest.fixture
def writer(log: SQLiteEventLog) -> QuickWriter:
    writer = log.quick_writer()
    assert writer is not None
    return writer


def write(log: SQLiteEventLog, writer: QuickWriter, number: int) -> None:
    """Write a batch of one event, after which the log's last position is ``number + 1``, and begin its sync."""
    assert writer.write(batch(log, number))
    writer.begin_sync()


def batch(log: SQLiteEventLog, number: int) -> list[Append]:
    return [Append(STREAM, log.stream_version(STREAM), events(number))]


def head(disk: Disk) -> int:
    """How far the log is said to have come, by the file that is kept apart."""
    found = read_head(disk.directory / "log.db")
    assert found is not None
    assert found.certain
    return found.head.position


def after_power_cut(disk: Disk, place: Path, seed: int = 0) -> int:
    """How many events are left when the power fails now and nothing that is not synced is on the disk."""
    chance = random.Random(seed)
    chance.choice = lambda values: values[0] if values[0] == 0.0 else values[-1]  # type: ignore[method-assign,assignment]
    disk.after_power_cut(chance, place)
    with on_disk(Disk(place)), closing(SQLiteEventLog(place / "log.db", reserve_bytes=0)) as log:
        return len(stored(log))


def fails(name: str, error: Exception) -> Callable[[int, str], Exception | None]:
    """The next operation of this name fails."""
    failed: list[int] = []

    def fault(number: int, found: str) -> Exception | None:
        if found == name and not failed:
            failed.append(number)
            return error
        return None

    return fault


# --- what is said to be on disk -----------------------------------------------------------------------------


def test_a_batch_is_on_disk_when_its_sync_has_ended(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, tmp_path: Path
) -> None:
    """Given two batches under way, when the sync of the first has ended, then that one is counted and is on disk, and
    the second, which was written later, is neither."""
    write(log, writer, 1)
    write(log, writer, 2)
    assert writer.end_sync(wait=False) == 0
    assert after_power_cut(disk, tmp_path / "before") == 1
    assert writer.end_sync(wait=True) == 1
    assert after_power_cut(disk, tmp_path / "between") == 2
    assert writer.end_sync(wait=True) == 1
    assert after_power_cut(disk, tmp_path / "after") == 3


def test_syncs_that_end_in_another_order_are_counted_in_theirs(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter
) -> None:
    """Given two batches under way, when the sync of the second ends first, then nothing is counted until that of the
    first has ended as well; so no more is ever under way than may be."""
    write(log, writer, 1)
    write(log, writer, 2)
    disk.ending = lambda under_way: [number for number in under_way if number != 1]
    assert writer.end_sync(wait=False) == 0
    disk.ending = lambda under_way: under_way
    assert writer.end_sync(wait=False) == 2
    for number in range(3, 9, 2):
        write(log, writer, number)
        write(log, writer, number + 1)
        disk.ending = lambda under_way: under_way[-1:]
        assert writer.end_sync(wait=True) == 2


def test_the_head_is_never_ahead_of_the_disk(disk: Disk, log: SQLiteEventLog, writer: QuickWriter) -> None:
    """Given batches that are written and under way, then the head that is kept apart says only what is on disk."""
    assert writer.write(batch(log, 1))
    assert head(disk) == 1
    writer.begin_sync()
    write(log, writer, 2)
    assert head(disk) == 1
    writer.end_sync(wait=True)
    assert head(disk) == 2
    writer.end_sync(wait=True)
    assert head(disk) == 3


def test_the_head_is_not_set_back_by_a_sync_that_ends_late(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter
) -> None:
    """Given an append while a batch is under way, when the batch's sync ends, then the head still says that the append
    is on disk, and there is nothing left to sync."""
    write(log, writer, 1)
    log.append(batch(log, 2))
    assert head(disk) == 3
    assert writer.end_sync(wait=True) == 1
    assert head(disk) == 3
    before = disk.operations
    log.sync()
    assert disk.operations == before


def test_a_batch_whose_sync_was_not_begun_is_not_counted(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, tmp_path: Path
) -> None:
    """Given a batch under way and one that was only written, when a sync ends, then only the first is counted, before
    and after the sync of the second could not be begun; settling finds the second."""
    write(log, writer, 1)
    assert writer.write(batch(log, 2))
    assert writer.end_sync(wait=True) == 1
    assert head(disk) == 2
    assert after_power_cut(disk, tmp_path / "after") == 2
    writer.begin_sync()
    assert writer.end_sync(wait=True) == 1
    write(log, writer, 3)
    assert writer.write(batch(log, 4))
    disk.fault = fails("begin sync", OSError(errno.EAGAIN, "too many requests"))
    with pytest.raises(OSError, match="too many"):
        writer.begin_sync()
    assert not writer.write(batch(log, 5))
    assert writer.end_sync(wait=True) == 1
    assert head(disk) == 4
    assert writer.settle() == 1
    assert head(disk) == 5


@pytest.mark.parametrize("way", ["append", "snapshot", "truncate", "sync"])
def test_whatever_waits_for_the_disk_waits_for_what_is_under_way(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, way: str
) -> None:
    """Given a batch under way and one that was only written, when an append, a snapshot, a truncation or a sync has
    returned, then both are on disk, and are counted when their own syncs have ended."""
    write(log, writer, 1)
    assert writer.write(batch(log, 2))
    do: dict[str, Callable[[], object]] = {
        "append": lambda: log.append(batch(log, 3)),
        "snapshot": lambda: log.save_snapshot(Snapshot(STREAM, 3, b"state")),
        "truncate": lambda: log.truncate(1, {STREAM: Snapshot(STREAM, 1, b"base")}),
        "sync": log.sync,
    }
    assert disk.unsynced.get(WAL)
    do[way]()
    assert not disk.unsynced.get(WAL)
    writer.begin_sync()
    assert [writer.end_sync(wait=True), writer.end_sync(wait=True)] == [1, 1]
    assert len(stored(log)) >= 2


def test_a_batch_is_written_without_a_sync(disk: Disk, log: SQLiteEventLog, writer: QuickWriter) -> None:
    """Given a write-ahead log that was begun, also by the tidying, then no batch waits for the disk, and neither does
    the beginning of its sync."""
    writer.tidy()
    for number in range(1, 20):
        disk.fault = fails("sync", AssertionError("nobody may wait for the disk here"))
        write(log, writer, number)
        disk.fault = None
        writer.end_sync(wait=True)
        if number % 5 == 0:
            writer.tidy()


# --- after a failure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgets", [False, True])
def test_settling_tells_what_is_in_the_log_and_has_it_on_disk(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, tmp_path: Path, forgets: bool
) -> None:
    """Given two batches under way when the disk refuses a sync, and forgets what it covered or not, then nothing more
    is taken until that is settled; both are in the log then, and survive whatever the disk keeps of the rest."""
    disk.forgets = forgets
    write(log, writer, 1)
    write(log, writer, 2)
    disk.fault = fails("sync", OSError(errno.EIO, "the disk is on fire"))
    with pytest.raises(OSError, match="on fire"):
        writer.end_sync(wait=True)
    assert not writer.write(batch(log, 3))
    assert writer.settle() == 2
    assert head(disk) == 3
    for seed in range(20):
        assert after_power_cut(disk, tmp_path / f"{seed}", seed) == 3
    assert writer.end_sync(wait=False) == 0
    write(log, writer, 3)
    assert writer.end_sync(wait=True) == 1


def test_a_batch_that_could_not_be_written_is_not_in_the_log(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter
) -> None:
    """Given a batch under way and one that SQLite could not write, then settling finds the first alone, and the second
    can be appended."""
    write(log, writer, 1)
    disk.fault = fails("write", apsw.IOError("the disk is on fire"))
    lost = batch(log, 2)
    with pytest.raises(EventLogError, match="disk"):
        writer.write(lost)
    assert writer.settle() == 1
    log.append(lost)
    assert [record.event for record in log.read_all()] == list(events(0, 1, 2))


def test_settling_without_a_failure_waits_for_what_is_under_way(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, tmp_path: Path
) -> None:
    """Given batches of which one was only written, then settling has all of them on disk, and nothing is left."""
    write(log, writer, 1)
    assert writer.write(batch(log, 2))
    assert writer.settle() == 2
    assert head(disk) == 3
    assert after_power_cut(disk, tmp_path / "after") == 3
    assert (writer.settle(), writer.end_sync(wait=False)) == (0, 0)


def test_a_sync_that_fails_while_it_is_settled_keeps_none_from_being_counted_later(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter
) -> None:
    """Given a batch that is on disk by an append after it, when its own sync fails while somebody settles, then it is
    in the log, and later ones are counted."""
    write(log, writer, 1)
    log.append(batch(log, 2))
    disk.fault = fails("sync", OSError(errno.EIO, "the disk is on fire"))
    assert writer.settle() == 1
    write(log, writer, 3)
    assert writer.end_sync(wait=True) == 1


def test_what_cannot_be_found_out_is_said_and_the_log_comes_back(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter
) -> None:
    """Given a disk that fails from some moment on, then settling raises, nothing is taken meanwhile, and when the disk
    is mended the next append brings the log back, with a writer that works."""
    write(log, writer, 1)
    disk.fault = lambda number, name: apsw.IOError("the disk is on fire")
    with pytest.raises(OSError, match="on fire"):
        writer.end_sync(wait=True)
    with pytest.raises(EventLogError, match="not known"):
        writer.settle()
    assert not writer.write(batch(log, 2))
    disk.fault = None
    assert not writer.write(batch(log, 2))
    log.append(batch(log, 2))
    write(log, writer, 3)
    assert writer.end_sync(wait=True) == 1


def test_a_file_that_cannot_be_opened_to_sync_it_is_an_error_of_the_log(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a process without room for another open file after a failure, then an append says so as a log does, and
    works when there is room."""
    sync: Any = writer
    write(log, writer, 1)
    disk.fault = fails("sync", OSError(errno.EIO, "the disk is on fire"))
    with pytest.raises(OSError, match="on fire"):
        writer.end_sync(wait=True)

    def reopen(path: Path) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(sync._sync, "reopen", reopen)
        with pytest.raises(EventLogError, match="too many open files"):
            log.append(batch(log, 2))
    assert writer.settle() == 1
    log.append(batch(log, 2))


def test_what_was_truncated_since_it_was_written_was_in_the_log(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter
) -> None:
    """Given a batch under way whose record has been truncated and taken out of the file, when its sync fails, then
    settling says that it was in the log."""
    write(log, writer, 1)
    log.truncate(2, {STREAM: Snapshot(STREAM, 2, b"base")})
    log.append(batch(log, 2))
    while log.reclaim():
        pass
    assert [record.position for record in log.read_all()] == [3]
    disk.fault = fails("sync", OSError(errno.EIO, "the disk is on fire"))
    with pytest.raises(OSError, match="on fire"):
        writer.end_sync(wait=True)
    assert writer.settle() == 1


@pytest.mark.parametrize("way", ["snapshot", "truncate", "sync", "restart"])
def test_an_append_is_not_stored_on_top_of_what_the_disk_forgot(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, tmp_path: Path, way: str
) -> None:
    """Given a batch under way when the sync of something else fails, and what it covered is forgotten, then an append
    that returns after that survives a power cut: the log has noticed."""
    disk.forgets = True
    do: dict[str, Callable[[], object]] = {
        "snapshot": lambda: log.save_snapshot(Snapshot(STREAM, 1, b"state")),
        "truncate": lambda: log.truncate(1, {STREAM: Snapshot(STREAM, 1, b"base")}),
        "sync": log.sync,
        "restart": log._file.restart,
    }
    write(log, writer, 1)
    disk.fault = fails("sync", apsw.IOError("the disk is on fire"))
    if way == "restart":
        do[way]()
    else:
        with pytest.raises(EventLogError, match="disk"):
            do[way]()
    log.append(batch(log, 2))
    for seed in range(20):
        assert after_power_cut(disk, tmp_path / f"{seed}", seed) == 3


def test_a_full_disk_gives_up_its_reserve_for_what_is_there(disk: Disk, tmp_path: Path) -> None:
    """Given a disk that is full when a batch is written, then the batch is refused with the reason, the reserve lets
    the log be settled and messages be finished, and a new message is refused."""
    message = MessageEnqueued(at=1.0, message_id="m", topic="t", payload=b"p")
    with closing(open_on(disk, reserve_bytes=1 << 16)) as log:
        writer = log.quick_writer()
        assert writer is not None
        write(log, writer, 0)
        kept = log._file._head_file
        assert kept is not None
        disk.fault = lambda number, name: apsw.FullError("full") if name == "write" and kept.reserved else None
        with pytest.raises(LogFullError):
            writer.write([Append(STREAM, 1, (message,))])
        assert writer.settle() == 1
        assert not writer.write([Append(STREAM, 1, events(1))])
        kept.reserve = lambda: False  # type: ignore[method-assign]
        with pytest.raises(LogFullError, match="only to finish"):
            log.append([Append(STREAM, 1, (message,))])
        log.append([Append(STREAM, 1, events(1))])


def test_an_append_waits_also_after_an_interruption(
    disk: Disk, log: SQLiteEventLog, writer: QuickWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an interruption while the connection was being set not to wait, then the batch is not in the log, and the
    next append waits for the disk."""
    monkeypatch.setattr(file_module, "_QUICK", (file_module._QUICK[0], "SELECT interrupted"))
    with pytest.raises(EventLogError):
        writer.write(batch(log, 1))
    monkeypatch.undo()
    log.append(batch(log, 2))
    assert not disk.unsynced.get(WAL)
    assert writer.settle() == 0
    assert [record.event for record in log.read_all()] == list(events(0, 2))
