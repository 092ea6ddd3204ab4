"""Writing to a log file without waiting for its disk, or waiting for it only as long as it is quick.

SQLite itself syncs the write-ahead log inside of a commit (``synchronous = FULL``), and whoever commits waits. Here the
commit only hands the same bytes to the system (``NORMAL``), and the kernel is asked to sync them and to tell when it
has: the promise is the same, with the answer given then.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from mpreg_mq.events.log import Append
from mpreg_mq.events.sqlite.adding import addition
from mpreg_mq.events.sqlite.failures import explain, explained
from mpreg_mq.events.sqlite.file import LogFile
from mpreg_mq.events.sqlite.kernel_sync import MOST_UNDER_WAY, KernelSync
from mpreg_mq.events.sqlite.opened import CHECKPOINT_PAGES
from mpreg_mq.events.sqlite.records import Head, blocks

_MOST_BYTES = 4 << 20
"""To write more would take milliseconds, even where no disk is waited for."""

QUICK_SECONDS = 0.001
"""A sync that ends so soon is waited for before the next one begins: what comes meanwhile shares a commit, and two at
once would take longer each."""

PAUSE = 20
"""After a sync that took longer than may be waited for on a loop, the kernel waits for so many times as long: of a disk
that stays slow the loop has to wait for no more than a twentieth of the time."""


@attrs.define(eq=False)
class SQLiteQuickWriter:
    """A :class:`~mpreg_mq.events.log.QuickWriter` of an SQLite file."""

    _path: Path
    _lock: threading.Lock
    _file: LogFile
    _sync: KernelSync
    _wait_seconds: float = 0.0
    """How long a sync may take that is waited for here."""
    _now: Callable[[], float] = time.monotonic
    _pause_ends: float = float("-inf")
    _begun: float = 0.0
    """When the sync was begun that is, or was, the oldest under way."""
    _quick: bool = False
    """Whether the latest sync that ended was a quick one."""
    _doubtful: deque[tuple[int, Head]] = attrs.field(factory=deque)
    """Of each batch that may not be on disk, oldest first: the number of its request, which may not have been made yet,
    and where the log ends after it."""

    @property
    def descriptor(self) -> int:
        """Becomes readable when a sync has ended."""
        return self._sync.descriptor

    @property
    def most_under_way(self) -> int:
        """See :meth:`mpreg_mq.events.log.QuickWriter.most_under_way`: more than one on a disk that takes its time."""
        return 1 if self._quick else MOST_UNDER_WAY

    def write(self, batch: Sequence[Append]) -> bool:
        """See :meth:`mpreg_mq.events.log.QuickWriter.write`."""
        found = blocks(batch)
        if not self._lock.acquire(blocking=False):
            return False
        try:
            file = self._file
            if not file.takes_quick_commits or sum([len(block.body) for block in found]) > _MOST_BYTES:
                return False
            added = addition(file, batch, found)
            self._doubtful.append((self._sync.made + 1, added.head))
            if added.rows and not file.commit_quickly(added):
                self._doubtful.pop()
                return False
            return True
        # As explained() does, which takes as long as all that was before.
        except sqlite3.Error as error:
            raise explain(error, "append", self._path) from error
        finally:
            self._lock.release()

    def begin_sync(self) -> None:
        """See :meth:`mpreg_mq.events.log.QuickWriter.begin_sync`."""
        if not self._sync.under_way:
            self._begun = self._now()
        try:
            self._sync.begin()
        except OSError as error:
            self._file.fail(error)
            raise

    @property
    def waits(self) -> bool:
        """See :meth:`mpreg_mq.events.log.QuickWriter.waits`."""
        return self._wait_seconds > 0.0 and self._now() >= self._pause_ends

    def sync_here(self) -> None:
        """See :meth:`mpreg_mq.events.log.QuickWriter.sync_here`.

        Where it took too long, or the interpreter's lock did, which other threads may have had meanwhile, the next
        ones are the kernel's to wait for.
        """
        self._begun = begun = self._now()
        try:
            self._sync.here()
        except OSError as error:
            self._file.fail(error)
            raise
        ended = self._now()
        if ended - begun > self._wait_seconds:
            self._pause_ends = ended + PAUSE * (ended - begun)

    def end_sync(self, *, wait: bool) -> int:
        """See :meth:`mpreg_mq.events.log.QuickWriter.end_sync`."""
        try:
            ended = self._sync.ended(wait=wait)
        except OSError as error:
            self._file.fail(error)
            raise
        doubtful, landed = self._doubtful, 0
        while doubtful and doubtful[0][0] <= ended:
            head = doubtful.popleft()[1]
            landed += 1
        if landed:
            self._file.synced(head)
            now = self._now()
            self._quick = now - self._begun < QUICK_SECONDS
            # Of one that is still under way it is not known better.
            self._begun = now
        return landed

    def heard(self) -> None:
        """Make the descriptor unreadable until another sync has ended."""
        self._sync.heard()

    def settle(self) -> int:
        """See :meth:`mpreg_mq.events.log.QuickWriter.settle`."""
        while self._sync.under_way:
            try:
                self._sync.ended(wait=True)
            except OSError as error:
                self._file.fail(error)
        heads = [head for _, head in self._doubtful]
        self._doubtful.clear()
        if not heads:
            return 0
        with self._lock, explained("append", self._path):
            self._file.check_open()
            return self._file.settle(heads)

    @property
    def untidy(self) -> bool:
        """Whether it is time to :meth:`tidy`."""
        return self._file.quick_pages >= CHECKPOINT_PAGES or self._file.wants_filling

    def tidy(self) -> None:
        """See :meth:`mpreg_mq.events.log.QuickWriter.tidy`."""
        file = self._file
        if file.wants_filling:
            with self._lock:
                if not file.closed and not file.forked:
                    file.fill_ahead()
            return
        if not file.closed and file.checkpoint():
            with self._lock:
                if not file.closed:
                    file.restart()

    def close(self) -> None:
        """Give the descriptor back; the log stays open."""
        with self._lock:
            self._file.close_kernel_sync(self._sync)
