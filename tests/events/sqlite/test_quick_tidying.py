"""Quick writes put off copying the write-ahead log into the file: a thread does it, and nothing grows for ever."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.events import Append, SQLiteEventLog
from mpreg_mq.events.log import QuickWriter
from mpreg_mq.events.sqlite.opened import CHECKPOINT_PAGES
from tests.support.quick_sqlite import STREAM, land, quick, write
from tests.support.sqlite_logs import events

PATIENCE = 60.0
FRAME_BYTES = 4096 + 24
"""What a page takes in the write-ahead log."""
FEW_PAGES = 100
"""What one batch, and the estimate of what batches take, may be out by."""


def wal_bytes(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def write_many(log: SQLiteEventLog, writer: QuickWriter, count: int) -> int:
    """Write batches, and tidy whenever it is time; the largest the write-ahead log was."""
    largest = 0
    for number in range(count):
        assert writer.write([Append(STREAM, log.stream_version(STREAM), events(number))])
        writer.begin_sync()
        land(writer)
        # More than once only while it is filled ahead, in steps.
        while writer.untidy:
            writer.tidy()
        largest = max(largest, wal_bytes(log._path))
    return largest


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A place where a sync takes no time, where there is one."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path / "orders.db"
        return
    path = Path("/dev/shm") / f"orders-{os.getpid()}.db"
    yield path
    path.unlink(missing_ok=True)


def test_the_write_ahead_log_stays_small(in_memory: Path) -> None:
    """Given thousands of batches by a client that tidies when it is time, then the write-ahead log never has more pages
    than are copied at a time, and a few, because it begins anew after each."""
    with quick(in_memory) as (log, writer):
        largest = write_many(log, writer, 4 * CHECKPOINT_PAGES)
        assert largest <= (CHECKPOINT_PAGES + FEW_PAGES) * FRAME_BYTES
        assert log.last_position() == 4 * CHECKPOINT_PAGES


def test_without_tidying_it_would_not(in_memory: Path) -> None:
    """Given more batches by a client that never tidies, then the write-ahead log grows beyond that."""
    with quick(in_memory) as (log, writer):
        for number in range(CHECKPOINT_PAGES + FEW_PAGES):
            write(log, writer, number)
            land(writer)
        assert writer.untidy
        assert wal_bytes(in_memory) > (CHECKPOINT_PAGES + FEW_PAGES) * FRAME_BYTES


def test_a_reader_that_stays_keeps_it_from_beginning_anew_only_while_it_stays(in_memory: Path) -> None:
    """Given a program that reads all the while, then the write-ahead log grows and nobody waits for that program; when
    it has ended, the write-ahead log begins anew and grows no more."""
    with quick(in_memory) as (log, writer):
        write_many(log, writer, 10)
        with closing(sqlite3.connect(in_memory, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM records").fetchone()
            grown = write_many(log, writer, 2 * CHECKPOINT_PAGES)
            assert grown > (CHECKPOINT_PAGES + FEW_PAGES) * FRAME_BYTES
        assert write_many(log, writer, 4 * CHECKPOINT_PAGES) <= grown + (CHECKPOINT_PAGES + FEW_PAGES) * FRAME_BYTES


def test_a_write_ahead_log_that_grows_while_it_is_copied_begins_anew_all_the_same(in_memory: Path) -> None:
    """Given somebody who always writes a little more before a checkpoint has ended, then the write-ahead log grows to
    four times as much as is copied at a time, and no further."""
    with quick(in_memory) as (log, writer), closing(sqlite3.connect(in_memory, isolation_level=None)) as reader:
        checkpointer = sqlite3.connect(in_memory, isolation_level=None)

        class Overtaken:
            """What this reader has not seen is not copied, as what is written after a checkpoint has begun."""

            def execute(self, statement: str) -> sqlite3.Cursor:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
                write(log, writer, 0)
                land(writer)
                found = checkpointer.execute(statement)
                reader.execute("ROLLBACK")
                return found

            def close(self) -> None:
                checkpointer.close()

        log._file._checkpointer = Overtaken()  # type: ignore[assignment]
        largest = write_many(log, writer, 12 * CHECKPOINT_PAGES)
        assert 2 * CHECKPOINT_PAGES * FRAME_BYTES < largest <= (5 * CHECKPOINT_PAGES + FEW_PAGES) * FRAME_BYTES


def test_tidying_lets_others_write_meanwhile(path: Path) -> None:
    """Given a checkpoint that takes its time, then a batch is written while it goes on."""
    with quick(path) as (log, writer):
        checkpointer, thread = _slow_checkpoint(log, writer)
        write(log, writer, 2)
        land(writer, 2)
        checkpointer.go_on.set()
        thread.join(PATIENCE)


class _Slow:
    """Stands in for a log's connection that checkpoints, and for a disk that takes its time."""

    def __init__(self, log: SQLiteEventLog) -> None:
        self.begun, self.go_on, self.closed = threading.Event(), threading.Event(), threading.Event()
        self._connection = sqlite3.connect(log._path, check_same_thread=False, isolation_level=None)
        log._file._checkpointer = self  # type: ignore[assignment]

    def execute(self, statement: str) -> sqlite3.Cursor:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        return self._connection.execute(statement)

    def close(self) -> None:
        self.closed.set()
        self._connection.close()


def _slow_checkpoint(log: SQLiteEventLog, writer: QuickWriter) -> tuple[_Slow, threading.Thread]:
    """Write a batch, and have a thread in the middle of a checkpoint."""
    write(log, writer, 1)
    checkpointer = _Slow(log)
    thread = threading.Thread(target=writer.tidy)
    thread.start()
    assert checkpointer.begun.wait(PATIENCE)
    return checkpointer, thread


class _Watched:
    """A lock that tells when somebody wants it."""

    def __init__(self, lock: threading.Lock, wanted: threading.Event) -> None:
        self._lock, self._wanted = lock, wanted

    def __enter__(self) -> None:
        self._wanted.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("way", ["close", "sync", "settle"])
def test_a_checkpoint_under_way_is_waited_for(path: Path, way: str) -> None:
    """Given a checkpoint that goes on when the log is closed, synced or settled, which need one of their own or end
    that one, then they wait for it, and do what they are for."""
    with quick(path) as (log, writer):
        checkpointer, tidying = _slow_checkpoint(log, writer)
        file: Any = log._file
        file._checkpointing = _Watched(file._checkpointing, checkpointer.closed)
        do: Callable[[], object] = {"close": log.close, "sync": log.sync, "settle": writer.settle}[way]
        with ThreadPoolExecutor(1) as other:
            done = other.submit(do)
            # Here it wants the lock, or without one would have closed the connection.
            assert checkpointer.closed.wait(PATIENCE) or done.done()
            assert not done.done()
            with contextlib.suppress(sqlite3.ProgrammingError):
                checkpointer._connection.execute("SELECT 1")
                checkpointer.closed.clear()
            assert not checkpointer.closed.is_set()
            checkpointer.go_on.set()
            assert done.result(PATIENCE) == (1 if way == "settle" else None)
        tidying.join(PATIENCE)
        log.close()
        writer.tidy()
        assert [file.name for file in path.parent.iterdir()] == [path.name]
