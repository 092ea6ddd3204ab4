"""Logs whose first events retention took away: everything goes on from the snapshots that stand for them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from mpreg_mq.actors.retention import Compactor
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.events import Append, EventLog, SQLiteEventLog
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Snapshot
from mpreg_mq.replay import Moment, open_history, replay, why
from mpreg_mq.replay.dead_letters import dead_letters
from mpreg_mq.replay.diff import diff_logs, diff_moments
from mpreg_mq.replay.following import Follower
from mpreg_mq.replay.fork import fork
from mpreg_mq.replay.report import collect
from mpreg_mq.replay.rerun import rerun, story_of
from mpreg_mq.replay.source import log_info
from mpreg_mq.replay.subjects import MessageNotFoundError
from mpreg_mq.replay.trace import trace
from mpreg_mq.replay.verify import verify


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


def test_differences_are_seen(log: EventLog, compacted: EventLog) -> None:
    """Given two moments of what is left, then the changes are those of the whole log."""
    whole = diff_moments(log, Moment(position=122), Moment(position=124))
    assert diff_moments(compacted, Moment(position=122), Moment(position=124)) == whole
    assert diff_logs(compacted, compacted).partings == ()


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
