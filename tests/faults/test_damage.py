"""Whatever happens to the bytes of a log, it is never taken for what it is not, and can be repaired."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpreg_mq.errors import CorruptLogError, EventLogError, LogLockedError
from mpreg_mq.events import Append, RecordedEvent, Snapshot, SQLiteEventLog, check_log, export_log, repair_log
from mpreg_mq.events.sqlite.records import Head
from mpreg_mq.events.sqlite.writer_file import HeadFile
from tests.support.effort import repetitions
from tests.support.numbered_events import event

FILES = ("orders.db", "orders.db-wal", "orders.db-head")


def fill(log: SQLiteEventLog) -> None:
    """A few records of two streams, with a snapshot."""
    for number in range(12):
        stream = "queue:a" if number % 3 else "queue:b"
        log.append([Append(stream, log.stream_version(stream), (event(number), event(number)))])
        if number == 5:
            log.save_snapshot(Snapshot("queue:a", 6, b"state"))


Files = dict[str, bytes]
Damage = Callable[[bytes, int], Iterable[bytes]]

EVERY_PLACE = 20 // repetitions(test=20, soak=20)
"""1; more in a quick run."""
MANY_PLACES = 60 // repetitions(test=20, soak=60)
"""3, or 1 in a soak run: three files take three times as long."""


@pytest.fixture
def closed(tmp_path: Path) -> tuple[Files, list[RecordedEvent]]:
    """The files of a log that was closed, and its events."""
    path = small_log(tmp_path)
    return {path.name: path.read_bytes()}, read(path)


@pytest.fixture
def crashed(tmp_path: Path) -> tuple[Files, list[RecordedEvent]]:
    """The files of a log whose process was killed, and its events."""
    path = small_log(tmp_path)
    with closing(SQLiteEventLog(path, reserve_bytes=0)) as log:
        for number in (20, 21):
            log.append([Append("queue:b", log.stream_version("queue:b"), (event(number),))])
        return {name: (path.parent / name).read_bytes() for name in FILES}, list(log.read_all())


def small_log(directory: Path) -> Path:
    """A closed log in small pages, so that there are few bytes that are not used."""
    path = directory / "source" / FILES[0]
    path.parent.mkdir()
    with closing(SQLiteEventLog(path)) as log:
        fill(log)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = DELETE", "page_size = 512", "auto_vacuum = 0"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")
    return path


def read(path: Path) -> list[RecordedEvent]:
    with closing(SQLiteEventLog(path, read_only=True)) as log:
        return list(log.read_all())


def flipped(content: bytes, stride: int) -> Iterator[bytes]:
    """The content with one byte changed, at each place of a stride."""
    for at in range(0, len(content), stride):
        yield content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def cut(content: bytes, stride: int) -> Iterator[bytes]:
    """The content without its end, at each place of a stride."""
    return (content[:length] for length in range(0, len(content), stride))


def write(files: Files, directory: Path) -> Path:
    for name in (*FILES, "orders.db-shm", "orders.db-lock"):
        (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory / FILES[0]


def accepted(path: Path, *, read_only: bool = True) -> list[RecordedEvent] | None:
    """What a log gives its readers, or None if it refuses."""
    try:
        with closing(SQLiteEventLog(path, read_only=read_only, reserve_bytes=0)) as log:
            everything = list(log.read_all())
            by_stream = [record for stream in log.streams() for record in log.read_stream(stream)]
            assert sorted(by_stream, key=lambda record: record.position) == everything
            alone = [event for name in log.streams() for events in log.read_events(name) for event in events]
            assert alone == [record.event for record in by_stream]
            for snapshot in log.snapshots("queue:a"):
                assert snapshot == Snapshot("queue:a", 6, b"state")
            return everything
    except EventLogError:
        return None


def check_all(files: Files, name: str, damage: Damage, records: list[RecordedEvent], place: Path, stride: int) -> int:
    """Damage one of the files in every way: each is refused, or reads just the same; how often it was refused."""
    refused = 0
    for content in damage(files[name], stride):
        found = accepted(write({**files, name: content}, place))
        refused += found is None
        assert found in (None, records)
    return refused


@pytest.mark.parametrize("damage", [flipped, cut])
def test_no_damage_to_a_closed_log_is_accepted(
    closed: tuple[Files, list[RecordedEvent]], damage: Damage, place: Path
) -> None:
    """For all bytes, flipped, and all lengths, cut: the log is refused, or it reads just the same."""
    files, records = closed
    assert check_all(files, "orders.db", damage, records, place, EVERY_PLACE) > 0


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flipped, cut])
def test_no_damage_to_a_crashed_log_is_accepted(
    crashed: tuple[Files, list[RecordedEvent]], name: str, damage: Damage, place: Path
) -> None:
    """For all bytes and lengths of the log, its write-ahead log and its head: refused, or just the same."""
    files, records = crashed
    assert accepted(write(files, place)) == records
    check_all(files, name, damage, records, place, MANY_PLACES)


# --- repair -------------------------------------------------------------------------------------------------


def test_a_whole_log_needs_no_repair(closed: tuple[Files, list[RecordedEvent]], place: Path) -> None:
    """Given a log that is not damaged, then nothing is found, and repairing it does nothing."""
    path = write(closed[0], place)
    assert check_log(path) is None
    assert repair_log(path) is None
    assert path.read_bytes() == closed[0]["orders.db"]
    assert not list(place.glob("*damaged*"))


def test_a_damaged_record_is_cut_off_after_a_backup(closed: tuple[Files, list[RecordedEvent]], place: Path) -> None:
    """Given a damaged record, then repair keeps all before it and a backup of the whole, and says where it cut."""
    files, records = closed
    path = write(files, place)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE records SET body = zeroblob(5) WHERE position = 16")
    damage = check_log(path)
    assert damage is not None
    assert damage.position == 15
    assert "checksum" in damage.reason
    content = path.read_bytes()
    repair = repair_log(path)
    assert repair is not None
    assert (repair.kept_events, repair.cut_at, repair.known_last) == (14, 15, len(records))
    assert repair.reason == damage.reason
    assert repair.backup.read_bytes() == content
    with closing(SQLiteEventLog(path)) as log:
        assert list(log.read_all()) == records[:14]
        assert log.snapshots("queue:a") == [Snapshot("queue:a", 6, b"state")]
        log.append([Append("queue:a", log.stream_version("queue:a"), (event(99),))])
    assert check_log(path) is None


def test_a_lost_end_is_repaired_to_what_is_there(crashed: tuple[Files, list[RecordedEvent]], place: Path) -> None:
    """Given a log that lost its write-ahead log, then repair says how far it once was, and the rest goes on."""
    files, records = crashed
    path = write({name: content for name, content in files.items() if name != "orders.db-wal"}, place)
    repair = repair_log(path)
    assert repair is not None
    assert (repair.kept_events, repair.cut_at, repair.known_last) == (24, 25, 26)
    assert accepted(path, read_only=False) == records[:24]


def test_each_repair_has_a_backup_of_its_own(closed: tuple[Files, list[RecordedEvent]], place: Path) -> None:
    """Given two repairs, then the second does not overwrite the backup of the first."""
    path = write(closed[0], place)
    backups = []
    for position in (16, 8):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"DELETE FROM records WHERE position = {position}")
        repair = repair_log(path)
        assert repair is not None
        backups.append(repair.backup.name)
    assert backups == ["orders.db.damaged-1", "orders.db.damaged-2"]


def test_whatever_is_refused_can_be_repaired(crashed: tuple[Files, list[RecordedEvent]], place: Path) -> None:
    """For many kinds of damage to a crashed log: once repaired, it holds what was before the damage, and goes on."""
    files, records = crashed
    repaired = 0
    for name in FILES:
        contents = [*flipped(files[name], 1), *cut(files[name], 1)]
        for content in contents[:: len(contents) // repetitions(test=40, soak=2000) or 1]:
            path = write({**files, name: content}, place)
            if accepted(path) is not None:
                continue
            # Without its first bytes nobody can know that it is a log.
            if name == FILES[0] and content[:100] != files[name][:100]:
                continue
            assert repair_log(path) is not None
            found = accepted(path, read_only=False)
            assert found is not None
            assert found == records[: len(found)]
            repaired += 1
            for file in place.iterdir():
                file.unlink()
    assert repaired > 0


@settings(deadline=None, max_examples=repetitions(test=100, soak=2000))
@example(at=18, junk=b"\x03", has_head=False)
@example(at=18, junk=b"\x03\x03", has_head=True)
@example(at=19, junk=b"\x03", has_head=False)
@example(at=21, junk=b"\x01", has_head=False)
@example(at=31, junk=b"\x0a", has_head=False)
@example(at=47, junk=b"\x09", has_head=False)
@example(at=59, junk=b"\x02", has_head=False)
@given(at=st.integers(0, 99), junk=st.binary(min_size=1, max_size=16), has_head=st.booleans())
def test_a_log_whose_header_is_damaged_is_repaired_or_left_alone(at: int, junk: bytes, has_head: bool) -> None:
    """For all damage to the first hundred bytes, by which a log is told from other files: nothing is wrong, or it is
    refused and left as it is, or repaired; what is there then is a beginning, and what is lost is known."""
    with tempfile.TemporaryDirectory() as directory:
        path = small_log(Path(directory))
        records = read(path)
        content = path.read_bytes()
        damaged = content[:at] + junk + content[at + len(junk) :]
        path.write_bytes(damaged)
        if has_head:
            HeadFile(path, Head(len(records), b"\0" * 16), certain=False, reserve_bytes=0).abandon()
        try:
            repair = repair_log(path)
        except EventLogError:
            assert path.read_bytes() == damaged
            return
        found = accepted(path, read_only=False)
        assert found is not None
        assert found == records[: len(found)]
        assert repair is not None or len(found) == len(records)
        if repair is not None:
            assert repair.backup.read_bytes() == damaged
            assert repair.kept_events == len(found)
            assert repair.known_last == len(records) or not (found or has_head)


def test_one_wrong_byte_at_the_beginning_costs_no_event(closed: tuple[Files, list[RecordedEvent]], place: Path) -> None:
    """Given a log that does not say any more that it is in SQLite, then its tables do, and repair keeps every event."""
    files, records = closed
    path = write({"orders.db": b"X" + files["orders.db"][1:]}, place)
    repair = repair_log(path)
    assert repair is not None
    assert (repair.kept_events, repair.known_last) == (len(records), len(records))
    assert accepted(path, read_only=False) == records


@pytest.mark.parametrize(
    ("at", "instead"),
    [(18, 3), (19, 3), (21, 1), (22, 1), (23, 1), (28, 1), (31, 10), (44, 1), (47, 9), (56, 1), (59, 2)],
)
@pytest.mark.parametrize("kind", ["closed", "crashed"])
def test_what_is_the_same_in_the_header_of_every_log_costs_no_event(
    request: pytest.FixtureRequest, place: Path, at: int, instead: int, kind: str
) -> None:
    """Given a log, closed or whose process was killed, one wrong byte of whose header keeps SQLite from reading or
    writing it, then repair keeps every event, and the log takes others."""
    files, records = request.getfixturevalue(kind)
    header = files["orders.db"]
    path = write({**files, "orders.db": header[:at] + bytes([instead]) + header[at + 1 :]}, place)
    repair = repair_log(path)
    if repair is not None:
        assert (repair.kept_events, repair.known_last) == (len(records), len(records))
    assert accepted(path, read_only=False) == records
    with closing(SQLiteEventLog(path, reserve_bytes=0)) as log:
        log.append([Append("queue:a", log.stream_version("queue:a"), (event(99),))])


@pytest.mark.parametrize("read_only", [False, True])
def test_a_header_that_forbids_writing_is_called_damaged(
    closed: tuple[Files, list[RecordedEvent]], place: Path, read_only: bool
) -> None:
    """Given a log with a write version that SQLite does not know, then opening it is refused, and checking says why."""
    content = closed[0]["orders.db"]
    path = write({"orders.db": content[:18] + b"\x03" + content[19:]}, place)
    with pytest.raises(CorruptLogError, match="its header is damaged: found write version 3, expected 2"):
        SQLiteEventLog(path, read_only=read_only)
    damage = check_log(path)
    assert damage is not None
    assert "its header is damaged" in damage.reason


def test_a_header_that_forbids_writing_is_called_damaged_when_it_is_written(
    crashed: tuple[Files, list[RecordedEvent]], place: Path
) -> None:
    """The same of a log whose process was killed: it can be read, and opening it for writing says what is wrong."""
    files, records = crashed
    content = files["orders.db"]
    path = write({**files, "orders.db": content[:18] + b"\x03" + content[19:]}, place)
    assert accepted(path) == records
    with pytest.raises(CorruptLogError, match="its header is damaged: found write version 3, expected 2"):
        SQLiteEventLog(path, reserve_bytes=0)


@pytest.mark.parametrize("name", ["archive.jsonl.gz", "export.jsonl", "settings.toml", "picture.png", "other.db"])
def test_what_is_no_log_is_not_repaired(closed: tuple[Files, list[RecordedEvent]], place: Path, name: str) -> None:
    """Given an export, or another program's file, whole or not, then checking and repairing it is refused, and it is as
    it was, alone in its place."""
    source = write(closed[0], place)
    path = place / "others" / name
    path.parent.mkdir()
    if ".jsonl" in name:
        with closing(SQLiteEventLog(source, read_only=True)) as log:
            export_log(log, path)
    elif name == "other.db":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE records (id)")
    else:
        path.write_bytes(b"\x89PNG" if name.endswith("png") else b"a = 1\n")
    whole = path.read_bytes()
    for content in (whole, whole[: len(whole) * 2 // 3]):
        path.write_bytes(content)
        for use in (check_log, repair_log):
            with pytest.raises(EventLogError, match=r"expected an? .*log|give another path|damaged"):
                use(path)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("table", "part", "instead"),
    [
        ("snapshots", "stream_id", "stream_ix"),
        ("snapshots", "version", "versiox"),
        ("snapshots", "checksum", "checksux"),
        ("snapshots", "body", "bodx"),
        ("snapshots", "(", "?"),
        ("records", "body", "bodx"),
        ("records", "TABLE", "TABLF"),
        ("places", "position", "positiox"),
        ("places", "TABLE", "TABLF"),
        ("streams", "base_version", "base_versiox"),
        ("meta", "key", "kex"),
    ],
)
def test_what_a_table_is_can_be_repaired_without_loss(
    closed: tuple[Files, list[RecordedEvent]], place: Path, table: str, part: str, instead: str
) -> None:
    """Given a log whose events are whole, but of one of whose tables it does not say any more what it is, then checking
    it says so, whoever needs the table, and repairing it keeps every event and the snapshot."""
    files, records = closed
    path = write(files, place)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        changed = connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ? AND sql LIKE ?",
            (part, instead, table, f"%{part}%"),
        )
        assert changed.rowcount == 1
    assert check_log(path) is not None
    repair = repair_log(path)
    assert repair is not None
    assert repair.kept_events == len(records)
    assert check_log(path) is None
    with closing(SQLiteEventLog(path, reserve_bytes=0)) as log:
        assert list(log.read_all()) == records
        assert log.snapshots("queue:a") == [Snapshot("queue:a", 6, b"state")]


def test_what_stands_for_truncated_events_is_checked_and_not_mended(
    closed: tuple[Files, list[RecordedEvent]], place: Path
) -> None:
    """Given a damaged base of one queue, then checking says so, and a repair refuses and changes nothing; where a
    record is damaged as well, it cuts that off, and says what it cannot mend."""
    path = write(closed[0], place)
    with closing(SQLiteEventLog(path)) as log:
        log.truncate(12, {"queue:a": Snapshot("queue:a", 8, b"a"), "queue:b": Snapshot("queue:b", 4, b"b")})
    assert check_log(path) is None
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE snapshots SET body = x'ff' WHERE version = 8")
    content = path.read_bytes()
    damage = check_log(path)
    assert damage is not None
    assert (damage.position, damage.lost_bases) == (None, ("queue:a",))
    assert "the snapshot of 'queue:a' at version 8" in damage.reason
    with pytest.raises(CorruptLogError, match="no repair brings it back, and nothing was changed"):
        repair_log(path)
    assert path.read_bytes() == content
    assert [file.name for file in place.iterdir() if not file.name.endswith(("-wal", "-shm"))] == [path.name]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET body = zeroblob(5) WHERE position = 20")
    repair = repair_log(path)
    assert repair is not None
    assert (repair.kept_events, repair.lost_bases) == (18, ("queue:a",))
    after = check_log(path)
    assert after is not None
    assert after.lost_bases == ("queue:a",)
    with closing(SQLiteEventLog(path)) as log:
        assert [record.position for record in log.read_all()] == list(range(13, 19))
        assert log.snapshots("queue:b") == [Snapshot("queue:b", 4, b"b")]


def test_a_log_in_use_is_not_repaired(closed: tuple[Files, list[RecordedEvent]], place: Path) -> None:
    """Given a damaged log that a process has open, then repairing it is refused."""
    path = write(closed[0], place)
    with closing(SQLiteEventLog(path)):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE records SET body = zeroblob(5) WHERE position = 16")
        with pytest.raises(LogLockedError):
            repair_log(path)


@pytest.mark.parametrize("looks", ["before the first append", "after it"])
@pytest.mark.parametrize("look_at", [read, check_log, repair_log])
def test_a_log_in_use_stays_locked_whoever_looks_at_it(
    closed: tuple[Files, list[RecordedEvent]], place: Path, look_at: Callable[[Path], object], looks: str
) -> None:
    """Given a log that this process writes, when it reads, checks or repairs it, then nothing is wrong with it, and it
    keeps SQLite's locks: another process that opens and closes it does not take itself for the last one and remove the
    write-ahead log."""
    path = write({"orders.db": closed[0]["orders.db"]}, place)
    with closing(SQLiteEventLog(path, reserve_bytes=0)) as log:
        if looks == "before the first append":
            look_at(path)
        log.append([Append("queue:a", log.stream_version("queue:a"), (event(99),))])
        if looks == "after it":
            look_at(path)
        look = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM records').fetchall()"
        subprocess.run([sys.executable, "-c", look + "; c.close()", str(path)], check=True)
        assert path.with_name("orders.db-wal").exists()
        log.append([Append("queue:a", log.stream_version("queue:a"), (event(100),))])
    assert len(read(path)) == len(closed[1]) + 2
