"""Where the records of a stream are is noted for many of them together, and every reader finds all of them."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events import Append, Event, SQLiteEventLog, check_log, repair_log
from mpreg_mq.events.sqlite import file, places
from mpreg_mq.events.sqlite.transactions import Place
from tests.support.sqlite_logs import events, opened, run, stored

TOGETHER = 8
STREAMS = ("queue:a", "queue:b", "queue:c")


@pytest.fixture(autouse=True)
def _few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PLACED_TOGETHER", TOGETHER)


def append(log: SQLiteEventLog, *streams: str) -> None:
    """An event to each of these streams, in one commit."""
    versions: dict[str, int] = defaultdict(int, {stream: log.stream_version(stream) for stream in streams})
    batch = []
    for stream in streams:
        batch.append(Append(stream, versions[stream], events(versions[stream] + 1)))
        versions[stream] += 1
    log.append(batch)


def noted(path: Path) -> int:
    """How many records have their places noted."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM places").fetchone()[0])


def by_stream(log: SQLiteEventLog) -> dict[str, list[Event]]:
    """What reading each stream gives, which has to be what reading the whole log gives."""
    found = {stream: [record.event for record in log.read_stream(stream)] for stream in log.streams()}
    expected: dict[str, list[Event]] = defaultdict(list)
    for record in log.read_all():
        expected[record.stream].append(record.event)
    assert found == expected
    return found


@contextmanager
def as_left_by_a_crash(path: Path, place: Path) -> Iterator[Path]:
    """The files as another process finds them, whose own process did not close the log."""
    place.mkdir()
    for left in path.parent.glob(f"{path.name}*"):
        shutil.copy(left, place / left.name)
    yield place / path.name
    shutil.rmtree(place)


def test_places_are_noted_together(path: Path) -> None:
    """Given fewer commits than are noted together, then none is; given as many, then all are, with the last of them."""
    with opened(path) as log:
        for _ in range(TOGETHER - 1):
            append(log, "queue:a")
        assert noted(path) == 0
        append(log, "queue:a")
        assert noted(path) == TOGETHER
        append(log, "queue:a")
        assert noted(path) == TOGETHER
        assert len(by_stream(log)["queue:a"]) == TOGETHER + 1


def test_all_are_noted_when_the_log_is_closed(path: Path) -> None:
    """Given commits whose places are not noted, when the log is closed, then they are."""
    with opened(path) as log:
        append(log, "queue:a", "queue:b")
    assert noted(path) == 2


def test_after_a_crash_they_are_noted_by_who_opens_the_log(path: Path, tmp_path: Path) -> None:
    """Given a process that ended without closing its log, then who reads it finds every stream, and who opens it for
    writing notes the places."""
    with opened(path) as log:
        append(log, "queue:a", "queue:b", "queue:a")
        with as_left_by_a_crash(path, tmp_path / "left") as left:
            with closing(SQLiteEventLog(left, read_only=True)) as reader:
                assert by_stream(reader) == by_stream(log)
            assert noted(left) == 0
            with opened(left) as again:
                assert noted(left) == 3
                assert by_stream(again) == by_stream(log)


@given(
    commits=st.lists(st.lists(st.sampled_from(STREAMS), min_size=1, max_size=6), max_size=30),
    reopened=st.sets(st.integers(0, 29)),
    together=st.integers(1, 12),
)
def test_every_stream_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[str]], reopened: set[int], together: int
) -> None:
    """For all commits to several streams, with the log closed and opened in between or not, and with places noted
    seldom or often: after each commit whoever writes and whoever reads along finds every stream from any version on."""
    path = tmp_path_factory.mktemp("places") / "orders.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "PLACED_TOGETHER", together)
        log = SQLiteEventLog(path, synchronous="OFF", reserve_bytes=0)
        try:
            with closing(SQLiteEventLog(path, read_only=True)) as along:
                for number, commit in enumerate(commits):
                    append(log, *commit)
                    if number in reopened:
                        log.close()
                        log = SQLiteEventLog(path, synchronous="OFF", reserve_bytes=0)
                    found = by_stream(log)
                    assert by_stream(along) == found
                    for stream, whole in found.items():
                        after = random.Random(number).randint(0, len(whole))
                        assert [record.event for record in log.read_stream(stream, after)] == whole[after:]
        finally:
            log.close()
    assert check_log(path) is None


def test_a_reader_goes_on_while_places_are_noted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a reader that is about to look among the records without places, when these are noted at that moment, then
    it misses none."""
    with opened(path) as log:
        for _ in range(TOGETHER - 1):
            append(log, "queue:a")
        chunk = log._reader.chunk
        looked: list[str] = []

        def meanwhile(statement: str, *parameters: object) -> list[object]:
            found = chunk(statement, *parameters)
            if not looked:
                looked.append(statement)
                append(log, "queue:b")
                assert noted(path) == TOGETHER
            return found

        monkeypatch.setattr(log._reader, "chunk", meanwhile)
        assert len(list(log.read_stream("queue:a"))) == TOGETHER - 1
        assert looked


def test_a_failed_commit_notes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a commit that fails after the places of those before it were noted with it, then it has added nothing, and
    all that are there have their places in the end."""
    with opened(path) as log:
        for _ in range(TOGETHER - 1):
            append(log, "queue:a")
        refusals = ["database or disk is full"]

        def note(connection: sqlite3.Connection, found: Iterable[Place], position: int) -> None:
            places.note(connection, found, position)
            if refusals:
                raise sqlite3.OperationalError(refusals.pop())

        monkeypatch.setattr(file, "note", note)
        with pytest.raises(EventLogError, match="full"):
            append(log, "queue:a")
        append(log, "queue:b")
        found = by_stream(log)
        assert {stream: len(found[stream]) for stream in found} == {"queue:a": TOGETHER - 1, "queue:b": 1}
    assert noted(path) == TOGETHER
    assert check_log(path) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DELETE FROM places WHERE version = 2", "1 records are not where their stream is looked up"),
        ("UPDATE places SET position = position + 1 WHERE version = 2", "1 records are not where"),
        ("UPDATE places SET version = 9 WHERE version = 2", "1 records are not where"),
        ("INSERT INTO places VALUES (7, 1, 1)", "1 places have no record"),
    ],
)
def test_places_that_are_not_those_of_the_records_are_noticed(path: Path, change: str, said: str) -> None:
    """Given a table of places that was changed, then checking the log says so and repairing it keeps every event;
    reading a stream gives what is in it or raises."""
    with opened(path) as log:
        for _ in range(3):
            append(log, "queue:a", "queue:b")
        content = stored(log)
        whole = by_stream(log)
    run(path, f"{change} AND stream_id = 1" if "WHERE" in change else change)
    damage = check_log(path)
    assert damage is not None
    assert said in damage.reason
    with closing(SQLiteEventLog(path, read_only=True)) as log:
        for stream in STREAMS[:2]:
            try:
                assert [record.event for record in log.read_stream(stream)] == whole[stream]
            except CorruptLogError:
                assert stream == "queue:a"
    repair = repair_log(path)
    assert repair is not None
    assert repair.kept_events == len(content)
    assert check_log(path) is None
    with opened(path) as log:
        assert stored(log) == content
        assert by_stream(log) == whole


@pytest.mark.parametrize("placed_to", ["0", "2", "'x'", "99"])
def test_how_far_places_are_noted_is_not_just_believed(path: Path, placed_to: str) -> None:
    """Given a log that says another position up to which places are noted, then every stream is read as it was, or the
    log is refused; repairing it keeps every event."""
    with opened(path) as log:
        for _ in range(3):
            append(log, "queue:a", "queue:b")
        content = stored(log)
    run(path, f"UPDATE meta SET value = {placed_to} WHERE key = 'placed_to'")
    try:
        with opened(path) as log:
            assert stored(log) == content
            by_stream(log)
    except CorruptLogError:
        assert placed_to in ("'x'", "99")
        repair = repair_log(path)
        assert repair is not None
        assert repair.kept_events == len(content)
    with opened(path) as log:
        by_stream(log)
