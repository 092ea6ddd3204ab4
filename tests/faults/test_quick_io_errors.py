"""The disk fails while batches are written that wait for no disk: nobody is told wrongly, and the log comes back."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from unittest import mock

import apsw
import pytest

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Snapshot, SQLiteEventLog, check_log
from mpreg_mq.events.log import QuickWriter
from tests.support.answered import FOR_EVER, Answered, Batch, Made, failing, two_streams
from tests.support.effort import LEVEL
from tests.support.faulty_disk import Disk, on_disk, open_on

STRIDE = 10 if LEVEL == "quick" else 1
"""Every operation fails once; every tenth in a quick run."""


class Client(Answered):
    """Does the same things in the same order each time, and notes what was answered.

    What goes wrong with a batch it brings to an end as the protocol says: it settles what is under way, and appends
    what is not in the log. A patient one first waits for what is under way; one at the disk waits for the disk itself
    where nothing is.
    """

    def __init__(self, manner: str = "hasty", answered: Callable[[Made], None] = lambda made: None) -> None:
        super().__init__()
        self._manner = manner
        self._answered = answered
        self._under_way: list[Batch] = []

    def work(self, log: SQLiteEventLog, writer: QuickWriter) -> None:
        """Batches one by one and two at a time, among appends, a snapshot, and a checkpoint."""
        for number in range(3):
            self.write(log, writer, number)
            self.end(log, writer)
        self.write(log, writer, 3)
        self.write(log, writer, 4)
        self.attempt(lambda: log.save_snapshot(Snapshot("queue:a", log.stream_version("queue:a"), b"state")))
        self.end(log, writer)
        self.write(log, writer, 5)
        self.attempt(lambda: log.save_snapshot(Snapshot("queue:a", log.stream_version("queue:a"), b"state")))
        self.append(log, writer, 6)
        self.write(log, writer, 7)
        self.end(log, writer)
        self.write(log, writer, 8)
        writer.tidy()
        self.append(log, writer, 9)
        self.end(log, writer)

    def write(self, log: SQLiteEventLog, writer: QuickWriter, number: int) -> None:
        """One batch, with its sync under way afterwards if all went well."""
        batch = two_streams(log, number)
        try:
            if writer.write(batch[0]):
                if self._manner == "at the disk" and not self._under_way:
                    writer.sync_here()
                else:
                    writer.begin_sync()
                self._under_way.append(batch)
                return
        except (EventLogError, OSError):
            self.failures += 1
        if self._manner == "patient":
            self._wait(writer)
        self._settle(log, writer, [batch])

    def end(self, log: SQLiteEventLog, writer: QuickWriter) -> None:
        """Wait until nothing is under way."""
        if not self._wait(writer):
            self._settle(log, writer)

    def _wait(self, writer: QuickWriter) -> bool:
        """Whether all that is under way ended well."""
        while self._under_way:
            try:
                landed = writer.end_sync(wait=True)
            except OSError:
                self.failures += 1
                return False
            assert landed, "waiting is for one sync at least"
            for _ in range(landed):
                self.acknowledge(self._under_way.pop(0))
        return True

    def _settle(self, log: SQLiteEventLog, writer: QuickWriter, failed: Sequence[Batch] = ()) -> None:
        """Find out about what is under way, and about a batch whose own sync is not."""
        batches, self._under_way = [*self._under_way, *failed], []
        try:
            stored = writer.settle()
        except EventLogError:
            self.failures += 1
            for _, made in batches:
                self.unknown += made
            return
        for batch in batches[:stored]:
            self.acknowledge(batch)
        for batch in batches[stored:]:
            self.add(log, batch)

    def append(self, log: SQLiteEventLog, writer: QuickWriter, number: int) -> None:
        """A batch that waits for the disk, and so for all before it."""
        before = self._under_way
        self.add(log, two_streams(log, number))
        assert self._under_way is before

    def acknowledge(self, batch: Batch) -> None:
        """It was said to be stored, which somebody wants to know."""
        super().acknowledge(batch)
        self._answered(self.acknowledged)

    def check(self, log: SQLiteEventLog) -> None:
        """Everything acknowledged is there, once, and besides only what was answered with "unknown"."""
        found = [(record.stream, record.event) for record in log.read_all()]
        known = [made for made in found if made not in self.unknown]
        assert sorted(known, key=repr) == sorted(self.acknowledged, key=repr)
        assert len(found) == len(set(found))


def opened(disk: Disk, *, mend: bool) -> tuple[SQLiteEventLog, QuickWriter]:
    """The log and its writer, asked for again until that works; ``mend`` the disk after the first failure."""
    log: SQLiteEventLog | None = None
    for _ in range(5):
        with suppress(EventLogError):
            log = log or open_on(disk)
            if (writer := log.quick_writer()) is not None:
                return log, writer
        if mend:
            disk.fault = None
    raise AssertionError("the log cannot be opened")


def operations(place: Path, manner: str) -> int:
    """How many operations there are from opening the log to the end of the work."""
    disk = Disk(place / "counted")
    disk.directory.mkdir()
    with on_disk(disk):
        log, writer = opened(disk, mend=False)
        Client(manner).work(log, writer)
        count = disk.operations
        log.close()
    return count


class Witness:
    """After a sync has failed, keeps what a few power cuts would leave, each right after an answer."""

    def __init__(self, disk: Disk, chance: random.Random) -> None:
        self._disk = disk
        self._chance = chance
        self._seen: list[tuple[Path, Made]] = []

    def answered(self, made: Made) -> None:
        """Something was acknowledged, after what was before."""
        if self._disk.failed_syncs and len(self._seen) < 4:
            place = self._disk.directory.with_name(f"{self._disk.directory.name}-dark-{len(self._seen)}")
            self._disk.after_power_cut(self._chance, place)
            self._seen.append((place, list(made)))

    def check(self) -> None:
        """What was acknowledged when the power failed is there when it comes back."""
        for place, made in self._seen:
            with closing(SQLiteEventLog(place / "log.db", reserve_bytes=0)) as log:
                assert {(record.stream, record.event) for record in log.read_all()} >= set(made), place


@pytest.mark.parametrize("manner", ["hasty", "patient", "at the disk"])
@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
@pytest.mark.parametrize("lasting", [1, 3, FOR_EVER])
def test_a_failing_disk_makes_no_answer_wrong(place: Path, error: type[Exception], lasting: int, manner: str) -> None:
    """For all operations that fail, once, a few times or from then on until the disk is mended: whoever was told that
    a batch is stored, or is not, was told the truth, even if the power failed right after one of these answers; and
    the log takes batches again, quick ones too (S1, I5)."""
    failures = 0
    with mock.patch("mpreg_mq.events.sqlite.quick.CHECKPOINT_PAGES", 6):
        for first in range(1, operations(place, manner), STRIDE):
            disk, chance = Disk(place / f"{first}"), random.Random(first)
            disk.directory.mkdir()
            disk.forgets = True
            if chance.random() < 0.5:
                # One after the other, and only when somebody waits for it.
                disk.ending = lambda under_way: ()
            witness = Witness(disk, chance)
            client = Client(manner, witness.answered)
            with on_disk(disk):
                disk.fault = failing(first, first + lasting - 1, error)
                log, writer = opened(disk, mend=lasting == FOR_EVER)
                client.work(log, writer)
                disk.fault = None
                client.append(log, writer, 10)
                assert client.acknowledged[-1][1].at == 10.0, first
                before = client.failures
                client.write(log, writer, 11)
                client.end(log, writer)
                assert (client.acknowledged[-1][1].at, client.failures) == (11.0, before), first
                client.check(log)
                log.close()
            failures += client.failures
            with closing(SQLiteEventLog(disk.directory / "log.db", reserve_bytes=0)) as log:
                client.check(log)
            assert check_log(disk.directory / "log.db") is None
            witness.check()
    assert failures > 0
