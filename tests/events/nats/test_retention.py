"""Snapshots in the object store, and logs on JetStream whose first events were taken away."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.errors import EventLogError, OwnershipLostError
from mpreg_mq.events import Append, MemoryEventLog, MessageCompleted, SQLiteEventLog, check_log, open_log
from mpreg_mq.events.copying import compare_stream, copy_log
from mpreg_mq.events.log import RetainingLog, Snapshot
from tests.support.numbered_events import events


def versions(log: Any, stream: str, after: int = 0) -> list[int]:
    return [record.version for record in log.read_stream(stream, after)]


def snapshot(version: int, stream: str = "queue:a", body: bytes = b"state") -> Snapshot:
    return Snapshot(stream, version, body)


def test_it_is_a_log_that_retains(log: Any) -> None:
    """The log has everything that retention and quick recovery ask for."""
    assert isinstance(log, RetainingLog)
    assert log.has_room()
    assert (log.base_position(), log.base_version("queue:a"), log.snapshots("queue:a")) == (0, 0, [])
    log.append([Append("queue:a", 0, events(3))])
    assert log.size_bytes() > 0
    assert not log.reclaim()


def test_the_newest_two_snapshots_are_kept(log: Any, url: str) -> None:
    """Given snapshots of a stream in any order, then the newest two are there, also for others, newest first."""
    log.append([Append("queue:a", 0, events(9)), Append("queue:b", 0, events(1))])
    for version in (3, 5, 2, 8, 5):
        log.save_snapshot(snapshot(version, body=f"at {version}".encode()))
    log.save_snapshot(snapshot(1, "queue:b"))
    other: Any = open_log(url)
    assert [(one.version, one.body) for one in other.snapshots("queue:a")] == [(8, b"at 8"), (5, b"at 5")]
    assert other.snapshots("queue:b") == [snapshot(1, "queue:b")]
    other.close()


def test_a_large_snapshot_is_kept_whole(log: Any) -> None:
    """Given a snapshot of several megabytes, then it comes back as it was."""
    log.append([Append("queue:a", 0, events(1))])
    body = bytes(range(256)) * 12_000
    log.save_snapshot(snapshot(1, body=body))
    assert log.snapshots("queue:a")[0].body == body


def test_a_snapshot_of_what_is_not_there_is_refused(log: Any, url: str) -> None:
    """Given a version that the stream does not have, or a stream of another owner, then nothing is kept."""
    with pytest.raises(EventLogError, match="got version 1, expected 0 to 0"):
        log.save_snapshot(snapshot(1))
    log.append([Append("queue:a", 0, events(2))])
    with pytest.raises(EventLogError, match="got version 3, expected 0 to 2"):
        log.save_snapshot(snapshot(3))
    owner: Any = open_log(url)
    owner.claim("queue:a", "owner")
    with pytest.raises(OwnershipLostError):
        log.save_snapshot(snapshot(2))
    owner.save_snapshot(snapshot(2))
    assert log.snapshots("queue:a") == [snapshot(2)]
    owner.close()


def test_a_damaged_snapshot_is_left_out(log: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Given bytes that are not what was written, then the other snapshot is found, and a warning says so."""
    log.append([Append("queue:a", 0, events(9))])
    log.save_snapshot(snapshot(4))
    log.save_snapshot(snapshot(8))
    retention = log._retention
    log._call(retention._put("queue:a/newest-1", bytes(16) + (8).to_bytes(8, "little") + b"state", "8"))
    assert [one.version for one in log.snapshots("queue:a")] == [4]
    assert "is damaged; not used" in caplog.text


def test_a_truncated_log_begins_after_its_base(log: Any, url: str) -> None:
    """Given events of two streams, when the log is truncated in the middle, then what remains reads as before."""
    log.append([Append("queue:a", 0, events(4))])
    log.append([Append("queue:b", 0, events(2))])
    log.append([Append("queue:a", 4, events(3, 5))])
    log.append([Append("queue:idle", 0, events(1))])
    records = list(log.read_all())
    position = records[7].position
    assert (records[7].stream, records[7].version) == ("queue:a", 6)
    with pytest.raises(EventLogError, match="got none as the base of 'queue:b'"):
        log.truncate(position, {"queue:a": snapshot(6)})
    with pytest.raises(EventLogError, match="expected a snapshot at version 6"):
        log.truncate(position, {"queue:a": snapshot(5), "queue:b": snapshot(2, "queue:b")})
    with pytest.raises(EventLogError, match="truncate: got position"):
        log.truncate(records[-1].position + 1, {})
    bases = {"queue:a": snapshot(6), "queue:b": snapshot(2, "queue:b")}
    log.truncate(position, bases)
    for _ in range(2):
        assert log.base_position() == position
        assert (log.base_version("queue:a"), log.base_version("queue:b"), log.base_version("queue:idle")) == (6, 2, 0)
        assert versions(log, "queue:a") == [7]
        assert versions(log, "queue:b") == []
        assert list(log.read_all()) == records[8:]
        assert log.snapshots("queue:a") == [snapshot(6)]
        assert log.streams() == ["queue:a", "queue:b", "queue:idle"]
        assert (log.stream_version("queue:b"), log.last_position()) == (2, records[-1].position)
        while log.reclaim():
            pass
    log.append([Append("queue:a", 7, events(1, 8)), Append("queue:b", 2, events(1, 3))])
    other: Any = open_log(url)
    assert (versions(other, "queue:a"), versions(other, "queue:b")) == ([7, 8], [3])
    other.close()


def test_truncated_messages_leave_the_servers(log: Any) -> None:
    """Given a truncated log, when it is reclaimed, then its messages are gone but the last one of each stream."""
    for version in range(20):
        log.append([Append("queue:a", version, events(1, version))])
    size = log.size_bytes()
    last = log.last_position()
    log.truncate(last, {"queue:a": snapshot(20)})
    assert log.size_bytes() == size
    while log.reclaim():
        pass
    info = log._call(log._engine.api(f"STREAM.INFO.{log.target.stream}", {}))
    assert info["state"]["messages"] == 1
    assert versions(log, "queue:a") == []
    log.append([Append("queue:a", 20, events(1, 20))])
    assert versions(log, "queue:a") == [21]


def test_a_reader_that_is_overtaken_by_truncation_says_so(log: Any) -> None:
    """Given a reader that has not come as far, when its next events are truncated, then it raises, saying where."""
    large = MessageCompleted(at=1.0, message_id="x" * 600_000)
    for version in range(8):
        log.append([Append("queue:a", version, (large,))])
    reader = log.read_stream("queue:a")
    assert next(reader).version == 1
    log.truncate(log.last_position(), {"queue:a": snapshot(8)})
    while log.reclaim():
        pass
    with pytest.raises(EventLogError, match="truncated meanwhile"):
        list(reader)


def test_a_truncated_log_is_copied_with_its_bases(log: Any) -> None:
    """Given a truncated source, when it is copied here, then streams go on from their bases, as there."""
    source = MemoryEventLog()
    source.append([Append("queue:a", 0, events(5)), Append("queue:b", 0, events(2))])
    source.truncate(4, {"queue:a": snapshot(4)})
    copy_log(source, log)
    assert (log.base_version("queue:a"), log.base_version("queue:b")) == (4, 0)
    assert log.snapshots("queue:a") == [snapshot(4)]
    assert compare_stream(source, log, "queue:a") == 1
    log.append([Append("queue:a", 5, events(1, 6))])
    assert versions(log, "queue:a") == [5, 6]
    with pytest.raises(EventLogError, match="found a log with events"):
        log.adopt(0, {"queue:c": snapshot(1, "queue:c")})


def test_a_truncated_log_is_copied_into_sqlite_whose_positions_have_no_gaps(log: Any, tmp_path: Path) -> None:
    """Given a truncated log here, when it is copied into an SQLite log, then that is whole, and goes on."""
    log.append([Append("queue:a", 0, events(5))])
    end = log.last_position()
    log.append([Append("queue:a", 5, events(2))])
    log.truncate(end, {"queue:a": snapshot(5)})
    copy = SQLiteEventLog(tmp_path / "copy.db")
    copy_log(log, copy)
    copy.close()
    assert check_log(tmp_path / "copy.db") is None
    with closing(SQLiteEventLog(tmp_path / "copy.db")) as again:
        assert again.snapshots("queue:a") == [snapshot(5)]
        again.append([Append("queue:a", 7, events(1))])
        assert versions(again, "queue:a") == [6, 7, 8]


def test_a_read_only_log_is_not_changed(url: str) -> None:
    """Given a log opened read-only, then everything that would change it is refused."""
    open_log(url).close()
    log: Any = open_log(url, read_only=True)
    for change in (
        lambda: log.save_snapshot(snapshot(1)),
        lambda: log.truncate(0, {}),
        log.reclaim,
        lambda: log.adopt(0, {}),
    ):
        with pytest.raises(EventLogError, match="opened read-only"):
            change()
    log.close()


def test_an_object_that_cannot_be_read_is_an_error_in_time(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an object store that never answers, then reading where the log begins fails and does not hang."""
    from mpreg_mq.events.nats import retaining

    log.append([Append("queue:a", 0, events(1))])
    log.save_snapshot(snapshot(1))
    monkeypatch.setattr(retaining, "READ_SECONDS", 0.05)
    monkeypatch.setattr(retaining, "BASES_SECONDS", 0.0)

    async def never(name: str) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(log._retention._objects, "get", never)
    with pytest.raises(EventLogError, match="read base-of-the-log"):
        log.base_position()
