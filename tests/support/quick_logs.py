"""A log that can be written without waiting, whose disk does what a test says."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence

from mpreg_mq.events import Append, MemoryEventLog
from tests.support.journals import PATIENCE


class QuickLog(MemoryEventLog):
    """What is written is in memory at once, and on disk when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = Writer(self)
        self.slow: list[list[Append]] = []
        """What was appended in the way that waits."""
        self.slow_threads: set[int] = set()
        self.appended = threading.Event()

    def append(self, batch: Sequence[Append]) -> None:
        self.slow.append(list(batch))
        self.slow_threads.add(threading.get_ident())
        super().append(batch)
        self.appended.set()

    def quick_writer(self) -> Writer:
        return self.writer

    def take_back(self, batches: Sequence[Sequence[Append]]) -> None:
        """As if the newest batches had never been written."""
        gone = sum(len(one.events) for batch in batches for one in batch)
        kept = MemoryEventLog()
        for record in list(self.read_all())[: self.last_position() - gone]:
            kept.append((Append(record.stream, record.version - 1, (record.event,)),))
        self.__dict__.update({**self.__dict__, **kept.__dict__})


class Writer:
    """The log's quick writer."""

    most_under_way = 2

    def __init__(self, log: QuickLog) -> None:
        self._log = log
        self.descriptor, self._signal = os.pipe2(os.O_NONBLOCK)
        self.batches: list[list[Append]] = []
        """Everything written quickly."""
        self.threads: set[int] = set()
        self.doubtful: list[list[Append]] = []
        """What is not on disk yet, oldest first."""
        self.on_disk_soon = 0
        """How many of these the disk has, although nobody has asked yet."""
        self.at_once = False
        """Whether a sync ends as soon as it is begun."""
        self.waits = False
        """Whether the disk is quick enough to be waited for."""
        self.waited_for: list[int] = []
        """How many batches were written when it was."""
        self.refuse = False
        self.write_error: BaseException | None = None
        self.begin_error: BaseException | None = None
        self.sync_error: OSError | None = None
        self.survive = 0
        """How many of the doubtful batches are found in the log after an error."""
        self.settle_error: BaseException | None = None
        self.lost = False
        """Whether nothing is under way although something was written."""
        self.waited = 0
        self.untidy = False
        self.tidied: list[int] = []
        self.closed = False
        self._ended = threading.Condition()

    def write(self, batch: Sequence[Append]) -> bool:
        assert len(self.doubtful) < self.most_under_way, "no more under way than it can be asked for"
        self.threads.add(threading.get_ident())
        if self.refuse:
            return False
        MemoryEventLog.append(self._log, batch)
        self.batches.append(list(batch))
        self.doubtful.append(list(batch))
        if self.write_error is not None:
            raise self.write_error
        return True

    def begin_sync(self) -> None:
        if self.begin_error is not None:
            raise self.begin_error
        if self.at_once:
            self.end(1)

    def sync_here(self) -> None:
        assert len(self.doubtful) == 1, "nothing is under way but what was just written"
        if self.begin_error is not None:
            raise self.begin_error
        self.waited_for.append(len(self.batches))
        self.on_disk_soon += 1

    def end(self, count: int = 1) -> None:
        """The disk has so many more batches; whoever waits hears of it."""
        with self._ended:
            self.on_disk_soon += count
            os.write(self._signal, b"!")
            self._ended.notify_all()

    def fail(self, error: OSError) -> None:
        """The next sync that ends fails."""
        with self._ended:
            self.sync_error = error
            os.write(self._signal, b"!")
            self._ended.notify_all()

    def end_sync(self, *, wait: bool) -> int:
        with self._ended:
            if wait and not self.lost:
                self.waited += 1
                assert self._ended.wait_for(lambda: self.on_disk_soon or self.sync_error, PATIENCE)
            if self.sync_error is not None:
                error, self.sync_error = self.sync_error, None
                raise error
            landed, self.on_disk_soon = self.on_disk_soon, 0
        del self.doubtful[:landed]
        return landed

    def heard(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)

    def settle(self) -> int:
        doubtful, self.doubtful = self.doubtful, []
        self.on_disk_soon = 0
        if self.settle_error is not None:
            raise self.settle_error
        survive = min(self.survive, len(doubtful))
        gone = doubtful[survive:]
        self._log.take_back(gone)
        return survive

    def tidy(self) -> None:
        self.untidy = False
        self.tidied.append(threading.get_ident())

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        os.close(self.descriptor)
        os.close(self._signal)
