"""Time travel: any queue as it was at any moment, and what to say of logs that cannot be read so far."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mpreg_mq.errors import EventLogError, UnknownEventError
from mpreg_mq.events import Append, EventLog, MemoryEventLog, RecordedEvent, SQLiteEventLog, export_log
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from mpreg_mq.projections import QueueState
from mpreg_mq.replay import Moment, ReadingStoppedError, open_history, replay
from mpreg_mq.replay.fork import fork
from mpreg_mq.replay.inspection import rows
from tests.support.history import History
from tests.support.incident import START


def test_a_replay_up_to_any_position_is_the_fold_of_the_events_before_it(log: EventLog) -> None:
    """Given every position of the log, then the replayed queues equal the folds of their events so far (I4)."""
    folds: dict[str, QueueState] = {}
    for record in log.read_all():
        folds.setdefault(record.stream.removeprefix("queue:"), QueueState()).apply(record.event)
        if record.position % 7 == 0 or record.position > 100:
            found = replay(log, until=Moment(position=record.position))
            assert found.position == record.position
            assert {name: state.describe() for name, state in found.states.items()} == {
                name: state.describe() for name, state in folds.items()
            }


def test_a_time_includes_what_happened_at_it(log: EventLog) -> None:
    """Given the time of an event, then the event is part of the state; a moment before it, it is not."""
    assert replay(log, until=Moment(time=START + 300.0)).states["orders"].messages.get("11-00a1") is not None
    assert replay(log, until=Moment(time=START + 299.9)).states["orders"].messages.get("11-00a1") is None


def test_what_is_due_at_the_time_is_ready(log: EventLog) -> None:
    """Given a message that waits for a retry, then it waits until then, and later is ready."""
    waits = replay(log, until=Moment(time=START + 300.5))
    (row,) = [row for row in rows(waits.states["orders"], waits.now) if row["kind"] == "pending"]
    assert (row["standing"], row["attempts"]) == ("backoff", 1)
    later = replay(log, until=Moment(time=START + 9999))
    assert later.now == START + 9999
    standings = [row["standing"] for row in rows(later.states["orders"], later.now) if row["kind"] == "pending"]
    assert standings == ["no subscriber free", "no subscriber free", "no subscriber", "no subscriber free"]


def test_one_queue_alone(log: EventLog) -> None:
    """Given the name of a queue, then only that is replayed; an unknown name is an error that names those there are."""
    assert list(replay(log, queue="mail").states) == ["mail"]
    with pytest.raises(EventLogError, match="there is no queue 'nope'; it has mail, orders"):
        replay(log, queue="nope")


def test_progress_is_told_at_the_end(log: EventLog) -> None:
    """Given a callback, then it hears of the last position."""
    seen: list[int] = []
    replay(log, progress=seen.append)
    assert seen == [log.last_position()]


def test_a_log_without_queues_is_an_empty_replay() -> None:
    """Given no events, then there are no queues, and no error."""
    found = replay(MemoryEventLog())
    assert (found.states, found.position, found.now) == ({}, 0, 0.0)


def test_rows_tell_everything_that_the_state_holds() -> None:
    """Given a queue with an audience, a lease, a group and a dead letter, then the rows say so."""
    history = History(max_retries=0)
    history.joined("a").joined("b").sent("1", guarantee=DeliveryGuarantee.BROADCAST).audience("1", "a", "b")
    history.delivered("1", "a").acknowledged("1", "a", completes=False)
    history.sent("2", group_id="g").delivered("2", "a").sent("3", group_id="g")
    history.sent("4").delivered("4", "b").failed("4", "b").dead("4", "b").sent("5", key="k").sent("6", delay_seconds=5)
    state = QueueState.replay(history.events)
    found = list(rows(state, history.now))
    of_kind = {kind: [row for row in found if row["kind"] == kind] for kind in {row["kind"] for row in found}}
    pending = {row["message_id"]: row for row in of_kind["pending"]}
    assert {name: row["standing"] for name, row in pending.items()} == {
        "1": "ready",
        "3": "held by its group",
        "5": "ready",
        "6": "delayed",
    }
    assert pending["1"]["audience"] == {"a": "acknowledged", "b": "ready"}
    assert [(row["message_id"], row["subscriber_id"]) for row in of_kind["lease"]] == [("2", "a")]
    assert [row["error"] for row in of_kind["dead_letter"]] == ["boom"]
    assert [row["key"] for row in of_kind["deduplication_key"]] == ["k"]
    assert {row["subscriber_id"]: row["in_flight"] for row in of_kind["subscriber"]} == {"a": 1, "b": 0}


# --- input that is not a whole, healthy log of this release -----------------------------------------------


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    """Given a path without a file, then it is an error and there is still none."""
    with pytest.raises(EventLogError, match="there is no such file"):
        open_history(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    """Given a file of no bytes, then it stays so."""
    (tmp_path / "empty.db").touch()
    with pytest.raises(EventLogError, match="the file is empty"):
        open_history(tmp_path / "empty.db")
    assert (tmp_path / "empty.db").stat().st_size == 0


@pytest.mark.parametrize("content", [b"just some text that is long enough", b"PK\x03\x04" + b"\0" * 2000])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Given another kind of file, then the error says with what it begins."""
    (tmp_path / "foreign.db").write_bytes(content)
    with pytest.raises(EventLogError, match=r"foreign\.db"):
        open_history(tmp_path / "foreign.db")
    assert (tmp_path / "foreign.db").read_bytes() == content


def test_a_damaged_record_says_how_far_the_log_is_readable(tmp_path: Path, incident_path: Path) -> None:
    """Given a record whose bytes were overwritten, then the error names the last good position and the cause."""
    path = _copy(tmp_path, incident_path)
    _execute(path, "UPDATE records SET body = x'ff' WHERE position BETWEEN 60 AND 70")
    with open_closing(path) as log, pytest.raises(ReadingStoppedError, match=r"readable up to position \d\d of 124"):
        replay(log)


def test_a_file_of_a_newer_release_says_to_upgrade(tmp_path: Path, incident_path: Path) -> None:
    """Given a file with a schema version that is not known yet, then the error says so."""
    path = _copy(tmp_path, incident_path)
    _execute(path, "UPDATE meta SET value = 99 WHERE key = 'schema_version'")
    with pytest.raises(EventLogError, match=r"found schema version 99.*upgrade mpreg-mq"):
        open_history(path)


def test_an_event_of_a_newer_release_says_how_far_the_log_is_readable() -> None:
    """Given an event that is not known yet, then the error says so, and how far reading came."""

    class Newer(MemoryEventLog):
        def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
            yield from super().read_all(after_position)
            raise UnknownEventError("event type 'Sorted' is not known here; upgrade mpreg-mq")

    log = Newer()
    log.append([Append("queue:q", 0, History().sent("1").events)])
    with pytest.raises(ReadingStoppedError, match=r"readable up to position 2 of 2; then: .*upgrade"):
        replay(log)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_file_that_was_cut_is_an_error(tmp_path: Path, incident_path: Path, share: float) -> None:
    """Given a file without its end, then reading it is an error, never a shorter history."""
    content = incident_path.read_bytes()
    path = tmp_path / "cut.db"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EventLogError), open_closing(path) as log:
        replay(log)


def test_an_export_is_read_like_a_log(tmp_path: Path, log: EventLog) -> None:
    """Given an export, then its queues are those of the log; and a cut one is an error that names the line."""
    export_log(log, tmp_path / "all.jsonl")
    with open_closing(tmp_path / "all.jsonl") as exported:
        assert {name: state.describe() for name, state in replay(exported).states.items()} == {
            name: state.describe() for name, state in replay(log).states.items()
        }
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_text("".join(lines[:50]))
    with pytest.raises(EventLogError, match="line 50 is not that of a whole export"):
        open_history(tmp_path / "cut.jsonl")


def test_a_missing_event_is_noticed(tmp_path: Path, incident_path: Path) -> None:
    """Given a delivery whose acceptance is gone, then the fold stops there instead of making something up."""
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, [e.MessageDelivered(1.0, "m", "s", "s/1", 1, 2.0)])])
    with pytest.raises(ReadingStoppedError, match="readable up to position 0 of 1; then: cannot apply"):
        replay(log)


def test_a_log_without_permission_to_write_is_read(tmp_path: Path, incident_path: Path) -> None:
    """Given a read-only file in a read-only directory, then it can be replayed."""
    path = _copy(tmp_path, incident_path)
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        with open_closing(path) as log:
            assert replay(log).events == 124
    finally:
        tmp_path.chmod(0o700)


def test_a_log_that_is_written_is_neither_held_up_nor_changed(tmp_path: Path) -> None:
    """Given an open log, when it is replayed between appends, then both go on and see what there is."""
    path = tmp_path / "live.db"
    writer = SQLiteEventLog(path)
    history = History()
    writer.append([Append("queue:q", 0, history.events)])
    with open_closing(path) as reader:
        assert replay(reader).events == 1
        writer.append([Append("queue:q", 1, [e.QueuePaused(2.0)])])
        assert replay(reader).states["q"].paused
        writer.append([Append("queue:q", 2, [e.QueueResumed(3.0)])])
    assert writer.stream_version("queue:q") == 3
    writer.close()


def _copy(tmp_path: Path, incident_path: Path) -> Path:
    with open_closing(incident_path) as log:
        fork(log, tmp_path / "copy.db")
    return tmp_path / "copy.db"


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def open_closing(path: Path) -> closing[EventLog]:
    return closing(open_history(path))
