"""A log goes out as JSON lines and comes back without loss, and a damaged export is never taken for a whole one."""

from __future__ import annotations

import errno
import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.errors import ConfigurationError, CorruptLogError, EventLogError
from mpreg_mq.events import (
    CODEC,
    EVENT_TYPES,
    Append,
    Codec,
    Event,
    EventLog,
    JSONLinesEventLog,
    LeaseExtended,
    MemoryEventLog,
    MessageCompleted,
    MessageEnqueued,
    Progress,
    RecordedEvent,
    Snapshot,
    SQLiteEventLog,
    check_log,
    export_log,
    import_log,
    open_log,
    retaining,
    transfer,
)
from mpreg_mq.events.transfer import base_of
from tests.support.events import values_of_class


def events(count: int) -> tuple[Event, ...]:
    return tuple(MessageCompleted(at=float(number), message_id=f"m{number}") for number in range(count))


@pytest.fixture
def log() -> MemoryEventLog:
    """Two streams, whose events alternate."""
    log = MemoryEventLog()
    for version in range(5):
        log.append([Append("queue:a", version, events(1)), Append("queue:b", version, events(1))])
    return log


# --- there and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_an_imported_export_is_the_same_log(log: EventLog, tmp_path: Path, name: str, store: str) -> None:
    """Given an export, when it is imported into an empty log, then that holds the same records (I1)."""
    export_log(log, tmp_path / name)
    copy = open_log(tmp_path / "copy.db" if store == "sqlite" else "memory:")
    import_log(tmp_path / name, copy)
    assert list(copy.read_all()) == list(log.read_all())
    copy.close()


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
@settings(deadline=None)
@given(data=st.data())
def test_every_event_comes_back_from_json(name: str, data: st.DataObject) -> None:
    """For all events: what is read from its JSON is equal, bytes and infinite numbers included."""
    event = data.draw(values_of_class(EVENT_TYPES[name]))
    assert CODEC.decode_json(*CODEC.encode_json(event)) == event


def test_infinite_numbers_survive() -> None:
    """Given a number that JSON cannot say, then it comes back all the same."""
    event = LeaseExtended(at=1.0, message_id="m", subscriber_id="s", deadline=math.inf)
    assert CODEC.decode_json(*CODEC.encode_json(event)) == event


def test_an_export_is_readable(log: EventLog, tmp_path: Path) -> None:
    """Given an export, then its lines are JSON with the fields of the events by name."""
    export_log(log, tmp_path / "log.jsonl", streams=["queue:b"])
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines[1] == (
        '{"position":2,"stream":"queue:b","version":1,"type":"MessageCompleted","schema":1,'
        '"event":{"at":0.0,"message_id":"m0"}}'
    )


def test_older_events_are_brought_up_to_date() -> None:
    """Given an export of an older schema, then it is read through the upcasters, and damage stays damage."""
    older = CODEC.encode_json(MessageEnqueued(at=1.0, message_id="m", topic="t", payload=b"p"))
    newer = Codec()
    newer.register_upcaster("MessageEnqueued", 1, lambda fields: {**fields, "topic": fields["topic"] + ".new"})
    event = newer.decode_json(*older)
    assert isinstance(event, MessageEnqueued)
    assert (event.topic, event.payload) == ("t.new", b"p")
    with pytest.raises(CorruptLogError):
        newer.decode_json(older.type, 1, b"{}")


def test_some_streams_can_be_chosen(log: EventLog, tmp_path: Path) -> None:
    """Given chosen streams, then only those are exported, with their positions; an unknown one is refused."""
    done = export_log(log, tmp_path / "b.jsonl", streams=["queue:b"])
    assert done == Progress(5, 10, 10)
    with JSONLinesLog(tmp_path / "b.jsonl") as exported:
        assert exported.streams() == ["queue:b"]
        assert [record.position for record in exported.read_all()] == [2, 4, 6, 8, 10]
    with pytest.raises(EventLogError, match="queue:x"):
        export_log(log, tmp_path / "x.jsonl", streams=["queue:x"])
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_chosen_streams_of_a_truncated_log_can_be_imported(log: EventLog, tmp_path: Path, store: str) -> None:
    """Given an export of one stream of a truncated log, when it is imported, then the copy is whole, and goes on."""
    assert isinstance(log, MemoryEventLog)
    log.truncate(6, {stream: Snapshot(stream, 3, stream.encode()) for stream in log.streams()})
    export_log(log, tmp_path / "b.jsonl", streams=["queue:b"])
    copy = open_log(tmp_path / "copy.db" if store == "sqlite" else "memory:")
    import_log(tmp_path / "b.jsonl", copy)
    if store == "sqlite":
        copy.close()
        assert check_log(tmp_path / "copy.db") is None
        copy = open_log(tmp_path / "copy.db")
    kept = retaining(copy)
    assert kept is not None
    assert base_of(kept, "queue:b") == Snapshot("queue:b", 3, b"queue:b")
    copy.append([Append("queue:b", 5, events(1))])
    assert [record.version for record in copy.read_stream("queue:b")] == [4, 5, 6]
    copy.close()


def test_an_import_from_a_log_that_is_truncated_meanwhile_says_so(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a log that is truncated between its bases and its events, then the import says so, and adds nothing."""
    assert isinstance(log, MemoryEventLog)
    read_all = log.read_all

    def meanwhile(after_position: int = 0) -> Iterator[RecordedEvent]:
        log.truncate(6, {stream: Snapshot(stream, 3, b"") for stream in log.streams()})
        return read_all(after_position)

    monkeypatch.setattr(log, "read_all", meanwhile)
    copy = MemoryEventLog()
    with pytest.raises(EventLogError, match="were truncated meanwhile, up to 6"):
        import_log(log, copy)
    assert copy.streams() == []


def test_progress_is_reported(tmp_path: Path) -> None:
    """Given a long log, then export and import say how far they are, at least once at the end."""
    log = MemoryEventLog()
    log.append([Append("queue:a", 0, events(2500))])
    seen: list[Progress] = []
    export_log(log, tmp_path / "log.jsonl", on_progress=seen.append)
    assert [one.events for one in seen] == [1000, 2000, 2500]
    seen.clear()
    import_log(tmp_path / "log.jsonl", MemoryEventLog(), on_progress=seen.append)
    assert [one.events for one in seen] == [1000, 2000, 2500]
    assert seen[-1].position == seen[-1].last_position == 2500


# --- refusals -----------------------------------------------------------------------------------------------


def test_an_export_overwrites_nothing(log: EventLog, tmp_path: Path) -> None:
    """Given a file of that name, then the export is refused and the file stays."""
    (tmp_path / "log.jsonl").write_text("mine")
    with pytest.raises(EventLogError, match="exists"):
        export_log(log, tmp_path / "log.jsonl")
    assert (tmp_path / "log.jsonl").read_text() == "mine"


def test_an_interrupted_export_leaves_nothing(log: EventLog, tmp_path: Path) -> None:
    """Given an export that is interrupted, then no file is left that looks like one."""

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_log(log, tmp_path / "log.jsonl", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


class FullDisk(io.FileIO):
    """A file on a disk that has so much room left."""

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(path, "xb")
        self.room = room

    def write(self, content: Any) -> int:
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(content)
        return super().write(content)


@settings(deadline=None)
@given(room=st.integers(0, 3000), gzipped=st.booleans(), count=st.sampled_from([0, 1, 2000]))
def test_an_export_that_finds_no_room_leaves_nothing(room: int, gzipped: bool, count: int) -> None:
    """For all sizes of what is left of a disk: an export fits there and is whole, or raises, and then every file of it
    is closed and gone."""
    log = MemoryEventLog()
    log.append([Append("queue:a", 0, events(count))])
    opened: list[FullDisk] = []

    def create(path: Path) -> io.BufferedWriter:
        opened.append(FullDisk(path, room))
        return io.BufferedWriter(opened[0])

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "create", create)
        path = Path(directory) / ("log.jsonl.gz" if gzipped else "log.jsonl")
        try:
            export_log(log, path)
        except EventLogError:
            assert list(Path(directory).iterdir()) == []
        else:
            assert [file.name for file in Path(directory).iterdir()] == [path.name]
            assert list(JSONLinesEventLog(path).read_all()) == list(log.read_all())
        assert [file.closed for file in opened] == [True]


def test_an_archive_that_finds_no_room_to_begin_leaves_nothing(
    log: MemoryEventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a base that is larger than what is left of the disk, then the file that was begun is gone as well."""
    log.truncate(2, {name: Snapshot(name, 1, bytes(range(256)) * 1000) for name in ("queue:a", "queue:b")})
    monkeypatch.setattr(transfer, "create", lambda path: io.BufferedWriter(FullDisk(path, 100)))
    with pytest.raises(EventLogError, match="No space left"):
        transfer.ExportFile(tmp_path / "1-2.jsonl", log, None, replace=True)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_moves_on_while_it_is_looked_up_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a log that another process truncates between the two looks that a base takes, then it is the new base."""
    path = tmp_path / "log.db"
    with closing(SQLiteEventLog(path)) as writer, closing(SQLiteEventLog(path, read_only=True)) as reader:
        for number in (1, 2):
            writer.append([Append("queue:a", number - 1, events(1))])
        writer.truncate(1, {"queue:a": Snapshot("queue:a", 1, b"first")})
        find = reader.each_snapshot

        def meanwhile(stream: str, version: int | None = None) -> Iterator[Snapshot]:
            if version == 1:
                writer.truncate(2, {"queue:a": Snapshot("queue:a", 2, b"second")})
            return find(stream, version)

        monkeypatch.setattr(reader, "each_snapshot", meanwhile)
        assert base_of(reader, "queue:a") == Snapshot("queue:a", 2, b"second")


def test_an_export_to_nowhere_is_refused(log: EventLog, tmp_path: Path) -> None:
    """Given a directory that does not exist, then the export says so."""
    with pytest.raises(EventLogError, match="No such file"):
        export_log(log, tmp_path / "missing" / "log.jsonl")


def test_an_import_over_streams_that_are_there_is_refused(log: EventLog, tmp_path: Path) -> None:
    """Given a log that has one of the streams, then nothing is imported."""
    export_log(log, tmp_path / "log.jsonl")
    other = MemoryEventLog()
    other.append([Append("queue:b", 0, events(1))])
    with pytest.raises(EventLogError, match=r"has \['queue:b'\] already"):
        import_log(tmp_path / "log.jsonl", other)
    assert other.last_position() == 1


# --- an export as a log -------------------------------------------------------------------------------------


class JSONLinesLog:
    """An export, opened by name, for the time of a with statement."""

    def __init__(self, path: Path) -> None:
        self.log = open_log(path, read_only=True)

    def __enter__(self) -> EventLog:
        return self.log

    def __exit__(self, *_: object) -> None:
        self.log.close()


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_an_export_is_read_like_the_log(log: EventLog, tmp_path: Path, name: str) -> None:
    """Given an export, then every question about it has the log's answer."""
    export_log(log, tmp_path / name)
    with JSONLinesLog(tmp_path / name) as exported:
        assert isinstance(exported, JSONLinesEventLog)
        assert exported.read_only
        assert exported.streams() == log.streams()
        assert exported.last_position() == log.last_position()
        assert exported.stream_version("queue:a") == 5
        assert exported.stream_version("queue:x") == 0
        for after in range(12):
            assert list(exported.read_all(after)) == list(log.read_all(after))
            assert list(exported.read_stream("queue:a", after)) == list(log.read_stream("queue:a", after))
        exported.sync()
        assert open_log(exported.location, read_only=True).last_position() == 10


def test_an_export_takes_no_events(log: EventLog, tmp_path: Path) -> None:
    """Given an export, then it is opened only for reading, and appending is refused."""
    export_log(log, tmp_path / "log.jsonl")
    with pytest.raises(ConfigurationError, match="read_only=True"):
        open_log(tmp_path / "log.jsonl")
    with JSONLinesLog(tmp_path / "log.jsonl") as exported, pytest.raises(EventLogError, match="can only be read"):
        exported.append([Append("queue:a", 5, events(1))])


def test_a_closed_export_refuses_use(log: EventLog, tmp_path: Path) -> None:
    """Given a closed export, then it is not read any more, and an open iterator stops."""
    export_log(log, tmp_path / "log.jsonl")
    exported = open_log(tmp_path / "log.jsonl", read_only=True)
    reader = exported.read_all()
    next(reader)
    exported.close()
    assert exported.closed
    for use in (lambda: next(reader), exported.streams, exported.read_all, exported.last_position, exported.sync):
        with pytest.raises(EventLogError, match="closed"):
            use()


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_no_damage_to_an_export_is_accepted(log: EventLog, tmp_path: Path, name: str) -> None:
    """For all bytes of a small export, flipped, and all lengths, cut: it is refused, or reads just the same."""
    export_log(log, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    records = list(log.read_all())
    damaged = tmp_path / f"damaged.{name}"
    cases = [content[:length] for length in range(len(content))]
    cases += [content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] for at in range(len(content))]
    for case in cases:
        damaged.write_bytes(case)
        try:
            found = list(JSONLinesEventLog(damaged).read_all())
        except EventLogError:
            continue
        assert found == records


def test_damage_is_located(log: EventLog, tmp_path: Path) -> None:
    """Given a line that is missing, one that is no JSON, an empty and a newer file, then the error says where."""
    export_log(log, tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    for content, found in [
        ([*lines[:3], *lines[4:]], "line 5 .*expected a position above 4 and version 2"),
        ([*lines[:3], b"garbage\n", *lines[4:]], "line 4 "),
        (lines[:-1], "line 11 "),
        ([], "line 1 .*empty"),
        ([lines[0].replace(b":1", b":2"), *lines[1:]], "newer release"),
    ]:
        (tmp_path / "damaged.jsonl").write_bytes(b"".join(content))
        with pytest.raises(EventLogError, match=found):
            JSONLinesEventLog(tmp_path / "damaged.jsonl")


def test_a_missing_export_is_named(tmp_path: Path) -> None:
    """Given no such file, then the error names it."""
    with pytest.raises(EventLogError, match=r"missing\.jsonl.*No such file"):
        JSONLinesEventLog(tmp_path / "missing.jsonl")
