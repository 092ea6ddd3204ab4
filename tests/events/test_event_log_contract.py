"""What every event log promises, run against each store."""

from __future__ import annotations

import itertools
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.errors import EventLogError, VersionConflictError
from mpreg_mq.events import (
    Append,
    Event,
    EventLog,
    MemoryEventLog,
    MessageCompleted,
    MessageEnqueued,
    RecordedEvent,
    SQLiteEventLog,
    chunks,
    open_log,
    read_events,
)
from tests.support.nats_servers import fresh_url, require_nats
from tests.support.numbered_events import event, events


@contextmanager
def memory() -> Iterator[EventLog]:
    yield MemoryEventLog()


@contextmanager
def memory_in_small_chunks() -> Iterator[EventLog]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "EVENTS_IN_CHUNK", 3)
        yield MemoryEventLog()


@contextmanager
def sqlite() -> Iterator[EventLog]:
    with tempfile.TemporaryDirectory() as directory:
        log = SQLiteEventLog(Path(directory) / "log.db", synchronous="NORMAL")
        try:
            yield log
        finally:
            log.close()


@contextmanager
def nats() -> Iterator[EventLog]:
    require_nats()
    log = open_log(fresh_url())
    try:
        yield DensePositions(log)
    finally:
        log.close()


class DensePositions:
    """A log whose positions rise with gaps, numbered from 1, so that it can be compared with one without gaps."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._known: list[int] = []
        """Positions from the start of the log; the log only grows."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def _positions(self) -> list[int]:
        known = self._known
        fresh = [record.position for record in self._log.read_all(known[-1] if known else 0)]
        self._known = known + fresh
        return self._known

    def last_position(self) -> int:
        return bisect_right(self._positions(), self._log.last_position())

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        return self._dense(self._log.read_stream(stream, after_version))

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        before = self._positions()[: max(0, after_position)]
        return self._dense(self._log.read_all(before[-1] if before else after_position))

    def _dense(self, records: Iterator[RecordedEvent]) -> Iterator[RecordedEvent]:
        known = self._known
        for record in records:
            if not known or record.position > known[-1]:
                known = self._positions()
            yield msgspec.structs.replace(record, position=bisect_right(known, record.position))


STORES = {"memory": memory, "memory in small chunks": memory_in_small_chunks, "sqlite": sqlite, "nats": nats}


@pytest.fixture(params=STORES)
def log(request: pytest.FixtureRequest) -> Iterator[EventLog]:
    with STORES[request.param]() as log:
        yield log


def alone(found: Iterable[Sequence[Event]]) -> list[Event]:
    """Events that come many at a time."""
    return list(itertools.chain.from_iterable(found))


def versions(records: Iterator[RecordedEvent]) -> list[int]:
    return [record.version for record in records]


# --- appending ----------------------------------------------------------------------------------------------


def test_a_new_log_is_empty(log: EventLog) -> None:
    """Given a new log, then it has no streams and no events, and every stream is at version 0."""
    assert log.streams() == []
    assert log.last_position() == 0
    assert log.stream_version("queue:a") == 0
    assert list(log.read_all()) == []
    assert list(log.read_stream("queue:a")) == []
    assert list(read_events(log, "queue:a")) == []


def test_appended_events_are_read_back_where_they_were_put(log: EventLog) -> None:
    """Given appends to two streams, then versions count per stream and positions over the log (I1)."""
    log.append([Append("queue:b", 0, events(2))])
    log.append([Append("queue:a", 0, events(1, 3))])
    log.append([Append("queue:b", 2, events(1, 4))])
    assert list(log.read_all()) == [
        RecordedEvent(1, "queue:b", 1, event(1)),
        RecordedEvent(2, "queue:b", 2, event(2)),
        RecordedEvent(3, "queue:a", 1, event(3)),
        RecordedEvent(4, "queue:b", 3, event(4)),
    ]
    assert [record.position for record in log.read_stream("queue:b")] == [1, 2, 4]
    assert log.streams() == ["queue:a", "queue:b"]
    assert (log.stream_version("queue:a"), log.stream_version("queue:b")) == (1, 3)
    assert log.last_position() == 4


def test_an_append_that_expects_another_version_is_refused(log: EventLog) -> None:
    """Given a stream at version 2, then an append that expects 1 or 3 raises, naming both versions."""
    log.append([Append("queue:a", 0, events(2))])
    for expected in (1, 3):
        with pytest.raises(VersionConflictError, match=rf"'queue:a' is at version 2, .* expected {expected}"):
            log.append([Append("queue:a", expected, events(1))])
    assert log.last_position() == 2


def test_a_batch_is_all_or_nothing(log: EventLog) -> None:
    """Given a batch whose last append does not fit, then nothing of it is written and the log goes on."""
    log.append([Append("queue:a", 0, events(1))])
    with pytest.raises(VersionConflictError):
        log.append(
            [Append("queue:a", 1, events(1)), Append("queue:new", 0, events(2)), Append("queue:a", 1, events(1))]
        )
    assert log.streams() == ["queue:a"]
    assert log.last_position() == 1
    log.append([Append("queue:a", 1, events(1, 2)), Append("queue:new", 0, events(1, 3))])
    assert [record.event for record in log.read_all()] == list(events(3))


def test_a_batch_with_an_event_that_cannot_be_stored_leaves_no_trace() -> None:
    """Given a store that encodes and an event it cannot encode, then nothing of the batch is written."""
    with sqlite() as log:
        unstorable = MessageCompleted(at=1.0, message_id="\ud800")
        with pytest.raises(EventLogError, match="cannot be stored"):
            log.append([Append("queue:a", 0, events(1)), Append("queue:b", 0, (unstorable,))])
        assert log.last_position() == 0
        assert log.streams() == []


def test_appends_for_one_stream_in_a_batch_apply_in_order(log: EventLog) -> None:
    """Given two appends for one stream in a batch, then the second expects what the first leaves."""
    log.append(
        [Append("queue:a", 0, events(2)), Append("queue:b", 0, events(1, 3)), Append("queue:a", 2, events(1, 4))]
    )
    assert [record.event for record in log.read_stream("queue:a")] == [event(1), event(2), event(4)]
    assert [record.event for record in log.read_all()] == list(events(4))


def test_an_empty_batch_does_nothing(log: EventLog) -> None:
    """Given nothing to append, then nothing happens."""
    log.append([])
    assert log.last_position() == 0


def test_an_append_without_events_only_checks_its_version(log: EventLog) -> None:
    """Given an append without events, then it makes no stream, but a wrong version still fails its batch."""
    log.append([Append("queue:a", 0, ())])
    assert log.streams() == []
    with pytest.raises(VersionConflictError):
        log.append([Append("queue:b", 0, events(1)), Append("queue:a", 1, ())])
    assert log.last_position() == 0


def test_stream_names_are_any_text(log: EventLog) -> None:
    """Given stream names with spaces, quotes, other alphabets or nothing, then each is a stream of its own."""
    names = ["", " ", "queue:Zoë's", "очередь", "a%_", "A%_", "🐟"]
    for name in names:
        log.append([Append(name, 0, events(1))])
    assert log.streams() == sorted(names)
    assert all(log.stream_version(name) == 1 for name in names)


Model = list[tuple[str, Event]]

stream_names = st.sampled_from(["queue:a", "queue:b", "queue:c"])
batches = st.lists(st.tuples(stream_names, st.integers(0, 3), st.sampled_from([0, 0, 0, 0, 1, -1])), max_size=4)


@pytest.mark.parametrize("store", STORES)
@settings(deadline=None, max_examples=50)
@given(steps=st.lists(batches, max_size=8))
def test_a_log_agrees_with_a_list_of_accepted_batches(store: str, steps: list[list[tuple[str, int, int]]]) -> None:
    """For all batches, fitting or not: the log holds just the accepted ones, gap-free, in their order (I1)."""
    numbers = itertools.count(1)
    model: Model = []
    with STORES[store]() as log:
        for step in steps:
            trial = list(model)
            batch = []
            fits = True
            for stream, count, error in step:
                version = sum(name == stream for name, _ in trial)
                added = tuple(event(next(numbers)) for _ in range(count))
                batch.append(Append(stream, version + error, added))
                trial += [(stream, one) for one in added]
                fits = fits and not error
            if fits:
                log.append(batch)
                model = trial
            else:
                with pytest.raises(VersionConflictError):
                    log.append(batch)
            check_against(log, model)


def check_against(log: EventLog, model: Model) -> None:
    seen: dict[str, int] = {}
    expected = []
    for position, (stream, one) in enumerate(model, 1):
        seen[stream] = seen.get(stream, 0) + 1
        expected.append(RecordedEvent(position, stream, seen[stream], one))
    assert list(log.read_all()) == expected
    assert log.last_position() == len(model)
    assert log.streams() == sorted(seen)
    for stream, version in seen.items():
        of_stream = [record for record in expected if record.stream == stream]
        assert log.stream_version(stream) == version
        for after in range(-1, version + 2):
            wanted = of_stream[max(0, after) :]
            assert list(log.read_stream(stream, after)) == wanted
            assert alone(read_events(log, stream, after)) == [record.event for record in wanted]
    for after in range(-1, len(model) + 2):
        assert list(log.read_all(after)) == expected[max(0, after) :]


# --- reading while others write -----------------------------------------------------------------------------


def test_an_iterator_shows_the_log_as_it_was_when_asked(log: EventLog) -> None:
    """Given iterators made before an append, used or not yet, then they end where the log ended then."""
    log.append([Append("queue:a", 0, events(2))])
    of_stream, of_log, events_alone = log.read_stream("queue:a"), log.read_all(), read_events(log, "queue:a")
    assert next(of_log).position == 1
    log.append([Append("queue:a", 2, events(2, 3)), Append("queue:b", 0, events(1))])
    assert versions(of_stream) == [1, 2]
    assert [record.position for record in of_log] == [2]
    assert alone(events_alone) == list(events(2))
    assert log.last_position() == 5


def test_an_iterator_holds_no_lock_between_its_steps(log: EventLog) -> None:
    """Given a reader that stopped in the middle, then another thread still appends."""
    log.append([Append("queue:a", 0, events(2))])
    reader = log.read_all()
    next(reader)
    writer = threading.Thread(target=log.append, args=([Append("queue:a", 2, events(1, 3))],))
    writer.start()
    writer.join(30)
    assert log.stream_version("queue:a") == 3
    assert [record.position for record in reader] == [2]


def test_long_streams_are_read_whole(log: EventLog) -> None:
    """Given more events and more bytes than a store reads at a time, then all are read, in order."""
    small = events(2500)
    large = tuple(
        MessageEnqueued(at=1.0, message_id=f"m{number}", topic="t", payload=bytes([number]) * 400_000)
        for number in range(8)
    )
    log.append([Append("queue:small", 0, small)])
    log.append([Append("queue:large", 0, large)])
    assert tuple(record.event for record in log.read_stream("queue:small")) == small
    assert tuple(record.event for record in log.read_stream("queue:large")) == large
    assert versions(log.read_stream("queue:small", 2400)) == list(range(2401, 2501))
    for after in (0, 1, 511, 512, 513, 2400, 2499, 2500):
        assert alone(read_events(log, "queue:small", after)) == list(small[after:])
    assert alone(read_events(log, "queue:large", 1)) == list(large[1:])
    assert [record.position for record in log.read_all()] == list(range(1, 2509))


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0..count-1)`` at the same time; the first failure is raised here."""
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_append_to_their_own_streams_at_once(log: EventLog) -> None:
    """Given threads that append to a stream each and read meanwhile, then no event is lost or out of order."""

    def work(number: int) -> None:
        for version in range(25):
            log.append([Append(f"queue:{number}", version, (event(version),))])
            assert versions(log.read_stream(f"queue:{number}")) == list(range(1, version + 2))
            assert len(alone(read_events(log, f"queue:{number}"))) == version + 1
            assert log.stream_version(f"queue:{number}") == version + 1
            positions = [record.position for record in log.read_all()]
            assert positions == list(range(1, len(positions) + 1))

    in_threads(4, work)
    assert log.last_position() == 100


def test_of_racing_appends_for_one_version_one_wins(log: EventLog) -> None:
    """Given threads that race for each version of a stream, then just one append per version is stored."""
    won: list[int] = []

    def work(number: int) -> None:
        for version in range(20):
            try:
                log.append([Append("queue:a", version, (event(version),))])
                won.append(version)
            except VersionConflictError:
                continue

    in_threads(4, work)
    assert sorted(won) == list(range(len(won)))
    assert log.stream_version("queue:a") == len(won)


# --- the end ------------------------------------------------------------------------------------------------


def test_sync_returns(log: EventLog) -> None:
    """Given events in the log, then sync returns and the log goes on."""
    log.append([Append("queue:a", 0, events(2))])
    log.sync()
    log.append([Append("queue:a", 2, events(1))])
    log.sync()
    assert log.stream_version("queue:a") == 3


def test_close_can_be_repeated(log: EventLog) -> None:
    """Given a closed log, then closing it again does nothing."""
    assert not log.closed
    log.close()
    assert log.closed
    log.close()
    assert log.closed


def test_a_closed_log_refuses_use(log: EventLog) -> None:
    """Given a closed log, then every method raises at the call, and open iterators at their next step."""
    log.append([Append("queue:a", 0, events(3))])
    started, fresh, events_alone = log.read_all(), log.read_stream("queue:a"), read_events(log, "queue:a")
    next(started)
    log.close()
    calls: list[Callable[[], object]] = [
        lambda: log.append([Append("queue:a", 3, events(1))]),
        lambda: log.append([]),
        lambda: log.stream_version("queue:a"),
        log.streams,
        log.last_position,
        lambda: log.read_stream("queue:a"),
        log.read_all,
        log.sync,
        lambda: next(started),
        lambda: next(fresh),
        lambda: read_events(log, "queue:a"),
        lambda: next(events_alone),
    ]
    for call in calls:
        with pytest.raises(EventLogError, match="is closed"):
            call()


def test_only_a_log_that_waits_for_a_disk_is_blocking() -> None:
    """The memory log is called straight from an event loop, the SQLite log through the journal."""
    with memory() as in_memory, sqlite() as on_disk:
        assert not in_memory.blocking
        assert on_disk.blocking
