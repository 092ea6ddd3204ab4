"""Quick writers of logs in SQLite files, on a disk of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpreg_mq.events import Append, SQLiteEventLog
from mpreg_mq.events.log import QuickWriter
from tests.support.sqlite_logs import events, opened

STREAM = "queue:a"


@contextmanager
def quick(path: Path) -> Iterator[tuple[SQLiteEventLog, QuickWriter]]:
    """A log and a quick writer of it."""
    with opened(path, writes_on_loop=True) as log:
        writer = log.quick_writer()
        if writer is None:
            pytest.skip("the kernel takes no request to sync a file of this file system")
        yield log, writer
        writer.close()


def batch(log: SQLiteEventLog, *numbers: int, stream: str = STREAM) -> list[Append]:
    return [Append(stream, log.stream_version(stream), events(*numbers))]


def write(log: SQLiteEventLog, writer: QuickWriter, *numbers: int) -> None:
    """Write a batch and begin its sync."""
    assert writer.write(batch(log, *numbers))
    writer.begin_sync()


def land(writer: QuickWriter, count: int = 1) -> None:
    """Wait until so many batches are on disk."""
    landed = 0
    while landed < count:
        more = writer.end_sync(wait=True)
        assert more > 0
        landed += more
    assert landed == count
