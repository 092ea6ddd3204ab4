"""The power fails in the middle of anything: what was acknowledged is there, or it is known to be lost."""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, Event, MessageCompleted, RecordedEvent, SQLiteEventLog
from mpreg_mq.events.sqlite.writer_file import read_head
from tests.support.effort import repetitions
from tests.support.faulty_disk import Disk, on_disk, open_on
from tests.support.power_cuts import Made, RandomWork, truncate

SEEDS = repetitions(test=1000, ci=2000, soak=50_000)


class Client:
    """Appends at random, and keeps for itself what was acknowledged and what was only tried."""

    def __init__(self, seed: int) -> None:
        self.random = RandomWork(seed)
        self.chance = self.random.chance
        self.acknowledged: Made = []
        self.tried: Made = []

    def work(self, log: SQLiteEventLog, steps: int) -> None:
        """A few random steps; an error ends them."""
        for _ in range(steps):
            kind = self.chance.random()
            if kind < 0.85:
                self._append(log)
            elif kind < 0.93:
                self.random.snapshot(log)
            else:
                truncate(log, self.acknowledged)

    def _append(self, log: SQLiteEventLog) -> None:
        batch, added = self.random.batch(log)
        self.tried = [*self.acknowledged, *added]
        log.append(batch)
        self.acknowledged = self.tried


def cut_power(seed: int, synchronous: str, directory: Path) -> Client:
    """Work on a log, and cut the power at a random operation; what the disk holds then is in ``after``."""
    client = Client(seed)
    disk = Disk(directory / "before")
    disk.directory.mkdir()
    with on_disk(disk):
        log = open_on(disk, synchronous=synchronous)
        log._file._writer.execute(f"PRAGMA wal_autocheckpoint = {client.chance.choice([2, 8, 1000])}")  # type: ignore[union-attr]
        client.work(log, client.chance.randrange(3))
        cut_at = disk.operations + client.chance.randrange(1, 150)
        disk.fault = lambda number, name: apsw.IOError("no power") if number >= cut_at else None
        with suppress(EventLogError):
            client.work(log, 30)
        disk.after_power_cut(client.chance, directory / "after")
        with suppress(EventLogError):
            log.close()
    return client


def content(log: SQLiteEventLog) -> list[tuple[str, Event]]:
    """What a log holds above its base."""
    records: list[RecordedEvent] = list(log.read_all())
    assert [record.position for record in records] == list(range(log.base_position() + 1, log.last_position() + 1))
    return [(record.stream, record.event) for record in records]


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("part", range(2))
def test_nothing_acknowledged_is_lost(place: Path, part: int) -> None:
    """For all moments of a power cut, with synchronous FULL: what was acknowledged is there, and nothing else but
    what was under way, whole or not at all (S1, I5)."""
    for seed in range(part, SEEDS, 2):
        with TemporaryDirectory(dir=place) as directory:
            client = cut_power(seed, "FULL", Path(directory))
            with closing(SQLiteEventLog(f"{directory}/after/log.db", reserve_bytes=0)) as log:
                base = log.base_position()
                found = content(log)
                assert found in (client.acknowledged[base:], client.tried[base:]), seed
                log.append([Append("queue:after", 0, (MessageCompleted(at=1.0, message_id="m"),))])


def test_normal_loses_and_says_so(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For all moments of a power cut, with synchronous NORMAL: a beginning of what was acknowledged is there. Some
    of these runs lose something, which shows that the disk of these tests does; it is warned of where the head, which
    is as old as the disk left it, tells of more than is there (I5)."""
    losses = warnings = 0
    # One in twelve is warned of, so that with fewer there might be none.
    for seed in range(max(SEEDS // 10, 200)):
        with TemporaryDirectory(dir=place) as directory:
            client = cut_power(seed, "NORMAL", Path(directory))
            path = Path(directory) / "after" / "log.db"
            recorded = read_head(path)
            caplog.clear()
            with caplog.at_level(logging.WARNING), closing(SQLiteEventLog(path, synchronous="NORMAL")) as log:
                base = log.base_position()
                found = content(log)
                assert found == client.tried[base : base + len(found)], seed
                losses += len(client.acknowledged) - base - len(found) > 0
                missing = recorded.head.position - log.last_position() if recorded is not None else 0
        warned = f"the last {missing} events are lost" in caplog.text
        assert warned == (missing > 0), seed
        warnings += warned
    assert losses >= warnings > 0
