"""The time of a queue whose clock lies behind its log: it goes on from there, as fast as the clock does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from mpreg_mq.clock import Clock, TimerHandle

logger = logging.getLogger("mpreg_mq")

STEP_SECONDS = 1.0
"""A clock that lies less behind is waited for: a time server puts clocks back by so little, and it soon passes."""


class QueueClock:
    """A clock that is ahead of another one, by as much as that lies behind what a queue has recorded.

    It never goes back, and stands still for less than :data:`STEP_SECONDS` however the other one is put. Moments, also
    those of timers, are in the time of the queue.
    """

    __slots__ = ("_clock", "_latest", "_name", "_on_step", "ahead")

    def __init__(self, clock: Clock, name: str, on_step: Callable[[], None]) -> None:
        self._clock = clock
        self._name = name
        self._on_step = on_step
        self._latest = 0.0
        self.ahead = 0.0

    @property
    def beneath(self) -> Clock:
        """The clock that it is ahead of."""
        return self._clock

    def go_on_from(self, moment: float) -> None:
        """Take ``moment`` for the present one. ``on_step`` is told, for timers that were set before may come late."""
        before = self.ahead
        self._latest = moment
        self.ahead = moment - self._clock.now()
        logger.warning(
            "queue %s: the clock lies %s behind the queue's last event (it was put back, or an earlier one was ahead); "
            "the queue's time goes on from that event, and is %s ahead of the clock for now; see docs/durability.md",
            self._name,
            timedelta(seconds=round(self.ahead - before)),
            timedelta(seconds=round(self.ahead)),
        )
        self._on_step()

    def now(self) -> float:
        """Seconds since the epoch, in the time of the queue."""
        now = self._clock.now() + self.ahead
        if now < self._latest:
            if self._latest - now >= STEP_SECONDS:
                self.go_on_from(self._latest)
            return self._latest
        self._latest = now
        return now

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]) -> TimerHandle:
        """See :meth:`mpreg_mq.clock.Clock.call_at`."""

        def on_time() -> None:
            # A difference of floats is not exact, and who is woken a little too early would be again at once.
            self._latest = max(self._latest, when)
            callback()

        return self._clock.call_at(loop, when - self.ahead, on_time)
