"""From a log to the state of a queue: which snapshots are used, and that the events decide (I4)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import CorruptLogError
from mpreg_mq.events import Append, MemoryEventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Snapshot
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.dumps import FORMAT
from mpreg_mq.projections.loading import load_state, state_at_base

STREAM = "queue:q"
EVENTS = [e.QueueCreated(1.0, "q", QueueConfiguration("q"))] + [
    e.MessageEnqueued(2.0, f"m{number}", "t", b"\x01") for number in range(9)
]


class PlainLog:
    """A log that can only be appended to and read."""

    def __init__(self, log: MemoryEventLog) -> None:
        self._log = log
        self.location = log.location

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        return self._log.read_stream(stream, after_version)


@pytest.fixture
def log() -> MemoryEventLog:
    """A log of one queue with ten events."""
    log = MemoryEventLog()
    log.append([Append(STREAM, 0, EVENTS)])
    return log


def snapshot(version: int, folded: int) -> Snapshot:
    """A snapshot that says one version and holds the fold of so many events."""
    return Snapshot(STREAM, version, QueueState.replay(EVENTS[:folded]).dump())


def test_i4_a_state_is_the_same_with_and_without_a_snapshot(log: MemoryEventLog) -> None:
    """Given a snapshot of the middle, then the state is that of all events, as it is for a log that has none."""
    expected = QueueState.replay(EVENTS).describe()
    assert load_state(log, STREAM).describe() == expected
    log.save_snapshot(snapshot(5, folded=5))
    assert load_state(log, STREAM).describe() == expected
    plain = PlainLog(log)
    assert load_state(plain, STREAM).describe() == expected  # type: ignore[arg-type]
    assert state_at_base(plain, STREAM).version == 0  # type: ignore[arg-type]


def test_i4_a_snapshot_of_another_version_than_it_says_is_not_used(log: MemoryEventLog) -> None:
    """Given a snapshot that says version 8 and holds the fold of 3 events, then all events are folded anew."""
    log.save_snapshot(snapshot(8, folded=3))
    assert load_state(log, STREAM).describe() == QueueState.replay(EVENTS).describe()


def test_a_truncated_stream_begins_with_the_snapshot_of_its_base(log: MemoryEventLog) -> None:
    """Given events that are gone and a newer snapshot, then what stands for the former is where a fold begins."""
    log.truncate(4, {STREAM: snapshot(4, folded=4)})
    log.save_snapshot(snapshot(7, folded=7))
    assert state_at_base(log, STREAM).version == 4
    assert load_state(log, STREAM).describe() == QueueState.replay(EVENTS).describe()


@pytest.mark.parametrize(
    "base", [Snapshot(STREAM, 4, b"not a dump at all"), snapshot(4, folded=3)], ids=["unreadable", "another version"]
)
def test_a_truncated_stream_whose_base_cannot_be_read_is_not_begun_anew(log: MemoryEventLog, base: Snapshot) -> None:
    """Given events that are gone and no snapshot to stand for them, then that is an error: a fold of the rest would be
    the state of another queue."""
    log.truncate(4, {STREAM: base})
    for load in (state_at_base, load_state):
        with pytest.raises(CorruptLogError, match=r"of 'queue:q' up to version 4 were truncated.* restore the log"):
            load(log, STREAM)


def test_the_state_before_the_first_event_can_be_dumped() -> None:
    """Given a queue that was not created yet, then its dump brings back the same."""
    restored = QueueState.restore(QueueState().dump())
    assert restored is not None
    restored.check()
    assert restored.describe() == QueueState().describe()


def test_a_dump_of_another_release_is_left_alone(log: MemoryEventLog) -> None:
    """Given snapshots in a format that this release does not read, and in none, then the events are folded."""
    foreign = msgspec.msgpack.encode((FORMAT + 1, "whatever that one is"))
    assert QueueState.restore(foreign) is None
    log.save_snapshot(Snapshot(STREAM, 5, foreign))
    log.save_snapshot(Snapshot(STREAM, 7, b"not a dump at all"))
    assert load_state(log, STREAM).describe() == QueueState.replay(EVENTS).describe()
