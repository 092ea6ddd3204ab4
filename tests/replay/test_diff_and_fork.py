"""What changed, where histories part, and logs made from a part of another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mpreg_mq.actors.retention import Compactor
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, EventLog, MemoryEventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.replay import Moment, ReadingStoppedError, open_history
from mpreg_mq.replay.diff import LogDifference, diff_logs, diff_moments
from mpreg_mq.replay.fork import Forked, fork, fork_into
from mpreg_mq.replay.verify import verify
from tests.support.history import History
from tests.support.incident import START
from tests.support.running import make_queue


def test_a_fork_holds_the_same_events_at_the_same_places(log: EventLog, tmp_path: Path) -> None:
    """Given a moment, then the fork is the log up to it, with its streams, versions and positions."""
    assert fork(log, tmp_path / "fork.db", at=Moment(position=100)) == Forked(100, 100)
    copy = open_history(tmp_path / "fork.db")
    assert list(copy.read_all()) == list(log.read_all())[:100]
    copy.close()


def compacted(log: EventLog, keep: int, events: int = 124) -> MemoryEventLog:
    """A copy of the first events of a log, of which only the last ``keep`` are left."""
    copy = MemoryEventLog()
    fork_into(log, copy, at=Moment(position=events))
    for _ in Compactor(copy, RetentionPolicy(keep_events=keep, least_events=1), lambda: 0.0).steps():
        pass
    return copy


@example(keeps=(124, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keeps=st.tuples(st.integers(0, 124), st.integers(0, 124)))
def test_the_same_history_parts_nowhere_however_much_is_compacted(log: EventLog, keeps: tuple[int, int]) -> None:
    """Given two copies of a log, each compacted somewhere, then they do not part."""
    left, right = (compacted(log, keep) for keep in keeps)
    assert diff_logs(left, right) == LogDifference((), ())


@example(keeps=(124, 3), at=50)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keeps=st.tuples(st.integers(0, 124), st.integers(0, 124)), at=st.integers(2, 124))
def test_where_histories_part_is_found_or_said_to_be_compacted(log: EventLog, keeps: tuple[int, int], at: int) -> None:
    """Given a copy with one more event in the middle, each compacted somewhere, then the queue parts there and nowhere
    else, or at or before a version up to which it is compacted."""
    other = MemoryEventLog()
    later: dict[str, int] = {}
    for record in log.read_all():
        version = record.version - 1 + later.get(record.stream, 0)
        other.append([Append(record.stream, version, [record.event])])
        if record.position == at:
            other.append([Append(record.stream, version + 1, [e.QueuePaused(record.event.at)])])
            later[record.stream] = 1
            stream, right_version = record.stream, record.version + 1
    left, right = compacted(log, keeps[0]), compacted(other, keeps[1], 125)
    (parting,) = diff_logs(left, right).partings
    assert parting.stream == stream
    begin = max(left.base_version(stream), right.base_version(stream))
    if parting.reason:
        assert parting.version <= begin + 1
    else:
        assert parting.version == right_version
        assert parting.right[0].event == e.QueuePaused(parting.right[0].event.at)


def test_logs_without_a_common_part_say_so(log: EventLog) -> None:
    """Given a log that begins after the other's end, then that is said, and not that they part somewhere."""
    left, right = MemoryEventLog(), compacted(log, 3)
    fork_into(log, left, at=Moment(position=50))
    for parting in diff_logs(left, right).partings:
        end = left.stream_version(parting.stream)
        assert parting.version == end + 1
        assert parting.reason == (
            f"there is no part that both have: memory: ends at version {end}, and memory: is compacted up to version "
            f"{right.base_version(parting.stream)}"
        )
        assert (parting.before, parting.left, parting.left_count) == ((), (), 0)


def test_a_fork_never_writes_over_anything(log: EventLog, tmp_path: Path) -> None:
    """Given a file that exists, then it is refused and stays as it was."""
    (tmp_path / "there").write_text("mine")
    with pytest.raises(EventLogError, match="the file exists"):
        fork(log, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"


@pytest.mark.parametrize("name", ["fork.jsonl", "fork.jsonl.gz"])
def test_a_fork_has_no_name_of_an_export(log: EventLog, tmp_path: Path, name: str) -> None:
    """Given a name that readers take for JSON lines, then it is refused, and what to do is said."""
    with pytest.raises(EventLogError, match=r"the name is that of an export, .* name it \.db, and export that"):
        fork(log, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_fork_is_removed(tmp_path: Path) -> None:
    """Given a log that cannot be read to its end, then nothing is left of the fork."""

    class Breaking(MemoryEventLog):
        def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
            yield from super().read_all(after_position)
            raise EventLogError("the disk is gone")

    broken = Breaking()
    broken.append([Append("queue:q", 0, History().events)])
    with pytest.raises(ReadingStoppedError, match="the disk is gone"):
        fork(broken, tmp_path / "fork.db")
    assert list(tmp_path.iterdir()) == []


def test_a_fork_ends_with_a_whole_decision(log: EventLog) -> None:
    """Given every position of a log, then the fork up to there keeps every promise, and lacks at most the events of
    the decision that goes on after it."""
    records = list(log.read_all())
    cut = 0
    for position in range(len(records) + 1):
        copy = MemoryEventLog()
        forked = fork_into(log, copy, at=Moment(position=position))
        assert verify(copy).ok, verify(copy).violations
        assert [record.event for record in copy.read_all()] == [record.event for record in records[: forked.events]]
        left_out = records[forked.position : position]
        cut += len(left_out)
        assert {(record.stream, record.event.at) for record in left_out} <= {
            (record.stream, record.event.at) for record in records[position : position + 1]
        }
    assert cut, "some positions are within a decision"


def test_a_fork_does_not_end_between_a_new_configuration_and_the_circuits_that_it_closes() -> None:
    """Given a queue that was opened without circuit breakers while a circuit was open, then a fork up to that ends
    before it: who opens the fork with that configuration changes nothing, and would leave the circuit open."""
    log = MemoryEventLog()

    async def story() -> None:
        queue = make_queue(log=log, circuit_breaker_failure_threshold=1)
        await queue.send_message("t", 1)
        (message,) = await queue.receive_messages("w")
        await queue.negative_acknowledge(message, "w")
        await queue.shutdown()
        await make_queue(log=log).shutdown()

    asyncio.run(story())
    records = list(log.read_all())
    (position,) = (record.position for record in records if isinstance(record.event, e.QueueReconfigured))
    assert isinstance(records[position].event, e.CircuitClosed)
    for at, end in ((position, position - 1), (position + 1, position + 1)):
        assert fork_into(log, MemoryEventLog(), at=Moment(position=at)).position == end


def test_a_fork_of_interleaved_streams_keeps_their_order(log: EventLog) -> None:
    """Given streams that take turns, then the copy has them in the same global order."""
    copy = MemoryEventLog()
    fork_into(log, copy)
    assert list(copy.read_all()) == list(log.read_all())


def test_what_changed_between_two_moments(log: EventLog) -> None:
    """Given the moments before and after a failure, then the counts, the message and the breaker changed."""
    found = diff_moments(log, Moment(time=START + 309), Moment(time=START + 311), queue="orders")
    assert found.events == {
        "MessageEnqueued": 1,
        "MessageDelivered": 1,
        "DeliveryFailed": 1,
        "CircuitOpened": 1,
        "MessageRequeued": 1,
        "DuplicateRejected": 1,
    }
    changes = {(change.part, change.name): (change.before, change.after) for change in found.changes}
    assert changes["statistics", "circuits_opened"] == (0, 1)
    assert changes["messages", "12-00a1"] == (None, "unfinished")
    assert changes["deduplication", "order-1012"][0] is None
    before, after = changes["subscribers", "warehouse"]
    assert (before[-1], after[-1]) == ("closed", "open")


def test_what_changed_in_a_message(log: EventLog) -> None:
    """Given a message that failed in between, then only what is different about it is told."""
    found = diff_moments(log, Moment(position=106), Moment(position=112), queue="orders")
    names = {change.name: (change.before, change.after) for change in found.changes if change.part == "messages"}
    assert names["11-00a1 attempts"] == (0, 2)
    assert names["11-00a1 last_error"] == (None, "KeyError: 'sku'")
    assert "11-00a1 acknowledged" not in names


def test_the_same_moment_has_no_difference(log: EventLog) -> None:
    """Given one moment twice, then nothing happened and nothing changed."""
    found = diff_moments(log, Moment(position=100), Moment(position=100))
    assert (found.events, found.changes) == ({}, ())


def test_logs_that_hold_the_same_do_not_part(log: EventLog) -> None:
    """Given a log and its copy, then there is no difference."""
    copy = MemoryEventLog()
    fork_into(log, copy)
    found = diff_logs(log, copy)
    assert (found.partings, found.changes) == ((), ())


def test_histories_part_at_the_first_different_event() -> None:
    """Given two histories with a common beginning, then it is told where they part, with what, and to what end."""
    left, right = MemoryEventLog(), MemoryEventLog()
    common = History().joined("a").sent("1").delivered("1", "a").events
    left.append([Append("queue:q", 0, [*common, e.MessageAcknowledged(1001.0, "1", "a", True)])])
    lost = [e.DeliveryFailed(1001.0, "1", "a", 1, "boom"), e.MessageRequeued(1001.0, "1", 1002.0)]
    right.append([Append("queue:q", 0, [*common, *lost])])
    found = diff_logs(left, right)
    (parting,) = found.partings
    assert (parting.stream, parting.version, parting.left_count, parting.right_count) == ("queue:q", 5, 1, 2)
    assert [record.version for record in parting.before] == [3, 4]
    assert [type(record.event) for record in parting.right] == [e.DeliveryFailed, e.MessageRequeued]
    changes = {(change.part, change.name): (change.before, change.after) for change in found.changes}
    assert changes["messages", "1"] == (None, "unfinished")
    assert changes["statistics", "delivery_failures"] == (0, 1)


def test_a_stream_that_only_one_log_has_parts_at_its_beginning() -> None:
    """Given a queue in one log alone, then it parts at version 1."""
    left, right = MemoryEventLog(), MemoryEventLog()
    right.append([Append("queue:q", 0, History().sent("1").events)])
    (parting,) = diff_logs(left, right).partings
    assert (parting.version, parting.left_count, parting.right_count) == (1, 0, 2)
    left.append([Append("routes:topics", 0, [e.TopicRouteRemoved(1.0, "#", "q")])])
    assert [parting.stream for parting in diff_logs(left, right).partings] == ["queue:q", "routes:topics"]
