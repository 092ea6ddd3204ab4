"""Retention without a thread: the compactor's own steps, taken by the loop, so that anything may come between two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mpreg_mq.actors.retention import Compaction, Compactor, RetentionThread
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events.log import RecordedEvent, RetainingLog
from mpreg_mq.testing.disk import SimulatedDisk, SimulatedLog

if TYPE_CHECKING:
    from mpreg_mq.testing.process import Process

logger = logging.getLogger("mpreg_mq")


@attrs.define(eq=False)
class SimulatedArchive:
    """An archive that is being written; it is among those of the disk when it is complete."""

    _disk: SimulatedDisk
    _begin: int
    _records: list[RecordedEvent] = attrs.field(factory=list, init=False)

    def write(self, record: RecordedEvent) -> None:
        """Add an event."""
        self._records.append(record)

    def finish(self, last_position: int) -> Path:
        """Complete it, unless the disk refuses."""
        self._disk.fault()
        self._disk.archives[self._begin, last_position] = self._records
        return Path(f"{self._begin}-{last_position}")

    def abandon(self) -> None:
        """Leave nothing behind, where it was not finished: nothing of it is on the disk."""


class SimulatedCompactor(Compactor):
    """The compactor's own code, with archives that are on the simulated disk where the policy asks for any."""

    _log: SimulatedLog

    def _archive(self, base: int, cut: int) -> Any:
        return None if self._policy.archive_directory is None else SimulatedArchive(self._log.disk, base)


class SimulatedRetention:
    """Applies a policy now and then, for as long as a process runs; each step takes as long as a commit would."""

    def __init__(self, log: SimulatedLog, policy: RetentionPolicy, now: Callable[[], float]) -> None:
        self._log = log
        self._policy = policy
        self._compactor = SimulatedCompactor(log, policy, now)
        self._steps: Iterator[None] | None = None
        self._timer = log.loop.call_later(policy.check_seconds, self._step)

    @staticmethod
    def start(log: RetainingLog, policy: RetentionPolicy, now: Callable[[], float]) -> Any:
        """What applies the policy to a log: simulated where the log is, else a thread."""
        if not isinstance(log, SimulatedLog):
            return RetentionThread(log, policy, now)
        return SimulatedRetention(log, policy, now)

    def _step(self) -> None:
        if self._steps is None:
            self._steps = self._compactor.steps()
        pause = self._log.disk.latency()
        try:
            next(self._steps)
        except StopIteration:
            self._steps, pause = None, self._policy.check_seconds
        # As in the thread.
        except Exception:
            logger.exception("retention: a compaction failed")
            self._steps, pause = None, self._policy.check_seconds
        self._timer = self._log.loop.call_later(pause, self._step)

    def compact_now(self, *, pausing: bool = True) -> Compaction | None:
        """One compaction at once, after the one that is under way; what it did."""
        under_way, self._steps = self._steps, None
        for _ in under_way or ():
            pass
        self._compactor.last = None
        for _ in self._compactor.steps():
            pass
        return self._compactor.last

    def stop(self) -> None:
        """Do nothing more."""
        self._timer.cancel()


async def compact_now_and_then(process: Process) -> None:
    """Ask the manager for a compaction, for ever."""
    while True:
        await asyncio.sleep(process.random.choice((0.5, 5.0, 20.0)))
        try:
            await process.manager.compact()
        except MessageQueueError:
            continue
