"""What the SQLite store promises beyond the contract of every log."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from mpreg_mq.errors import (
    ConfigurationError,
    CorruptLogError,
    EventLogError,
    LogLockedError,
    UnknownEventError,
    VersionConflictError,
)
from mpreg_mq.events import (
    Append,
    Event,
    MessageCompleted,
    MessageDropped,
    QueuePaused,
    Snapshot,
    SQLiteEventLog,
    encode,
    open_log,
)
from mpreg_mq.events.sqlite import APPLICATION_ID, SCHEMA_VERSION, SYNCHRONOUS_MODES
from mpreg_mq.events.sqlite.records import checksum


@contextmanager
def opened(path: Path, synchronous: str = "FULL") -> Iterator[SQLiteEventLog]:
    log = SQLiteEventLog(path, synchronous=synchronous)
    try:
        yield log
    finally:
        log.close()


def run(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Do something to a database behind the log's back; the rows of the last statement."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def events(*numbers: int) -> tuple[Event, ...]:
    return tuple(MessageCompleted(at=float(number), message_id=f"m{number}") for number in numbers)


def stored(log: SQLiteEventLog) -> list[tuple[int, str, int, Event]]:
    return [(record.position, record.stream, record.version, record.event) for record in log.read_all()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


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
    monkeypatch.setattr("mpreg_mq.events.sqlite.file.BUSY_SECONDS", 0.0)
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
    with pytest.raises(EventLogError, match=r"schema version 3, this release reads up to 2; .*newer release; upgrade"):
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


# --- failing ------------------------------------------------------------------------------------------------


def test_a_failed_append_is_rolled_back(path: Path) -> None:
    """Given a disk that fails in the middle of a batch, then nothing of it stays and versions are as before."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1, 2))])
        before = stored(log)
        run(
            path,
            "CREATE TRIGGER fire BEFORE INSERT ON records WHEN NEW.version = 5 "
            "BEGIN SELECT RAISE(ABORT, 'disk on fire'); END",
        )
        batch = [Append("queue:new", 0, (QueuePaused(at=3.0),)), Append("queue:a", 2, events(3, 4, 5))]
        with pytest.raises(EventLogError, match=r"append .*orders\.db.*disk on fire") as raised:
            log.append(batch)
        assert isinstance(raised.value.__cause__, sqlite3.Error)
        assert stored(log) == before
        assert log.streams() == ["queue:a"]
        assert (log.stream_version("queue:a"), log.stream_version("queue:new")) == (2, 0)
        run(path, "DROP TRIGGER fire")
        log.append(batch)
        assert log.last_position() == 6
        assert (log.stream_version("queue:a"), log.stream_version("queue:new")) == (5, 1)


def test_an_interrupted_append_is_rolled_back(path: Path) -> None:
    """Given a stream name SQLite cannot store, which is found only in the transaction, then the log goes on."""
    with opened(path) as log:
        with pytest.raises(UnicodeEncodeError):
            log.append([Append("queue:a", 0, events(1)), Append("\ud800", 0, events(2))])
        log.append([Append("queue:a", 0, events(1))])
        assert log.last_position() == 1


def test_what_others_have_changed_is_noticed(path: Path) -> None:
    """Given another program that adds a record, then an append on top of it is refused, and nothing is lost by it."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        run(path, "INSERT INTO records SELECT position + 1, 1, 2, 1, checksum, body FROM records")
        with pytest.raises(EventLogError, match="somebody else has changed this log"):
            log.append([Append("queue:a", 1, events(3))])
        with pytest.raises(CorruptLogError, match="position 2: the checksum"):
            log.append([Append("queue:a", 1, events(3))])


# --- one who writes, many who read --------------------------------------------------------------------------


def test_a_second_writer_is_refused(path: Path) -> None:
    """Given a log that is open for writing, then another one is refused and told by whom, until it is closed."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        with pytest.raises(LogLockedError, match=rf"pid {os.getpid()}\).*read_only"):
            SQLiteEventLog(path)
        with pytest.raises(LogLockedError):
            python(f"SQLiteEventLog({str(path)!r})")
        log.append([Append("queue:a", 1, events(2))])
    with opened(path) as log:
        assert log.last_position() == 2


def test_a_lock_ends_with_its_process(path: Path) -> None:
    """Given a process that is killed with a log open, then the next one opens it and has what was appended."""
    python(f"""
        log = SQLiteEventLog({str(path)!r})
        log.append([Append("queue:a", 0, (MessageCompleted(at=1.0, message_id="m1"),))])
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    with opened(path) as log:
        assert [record.event for record in log.read_all()] == list(events(1))


def test_a_log_is_not_used_after_a_fork(path: Path) -> None:
    """Given a child forked with a log open, then it must not use the log, and the parent goes on."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        with warnings.catch_warnings():
            # Newer Pythons warn of threads in a forking process: those of other tests.
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            try:
                refused = 0
                for use in (log.streams, lambda: log.append([Append("queue:a", 1, events(2))])):
                    try:
                        use()
                    except EventLogError as error:
                        refused += "forked" in str(error)
                log.close()
            finally:
                os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        with pytest.raises(LogLockedError):
            SQLiteEventLog(path)
        log.append([Append("queue:a", 1, events(2))])
        assert [record.event for record in log.read_all()] == list(events(1, 2))


@pytest.mark.parametrize("crashed", [False, True])
def test_reading_needs_no_permission_to_write(crashed: bool) -> None:
    """Given a log in a directory that the reader must not write, closed or crashed, then it is read all the same."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody without permission")
    # Not pytest's directory, which only its owner may enter.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "orders.db"
        python(f"""
            log = SQLiteEventLog({str(path)!r})
            log.append([Append("queue:a", 0, (MessageCompleted(at=1.0, message_id="m1"),))])
            {"os.kill(os.getpid(), signal.SIGKILL)" if crashed else "log.close()"}
        """)
        found = python(f"""
            os.setgid(65534)
            os.setuid(65534)
            assert not os.access({str(path)!r}, os.W_OK)
            log = SQLiteEventLog({str(path)!r}, read_only=True)
            print([record.event.message_id for record in log.read_all()], log.snapshots("queue:a"))
            log.close()
        """)
    assert found == "['m1'] []"


def test_a_reader_makes_and_changes_nothing(path: Path) -> None:
    """Given a closed log that is opened read-only, then its file stays as it is, and every change is refused."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
    content = path.read_bytes()
    reader = SQLiteEventLog(path, read_only=True)
    refused: list[Callable[[], object]] = [
        lambda: reader.append([]),
        lambda: reader.save_snapshot(Snapshot("queue:a", 1, b"")),
        lambda: reader.truncate(1, {}),
        lambda: reader.adopt(1, {}),
        reader.reclaim,
    ]
    for change in refused:
        with pytest.raises(EventLogError, match="read-only"):
            change()
    reader.close()
    assert path.read_bytes() == content
    with opened(path):
        pass
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def python(program: str) -> str:
    """Run a program in a process of its own; its output. A LogLockedError there is raised here."""
    header = (
        "import os, signal, sys\n"
        "from mpreg_mq.errors import LogLockedError\n"
        "from mpreg_mq.events import Append, MessageCompleted, SQLiteEventLog\n"
    )
    body = textwrap.indent(textwrap.dedent(program), "    ")
    program = f"{header}try:\n{body}\nexcept LogLockedError:\n    sys.exit(3)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        raise LogLockedError("in the other process")
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout.strip()


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


# --- files of older releases --------------------------------------------------------------------------------


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
