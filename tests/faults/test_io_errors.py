"""The disk fails at any one operation, or from one on: no append is answered wrongly, and the log comes back."""

from __future__ import annotations

import errno
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

from mpreg_mq.errors import EventLogError, LogFullError
from mpreg_mq.events import Append, MessageEnqueued, Snapshot, SQLiteEventLog, check_log
from mpreg_mq.events.sqlite.writer_file import HeadFile
from tests.support.answered import FOR_EVER, Answered, event, failing, two_streams
from tests.support.effort import LEVEL
from tests.support.faulty_disk import Disk, on_disk, open_on

STRIDE = 10 if LEVEL == "quick" else 1
"""Every operation fails once; every tenth in a quick run."""


class Client(Answered):
    """Does the same things in the same order each time, and notes what was answered."""

    def work(self, log: SQLiteEventLog) -> None:
        """Appends of one and several streams, small and large; a snapshot; a truncation."""
        for number in range(4):
            self.append(log, number)
        self.attempt(lambda: log.save_snapshot(Snapshot("queue:a", log.stream_version("queue:a"), b"state")))
        for number in range(4, 7):
            self.append(log, number)
        self.attempt(log.sync)

    def append(self, log: SQLiteEventLog, number: int) -> None:
        """One batch; once it failed it is not tried again."""
        self.add(log, two_streams(log, number))

    def check(self, log: SQLiteEventLog) -> None:
        """Everything acknowledged is there, and besides only what was answered with "unknown"."""
        found = [(record.stream, record.event) for record in log.read_all()]
        assert [made for made in found if made not in self.unknown] == self.acknowledged


def opened(disk: Disk, *, mend: bool) -> SQLiteEventLog:
    """The log, opened again until that works; ``mend`` the disk after the first failure."""
    for _ in range(5):
        with suppress(EventLogError):
            return open_on(disk)
        if mend:
            disk.fault = None
    return open_on(disk)


def operations(place: Path) -> int:
    """How many operations there are from opening the log to closing it."""
    disk = Disk(place / "counted")
    disk.directory.mkdir()
    with on_disk(disk), closing(open_on(disk)) as log:
        Client().work(log)
    return disk.operations


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
@pytest.mark.parametrize("lasting", [1, 3, FOR_EVER])
def test_a_failing_disk_makes_no_answer_wrong(place: Path, error: type[Exception], lasting: int) -> None:
    """For all operations that fail, once, a few times or from then on until the disk is mended: whoever was told
    that an append is stored, or is not, was told the truth; and the log takes events again (S1, I5)."""
    failures = 0
    for first in range(1, operations(place), STRIDE):
        disk = Disk(place / f"{first}")
        disk.directory.mkdir()
        client = Client()
        with on_disk(disk):
            disk.fault = failing(first, first + lasting - 1, error)
            log = opened(disk, mend=lasting == FOR_EVER)
            client.work(log)
            disk.fault = None
            client.append(log, 7)
            client.append(log, 8)
            assert [made[1].at for made in client.acknowledged[-4:]] == [7.0, 7.0, 8.0, 8.0], first
            client.check(log)
            log.close()
        failures += client.failures
        with closing(SQLiteEventLog(disk.directory / "log.db", reserve_bytes=0)) as log:
            client.check(log)
        assert check_log(disk.directory / "log.db") is None
    assert failures > 0


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
@pytest.mark.parametrize("lasting", [1, FOR_EVER])
def test_a_failing_disk_during_recovery_changes_nothing(place: Path, lasting: int, error: type[Exception]) -> None:
    """For all operations that fail while a crashed log is opened: opening fails or works, and the next one works,
    with everything that was acknowledged (I5)."""
    crashed = Disk(place / "crashed")
    crashed.directory.mkdir()
    client = Client()
    with on_disk(crashed), closing(open_on(crashed)) as log:
        client.work(log)
        files = {file.name: file.read_bytes() for file in crashed.directory.iterdir() if "-lock" not in file.name}
    first = 0
    opened_without_failing = False
    while not opened_without_failing:
        first += STRIDE
        disk = Disk(place / f"{first}")
        disk.directory.mkdir()
        for name, content in files.items():
            if not name.endswith("-shm"):
                (disk.directory / name).write_bytes(content)
        with on_disk(disk):
            disk.fault = failing(first, first + lasting - 1, error)
            with suppress(EventLogError):
                with closing(open_on(disk)) as log:
                    client.check(log)
                opened_without_failing = disk.operations < first
        with closing(SQLiteEventLog(disk.directory / "log.db", reserve_bytes=0)) as log:
            client.check(log)


def test_a_commit_that_was_done_is_answered_so(place: Path) -> None:
    """Given a disk that reports an error after it has written everything, then the append succeeds: the log opens its
    file again and finds it there."""
    disk = Disk(place / "disk")
    disk.directory.mkdir()
    with on_disk(disk), closing(open_on(disk)) as log:
        log.append([Append("queue:a", 0, (event(1),))])
        failed: list[int] = []

        def fail_the_next_sync(number: int, name: str) -> Exception | None:
            if name == "sync" and not failed:
                failed.append(number)
                return apsw.IOError("written, but the answer was lost")
            return None

        disk.fault = fail_the_next_sync
        with suppress(EventLogError):
            log.append([Append("queue:a", 1, (event(2),))])
        assert failed
        found = [record.event for record in log.read_all()]
        assert found in ([event(1)], [event(1), event(2)])
        log.append([Append("queue:a", len(found), (event(3),))])


def test_a_full_disk_keeps_room_to_finish(place: Path) -> None:
    """Given a disk that is full, then new messages are refused with the reason, what finishes messages is not, and
    reading goes on; when there is room again, new messages are accepted."""
    disk = Disk(place / "disk")
    disk.directory.mkdir()
    message = MessageEnqueued(at=1.0, message_id="m", topic="t", payload=b"p")
    with on_disk(disk), closing(open_on(disk, reserve_bytes=1 << 16)) as log:
        log.append([Append("queue:a", 0, (message,))])
        assert log.has_room()
        head = log._file._head_file
        assert head is not None
        disk.fault = lambda number, name: apsw.FullError("full") if name == "write" and head.reserved else None
        with pytest.raises(LogFullError, match="no room on its disk"):
            log.append([Append("queue:a", 1, (message,))])
        full = True
        head.reserve = lambda: not full  # type: ignore[method-assign]
        assert not log.has_room()
        with pytest.raises(LogFullError, match="only to finish"):
            log.append([Append("queue:a", 1, (message,))])
        log.append([Append("queue:a", 1, (event(2),))])
        assert [record.version for record in log.read_all()] == [1, 2]
        full = False
        assert log.has_room()
        log.append([Append("queue:a", 2, (message,))])


def test_retention_makes_room_with_the_reserve(place: Path) -> None:
    """Given a disk that is full while the reserve is held, then a truncation uses it, and so does what frees the space;
    without one they are refused, and nothing has changed."""
    disk = Disk(place / "disk")
    disk.directory.mkdir()
    with on_disk(disk), closing(open_on(disk, reserve_bytes=1 << 16)) as log:
        for number in range(6):
            log.append([Append("queue:a", number, (event(number),))])
        head = log._file._head_file
        assert head is not None
        disk.fault = lambda number, name: apsw.FullError("full") if name == "write" and head.reserved else None
        log.truncate(3, {"queue:a": Snapshot("queue:a", 3, b"state")})
        assert not head.reserved
        assert log.has_room()
        assert head.reserved
        while log.reclaim():
            pass
        assert not head.reserved
        assert [record.version for record in log.read_all()] == [4, 5, 6]
        disk.fault = lambda number, name: apsw.FullError("full") if name == "write" else None
        with pytest.raises(LogFullError):
            log.truncate(6, {"queue:a": Snapshot("queue:a", 6, b"state")})
        disk.fault = None
        assert [record.version for record in log.read_all()] == [4, 5, 6]
        log.append([Append("queue:a", 6, (event(7),))])
    assert check_log(disk.directory / "log.db") is None


def test_a_crashed_log_opens_on_a_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a log whose process was killed and a disk that takes nothing more, then it opens and is read; what is added
    is refused until there is room."""
    disk = Disk(place / "disk")
    disk.directory.mkdir()
    client = Client()
    with on_disk(disk), closing(open_on(disk)) as log:
        client.work(log)
        files = {file.name: file.read_bytes() for file in disk.directory.iterdir() if "-lock" not in file.name}
    crashed = Disk(place / "crashed")
    crashed.directory.mkdir()
    for name, content in files.items():
        (crashed.directory / name).write_bytes(content)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with on_disk(crashed), monkeypatch.context() as full:
        full.setattr(HeadFile, "_make", no_room)
        crashed.fault = lambda number, name: apsw.FullError("full") if name in ("write", "truncate") else None
        with closing(open_on(crashed)) as log:
            client.check(log)
            with pytest.raises(EventLogError, match="full"):
                log.append(two_streams(log, 7)[0])
            crashed.fault = None
            client.append(log, 8)
            client.check(log)
    assert check_log(crashed.directory / "log.db") is None
