"""Writing to a simulated disk without waiting for it: what is written is readable at once, and on the disk later."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

import attrs

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.codec import EncodedEvent
from mpreg_mq.events.log import Append

if TYPE_CHECKING:
    from mpreg_mq.testing.disk import SimulatedLog

_descriptors = count(1_000_000)
"""Numbers that no file has; a simulated loop watches nothing else."""

Encoded = list[tuple[str, EncodedEvent]]


@attrs.define(eq=False)
class SimulatedQuickWriter:
    """A :class:`~mpreg_mq.events.log.QuickWriter` of a simulated log.

    When a write or a sync fails, and when the process crashes, the disk decides how many of the batches that were not
    told of yet it has: the oldest ones.
    """

    _log: SimulatedLog
    _is_waited_for: bool
    descriptor: int = attrs.field(factory=lambda: next(_descriptors), init=False)
    most_under_way: int = attrs.field(default=2, init=False)
    untidy: bool = attrs.field(default=False, init=False)
    _doubtful: deque[Encoded] = attrs.field(factory=deque, init=False)
    _came_along: int = attrs.field(default=0, init=False)
    """How many of the oldest of these are on the disk already, with a commit that others made."""
    _under_way: int = attrs.field(default=0, init=False)
    _ended: int = attrs.field(default=0, init=False)
    _settled: int = attrs.field(default=0, init=False)
    """How often that was done: a sync that was begun before ends for nobody."""
    _error: OSError | None = attrs.field(default=None, init=False)
    _failed: bool = attrs.field(default=False, init=False)

    def write(self, batch: Sequence[Append]) -> bool:
        """Have a batch in the log, unless others keep the disk busy, or something went wrong and is not settled."""
        disk = self._log.disk
        self._log.check_alive()
        if self._failed or disk.busy():
            return False
        self._doubtful.append(self._log.take(batch))
        try:
            disk.fault()
        except EventLogError:
            self._failed = True
            raise
        return True

    def begin_sync(self) -> None:
        """Have it on the disk once that has taken its time."""
        self._under_way += 1
        self._log.loop.call_later(self._log.disk.latency(), self._end, self._settled)

    @property
    def waits(self) -> bool:
        """Whether the disk is to be waited for."""
        return self._is_waited_for and not self._log.disk.busy()

    def sync_here(self) -> None:
        """Have it on the disk; the time passes while nothing runs."""
        assert not self._under_way, "only while no sync is begun"
        self._log.loop.stall(self._log.disk.latency())
        self._under_way += 1
        self._end_one()
        self._raise_error()

    def _end(self, settled: int) -> None:
        if settled == self._settled and self._under_way and not self._log.crashed:
            self._end_one()
            self._log.loop.ring(self.descriptor)

    def _end_one(self) -> None:
        self._under_way -= 1
        try:
            self._log.disk.fault()
        except EventLogError as error:
            self._error = OSError(str(error))
        else:
            self._ended += 1

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error, self._failed = self._error, None, True
            raise error

    def end_sync(self, *, wait: bool) -> int:
        """How many of the oldest batches the disk has by now; to ``wait`` takes no time here."""
        while wait and self._under_way and not self._ended and self._error is None:
            self._end_one()
        self._raise_error()
        landed, self._ended = self._ended, 0
        self._put(landed)
        return landed

    def heard(self) -> None:
        """Nothing rings twice."""

    def settle(self) -> int:
        """How many of the oldest batches the disk turns out to have; the log holds no others from then on."""
        self._log.check_alive()
        found = self._survivors()
        self._failed = False
        self._log.read_disk()
        return found

    def _survivors(self) -> int:
        self._settled += 1
        found = self._log.disk.survivors(max(self._ended, self._came_along), len(self._doubtful))
        self._put(found)
        self._doubtful.clear()
        self._under_way, self._ended, self._error = 0, 0, None
        return found

    def _put(self, batches: int) -> None:
        for _ in range(batches):
            batch = self._doubtful.popleft()
            if self._came_along:
                self._came_along -= 1
            else:
                self._log.disk.put(batch)

    def come_along(self) -> None:
        """Have on the disk what was written so far, because somebody else commits; nobody is told."""
        for batch in list(self._doubtful)[self._came_along :]:
            self._log.disk.put(batch)
        self._came_along = len(self._doubtful)

    def crash(self) -> None:
        """The process is gone; what it wrote may be on the disk, up to some batch."""
        self._survivors()

    def tidy(self) -> None:
        """There is nothing to tidy."""

    def close(self) -> None:
        """There is nothing to give back."""
