"""What a log does not keep any more goes to an archive or away, and nobody can tell from the state (I4)."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.actors.retention import Compactor, all_events
from mpreg_mq.blocking import BlockingMessageQueueManager
from mpreg_mq.clock import VirtualClock
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration, RetentionPolicy
from mpreg_mq.errors import ConfigurationError, CorruptLogError, EventLogError
from mpreg_mq.events import (
    Append,
    MemoryEventLog,
    RetainingLog,
    Snapshot,
    SQLiteEventLog,
    export_log,
    import_log,
    open_log,
    read_events,
)
from mpreg_mq.events import types as e
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.loading import load_state, state_at_base
from tests.support.effort import repetitions
from tests.support.running import Recorder, until


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RetainingLog]:
    made: RetainingLog = (
        MemoryEventLog() if request.param == "memory" else SQLiteEventLog(tmp_path / "log.db", synchronous="OFF")
    )
    yield made
    made.close()


def fill(log: RetainingLog, messages: int = 40, payload: bytes = b"\x01") -> dict[str, QueueState]:
    """Two queues, a deleted one and a stream that is no queue; every third message is finished. The states."""
    states: dict[str, QueueState] = {}

    def put(stream: str, *events: e.Event) -> None:
        log.append([Append(stream, log.stream_version(stream), events)])
        if stream.startswith("queue:"):
            for event in events:
                states.setdefault(stream, QueueState()).apply(event)

    put("routes:topics", e.TopicRouteAdded(0.0, "t.#", "a"))
    for name in ("a", "b", "gone"):
        put(f"queue:{name}", e.QueueCreated(0.0, name, QueueConfiguration(name)))
        put(f"queue:{name}", e.SubscriberJoined(0.0, "s", f"{name}/1", "#", 1000))
    put("queue:gone", e.QueueDeleted(1.0))
    for number in range(messages):
        stream = "queue:a" if number % 2 else "queue:b"
        at = float(number)
        put(stream, e.MessageEnqueued(at, f"m{number}", "t", payload))
        put(stream, e.MessageDelivered(at, f"m{number}", "s", f"{stream[6:]}/1", 1, at + 1000.0))
        if number % 3 == 0:
            put(stream, e.MessageAcknowledged(at, f"m{number}", "s", True))
        if number == 7:
            put(stream, e.MessageDeadLettered(at, "m1", "r", None, 1, "s"))
    return states


def compact(log: RetainingLog, now: float = 1000.0, **policy: Any) -> Compactor:
    compactor = Compactor(log, RetentionPolicy(**{"least_events": 1, **policy}), lambda: now)
    for _ in compactor.steps():
        pass
    return compactor


def check(log: RetainingLog, states: dict[str, QueueState]) -> None:
    for stream, state in states.items():
        loaded = load_state(log, stream)
        loaded.check()
        assert loaded.describe() == state.describe()


@pytest.mark.parametrize(
    ("policy", "holds"),
    [
        ({"keep_events": 30}, lambda log: log.last_position() - log.base_position() <= 31),
        ({"keep_events": 0}, lambda log: log.base_position() == log.last_position()),
        ({"keep_seconds": 980.0}, lambda log: next(log.read_all()).event.at >= 19.0),
    ],
)
def test_what_is_beyond_a_limit_goes(
    log: RetainingLog, policy: dict[str, Any], holds: Callable[[RetainingLog], bool]
) -> None:
    """Given a limit of number or time, then older events go, versions and positions go on, and states are the same."""
    states = fill(log)
    last, versions = log.last_position(), {stream: log.stream_version(stream) for stream in log.streams()}
    compactor = compact(log, **policy)
    assert compactor.last is not None
    assert compactor.last.position == log.base_position() > 0
    assert holds(log)
    assert log.last_position() == last
    assert {stream: log.stream_version(stream) for stream in log.streams()} == versions
    check(log, states)
    assert [type(event) for event in all_events(log, "routes:topics")] == [e.TopicRouteAdded]
    log.append([Append("queue:a", versions["queue:a"], (e.QueuePaused(2000.0),))])
    states["queue:a"].apply(e.QueuePaused(2000.0))
    check(log, states)


def test_what_remains_can_be_compacted_again_and_again(log: RetainingLog) -> None:
    """Given cuts at one position after another, then after each the states are those of all events."""
    states = fill(log)
    for keep in (100, 70, 40, 39, 10, 0):
        compact(log, keep_events=keep)
        check(log, states)


def test_a_queue_with_megabytes_of_messages_is_compacted_again_and_again(log: RetainingLog) -> None:
    """Given queues that hold several megabytes each, then retention goes on after its first cut, a snapshot that is
    saved in between takes no place from that at the base, and a start comes to the states of all events."""
    states = fill(log, payload=bytes(300_000))
    for keep in (60, 30, 0):
        assert compact(log, keep_events=keep).last is not None
        for stream, state in states.items():
            log.save_snapshot(Snapshot(stream, state.version, state.dump()))
        check(log, states)
        for stream in states:
            assert state_at_base(log, stream).version == log.base_version(stream)


def test_a_start_does_not_need_the_newest_snapshot(tmp_path: Path) -> None:
    """Given a large newest snapshot that is damaged, then the queue is that of all events, by way of an older one."""
    with closing(SQLiteEventLog(tmp_path / "log.db", synchronous="OFF")) as log:
        states = fill(log, payload=bytes(300_000))
        compact(log, keep_events=0)
        for stream, state in states.items():
            event = e.QueuePaused(2000.0)
            log.append([Append(stream, state.version, [event])])
            state.apply(event)
            log.save_snapshot(Snapshot(stream, state.version, state.dump()))
        assert log._file._writer is not None
        log._file._writer.execute(
            "UPDATE snapshots SET body = zeroblob(2000000) WHERE version = "
            "(SELECT max(version) FROM snapshots newest WHERE newest.stream_id = snapshots.stream_id)"
        )
        check(log, states)


def test_a_log_file_shrinks(tmp_path: Path) -> None:
    """Given a limit of size, then the file gives its space back, step by step."""
    with closing(SQLiteEventLog(tmp_path / "log.db", synchronous="OFF")) as log:
        states = fill(log, messages=3000)
        before = log.size_bytes()
        compact(log, keep_bytes=before // 4)
        assert log.size_bytes() < before * 0.8
        check(log, states)
    assert (tmp_path / "log.db").stat().st_size < before


def test_an_archive_is_a_log(log: RetainingLog, tmp_path: Path) -> None:
    """Given two compactions into archives, then these and the log hold every event once, and each archive is folded
    from where the one before ends."""
    states = fill(log)
    everything = list(log.read_all())
    archives = []
    for keep in (60, 20):
        last = compact(log, keep_events=keep, archive_directory=tmp_path / "archive").last
        assert last is not None
        assert last.archive is not None
        archives.append(open_log(last.archive, read_only=True))
    assert [record for archive in archives for record in archive.read_all()] + list(log.read_all()) == everything
    first, second = archives
    for stream in ("queue:a", "queue:b"):
        events = [record.event for record in everything if record.stream == stream]
        for archive in (first, second):
            version = archive.stream_version(stream)
            assert load_state(archive, stream).describe() == QueueState.replay(events[:version]).describe()
    check(log, states)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file is synced")
def test_an_archive_is_on_the_disk_before_its_events_go(
    log: RetainingLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a compaction into a new directory, then the archive, its name and its directory's are synced before the log
    is truncated, so that no power cut takes both."""
    fill(log)
    steps: list[object] = []
    synced, truncate = os.fsync, log.truncate

    def fsync(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{tmp_path}/"))
        synced(descriptor)

    def truncated(position: int, bases: Mapping[str, Snapshot]) -> None:
        steps.append(position)
        truncate(position, bases)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(log, "truncate", truncated)
    done = compact(log, keep_events=20, archive_directory=tmp_path / "archive").last
    assert done is not None
    directory, partial, names, position = steps[:4]
    assert (directory, names, position) == (str(tmp_path), "archive", done.position)
    assert ".partial." in str(partial)


def test_what_a_killed_process_left_of_its_archive_is_removed(log: RetainingLog, tmp_path: Path) -> None:
    """Given archives that were begun and never ended, when the next one begins, then they alone are gone."""
    fill(log)
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in (".29317.partial.000000000000001-000000000000040.jsonl.gz", ".ab.partial.1-2.jsonl.gz"):
        (archive / name).write_bytes(b"cut")
    others = {".ab.partial.orders.jsonl.gz", "notes.txt", "000000000000001-000000000000002.jsonl.gz"}
    for name in others:
        (archive / name).write_bytes(b"mine")
    done = compact(log, keep_events=20, archive_directory=archive).last
    assert done is not None
    assert done.archive is not None
    assert {file.name for file in archive.iterdir()} == {*others, done.archive.name}


def test_archives_of_another_log_are_not_replaced(log: RetainingLog, tmp_path: Path) -> None:
    """Given a directory with archives of another log, when this one would replace one of them, then that is refused and
    nothing goes; one of its own that an interruption left is replaced."""
    archive = tmp_path / "archive"
    other = MemoryEventLog()
    fill(other, payload=b"\x02")
    fill(log)
    theirs = compact(other, keep_events=20, archive_directory=archive).last
    assert theirs is not None
    assert theirs.archive is not None
    before = theirs.archive.read_bytes()
    with pytest.raises(EventLogError, match="archive_directory of its own"):
        compact(log, keep_events=20, archive_directory=archive)
    assert theirs.archive.read_bytes() == before
    assert log.base_position() == 0

    own = tmp_path / "own"
    shutil.copytree(archive, own)
    (own / theirs.archive.name).write_bytes(b"cut")
    done = compact(log, keep_events=20, archive_directory=own).last
    assert done is not None
    assert done.archive is not None
    assert len(list(open_log(done.archive, read_only=True).read_all())) == done.events


def test_a_compacted_log_is_exported_and_imported_whole(log: RetainingLog, tmp_path: Path) -> None:
    """Given a log that was truncated, then its export holds what stands for the events that are gone."""
    states = fill(log)
    compact(log, keep_events=20)
    export_log(log, tmp_path / "log.jsonl.gz")
    for target in (MemoryEventLog(), SQLiteEventLog(tmp_path / "copy.db", synchronous="OFF")):
        import_log(tmp_path / "log.jsonl.gz", target)
        assert list(target.read_all()) == list(log.read_all())
        assert target.base_position() == log.base_position()
        check(target, states)
        target.close()


def test_a_fold_begins_with_what_stands_for_the_truncated_events(log: RetainingLog) -> None:
    """Given a log that was truncated or not, then the state at its base and the events from there give the state."""
    states = fill(log)
    for keep in (10_000, 30, 0):
        compact(log, keep_events=keep)
        for stream, expected in states.items():
            state = state_at_base(log, stream)
            assert state.version == log.base_version(stream)
            for record in log.read_stream(stream):
                state.apply(record.event)
            assert state.describe() == expected.describe()


def test_a_log_is_compacted_whole_again_after_another_stream_went_on(log: RetainingLog) -> None:
    """Given a log whose events were all truncated, when another stream goes on, then its events can go as well."""
    states = fill(log)
    for name in ("later", "last"):
        compact(log, keep_events=0, least_events=1)
        assert log.base_position() == log.last_position()
        stream = f"queue:{name}"
        events = [e.QueueCreated(90.0, name, QueueConfiguration(name)), e.MessageEnqueued(91.0, "m", "t", b"\x01")]
        log.append([Append(stream, 0, events)])
        states[stream] = QueueState.replay(events)
    compact(log, keep_events=0, least_events=1)
    assert log.base_position() == log.last_position()
    check(log, states)


def test_too_little_is_left_alone(log: RetainingLog) -> None:
    """Given fewer events beyond the limit than are worth it, then nothing happens."""
    fill(log)
    assert compact(log, keep_events=log.last_position() - 5, least_events=50).last is None
    assert log.base_position() == 0


def test_without_its_base_a_truncated_stream_is_not_folded(tmp_path: Path) -> None:
    """Given a truncated stream whose base is damaged, then loading it raises instead of beginning in the middle."""
    with closing(SQLiteEventLog(tmp_path / "log.db", synchronous="OFF")) as log:
        fill(log)
        compact(log, keep_events=20)
        assert log._file._writer is not None
        log._file._writer.execute("UPDATE snapshots SET body = zeroblob(9)")
        for load in (load_state, state_at_base):
            with pytest.raises(CorruptLogError, match="restore the log from a copy, or from its archives"):
                load(log, "queue:a")


def test_a_cut_needs_a_base_for_every_stream(log: RetainingLog) -> None:
    """Given a cut without what stands for it, at the wrong version, or outside of the log, then nothing is cut."""
    fill(log)
    position = log.record_end(30)
    wrong = {stream: Snapshot(stream, 1, b"") for stream in log.streams()}
    for at, bases in [(position, {}), (position, wrong), (log.last_position() + 1, {})]:
        with pytest.raises(EventLogError, match="truncate"):
            log.truncate(at, bases)
    assert log.base_position() == 0


def test_a_reader_that_was_overtaken_is_told(log: RetainingLog) -> None:
    """Given a reader in the middle of what is truncated, then its next step says so, and a new one begins after."""
    fill(log, messages=3000)
    readers: list[Iterator[object]] = [log.read_all(), log.read_stream("queue:a"), read_events(log, "queue:a")]
    for reader in readers:
        next(reader)
    compact(log, keep_events=10)
    for reader in readers:
        with pytest.raises(EventLogError, match="truncated meanwhile"):
            list(reader)
    assert len(list(log.read_all())) <= 11


def test_a_reader_that_was_overtaken_before_it_began_is_told(log: RetainingLog) -> None:
    """Given a reader that has taken no step when its events are truncated, then it sees all of them or is told; it does
    not take what is gone for damage."""
    fill(log)
    expected = len(list(log.read_all()))
    of_stream = len(list(log.read_stream("queue:a")))
    readers = [(log.read_all(), expected), (log.read_stream("queue:a"), of_stream)]
    compact(log, keep_events=10)
    for reader, count in readers:
        try:
            assert len(list(reader)) == count
        except EventLogError as error:
            assert "truncated meanwhile" in str(error)  # noqa: PT017 - either is right


def test_a_reader_in_another_process_that_was_overtaken_is_told(tmp_path: Path) -> None:
    """Given a log that is open for reading beside its writer, when that truncates what is being read, then the reader
    is told so, and a new one begins after."""
    path = tmp_path / "log.db"
    with closing(SQLiteEventLog(path)) as log, closing(SQLiteEventLog(path, read_only=True)) as beside:
        fill(log)
        readers = [beside.read_all(), beside.read_stream("queue:a")]
        compact(log, keep_events=10)
        for reader in readers:
            with pytest.raises(EventLogError, match="truncated meanwhile"):
                list(reader)
        assert len(list(beside.read_all())) <= 11


def without_gap(numbers: list[int]) -> bool:
    """Whether each number is one more than the one before."""
    return all(after == before + 1 for before, after in pairwise(numbers))


def test_readers_among_appends_and_cuts_see_no_gap(log: RetainingLog) -> None:
    """Given streams that take turns and a log that is cut meanwhile, then a reader sees all in order, or is told."""
    streams = [f"queue:{number}" for number in range(3)]
    steps = repetitions(test=200, soak=2000)
    failures: list[BaseException] = []
    written = threading.Event()

    def write() -> None:
        for step in range(steps):
            for number, stream in enumerate(streams):
                events = [e.MessageCompleted(float(3 * step + number + each), "m") for each in range(1 + step % 3)]
                log.append([Append(stream, log.stream_version(stream), events)])
            if step % 10 == 9:
                cut = log.record_end(log.last_position() * 2 // 3)
                versions = {record.stream: record.version for record in log.read_all() if record.position <= cut}
                log.truncate(cut, {name: Snapshot(name, version, b"") for name, version in versions.items()})

    def read() -> None:
        while not written.is_set():
            try:
                records = list(log.read_all())
                alone = [event for events in read_events(log, streams[0]) for event in events]
                of_stream = list(log.read_stream(streams[1]))
            except EventLogError as error:
                if "truncated meanwhile" not in str(error):
                    raise
                continue
            assert without_gap([record.position for record in records])
            assert without_gap([record.version for record in of_stream])
            for stream in streams:
                assert without_gap([record.version for record in records if record.stream == stream])
            assert [event.at for event in alone] == sorted(event.at for event in alone)

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=run, args=(read,)) for _ in range(2)]
    for thread in readers:
        thread.start()
    run(write)
    written.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert log.base_position() > 0


def test_a_policy_needs_a_limit() -> None:
    """Given no limit, or a bad one, then it is a configuration error."""
    for bad in ({}, {"keep_events": -1}, {"keep_seconds": "1"}, {"keep_events": 1, "archive_directory": 3}):
        with pytest.raises(ConfigurationError):
            RetentionPolicy(**bad)


def test_a_manager_compacts_beside_its_traffic(tmp_path: Path) -> None:
    """Given a manager with retention, then its log is cut while messages come and go, a deleted queue's history stays
    until then, and a restart finds everything that is not finished."""
    policy = RetentionPolicy(keep_events=20, least_events=1, check_seconds=0.01, archive_directory=tmp_path / "archive")

    async def story() -> None:
        config = QueueManagerConfiguration(retention=policy)
        async with MessageQueueManager(config, log=tmp_path / "log.db") as manager:
            await manager.send_message("gone", "t", 0)
            await manager.delete_queue("gone")
            seen = Recorder()
            await manager.create_queue("q")
            await manager.send_message("waiting", "t", "still here")
            manager.subscribe_to_queue("q", "s", "#", seen)
            for number in range(200):
                await manager.send_message("q", "t", number)
            await until(lambda: len(seen.payloads) == 200)
            await manager.compact()
            log = manager.log
            assert isinstance(log, SQLiteEventLog)
            assert log.last_position() - log.base_position() <= 60
            assert log.base_version("queue:gone") > 0
        async with MessageQueueManager(config, log=tmp_path / "log.db", clock=VirtualClock(3e9)) as manager:
            assert sorted(manager.list_queues()) == ["q", "waiting"]
            (message,) = await manager.receive_messages("waiting", "s")
            assert message.payload == "still here"
            assert manager.queue("q").get_statistics().messages_acknowledged == 200
            await manager.create_queue("gone")
        names = [file.name for file in (tmp_path / "archive").iterdir()]
        assert names
        assert not [name for name in names if name.startswith(".")]

    asyncio.run(story())


def test_a_blocking_manager_compacts(tmp_path: Path) -> None:
    """Given a blocking manager with retention, when told to compact, then the log begins later and says where."""
    policy = RetentionPolicy(keep_events=1, least_events=1, check_seconds=3600.0)
    config = QueueManagerConfiguration(retention=policy)
    with BlockingMessageQueueManager(config, log=tmp_path / "log.db") as manager:
        manager.send_message("gone", "t", 0)
        manager.delete_queue("gone")
        manager.create_queue("q")
        done = manager.compact()
        assert done is not None
        assert done.position > 0
        assert manager.compact() is None


def test_compacting_needs_a_policy() -> None:
    """Given a manager without retention, then compact says what is missing."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            with pytest.raises(ConfigurationError, match="retention"):
                await manager.compact()

    asyncio.run(story())
