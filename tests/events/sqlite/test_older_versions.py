"""Log files that older releases wrote: version 1 of the tables is brought up to date, others are read as they are."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events import Append, Event, QueuePaused, SQLiteEventLog, check_log, encode, repair_log
from mpreg_mq.events.sqlite import APPLICATION_ID, SCHEMA_VERSION
from mpreg_mq.events.sqlite.records import checksum, old_checksum
from mpreg_mq.events.sqlite.schema import OLD_INDEX
from mpreg_mq.events.sqlite.writer_file import head_path
from tests.support.sqlite_logs import events, opened, run, stored

# --- version 1: a row for each event, and no checksums ------------------------------------------------------


def make_version_1(path: Path, *, complete: bool = True) -> list[tuple[int, str, int, Event]]:
    """A log as the first release wrote it, and what it holds."""
    content: list[tuple[int, str, int, Event]] = [
        (1, "queue:b", 1, QueuePaused(at=1.0)),
        (2, "queue:a", 1, events(1)[0]),
        (3, "queue:a", 2, events(2)[0]),
        (4, "queue:b", 2, events(3)[0]),
    ]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (
            f"PRAGMA application_id = {APPLICATION_ID}",
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
            "CREATE TABLE streams (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL)",
            "CREATE TABLE event_types (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
            "CREATE TABLE events (position INTEGER PRIMARY KEY, stream_id INTEGER NOT NULL, version INTEGER NOT NULL, "
            "type INTEGER NOT NULL, schema INTEGER NOT NULL, body BLOB NOT NULL)",
            "CREATE UNIQUE INDEX events_of_stream ON events (stream_id, version)",
            "INSERT INTO meta VALUES ('schema_version', 1)",
            "INSERT INTO streams VALUES (1, 'queue:b', 2), (2, 'queue:a', 2)",
            "INSERT INTO event_types VALUES (1, 'QueuePaused'), (2, 'MessageCompleted')",
        ):
            connection.execute(statement)
        for position, stream, version, event in content if complete else content[:-1]:
            encoded = encode(event)
            row = (position, 1 if stream == "queue:b" else 2, version, 1 if position == 1 else 2, 1, encoded.body)
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.execute("PRAGMA journal_mode = WAL")
    return content


def test_a_log_of_the_first_release_is_brought_up_to_date(path: Path) -> None:
    """Given a file of schema version 1, then opening it keeps every event where it was, and the file goes on."""
    content = make_version_1(path)
    with pytest.raises(EventLogError, match="open it for writing once"):
        SQLiteEventLog(path, read_only=True)
    with opened(path) as log:
        assert stored(log) == content
        log.append([Append("queue:a", 2, events(4))])
    with opened(path) as log:
        assert stored(log) == [*content, (5, "queue:a", 3, events(4)[0])]
    assert run(path, "SELECT name FROM sqlite_master WHERE name LIKE '%event%'") == []


def test_a_damaged_log_of_the_first_release_stays_as_it_is(path: Path) -> None:
    """Given a file of schema version 1 that lost an event, then it is refused, and nothing was changed."""
    make_version_1(path, complete=False)
    for _ in range(2):
        with pytest.raises(CorruptLogError, match="found 3 events, expected 4"):
            SQLiteEventLog(path)
    assert run(path, "SELECT count(*) FROM events") == [(3,)]


# --- versions 2 and 3: an index in the place of a table, and in version 2 other checksums ------------------------

VERSIONS = pytest.mark.parametrize("version", [2, 3])


def make_version(version: int, path: Path) -> list[tuple[int, str, int, Event]]:
    """A log as releases with version 2 or 3 wrote it, and what it holds."""
    made = old_checksum if version == 2 else checksum
    with mock.patch("mpreg_mq.events.sqlite.adding.checksum", made), opened(path) as log:
        for number in (1, 2, 3):
            log.append([Append("queue:a" if number < 3 else "queue:b", (number - 1) % 2, events(number))])
        content = stored(log)
        shutil.copy(head_path(path), path.with_name("old head"))
    run(
        path,
        "DROP TABLE places",
        "DELETE FROM meta WHERE key = 'placed_to'",
        OLD_INDEX,
        f"UPDATE meta SET value = {version} WHERE key = 'schema_version'",
    )
    return content


@VERSIONS
def test_an_older_log_is_read_as_it_is(version: int, path: Path) -> None:
    """Given a file of version 2 or 3, then it is read, all of it and each stream, and nothing in it is changed."""
    content = make_version(version, path)
    before = path.read_bytes()
    with closing(SQLiteEventLog(path, read_only=True)) as log:
        assert stored(log) == content
        assert [record.event for record in log.read_stream("queue:a", 1)] == list(events(2))
        assert log.stream_version("queue:b") == 1
    assert check_log(path) is None
    assert path.read_bytes() == before


@VERSIONS
def test_who_reads_an_older_log_goes_on_when_it_is_brought_up_to_date(version: int, path: Path) -> None:
    """Given a reader of a file of version 2 or 3, when somebody opens it for writing, which replaces its index, and
    adds to it, then the reader finds each stream, by the table that there is now."""
    make_version(version, path)
    with closing(SQLiteEventLog(path, read_only=True)) as reader:
        assert reader.streams() == ["queue:a", "queue:b"]
        assert reader._reader.places == "records"
        with opened(path) as log:
            log.append([Append("queue:a", 2, events(4))])
            found = [record.event for record in reader.read_stream("queue:a")]
            assert found == [*events(1), *events(2), *events(4)]
            assert reader._reader.places == "places"


@VERSIONS
def test_an_older_log_goes_on_as_one_of_today(version: int, path: Path) -> None:
    """Given a file of version 2 or 3 that is written on, then all of it is read, each stream as well, the index is
    gone, and who knows that version only does not take the file."""
    content = make_version(version, path)
    with opened(path) as log:
        log.append([Append("queue:a", 2, events(4))])
        assert [record.event for record in log.read_stream("queue:a")] == [*events(1), *events(2), *events(4)]
    assert run(path, "SELECT value FROM meta WHERE key = 'schema_version'") == [(SCHEMA_VERSION,)]
    assert run(path, "SELECT name FROM sqlite_master WHERE name = 'records_of_stream'") == []
    with opened(path) as log:
        assert stored(log) == [*content, (4, "queue:a", 3, events(4)[0])]
        assert [record.event for record in log.read_stream("queue:b")] == list(events(3))
    assert check_log(path) is None


@VERSIONS
@pytest.mark.parametrize("position", [1, 2, 3])
def test_damage_of_an_older_log_is_found(version: int, path: Path, position: int) -> None:
    """Given a record of version 2 or 3 that was changed, then reading finds it, and repair keeps what is before it."""
    content = make_version(version, path)
    run(
        path,
        f"UPDATE records SET body = (SELECT body FROM records WHERE position = {position % 3 + 1}) "
        f"WHERE position = {position}",
    )
    found = check_log(path)
    assert found is not None
    assert found.position == position
    assert repair_log(path) is not None
    with opened(path) as log:
        assert stored(log) == content[: position - 1]


@VERSIONS
def test_an_index_that_does_not_say_any_more_what_it_is_costs_nothing(version: int, path: Path) -> None:
    """Given a file of version 2 or 3 with a damaged definition of its index, then repair keeps every event."""
    content = make_version(version, path)
    run(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'INDEX', 'INDEW') WHERE name = 'records_of_stream'",
    )
    assert check_log(path) is not None
    repair = repair_log(path)
    assert repair is not None
    assert repair.kept_events == len(content)
    with opened(path) as log:
        assert stored(log) == content


@VERSIONS
def test_a_lost_end_of_an_older_log_is_noticed(version: int, path: Path) -> None:
    """Given a file of version 2 or 3 that lost its end, of which its head tells, then opening it raises."""
    make_version(version, path)
    shutil.copy(path.with_name("old head"), head_path(path))
    run(
        path,
        "DELETE FROM records WHERE position = 3",
        "UPDATE meta SET value = 2 WHERE key = 'head_position'",
        "UPDATE meta SET value = (SELECT checksum FROM records WHERE position = 2) WHERE key = 'head_checksum'",
    )
    with pytest.raises(CorruptLogError, match="found 2 events, expected 3: its end is missing"):
        SQLiteEventLog(path)
