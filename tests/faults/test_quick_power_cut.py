"""The power fails while batches are written that wait for no disk: what was counted as synced is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import apsw
import pytest

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events import Append, MessageCompleted, SQLiteEventLog
from mpreg_mq.events.log import QuickWriter
from tests.support.effort import repetitions
from tests.support.faulty_disk import Disk, FaultySync, on_disk, open_on
from tests.support.power_cuts import Made, RandomWork, truncate

SEEDS = repetitions(test=1500, ci=3000, soak=50_000)


class Client:
    """Writes at random, with up to two batches under way, and keeps for itself what was acknowledged."""

    def __init__(self, seed: int) -> None:
        self.random = RandomWork(seed)
        self.chance = self.random.chance
        self.tried: Made = []
        self.ends = {0}
        """After how many events a batch ended."""
        self.acknowledged = 0
        """How many of the first events were said to be on disk."""
        self._under_way: deque[int] = deque()
        """Where each batch ends whose sync was begun."""

    def work(self, log: SQLiteEventLog, writer: QuickWriter, steps: int) -> None:
        """A few random steps; an error ends them."""
        for _ in range(steps):
            kind = self.chance.random()
            if kind < 0.45:
                self._write(log, writer)
            elif kind < 0.7:
                self._end_sync(writer, wait=self.chance.random() < 0.3)
            elif kind < 0.8:
                self._append(log)
            elif kind < 0.88:
                writer.tidy()
            elif kind < 0.94:
                self.random.snapshot(log)
            else:
                truncate(log, self.tried)

    def _batch(self, log: SQLiteEventLog) -> list[Append]:
        """Something to add, which counts as tried from now on."""
        batch, added = self.random.batch(log)
        self.tried += added
        self.ends.add(len(self.tried))
        return batch

    def _write(self, log: SQLiteEventLog, writer: QuickWriter) -> None:
        if len(self._under_way) >= writer.most_under_way:
            self._end_sync(writer, wait=True)
        batch = self._batch(log)
        if not writer.write(batch):
            log.append(batch)
            self.acknowledged = len(self.tried)
            return
        if not self._under_way and self.chance.random() < 0.3:
            writer.sync_here()
        else:
            writer.begin_sync()
        self._under_way.append(len(self.tried))
        if writer.untidy and self.chance.random() < 0.7:
            writer.tidy()

    def _end_sync(self, writer: QuickWriter, wait: bool) -> None:
        if self._under_way:
            for _ in range(writer.end_sync(wait=wait)):
                self.acknowledged = max(self.acknowledged, self._under_way.popleft())

    def _append(self, log: SQLiteEventLog) -> None:
        log.append(self._batch(log))
        self.acknowledged = len(self.tried)

    def check(self, log: SQLiteEventLog) -> str | None:
        """What is wrong with what a log holds above its base; None where it is what this client was promised."""
        base = log.base_position()
        records = list(log.read_all())
        length = base + len(records)
        if [record.position for record in records] != list(range(base + 1, length + 1)):
            return "positions have gaps"
        if [(record.stream, record.event) for record in records] != self.tried[base:length]:
            return "the events are not those that were written"
        if length < self.acknowledged:
            return f"{self.acknowledged} events were acknowledged, {length} are there"
        return None if length in self.ends else f"a batch was cut at {length}"


@contextmanager
def tidy_after(pages: int) -> Iterator[None]:
    """A write-ahead log is to be emptied when it has so many pages, and begun anew at four times as many; two syncs may
    be under way, however quick the disk is."""
    with (
        mock.patch("mpreg_mq.events.sqlite.quick.CHECKPOINT_PAGES", pages),
        mock.patch("mpreg_mq.events.sqlite.quick.QUICK_SECONDS", 0.0),
        mock.patch("mpreg_mq.events.sqlite.opened.CHECKPOINT_PAGES", pages),
        mock.patch("mpreg_mq.events.sqlite.file._MOST_PAGES", 4 * pages),
    ):
        yield


@contextmanager
def after_power_cut(seed: int, place: Path) -> Iterator[tuple[Client, Path]]:
    """Work on a log and cut the power at a random operation; where what the disk holds then is."""
    with TemporaryDirectory(dir=place) as directory:
        yield cut_power(seed, Path(directory)), Path(directory) / "after" / "log.db"


def cut_power(seed: int, directory: Path) -> Client:
    """Work on a log and cut the power at a random operation; what the disk holds then is in ``after``."""
    client = Client(seed)
    chance = client.chance
    disk = Disk(directory / "before")
    disk.directory.mkdir()
    # Most syncs end when they are asked for, some later, a few before older ones.
    disk.ending = lambda under_way: [number for number in under_way if chance.random() < 0.6]
    with on_disk(disk), tidy_after(chance.choice([2, 8, 1000])):
        log = open_on(disk)
        writer = log.quick_writer()
        assert writer is not None
        client.work(log, writer, chance.randrange(3))
        cut_at = disk.operations + chance.randrange(1, 200)
        disk.fault = lambda number, name: apsw.IOError("no power") if number >= cut_at else None
        with suppress(EventLogError, OSError):
            client.work(log, writer, 40)
        disk.after_power_cut(chance, directory / "after")
        with suppress(EventLogError):
            log.close()
    return client


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("part", range(2))
def test_nothing_that_ended_on_disk_is_lost(place: Path, part: int) -> None:
    """For all moments of a power cut: every batch whose sync was said to have ended is there, and so is everything
    up to an append that returned; beyond that only whole batches, in order; and the log takes events again (S1, I5)."""
    for seed in range(part, SEEDS, 2):
        with after_power_cut(seed, place) as (client, path), closing(SQLiteEventLog(path, reserve_bytes=0)) as log:
            assert client.check(log) is None, seed
            log.append([Append("queue:after", 0, (MessageCompleted(at=1.0, message_id="m"),))])


def test_an_answer_without_a_sync_would_be_noticed(place: Path) -> None:
    """Given syncs that end without anything being put on the disk, then some of these runs lose what was acknowledged:
    the disk of these tests tells."""
    losses = 0
    with (
        mock.patch.object(FaultySync, "_end", lambda self, file, changes: self._files.append(file)),
        mock.patch.object(FaultySync, "here", FaultySync.begin),
    ):
        for seed in range(max(20, SEEDS // 20)):
            with after_power_cut(seed, place) as (client, path):
                try:
                    with closing(SQLiteEventLog(path, reserve_bytes=0)) as log:
                        losses += client.check(log) is not None
                except CorruptLogError:
                    losses += 1
    assert losses > 0
