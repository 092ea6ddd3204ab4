"""What only the log in memory does: its events are in chunks, which the garbage collector leaves alone."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.errors import EventLogError, VersionConflictError
from mpreg_mq.events import Append, MemoryEventLog, RecordedEvent, Snapshot, chunks
from mpreg_mq.events.log import EVENTS_AT_ONCE
from tests.support.numbered_events import events

STREAMS = ("queue:a", "queue:b", "queue:c")


@contextmanager
def chunks_of(size: int, at_once: int = EVENTS_AT_ONCE) -> Iterator[MemoryEventLog]:
    """A log with so many events in a chunk, which gives at most so many at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "EVENTS_IN_CHUNK", size)
        patch.setattr(chunks, "EVENTS_AT_ONCE", at_once)
        yield MemoryEventLog()


# --- the garbage collector ----------------------------------------------------------------------------------


def looked_at(log: MemoryEventLog) -> int:
    """How many references of the log's a full collection follows, once one has found what it need not track."""
    gc.collect()
    waiting: list[object] = [log]
    seen = {id(log)}
    count = 0
    while waiting:
        found = gc.get_referents(waiting.pop())
        count += len(found)
        for each in found:
            if id(each) not in seen and gc.is_tracked(each) and not isinstance(each, type | ModuleType | FunctionType):
                seen.add(id(each))
                waiting.append(each)
    return count


def fill(log: MemoryEventLog, turns: int, streams: int, count: int) -> None:
    """Let streams take turns with so many events each time."""
    for _ in range(turns):
        for stream in range(streams):
            name = f"queue:{stream}"
            log.append([Append(name, log.stream_version(name), events(count))])


@pytest.mark.parametrize("streams", [1, 2])
def test_a_full_collection_looks_at_one_reference_for_each_chunk(streams: int) -> None:
    """Given a log that grows by many events, in one run or in many, then the collector gets to see just its chunks."""
    size = chunks.EVENTS_IN_CHUNK
    log = MemoryEventLog()
    fill(log, 2 * size // streams, streams, 1)
    before = looked_at(log)
    fill(log, 3 * size // streams, streams, 1)
    assert log.last_position() == 5 * size
    assert looked_at(log) - before == 3


def test_what_is_left_after_truncating_is_not_looked_at_either() -> None:
    """Given a log cut within a chunk, then the collector sees no more of it than of a whole one."""
    size = chunks.EVENTS_IN_CHUNK
    log = MemoryEventLog()
    fill(log, 3 * size, 1, 1)
    before = looked_at(log)
    log.truncate(size + 10, {"queue:0": Snapshot("queue:0", size + 10, b"")})
    # One chunk less, and the snapshot.
    assert looked_at(log) < before + 20


def test_truncated_events_are_freed_within_a_chunk() -> None:
    """Given a log cut within a chunk or within the tail, then it holds none of the events that went."""
    for position in (2, 5, 9):
        with chunks_of(4) as log:
            added = events(10)
            free = [sys.getrefcount(one) for one in added]
            log.append([Append("queue:a", 0, added)])
            log.truncate(position, {"queue:a": Snapshot("queue:a", position, b"")})
            held = [sys.getrefcount(one) for one in added]
            assert held[:position] == free[:position]
            assert all(one > before for one, before in zip(held[position:], free[position:], strict=True))


# --- across the borders of chunks ---------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.tuples(st.sampled_from(STREAMS), st.integers(1, 9)), max_size=3)),
        st.tuples(st.just("truncate"), st.integers(0, 40)),
    ),
    max_size=8,
)


def bases_of(records: list[RecordedEvent]) -> dict[str, Snapshot]:
    """A base for each stream of the records, at its last one."""
    return {record.stream: Snapshot(record.stream, record.version, b"") for record in records}


@settings(deadline=None)
@given(size=st.integers(1, 6), at_once=st.integers(1, 7), steps=steps)
def test_a_log_in_chunks_reads_like_a_list(
    size: int, at_once: int, steps: list[tuple[str, list[tuple[str, int]] | int]]
) -> None:
    """For all appends and truncations: what is read from any place is what a plain list of records holds."""
    model: list[RecordedEvent] = []
    versions = dict.fromkeys(STREAMS, 0)
    positions = itertools.count(1)
    base = 0
    with chunks_of(size, at_once) as log:
        for _, step in steps:
            if isinstance(step, int):
                base = min(base + step, log.last_position())
                gone = [record for record in model if record.position <= base]
                log.truncate(base, bases_of(gone))
                model = model[len(gone) :]
            else:
                batch = []
                for stream, count in step:
                    added = events(count, log.last_position())
                    batch.append(Append(stream, versions[stream], added))
                    for each in added:
                        versions[stream] += 1
                        model.append(RecordedEvent(next(positions), stream, versions[stream], each))
                log.append(batch)
            check(log, model, base, at_once)


def check(log: MemoryEventLog, model: list[RecordedEvent], base: int, at_once: int) -> None:
    last = base + len(model)
    assert log.last_position() == last
    for after in range(base, last + 1):
        assert list(log.read_all(after)) == model[after - base :]
    for stream in STREAMS:
        for after in range(log.base_version(stream), log.stream_version(stream) + 1):
            wanted = [record for record in model if record.stream == stream and record.version > after]
            assert list(log.read_stream(stream, after)) == wanted
            parts = list(log.read_events(stream, after))
            assert [each for part in parts for each in part] == [record.event for record in wanted]
            assert all(0 < len(part) <= at_once for part in parts)


@pytest.mark.parametrize("read", [0, 1, 3, 4, 5, 6])
@pytest.mark.parametrize("added", [1, 2, 3, 13])
def test_a_reader_that_began_before_a_seal_reads_on(read: int, added: int) -> None:
    """Given readers that began with events in the tail, then they read on when those have become part of a chunk."""
    with chunks_of(4) as log:
        log.append([Append("queue:a", 0, events(6))])
        of_log, of_stream = log.read_all(), log.read_stream("queue:a")
        alone = itertools.chain.from_iterable(log.read_events("queue:a"))
        first = [(next(of_log).event, next(of_stream).event, next(alone)) for _ in range(read)]
        for number in range(added):
            log.append([Append("queue:a", 6 + number, events(1, 7 + number))])
        rest = [(one.event, other.event, each) for one, other, each in zip(of_log, of_stream, alone, strict=True)]
        assert first + rest == [(each, each, each) for each in events(6)]


def test_a_reader_of_what_was_truncated_in_its_chunk_stops() -> None:
    """Given readers in the middle of a chunk, then they raise once what follows for them was truncated."""
    with chunks_of(4) as log:
        log.append([Append("queue:a", 0, events(6))])
        of_log, of_stream, alone = log.read_all(), log.read_stream("queue:a"), log.read_events("queue:a")
        assert next(of_log) == next(of_stream)
        log.truncate(3, {"queue:a": Snapshot("queue:a", 3, b"")})
        for reader in (of_log, of_stream, alone):
            with pytest.raises(EventLogError, match="truncated meanwhile"):
                next(reader)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 5), st.sampled_from([0, 0, 0, 1, -1])), max_size=20)
)
def test_one_append_by_the_shortest_way_is_an_append(steps: list[tuple[str, int, int]]) -> None:
    """For all appends, also of no events and at wrong versions: without a batch around it each comes to the same."""
    with chunks_of(3) as one, chunks_of(3) as other:
        versions = {"a": 0, "b": 0}
        for stream, count, wrong in steps:
            version = versions[stream] + wrong
            added = events(count)
            outcomes = []
            for append, arguments in (
                (one.append, ((Append(stream, version, added),),)),
                (other.append_next, (stream, version, added)),
            ):
                try:
                    append(*arguments)
                    outcomes.append("")
                except VersionConflictError as error:
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1]
            if not outcomes[0]:
                versions[stream] += count
        assert list(one.read_all()) == list(other.read_all())


def test_a_closed_log_takes_nothing_by_the_shortest_way_either() -> None:
    """Given a log that is closed, then nothing is appended to it."""
    log = MemoryEventLog()
    log.append_next("a", 0, events(1))
    log.close()
    with pytest.raises(EventLogError, match="closed"):
        log.append_next("a", 1, events(1))
