"""Appends that fail, one who writes, and many who read."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from mpreg_mq.errors import ConfigurationError, CorruptLogError, EventLogError, LogLockedError
from mpreg_mq.events import Append, QueuePaused, Snapshot, SQLiteEventLog, check_log, repair_log
from mpreg_mq.events.sqlite.file import LogFile
from tests.support.quick_sqlite import STREAM, land, quick, write
from tests.support.running import PATIENCE_SECONDS
from tests.support.sqlite_logs import events, opened, run, stored

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
    """Given a log that is open for writing, then another one of this process is refused, until it is closed."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        with pytest.raises(LogLockedError, match=r"this process has it open for writing already; .*read_only"):
            SQLiteEventLog(path)
        with pytest.raises(LogLockedError):
            python(f"SQLiteEventLog({str(path)!r})")
        log.append([Append("queue:a", 1, events(2))])
    with opened(path) as log:
        assert log.last_position() == 2


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a permission there")
def test_a_symbolic_link_is_the_log_it_leads_to(path: Path, tmp_path: Path) -> None:
    """Given a link to a log, then whoever comes by it is the second writer as well, and finds and leaves all beside the
    file; a repair mends that."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "linked.db"
    link.symlink_to(path)
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        with pytest.raises(LogLockedError, match="this process has it open for writing already"):
            SQLiteEventLog(link)
    with opened(link) as log:
        log.append([Append("queue:a", 1, events(2))])
        assert {file.name for file in path.parent.glob(f"{path.name}?*")} >= {f"{path.name}-head", f"{path.name}-lock"}
        assert log.location == f"sqlite:///{link}"
        with pytest.raises(LogLockedError):
            SQLiteEventLog(path)
    run(path, "UPDATE records SET body = x'90' WHERE position = 2")
    repair = repair_log(link)
    assert repair is not None
    assert repair.kept_events == 1
    assert check_log(path) is None
    assert list(link.parent.iterdir()) == [link]
    assert link.is_symlink()


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


def test_a_forked_child_waits_for_no_thread_of_its_parents(path: Path) -> None:
    """Given a child forked while other threads write, read and checkpoint, then it is told at once, and the parent goes
    on."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        reader = log.read_all()
        with log._lock, log._reader._lock, log._file._checkpointing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
            if child == 0:
                refused = 0
                signal.alarm(int(PATIENCE_SECONDS))
                try:
                    for use in (
                        lambda: log.append([]),
                        log.sync,
                        lambda: list(reader),
                        log._file.checkpoint,
                        log.close,
                    ):
                        with contextlib.suppress(EventLogError):
                            use()
                        refused += 1
                finally:
                    os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
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


def test_a_file_that_must_not_be_written_is_refused_at_once() -> None:
    """Given a log, or a directory, that this user must not write, or not even look into, when it is opened for writing,
    then that is said, instead of at the first append."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody without permission")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        path = Path(directory) / "orders.db"
        python(f"SQLiteEventLog({str(path)!r}).close()")
        os.chmod(path, 0o444)
        closed = Path(directory) / "closed"
        closed.mkdir(0o700)
        said = python(f"""
            from mpreg_mq.errors import EventLogError
            os.setgid(65534)
            os.setuid(65534)
            for path in ({str(path)!r}, {str(closed / "a.db")!r}):
                try:
                    SQLiteEventLog(path)
                except EventLogError as error:
                    print(error)
        """)
    assert "orders.db: it must not be written by this user; change its permissions, or open it read_only" in said
    assert "Permission denied" in said


@pytest.mark.parametrize("instead", [None, b"", b"another file"])
@pytest.mark.parametrize("quickly", [False, True])
def test_a_file_that_is_removed_or_replaced_takes_nothing_more(
    path: Path, tmp_path: Path, instead: bytes | None, quickly: bool
) -> None:
    """Given a log whose file somebody moves away, or replaces, when something is added, then that is refused and not
    lost; once the file is back, the log goes on."""
    with quick(path) as (log, writer):
        write(log, writer, 1)
        land(writer)
        away = path.rename(tmp_path / "away.db")
        if instead is not None:
            path.write_bytes(instead)

        def add() -> None:
            log.append([Append(STREAM, 1, events(2))])

        def add_quickly() -> None:
            write(log, writer, 2)

        for change in (add_quickly if quickly else add, add):
            with pytest.raises(EventLogError, match="removed or replaced while it is open"):
                change()
        away.rename(path)
        log.append([Append(STREAM, 1, events(2))])
        assert log.stream_version(STREAM) == 2
    with opened(path) as log:
        assert log.stream_version(STREAM) == 2


def test_a_reader_that_follows_asks_no_more_than_it_has_to(path: Path) -> None:
    """Given a reader of a log that nobody adds to, then it reads once what streams there are; and again once somebody
    has."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
        with (
            closing(SQLiteEventLog(path, read_only=True)) as reader,
            mock.patch.object(LogFile, "load", autospec=True, side_effect=LogFile.load) as load,
        ):
            for _ in range(3):
                assert reader.streams() == ["queue:a"]
            assert load.call_count == 1
            log.append([Append("queue:b", 0, events(1))])
            assert reader.streams() == ["queue:a", "queue:b"]
            assert load.call_count == 2


def _writes(path: Path, *, closes: bool = False) -> Callable[[], None]:
    """Open the log for writing, add an event, and note in the file where it ends, or close it."""

    def write_meanwhile() -> None:
        log = SQLiteEventLog(path, reserve_bytes=0)
        log.append([Append("queue:a", log.stream_version("queue:a"), events(9))])
        if closes:
            log.close()
        else:
            _kept.append(log)

    return write_meanwhile


_kept: list[SQLiteEventLog] = []
"""Logs that somebody else is writing."""


@pytest.fixture
def _others() -> Iterator[None]:
    yield
    while _kept:
        _kept.pop().close()


@pytest.mark.usefixtures("_others")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("does", ["begins", "begins and ends", "goes on"])
def test_a_sound_log_is_opened_whatever_a_writer_does_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch, when: str, does: str
) -> None:
    """Given a writer that begins, goes on or ends between two looks of a reader that opens the log, then the reader
    finds the log sound, and what is in it by then."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
    if does == "goes on":
        _writes(path)()
    load = LogFile.load
    looks: list[int] = []

    def meanwhile() -> None:
        if does == "goes on":
            (log,) = _kept
            log.append([Append("queue:a", log.stream_version("queue:a"), events(9))])
            log._file.note_head()
        else:
            _writes(path, closes=does == "begins and ends")()

    def load_beside(file: LogFile) -> None:
        first = file._read_only and not looks
        if first:
            looks.append(1)
            if when == "before":
                meanwhile()
        load(file)
        if first and when == "after":
            meanwhile()

    monkeypatch.setattr(LogFile, "load", load_beside)
    with closing(SQLiteEventLog(path, read_only=True)) as reader:
        assert reader.last_position() == (3 if does == "goes on" else 2)
        assert [record.version for record in reader.read_stream("queue:a")] == list(
            range(1, reader.last_position() + 1)
        )


@pytest.mark.parametrize("reserve_bytes", [-1, 1.5, True, 2**63])
def test_a_reserve_that_no_disk_has_is_refused(path: Path, reserve_bytes: object) -> None:
    """Given a reserve that is no number of bytes, or more than any disk has, then that is said, and nothing is made."""
    with pytest.raises(ConfigurationError, match="reserve_bytes: got"):
        SQLiteEventLog(path, reserve_bytes=reserve_bytes)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize("name", ["a\0.db", "\ud800.db", ""])
def test_what_no_file_can_be_called_is_refused(name: str) -> None:
    """Given a name that no file can have, then that is said, and not that the log is damaged."""
    with pytest.raises(ConfigurationError, match=r"SQLiteEventLog\.path: got"):
        SQLiteEventLog(name)
