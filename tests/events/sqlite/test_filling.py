"""The write-ahead log is filled ahead, so that a sync need not note a new size; what is in the log is never touched."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mpreg_mq.events import Append, SQLiteEventLog
from mpreg_mq.events.sqlite import file as log_file
from mpreg_mq.events.sqlite.file import FRAME_BYTES, WAL_HEADER_BYTES, LogFile
from mpreg_mq.events.sqlite.filling import fill
from tests.support.quick_sqlite import STREAM, batch, land, quick, write
from tests.support.sqlite_logs import events, opened, stored

FILL_AFTER_PAGES = 20
FILLED_PAGES = 100
"""Few, so that a test need not commit a thousand times."""
STEPS = 4
UNTIL_FILLED = FILL_AFTER_PAGES + STEPS
"""So many small commits, a page each, until the last step has been made."""
FULL_SIZE = WAL_HEADER_BYTES + FILLED_PAGES * FRAME_BYTES


@pytest.fixture(autouse=True)
def _few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "FILL_AFTER_PAGES", FILL_AFTER_PAGES)
    monkeypatch.setattr(log_file, "FILLED_PAGES", FILLED_PAGES)
    monkeypatch.setattr(log_file, "FILL_STEP_BYTES", FULL_SIZE // STEPS)


def wal_bytes(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def append(log: SQLiteEventLog, count: int) -> None:
    """So many commits."""
    for number in range(count):
        log.append([Append(STREAM, log.stream_version(STREAM), events(number))])


@contextmanager
def as_left_by_a_crash(path: Path, place: Path) -> Iterator[SQLiteEventLog]:
    """The log as another process finds it, whose own process did not close it."""
    place.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, place / file.name)
    with opened(place / path.name) as log:
        yield log


def test_a_log_that_gets_little_takes_no_more_room_than_that(path: Path) -> None:
    """Given a few commits, then the write-ahead log has what they wrote and nothing else."""
    with opened(path) as log:
        append(log, 5)
        assert 0 < wal_bytes(path) <= FILL_AFTER_PAGES * FRAME_BYTES


def test_one_that_gets_more_has_a_write_ahead_log_of_one_size(path: Path) -> None:
    """Given commits by a thread that waits for the disk, when there have been so many that more are to be expected,
    then the write-ahead log gets the size that it has when it begins anew, once."""
    with opened(path) as log:
        append(log, UNTIL_FILLED)
        assert wal_bytes(path) == FULL_SIZE
        append(log, FILL_AFTER_PAGES)
        assert wal_bytes(path) == FULL_SIZE


def test_what_was_filled_ahead_is_no_part_of_the_log(path: Path, tmp_path: Path) -> None:
    """Given a write-ahead log that is filled ahead, or has grown beyond that since, when its process crashes, then the
    next one finds what was appended, to the last event and no further."""
    with opened(path) as log:
        append(log, UNTIL_FILLED)
        assert wal_bytes(path) == FULL_SIZE
        with as_left_by_a_crash(path, tmp_path / "at once") as found:
            assert stored(found) == stored(log)
        append(log, FILLED_PAGES)
        assert wal_bytes(path) > FULL_SIZE
        with as_left_by_a_crash(path, tmp_path / "later") as found:
            assert stored(found) == stored(log)
    with opened(path) as log:
        assert log.last_position() == UNTIL_FILLED + FILLED_PAGES


def test_what_loops_write_is_filled_by_whoever_tidies(path: Path, tmp_path: Path) -> None:
    """Given batches that wait for no disk, when there have been so many, then it is time to tidy, which fills the
    write-ahead log a step each time, also while a sync is under way, until it has its size and it is time no more."""
    with quick(path) as (log, writer):
        while not writer.untidy:
            assert wal_bytes(path) < FULL_SIZE // STEPS
            write(log, writer, 1)
            land(writer)
        sizes = [wal_bytes(path)]
        while writer.untidy:
            write(log, writer, 2)
            writer.tidy()
            sizes.append(wal_bytes(path))
            assert writer.write(batch(log, 3))
            writer.begin_sync()
            land(writer, 2)
            assert len(sizes) <= STEPS + 1
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == FULL_SIZE
        with as_left_by_a_crash(path, tmp_path / "crashed") as found:
            assert stored(found) == stored(log)


def test_a_log_that_syncs_nothing_at_once_is_not_filled(path: Path) -> None:
    """Given synchronous NORMAL, where no commit waits for the disk, then nothing is written that was not asked for."""
    with opened(path, "NORMAL") as log:
        append(log, FILL_AFTER_PAGES)
        assert wal_bytes(path) < FULL_SIZE


@pytest.mark.parametrize("quickly", [False, True])
def test_nobody_else_writes_while_it_is_filled(path: Path, monkeypatch: pytest.MonkeyPatch, quickly: bool) -> None:
    """Given another program that writes while the write-ahead log is filled, then it is refused, for what it writes
    would be overwritten; before and after that it is let, and nothing of it or of the log is lost."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0.0)) as other:
        refused: list[str] = []

        def write_beside(path: Path, step: int, size: int) -> int:
            with pytest.raises(sqlite3.OperationalError, match="locked") as caught:
                other.execute("INSERT INTO notes VALUES ('meanwhile')")
            refused.append(str(caught.value))
            return fill(path, step, size)

        monkeypatch.setattr(LogFile, "_fill", staticmethod(write_beside))
        with quick(path) as (log, writer):
            other.execute("CREATE TABLE notes (note)")
            other.execute("INSERT INTO notes VALUES ('before')")
            while wal_bytes(path) < FULL_SIZE:
                if quickly:
                    write(log, writer, 1)
                    land(writer)
                    writer.tidy()
                else:
                    append(log, 1)
            other.execute("INSERT INTO notes VALUES ('after')")
            append(log, 1)
            assert refused
            assert log.check_structure() is None
        assert other.execute("SELECT note FROM notes").fetchall() == [("before",), ("after",)]


def test_while_others_write_filling_is_left_for_later(path: Path) -> None:
    """Given another program that is writing when it is time to fill, then that waits for nobody and leaves the file as
    it is, and the next time it is filled."""
    with opened(path) as log, closing(sqlite3.connect(path, isolation_level=None)) as other:
        while not log._file.wants_filling:
            append(log, 1)
        before = wal_bytes(path)
        other.execute("BEGIN IMMEDIATE")
        with log._lock:
            log._file.fill_ahead()
        assert wal_bytes(path) == before
        other.execute("ROLLBACK")
        append(log, STEPS)
        assert wal_bytes(path) == FULL_SIZE


def test_where_there_is_no_room_the_log_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a disk that has no room to fill the write-ahead log, then that is given back, and commits go on."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with opened(path) as log, monkeypatch.context() as patch:
        patch.setattr("mpreg_mq.events.sqlite.filling.os.fsync", refuse)
        append(log, 2 * FILL_AFTER_PAGES)
        assert wal_bytes(path) < FULL_SIZE
        assert log.last_position() == 2 * FILL_AFTER_PAGES


def test_filling_leaves_what_is_there(tmp_path: Path) -> None:
    """Given a file, when it is filled, then it begins with what it had, and has zeros behind it, as many as were asked
    for, up to the size that was asked for; a file of that size or more stays as it is."""
    path = tmp_path / "file"
    path.write_bytes(b"begins")
    for step, size in ((10, 16), (1 << 20, 16 + (1 << 20)), (1 << 20, 1 << 21), (1 << 20, 1 << 21)):
        assert fill(path, step, 1 << 21) == size
        assert path.read_bytes() == b"begins".ljust(size, b"\0")
    path.write_bytes(b"long enough")
    assert fill(path, 5, 11) == fill(path, 5, 3) == 11
    assert path.read_bytes() == b"long enough"


def test_a_file_that_cannot_be_filled_gives_back_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a disk that gets full, when filling fails, then the file is as it was, and the error tells why."""
    path = tmp_path / "file"
    path.write_bytes(b"begins")

    def refuse(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == 6 + 1000
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("mpreg_mq.events.sqlite.filling.os.fsync", refuse)
    with pytest.raises(OSError, match="no room"):
        fill(path, 1000, 2 << 20)
    assert path.read_bytes() == b"begins"


def test_after_a_failure_it_is_filled_anew(path: Path) -> None:
    """Given a log that opened its file again after a failure, which emptied the write-ahead log, when there have been
    as many commits again, then it is filled again."""
    with opened(path) as log:
        append(log, UNTIL_FILLED)
        file: LogFile = log._file
        file.fail(OSError("a failure"))
        append(log, 1)
        assert wal_bytes(path) < FULL_SIZE
        append(log, UNTIL_FILLED)
        assert wal_bytes(path) == FULL_SIZE
        assert log.last_position() == 2 * UNTIL_FILLED + 1
