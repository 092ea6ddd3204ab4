"""What the SQLite store promises of its files: what survives, and what is no log."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mpreg_mq.errors import ConfigurationError, EventLogError, VersionConflictError
from mpreg_mq.events import Append, MessageDropped, QueuePaused, SQLiteEventLog, open_log
from mpreg_mq.events.sqlite import APPLICATION_ID, SCHEMA_VERSION, SYNCHRONOUS_MODES
from tests.support.sqlite_logs import events, opened, run, stored

# --- surviving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synchronous", SYNCHRONOUS_MODES)
def test_events_survive_reopening(path: Path, synchronous: str) -> None:
    """Given a log that was closed, then a new one on the file reads the same and goes on where it stopped."""
    with opened(path, synchronous) as log:
        log.append([Append("queue:a", 0, events(1, 2)), Append("queue:b", 0, (QueuePaused(at=3.0),))])
        before = stored(log)
    with opened(path, synchronous) as log:
        assert stored(log) == before
        assert log.streams() == ["queue:a", "queue:b"]
        assert (log.stream_version("queue:a"), log.stream_version("queue:b")) == (2, 1)
        assert log.last_position() == 3
        with pytest.raises(VersionConflictError):
            log.append([Append("queue:a", 0, events(9))])
        log.append([Append("queue:a", 2, (MessageDropped(at=4.0, message_id="m4"),))])
        assert stored(log) == [*before, (4, "queue:a", 3, MessageDropped(at=4.0, message_id="m4"))]


def test_committed_events_are_in_the_file_without_a_close(path: Path, tmp_path: Path) -> None:
    """Given a log whose process ends without closing it, then what was appended is read from its files."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1, 2))])
        for file in path.parent.glob("orders.db*"):
            (copy / file.name).write_bytes(file.read_bytes())
    with opened(copy / path.name) as log:
        assert log.stream_version("queue:a") == 2
        assert [record.event for record in log.read_stream("queue:a")] == list(events(1, 2))


def test_a_closed_log_is_one_file(path: Path) -> None:
    """Given a closed log, then no write-ahead log is left beside it."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_sync_moves_everything_into_the_database(path: Path, tmp_path: Path) -> None:
    """Given synchronous NORMAL, when sync returns, then the database file holds the events by itself."""
    with opened(path, "NORMAL") as log:
        log.append([Append("queue:a", 0, events(1, 2))])
        log.sync()
        (tmp_path / "alone.db").write_bytes(path.read_bytes())
    with opened(tmp_path / "alone.db") as log:
        assert log.stream_version("queue:a") == 2


def test_sync_says_when_others_keep_the_file_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given another program that reads the file all the while, then sync raises rather than claim durability."""
    monkeypatch.setattr("mpreg_mq.events.sqlite.opened.BUSY_SECONDS", 0.0)
    with opened(path, "NORMAL") as log:
        log.append([Append("queue:a", 0, events(1))])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM records").fetchone()
            log.append([Append("queue:a", 1, events(2))])
            with pytest.raises(EventLogError, match="busy"):
                log.sync()
        log.sync()


def test_the_location_opens_the_same_log(path: Path) -> None:
    """Given a log's location, then open_log finds the file again from any directory."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        location = log.location
    assert location == f"sqlite:///{path}"
    again = open_log(location)
    assert again.stream_version("queue:a") == 1
    again.close()


def test_the_file_says_what_it_is(path: Path) -> None:
    """Given a new log, then its header has our application id, its tables their version, and it is in WAL mode."""
    with opened(path):
        pass
    assert path.read_bytes()[68:72] == APPLICATION_ID.to_bytes(4, "big")
    assert run(path, "SELECT value FROM meta WHERE key = 'schema_version'") == [(SCHEMA_VERSION,)]
    assert run(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_log_can_be_read_while_it_is_written(path: Path) -> None:
    """Given a log that is in use, then another one opened read-only follows it, and cannot append."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        reader = SQLiteEventLog(path, read_only=True)
        assert reader.read_only
        log.append([Append("queue:a", 1, events(2))])
        assert [record.event for record in reader.read_all()] == list(events(1, 2))
        with pytest.raises(EventLogError, match="read-only"):
            reader.append([Append("queue:a", 2, events(3))])
        reader.sync()
        reader.close()


def test_reading_makes_no_log(path: Path) -> None:
    """Given no file, then opening it read-only raises and makes none."""
    with pytest.raises(EventLogError):
        SQLiteEventLog(path, read_only=True)
    assert not path.exists()


# --- files that are no log ----------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused_untouched(path: Path) -> None:
    """Given a text file, then opening raises with its first bytes, and the file is as it was."""
    content = b"order,amount\n" * 500
    path.write_bytes(content)
    with pytest.raises(EventLogError, match=r"not a database; found a file that begins with b'order,amount"):
        SQLiteEventLog(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(("pragma", "found"), [("", "0x0"), ("PRAGMA application_id = 4711", "0x1267")])
def test_another_programs_database_is_refused_untouched(path: Path, pragma: str, found: str) -> None:
    """Given an SQLite database that is not a log, then opening raises with its application id, and changes nothing."""
    run(path, "CREATE TABLE recipes (name TEXT)", pragma)
    content = path.read_bytes()
    with pytest.raises(EventLogError, match=rf"another program \(application_id {found}\)"):
        SQLiteEventLog(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tables_of_a_newer_release_are_refused(path: Path) -> None:
    """Given a newer schema version in ``meta``, then opening raises and says to upgrade."""
    with opened(path):
        pass
    run(path, f"UPDATE meta SET value = {SCHEMA_VERSION + 1} WHERE key = 'schema_version'")
    with pytest.raises(EventLogError, match=r"schema version 5, this release reads up to 4; .*newer release; upgrade"):
        SQLiteEventLog(path)


def test_a_log_without_its_tables_is_refused(path: Path) -> None:
    """Given our application id but not our tables, then opening raises."""
    run(path, f"PRAGMA application_id = {APPLICATION_ID}", "CREATE TABLE recipes (name TEXT)")
    with pytest.raises(EventLogError, match="meta"):
        SQLiteEventLog(path)


def test_an_empty_file_becomes_a_log(path: Path) -> None:
    """Given an empty file, as a crash during creation leaves it, then it becomes a log."""
    path.touch()
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        assert log.last_position() == 1


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """Given a path in a directory that does not exist, then the error names it, and it is not made."""
    with pytest.raises(EventLogError, match=f"no directory {tmp_path / 'missing'}; create it"):
        SQLiteEventLog(tmp_path / "missing" / "orders.db")
    assert not (tmp_path / "missing").exists()


def test_a_directory_is_no_log(tmp_path: Path) -> None:
    """Given the path of a directory, then the error says so."""
    with pytest.raises(EventLogError, match="is a directory"):
        SQLiteEventLog(tmp_path)


def test_unknown_durability_is_refused(path: Path) -> None:
    """Given a synchronous mode that would lose more than it says, then it is a configuration error."""
    with pytest.raises(ConfigurationError, match="got 'EXTRA', expected FULL, NORMAL, OFF"):
        SQLiteEventLog(path, synchronous="EXTRA")
    with pytest.raises(ConfigurationError, match="reserve_bytes: got -1"):
        SQLiteEventLog(path, reserve_bytes=-1)
    assert not path.exists()


@pytest.mark.parametrize("name", ["a b.db", "a?b=c.db", "a#b.db", "a%20b.db", "ж.db"])
def test_any_file_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    """Given a name with characters that mean something in URLs, then just that file is made."""
    with opened(tmp_path / name) as log:
        log.append([Append("queue:a", 0, events(1))])
        assert log.stream_version("queue:a") == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]
