"""The stores do the same: a state machine drives them together, and requires that they agree after every step."""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import (
    Append,
    MemoryEventLog,
    MessageCompleted,
    RetainingLog,
    Snapshot,
    SQLiteEventLog,
    chunks,
    read_events,
)
from tests.support.effort import repetitions

STREAMS = ("queue:a", "queue:b", "queue:c")
streams = st.sampled_from(STREAMS)
batches = st.lists(st.tuples(streams, st.integers(0, 3), st.sampled_from([0, 0, 0, 0, 0, 1, -1])), max_size=4)


class Stores(RuleBasedStateMachine):
    """A log in memory and one in a file, which is closed and opened again now and then."""

    @initialize(size=st.sampled_from([1, 3, chunks.EVENTS_IN_CHUNK]))
    def begin(self, size: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "log.db"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "EVENTS_IN_CHUNK", size)
            self.memory: RetainingLog = MemoryEventLog()
        self.file: RetainingLog = self._opened()
        self.numbers = 0

    def _opened(self) -> RetainingLog:
        return SQLiteEventLog(self.path, synchronous="OFF", reserve_bytes=0)

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
            self.directory.cleanup()

    def both(self, what: str, *arguments: Any) -> None:
        """Do something to both: both do it, or both refuse it with the same kind of error."""
        outcomes: list[type[EventLogError] | None] = []
        for log in (self.memory, self.file):
            try:
                getattr(log, what)(*arguments)
                outcomes.append(None)
            except EventLogError as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]

    @rule(steps=batches)
    def append(self, steps: list[tuple[str, int, int]]) -> None:
        batch = []
        versions = {stream: self.memory.stream_version(stream) for stream in STREAMS}
        for stream, count, error in steps:
            events = tuple(MessageCompleted(float(self.numbers + each), "m") for each in range(count))
            self.numbers += count
            batch.append(Append(stream, versions[stream] + error, events))
            versions[stream] += count
        self.both("append", batch)

    @rule(stream=streams, back=st.integers(-1, 5), body=st.binary(max_size=20))
    def save_snapshot(self, stream: str, back: int, body: bytes) -> None:
        version = self.memory.stream_version(stream) - back
        self.both("save_snapshot", Snapshot(stream, version, body))

    @rule(part=st.just(1.0) | st.floats(0.0, 1.0), complete=st.booleans())
    def truncate(self, part: float, complete: bool) -> None:
        last = self.memory.last_position()
        position = self.file.record_end(int(last * part))
        assert self.memory.record_end(position) == position
        versions: dict[str, int] = {}
        for record in self.memory.read_all():
            if record.position <= position:
                versions[record.stream] = record.version
        bases = {name: Snapshot(name, version, b"base") for name, version in versions.items()}
        if not complete and bases:
            bases.popitem()
        self.both("truncate", position, bases)

    @rule()
    def reclaim(self) -> None:
        while self.file.reclaim():
            pass

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.file = self._opened()

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "file"):
            return
        for log in (self.file,):
            assert log.streams() == self.memory.streams()
            assert log.last_position() == self.memory.last_position()
            assert log.base_position() == self.memory.base_position()
            assert list(log.read_all()) == list(self.memory.read_all())
            for stream in STREAMS:
                assert log.stream_version(stream) == self.memory.stream_version(stream)
                assert log.base_version(stream) == self.memory.base_version(stream)
                assert log.snapshots(stream) == self.memory.snapshots(stream)
                version = log.stream_version(stream)
                for after in (0, version // 2):
                    records = list(log.read_stream(stream, after))
                    assert list(self.memory.read_stream(stream, after)) == records
                    for each in (log, self.memory):
                        found = chain.from_iterable(read_events(each, stream, after))
                        assert list(found) == [record.event for record in records]


TestStores = Stores.TestCase
TestStores.settings = settings(deadline=None, max_examples=repetitions(test=30, soak=1000), stateful_step_count=25)
