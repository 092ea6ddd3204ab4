"""A disk without room: what makes some still works there, and a log opens, and notices as ever what it has lost."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events import Append, MessageEnqueued, Snapshot
from mpreg_mq.events.sqlite.records import Head
from mpreg_mq.events.sqlite.writer_file import HeadFile, head_path, read_head
from tests.support.sqlite_logs import events, opened, run, stored

MEGABYTE = 1 << 20


def no_room(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def crashed(path: Path, tmp_path: Path) -> Path:
    """The files of a log with five events whose process was killed, its reserve in hand."""
    copy = tmp_path / "crashed"
    copy.mkdir()
    with opened(path) as log:
        for number in range(5):
            log.append([Append("queue:a", number, events(number))])
        for suffix in ("", "-wal", "-head"):
            (copy / f"{path.name}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    return copy / path.name


# --- making room --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.sampled_from([10, 100_000, 700_000, 3 * MEGABYTE]), min_size=1, max_size=12))
def test_a_step_removes_about_a_megabyte(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    """For all sizes of truncated records: each step removes at least one and no more than come to a megabyte with the
    last, because as much as is removed is written to the write-ahead log; in the end all are gone."""
    path = tmp_path_factory.mktemp("log") / "orders.db"
    with opened(path, "OFF") as log:
        for number, size in enumerate(sizes):
            log.append([Append("queue:a", number, (MessageEnqueued(1.0, f"m{number}", "t", bytes(size)),))])
        log.truncate(len(sizes), {"queue:a": Snapshot("queue:a", len(sizes), b"state")})
        left = sizes
        while left:
            assert log.reclaim()
            ((count,),) = run(path, "SELECT count(*) FROM records")
            assert isinstance(count, int)
            removed, left = left[: len(left) - count], left[len(left) - count :]
            assert removed
            assert sum(removed[:-1]) < MEGABYTE
        while log.reclaim():
            pass
        assert run(path, "SELECT count(*) FROM records") == run(path, "SELECT count(*) FROM places") == [(0,)]


# --- opening ------------------------------------------------------------------------------------------------


def test_a_log_opens_where_its_head_file_cannot_be_made(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no room for another head file, then the one that is there is written on, and a lost end is noticed as it
    is at other times."""
    monkeypatch.setattr(HeadFile, "_make", no_room)
    with opened(crashed) as log:
        assert log.last_position() == 5
        log.append([Append("queue:a", 5, events(5))])
        copy = {suffix: Path(f"{crashed}{suffix}").read_bytes() for suffix in ("", "-wal", "-head")}
    again = crashed.with_name("again.db")
    for suffix, content in copy.items():
        Path(f"{again}{suffix}").write_bytes(content)
    recorded = read_head(again)
    assert recorded is not None
    assert (recorded.head.position, recorded.certain) == (6, True)
    Path(f"{again}-wal").unlink()
    with pytest.raises(CorruptLogError, match="its end is missing"), opened(again):
        pass
    Path(f"{again}-wal").write_bytes(copy["-wal"])
    with opened(again) as log:
        assert len(stored(log)) == 6


def test_what_a_killed_process_has_reserved_is_room(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a head file with the reserve of a process that was killed, then it is given back before room is needed."""
    sizes: list[int] = []
    make = HeadFile._make

    def noting(head: HeadFile, partial: Path, at: Head) -> None:
        sizes.append(head_path(crashed).stat().st_size)
        make(head, partial, at)

    monkeypatch.setattr(HeadFile, "_make", noting)
    assert head_path(crashed).stat().st_size > 4096
    with opened(crashed):
        assert head_path(crashed).stat().st_size > 4096
    assert sizes == [4096]


def test_the_write_ahead_log_gives_its_room_back(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a write-ahead log that takes all the room, then it is emptied, and the head file is made in that."""
    make = HeadFile._make
    tries: list[int] = []

    def made(head: HeadFile, partial: Path, at: Head) -> None:
        tries.append(Path(f"{crashed}-wal").stat().st_size)
        if tries[-1]:
            no_room()
        make(head, partial, at)

    monkeypatch.setattr(HeadFile, "_make", made)
    with opened(crashed) as log:
        assert len(stored(log)) == 5
    assert tries[0] > tries[1] == 0


def test_without_a_head_file_there_has_to_be_room_for_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a log that was closed and no room, then it is not opened, for a lost end would go unnoticed; nothing of the
    attempt is left, and with room it opens."""
    with opened(path) as log:
        log.append([Append("queue:a", 0, events(1))])
    with monkeypatch.context() as full:
        full.setattr(HeadFile, "_make", no_room)
        with pytest.raises(EventLogError, match="No space left"), opened(path):
            pass
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with opened(path) as log:
        assert len(stored(log)) == 1


@pytest.fixture
def written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes, bytes]:
    """A head file that says 5 and then, written on in its place, 3; the path of its log, and both contents."""
    log = tmp_path / "orders.db"
    HeadFile(log, Head(5, b"5" * 16), certain=False, reserve_bytes=0).abandon()
    before = head_path(log).read_bytes()
    monkeypatch.setattr(HeadFile, "_make", no_room)
    HeadFile(log, Head(3, b"3" * 16), certain=True, reserve_bytes=0, in_place=True).abandon()
    return log, before, head_path(log).read_bytes()


def test_a_head_file_that_is_written_on_is_never_in_between(written_on: tuple[Path, bytes, bytes]) -> None:
    """For all moments at which writing on ends, within a slot as well: the file says what it said or what it should."""
    log, before, after = written_on
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    newest = read_head(log)
    assert newest is not None
    assert (newest.head.position, newest.certain) == (3, True)
    first, second = sorted({at // 1024 for at in changed}, key=lambda slot: after[slot * 1024 + 8 : slot * 1024 + 16])
    order = [at for slot in (first, second) for at in changed if at // 1024 == slot]
    content = bytearray(before)
    for at in order:
        content[at] = after[at]
        head_path(log).write_bytes(content)
        found = read_head(log)
        assert found is not None
        assert found.head in (Head(5, b"5" * 16), Head(3, b"3" * 16))
        assert found.certain == (found.head.position == 3)
