"""Logs whose first events retention took away: everything goes on from the snapshots that stand for them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import attrs
import pytest

from mpreg_mq.actors.retention import Compactor
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events import Append, EventLog, MemoryEventLog, SQLiteEventLog
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Snapshot
from mpreg_mq.events.transfer import export_log
from mpreg_mq.queue import MessageQueue
from mpreg_mq.replay import Moment, open_history, replay, why
from mpreg_mq.replay.dead_letters import dead_letters
from mpreg_mq.replay.diff import diff_logs, diff_moments
from mpreg_mq.replay.following import Follower
from mpreg_mq.replay.fork import fork, fork_into
from mpreg_mq.replay.report import collect
from mpreg_mq.replay.rerun import rerun, story_of
from mpreg_mq.replay.source import log_info
from mpreg_mq.replay.subjects import MessageNotFoundError
from mpreg_mq.replay.trace import trace
from mpreg_mq.replay.verify import verify
from tests.support.history import History
from tests.support.incident import START


@pytest.fixture
def path(log: EventLog, tmp_path: Path) -> Path:
    """The incident's log, of which only the last three events are left."""
    path = tmp_path / "compacted.db"
    with closing(SQLiteEventLog(path, synchronous="NORMAL")) as opened:
        # One record for each event: a log is cut between records.
        for record in log.read_all():
            opened.append([Append(record.stream, record.version - 1, [record.event])])
        for _ in Compactor(opened, RetentionPolicy(keep_events=3, least_events=1), lambda: 0.0).steps():
            pass
        assert opened.base_position() == 121
    return path


@pytest.fixture
def compacted(path: Path) -> Iterator[EventLog]:
    """That log, opened for reading."""
    with closing(open_history(path)) as opened:
        yield opened


def test_queues_are_the_same(log: EventLog, compacted: EventLog) -> None:
    """Given a compacted log, then its queues, figures and dead letters are those of the whole one."""
    whole, rest = replay(log), replay(compacted)
    assert {name: state.describe() for name, state in rest.states.items()} == {
        name: state.describe() for name, state in whole.states.items()
    }
    assert list(replay(compacted, queue="mail").states) == ["mail"]
    follower = Follower(compacted)
    follower.catch_up()
    assert follower.states["orders"].describe() == whole.states["orders"].describe()
    assert list(dead_letters(compacted)) == list(dead_letters(log))
    assert collect(compacted).queues["orders"].statistics == collect(log).queues["orders"].statistics


@pytest.mark.parametrize("message", ["12-00a1", "13-00a1", "14-00a1", "11-00a1"])
def test_why_is_the_same(log: EventLog, compacted: EventLog, message: str) -> None:
    """Given a message that was accepted before the log begins, then what holds it up is that of the whole log."""
    whole, rest = why(log, message), why(compacted, message)
    assert rest.standing is whole.standing
    assert [attrs.evolve(blocker, text="") for blocker in rest.blockers] == [
        attrs.evolve(blocker, text="") for blocker in whole.blockers
    ]
    assert rest.answer.split(" since ")[0][:20] == whole.answer.split(" since ")[0][:20]


def test_it_is_verified_and_decided_again(compacted: EventLog) -> None:
    """Given what is left, then it keeps every promise, and is decided again from where it begins."""
    assert verify(compacted).ok, verify(compacted).violations
    assert rerun(compacted).count == 0
    assert rerun(compacted, changes={"max_retries": 0}).decisions > 0


@pytest.fixture
def emptied(path: Path) -> Path:
    """That log, of which no event is left."""
    with closing(SQLiteEventLog(path, synchronous="NORMAL")) as opened:
        for _ in Compactor(opened, RetentionPolicy(keep_events=0, least_events=1), lambda: 0.0).steps():
            pass
    return path


def damage_base(path: Path, stream: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        (number,) = connection.execute("SELECT id FROM streams WHERE name = ?", (stream,)).fetchone()
        connection.execute("UPDATE snapshots SET body = zeroblob(length(body)) WHERE stream_id = ?", (number,))


def test_queues_without_an_event_are_counted_and_dated(emptied: Path) -> None:
    """Given a log whose events are all compacted, then its queues are verified, and are those of its last position."""
    with closing(open_history(emptied)) as log:
        found = verify(log)
        assert found.ok
        assert (found.events, found.queues) == (0, 2)
        assert (replay(log).events, replay(log).position, replay(log, queue="mail").position) == (0, 124, 124)
        assert replay(log).now > START


@pytest.mark.parametrize("stream", ["queue:orders", "queue:mail"])
@pytest.mark.parametrize("events", ["few", "none"])
def test_a_damaged_base_is_no_promise_kept(
    path: Path, request: pytest.FixtureRequest, stream: str, events: str, tmp_path: Path
) -> None:
    """Given damage to what stands for the compacted events of a queue, whether it has others or not, then verify says
    so; the other queue can still be taken out of the log."""
    if events == "none":
        request.getfixturevalue("emptied")
    damage_base(path, stream)
    with closing(open_history(path)) as log:
        found = verify(log)
        assert not found.ok
        assert found.stopped is not None
        assert f"the snapshot of {stream!r}" in found.stopped
        assert found.queues == 2
        assert found.violations == ()
        (other,) = {"queue:orders", "queue:mail"} - {stream}
        export_log(log, tmp_path / "rest.jsonl", streams=[other])
        with pytest.raises(CorruptLogError, match="is damaged"):
            export_log(log, tmp_path / "all.jsonl")
    with closing(open_history(tmp_path / "rest.jsonl")) as rest:
        assert verify(rest).ok
        assert list(replay(rest).states) == [other.removeprefix("queue:")]


def test_differences_are_seen(log: EventLog, compacted: EventLog) -> None:
    """Given two moments of what is left, then the changes are those of the whole log."""
    whole = diff_moments(log, Moment(position=122), Moment(position=124))
    assert diff_moments(compacted, Moment(position=122), Moment(position=124)) == whole
    assert diff_logs(compacted, compacted).partings == ()


@pytest.mark.parametrize("at", [None, 124, 122, 121])
def test_a_fork_begins_where_the_log_begins(compacted: EventLog, tmp_path: Path, at: int | None) -> None:
    """Given a compacted log, then a fork is that log up to the moment: its queues, events, positions and base."""
    until = None if at is None else Moment(position=at)
    forked = fork(compacted, tmp_path / "fork.db", at=until)
    assert (forked.events, forked.position) == ((at or 124) - 121, at or 124)
    with closing(open_history(tmp_path / "fork.db")) as copy:
        assert list(copy.read_all()) == list(compacted.read_all())[: forked.events]
        assert (log_info(copy).base_position, copy.streams()) == (121, compacted.streams())
        assert verify(copy).ok
        ours, theirs = replay(copy), replay(compacted, until=until)
        assert {name: state.describe() for name, state in ours.states.items()} == {
            name: state.describe() for name, state in theirs.states.items()
        }


def test_a_queue_goes_on_in_a_fork_of_a_compacted_log(compacted: EventLog, tmp_path: Path) -> None:
    """Given a fork of a compacted log, then its queues can be used."""
    path = tmp_path / "fork.db"
    fork(compacted, path)
    configuration = replay(compacted).states["orders"].configuration
    queue = MessageQueue(configuration, log=path)
    assert len(queue.dead_letter_queue) == 1
    queue.shutdown_sync()
    with closing(open_history(path)) as copy:
        assert verify(copy).ok


def test_a_fork_into_what_has_no_bases_is_refused(compacted: EventLog) -> None:
    """Given a store that cannot begin in the middle, then it is refused before anything is copied."""

    class Plain:
        location = "plain:"

    with pytest.raises(EventLogError, match="plain: cannot represent; fork into an SQLite log"):
        fork_into(compacted, cast(EventLog, Plain()))


@pytest.mark.parametrize("moment", [Moment(position=120), Moment(time=START + 200)], ids=str)
def test_moments_before_the_base_are_refused(compacted: EventLog, tmp_path: Path, moment: Moment) -> None:
    """Given a moment of which only what came of it is known, then it is refused and nothing else is shown for it."""
    for ask in (
        lambda: fork(compacted, tmp_path / "fork.db", at=moment),
        lambda: replay(compacted, until=moment),
        lambda: rerun(compacted, until=moment),
        lambda: diff_moments(compacted, moment),
        lambda: collect(compacted, until=moment),
        lambda: why(compacted, "12-00a1", at=moment),
    ):
        with pytest.raises(EventLogError, match=r"got .*, but the events up to .* are compacted; name that moment"):
            ask()
    assert not list(tmp_path.glob("fork*"))


def test_a_report_has_the_queues_without_events(tmp_path: Path, log: EventLog) -> None:
    """Given a log of which no event is left, then the report still has its queues and their figures."""
    copy = MemoryEventLog()
    fork_into(log, copy)
    for _ in Compactor(copy, RetentionPolicy(keep_events=0, least_events=1), lambda: 0.0).steps():
        pass
    assert list(copy.read_all()) == []
    figures = collect(copy)
    assert sorted(figures.queues) == ["mail", "orders"]
    assert figures.queues["orders"].statistics == collect(log).queues["orders"].statistics


def test_a_report_of_no_events_is_of_their_time() -> None:
    """Given a log of which no event is left, then its report counts only keys that were held when the last happened."""
    history = History(enable_deduplication=True, deduplication_window_seconds=5.0)
    history.sent("1", key="k", deduplication_id="k").at(2000.0).joined("a")
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, history.events)])
    for _ in Compactor(log, RetentionPolicy(keep_events=0, least_events=1), lambda: 0.0).steps():
        pass
    assert list(log.read_all()) == []
    statistics = collect(log).queues["q"].statistics
    assert statistics is not None
    assert statistics.current_deduplication_key_count == 0


def test_what_needs_the_first_events_says_so(compacted: EventLog) -> None:
    """Given a message of which no event is left, then trace and export-test say where to look."""
    with pytest.raises(MessageNotFoundError, match="look into an archive"):
        trace(compacted, "11-00a1")
    with pytest.raises(MessageNotFoundError, match="use an archive"):
        story_of(compacted, "14-00a1")


def test_the_info_tells_what_is_left(compacted: EventLog) -> None:
    """Given a compacted log, then it is said up to where, and how many events each stream has left."""
    info = log_info(compacted)
    assert info.base_position + sum(stream.events for stream in info.streams) == 124


def test_a_snapshot_that_is_not_the_fold_is_noticed(log: EventLog, tmp_path: Path) -> None:
    """Given a snapshot of another state, then verify says that it breaks I4, where, and in what it differs."""
    path = tmp_path / "snapshot.db"
    fork(log, path)
    with closing(SQLiteEventLog(path)) as opened:
        state = replay(opened, until=Moment(position=120)).states["orders"]
        right = Snapshot("queue:orders", state.version, state.dump())
        opened.save_snapshot(right)
        assert verify(opened).ok
        state.paused = True
        opened.save_snapshot(Snapshot("queue:orders", state.version, state.dump()))
        (violation,) = verify(opened).violations
        assert (violation.rule, violation.stream) == ("I4", "queue:orders")
        assert "differ in paused" in violation.sentence


def test_what_is_left_is_folded_from_its_base(path: Path) -> None:
    """Given a compacted log with an event of a message that never was, then I4 tells that its fold cannot go on."""
    with closing(SQLiteEventLog(path)) as opened:
        version = opened.stream_version("queue:orders")
        at = max(state.last_at for state in replay(opened).states.values())
        opened.append([Append("queue:orders", version, [e.MessageAcknowledged(at, "99-nobody", "nobody", True)])])
        (violation,) = verify(opened).violations
    assert (violation.rule, violation.message_id) == ("I4", "99-nobody")


def test_a_damaged_base_is_an_error(path: Path) -> None:
    """Given a base whose snapshot is damaged, then nothing is folded from the middle of a history."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE snapshots SET body = x'00'")
    connection.close()
    with closing(open_history(path)) as log, pytest.raises(Exception, match="damaged"):
        replay(log)
