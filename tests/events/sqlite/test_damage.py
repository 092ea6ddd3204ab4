"""Damaged files are noticed and left as they are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mpreg_mq.errors import CorruptLogError, EventLogError, UnknownEventError
from mpreg_mq.events import Append, MessageCompleted, QueuePaused, Snapshot, SQLiteEventLog, check_log, repair_log
from mpreg_mq.events.sqlite.records import checksum
from tests.support.sqlite_logs import events, opened, run

# --- damage -------------------------------------------------------------------------------------------------


def test_an_event_of_a_newer_release_stops_the_reader(path: Path) -> None:
    """Given an event type this release does not know, then reading raises there and skips nothing."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        log.append([Append("queue:b", 0, (QueuePaused(at=2.0),))])
        log.append([Append("queue:a", 1, events(3))])
    newer = msgspec.msgpack.encode([[127, {"at": 2.0}]])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        before = connection.execute("SELECT checksum FROM records WHERE position = 1").fetchone()[0]
        for position, version, stream, body in [(2, 1, "queue:b", newer), (3, 2, "queue:a", None)]:
            if body is None:
                body = connection.execute("SELECT body FROM records WHERE position = 3").fetchone()[0]
            before = checksum(before, position, version, 1, stream, body)
            connection.execute("UPDATE records SET body = ?, checksum = ? WHERE position = ?", (body, before, position))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'head_checksum'", (before,))
    with opened(path) as log:
        reader = log.read_all()
        assert next(reader).version == 1
        with pytest.raises(UnknownEventError, match="number 127"):
            next(reader)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE records SET body = x'c1' WHERE position = 2", "position 2: the checksum of the 1 events of 'queue:b'"),
        ("UPDATE records SET checksum = zeroblob(16) WHERE position = 2", "position 2: the checksum"),
        ("UPDATE records SET stream_id = 1, version = 9 WHERE position = 2", "position 2: the checksum"),
        ("DELETE FROM records WHERE position = 2", "position 3: found position 3, expected 2"),
        ("UPDATE records SET body = 'text' WHERE position = 2", "position 2: the record is not readable"),
        ("UPDATE records SET stream_id = 77 WHERE position = 2", "position 2: found stream 77"),
    ],
)
def test_damage_stops_the_reader_where_it_is(path: Path, change: str, found: str) -> None:
    """Given a record that was changed, moved or taken away, then reading raises there, with position and reason."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1)), Append("queue:b", 0, events(2)), Append("queue:c", 0, events(3))])
        run(path, change)
        reader = log.read_all()
        assert next(reader).position == 1
        with pytest.raises(CorruptLogError, match=found) as raised:
            next(reader)
        assert raised.value.position in (2, 3)


def test_events_without_their_places_are_checked_as_well(path: Path) -> None:
    """Given a record that was changed, then the events before it are read, and those of it are not."""
    with opened(path) as log:
        for number in range(3):
            log.append([Append("queue:a", number, events(number))])
        run(path, "UPDATE records SET body = x'90' WHERE position = 2")
        reader = log.read_events("queue:a")
        assert list(next(reader)) == list(events(0))
        with pytest.raises(CorruptLogError, match="position 2: the checksum"):
            next(reader)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_log_that_is_compacted_while_it_is_checked_is_checked_on(path: Path, damaged: bool) -> None:
    """Given a log in use that is compacted during a check, then what is left is checked to its end, damage included."""
    many = tuple(MessageCompleted(at=1.0, message_id="m" * 100) for _ in range(500))
    with opened(path) as log:
        for number in range(60):
            log.append([Append("queue:a", 500 * number, many)])
        if damaged:
            run(path, "UPDATE records SET body = x'90' WHERE position = 29000")

        def compact(reached: int, _: int) -> None:
            if reached == 10_000:
                log.truncate(25_000, {"queue:a": Snapshot("queue:a", 25_000, b"")})
                while log.reclaim():
                    pass

        damage = check_log(path, on_progress=compact)
    assert (None if damage is None else damage.position) == (28_501 if damaged else None)


@pytest.mark.parametrize("position", [1, 2])
def test_a_record_of_another_log_is_not_taken(path: Path, tmp_path: Path, position: int) -> None:
    """Given a record replaced by that of a log with another past, then its checksum does not chain (I1)."""
    with opened(path) as log:
        for number in range(3):
            log.append([Append("queue:a", number, events(number))])
    other = tmp_path / "other.db"
    with opened(other) as log:
        for number in (7, 1, 2):
            log.append([Append("queue:a", log.last_position(), events(number))])
    run(
        path,
        f"ATTACH '{other}' AS other",
        f"REPLACE INTO records SELECT * FROM other.records WHERE position = {position + 1}",
    )
    with pytest.raises(CorruptLogError), opened(path) as log:
        list(log.read_stream("queue:a"))


def test_a_missing_end_is_noticed(path: Path) -> None:
    """Given a log or a stream whose last events are gone, open or closed, then that is said instead of ending early."""
    with opened(path) as log:
        for number in range(3):
            log.append([Append("queue:a", number, events(number)), Append("queue:b", number, events(number))])
        run(path, "DELETE FROM records WHERE version > 1")
        reader = log.read_stream("queue:a")
        assert next(reader).version == 1
        with pytest.raises(CorruptLogError, match="nothing after 1, expected events up to 3"):
            next(reader)
    with pytest.raises(CorruptLogError, match="found 2 events, expected 6: its end is missing"):
        SQLiteEventLog(path)


@pytest.mark.parametrize("stream", ["queue:a", "queue:b"])
def test_a_stream_that_lost_its_end_is_noticed_at_once(path: Path, stream: str) -> None:
    """Given one of two streams without its last record, then opening the log raises."""
    with opened(path) as log:
        log.append([Append("queue:b", 0, events(1)), Append("queue:a", 0, events(2)), Append("queue:b", 1, events(3))])
    run(
        path,
        f"DELETE FROM records WHERE stream_id = (SELECT id FROM streams WHERE name = '{stream}') AND version = "
        f"(SELECT max(version) FROM records JOIN streams ON id = stream_id WHERE name = '{stream}')",
    )
    with pytest.raises(CorruptLogError):
        SQLiteEventLog(path)


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_a_lost_write_ahead_log_is_noticed(
    path: Path, tmp_path: Path, synchronous: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a crash after which the write-ahead log is gone, then FULL refuses it; NORMAL, which may lose, warns."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
    with opened(path, synchronous) as log:
        log.append([Append("queue:a", 1, events(2, 3))])
        for name in ("orders.db", "orders.db-head"):
            (copy / name).write_bytes((path.parent / name).read_bytes())
    if synchronous == "FULL":
        with pytest.raises(CorruptLogError, match="found 1 events, expected 3: its end is missing") as raised:
            SQLiteEventLog(copy / path.name)
        assert raised.value.position == 2
        with pytest.raises(CorruptLogError, match="its end is missing"):
            SQLiteEventLog(copy / path.name, read_only=True)
    else:
        with opened(copy / path.name) as log:
            assert log.last_position() == 1
        assert "the last 2 events are lost" in caplog.text


def test_a_damaged_head_is_noticed(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Given a crash, then a head file that was damaged is refused, and one that is missing is warned of."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        for file in path.parent.glob("orders.db*"):
            if file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
    head = copy / "orders.db-head"
    head.write_bytes(bytes(len(head.read_bytes())))
    with pytest.raises(CorruptLogError, match="does not say where the log ends"):
        SQLiteEventLog(copy / path.name)
    head.unlink()
    with opened(copy / path.name) as log:
        assert log.last_position() == 1
    assert "no head file" in caplog.text


def test_an_event_that_nobody_can_read_is_cut_off_as_damage_is(path: Path) -> None:
    """Given an event whose bytes are what was written and no event, then checking says so, and repair keeps those
    before it."""
    unreadable: Any = 7
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        log.append([Append("queue:a", 1, (MessageCompleted(at=2.0, message_id=unreadable),))])
        log.append([Append("queue:b", 0, events(3))])
    assert check_log(path) is not None
    repair = repair_log(path)
    assert repair is not None
    assert (repair.kept_events, repair.cut_at) == (1, 2)
    assert check_log(path) is None


def test_a_head_that_is_none_of_ours_is_left_alone(path: Path) -> None:
    """Given a file that is no log, and one with the name of its head, when it is opened, then both stay as they are."""
    path.write_bytes(b"no log at all" * 300)
    head = path.with_name(path.name + "-head")
    head.write_bytes(b"precious " * 5000)
    with pytest.raises(EventLogError):
        SQLiteEventLog(path)
    assert head.read_bytes() == b"precious " * 5000
    path.unlink()
    with pytest.raises(EventLogError):
        SQLiteEventLog(path)
    assert head.read_bytes() == b"precious " * 5000


@pytest.mark.parametrize("damage", ["DELETE FROM streams", "UPDATE meta SET value = x'00' WHERE key = 'base_position'"])
def test_a_repair_that_leaves_no_whole_log_changes_nothing(path: Path, damage: str) -> None:
    """Given a compacted log of which what says where it begins is damaged, when it is repaired, then that is refused,
    and all files are as they were."""
    with opened(path) as log:
        for version in range(4):
            log.append([Append("queue:a", version, events(1))])
        log.truncate(2, {"queue:a": Snapshot("queue:a", 2, b"what stands for them")})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(damage)
        connection.commit()
    before = path.read_bytes()
    assert check_log(path) is not None
    # What looking at it leaves beside it.
    files = {file.name for file in path.parent.glob("orders.db*")}
    for _ in range(2):
        with pytest.raises(CorruptLogError, match="nothing was changed"):
            repair_log(path)
        assert path.read_bytes() == before
        assert {file.name for file in path.parent.glob("orders.db*")} == files
