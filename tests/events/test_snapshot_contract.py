"""What every log that keeps snapshots promises of them, however large they are (I4)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.events import Append, MemoryEventLog, RetainingLog, Snapshot, SQLiteEventLog, open_log
from mpreg_mq.events.log import each_snapshot
from mpreg_mq.events.transfer import base_of
from tests.support.effort import repetitions
from tests.support.nats_servers import fresh_url, require_nats
from tests.support.numbered_events import events

MEGABYTE = 1 << 20
STREAM = "queue:a"
sizes = st.sampled_from([0, 1, MEGABYTE - 1, MEGABYTE, 3 * MEGABYTE])


@contextmanager
def memory() -> Iterator[RetainingLog]:
    yield MemoryEventLog()


@contextmanager
def sqlite() -> Iterator[RetainingLog]:
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(SQLiteEventLog(Path(directory) / "log.db", synchronous="OFF", reserve_bytes=0)) as log,
    ):
        yield log


@contextmanager
def nats() -> Iterator[RetainingLog]:
    require_nats()
    with closing(cast("RetainingLog", open_log(fresh_url()))) as log:
        yield log


STORES = {"memory": memory, "sqlite": sqlite, "nats": nats}


@pytest.mark.parametrize("store", STORES)
@settings(deadline=None, max_examples=repetitions(test=10, ci=20, soak=100))
@given(found=st.lists(sizes, min_size=2, max_size=5))
def test_the_base_and_the_newest_two_are_there(store: str, found: list[int]) -> None:
    """For snapshots of all sizes, the first of them at the base: it and the newest two are given, newest first, and
    whoever asks for one version gets that one."""
    made = [Snapshot(STREAM, version, bytes([version]) * size) for version, size in enumerate(found, 1)]
    with STORES[store]() as log:
        for snapshot in made:
            log.append([Append(STREAM, snapshot.version - 1, events(1, snapshot.version))])
            if snapshot is made[0]:
                log.truncate(log.record_end(log.last_position()), {STREAM: snapshot})
            else:
                log.save_snapshot(snapshot)
        kept = [*made[-1:-3:-1], *([made[0]] if len(made) > 2 else [])]
        # Compared without showing megabytes where it fails.
        assert [each.version for each in log.snapshots(STREAM)] == [each.version for each in kept]
        assert all(one == other for one, other in zip(log.snapshots(STREAM), kept, strict=True))
        assert all(one == other for one, other in zip(each_snapshot(log, STREAM), kept, strict=True))
        for snapshot in kept:
            assert [one.version for one in each_snapshot(log, STREAM, snapshot.version)] == [snapshot.version]
        assert base_of(log, STREAM).version == 1
        assert list(each_snapshot(log, STREAM, len(made) + 1)) == []


@pytest.mark.parametrize("store", STORES)
def test_a_stream_that_is_not_there_has_no_snapshots(store: str) -> None:
    """Given a name that no stream has, then there is no snapshot of it, at any version."""
    with STORES[store]() as log:
        assert log.snapshots(STREAM) == list(each_snapshot(log, STREAM)) == list(each_snapshot(log, STREAM, 1)) == []
