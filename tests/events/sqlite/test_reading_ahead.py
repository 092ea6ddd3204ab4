"""Large events are read ahead by a thread where threads take turns often; what comes is the same, and checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events import Append, Event, MessageEnqueued, SQLiteEventLog
from mpreg_mq.replay.records import folding
from tests.support.sqlite_logs import opened, run

STREAM = "queue:a"
RECORDS = 60


def fill(log: SQLiteEventLog, size: int) -> list[Event]:
    """Sixty records of six megabytes in all; their events are of about the size."""
    each = 100_000 // size
    written: list[Event] = []
    for number in range(RECORDS):
        events = [MessageEnqueued(1.0, f"m{number}-{at}", "t", bytes([number]) * size) for at in range(each)]
        log.append([Append(STREAM, len(written), events)])
        written += events
    return written


@contextmanager
def turns(often: bool) -> Iterator[None]:
    """Threads take turns as in a long fold, or as always."""
    if not often:
        yield
        return
    with folding():
        yield


def reads_ahead() -> bool:
    """Whether there is a thread that reads ahead."""
    return any(thread.name.startswith("mpreg-mq-read-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize(("size", "often", "ahead"), [(20_000, True, True), (20_000, False, False), (200, True, False)])
def test_a_thread_reads_ahead_only_where_it_gains(path: Path, size: int, often: bool, ahead: bool) -> None:
    """Given large or small events, then all come, in order, and a thread reads ahead only where that is worth it."""
    with opened(path, "OFF") as log, turns(often):
        written = fill(log, size)
        reader = log.read_events(STREAM)
        found = list(chain.from_iterable(next(reader) for _ in range(RECORDS // 2)))
        assert reads_ahead() == ahead
        found += chain.from_iterable(reader)
        assert found == written
        assert [record.event for record in log.read_all()] == written
        assert not reads_ahead()


@pytest.mark.parametrize("often", [True, False])
def test_damage_far_ahead_stops_the_reader_there(path: Path, often: bool) -> None:
    """Given a damaged record among large ones, then all events before it come, and none after."""
    with opened(path, "OFF") as log, turns(often):
        written = fill(log, 20_000)
        run(path, "UPDATE records SET checksum = zeroblob(16) WHERE position = 250")
        for events in (log.read_events(STREAM), ([record.event] for record in log.read_all())):
            found: list[Event] = []
            with pytest.raises(CorruptLogError, match="position 246: the checksum"):
                found.extend(chain.from_iterable(events))
            assert found == written[:245]
        assert not reads_ahead()


def test_who_stops_early_leaves_no_thread(path: Path) -> None:
    """Given a reader that stops in the middle, or whose log is closed, then no thread is left."""
    with opened(path, "OFF") as log, turns(often=True):
        fill(log, 20_000)
        stopping, refused = log.read_events(STREAM), log.read_events(STREAM)
        for _ in range(RECORDS // 2):
            next(stopping)
            next(refused)
        assert reads_ahead()
        del stopping
        log.close()
        with pytest.raises(EventLogError, match="is closed"):
            list(refused)
        assert not reads_ahead()
