"""Clocks: where the time comes from, and how to be woken at a moment.

Everything that needs the time is given a :class:`Clock`. :class:`SystemClock` is real time;
:class:`VirtualClock` stands still until a test advances it, so that no test waits.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable
from itertools import count
from typing import Protocol

import attrs

TIMER_MARGIN_SECONDS = 1e-6
"""Added to every real timer: a float of seconds since the epoch is only good to a quarter of a microsecond, and
without the margin a timer could fire when :meth:`SystemClock.now` is still just before its moment."""

SETTLE_TURNS = 32
"""Loop turns that :meth:`VirtualClock.settle` yields: more than any chain of tasks and actor wake-ups needs."""


class TimerHandle(Protocol):
    """A timer that has been set."""

    def cancel(self) -> object:
        """Make sure that the callback does not run; without effect where it has run or was cancelled."""


class Clock(Protocol):
    """The time, and timers against it."""

    def now(self) -> float:
        """Seconds since the epoch; never goes back within the process."""

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]) -> TimerHandle:
        """Run ``callback`` on ``loop`` once :meth:`now` is ``when`` (seconds since the epoch) or later.

        Call it on the thread of ``loop``. A moment that has passed means the loop's next turn, never this call.
        """


async def pause(clock: Clock, seconds: float, ended: asyncio.Event) -> bool:
    """Wait for ``seconds`` by a clock, or until ``ended`` is set; False where it is set."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    timer = clock.call_at(loop, clock.now() + seconds, over.set)
    waits = [loop.create_task(over.wait()), loop.create_task(ended.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
        for wait in waits:
            wait.cancel()
    return not ended.is_set()


@attrs.define
class SystemClock:
    """The wall clock as it was at construction, carried on by the monotonic clock.

    Immune to jumps of the wall clock: after an adjustment (NTP, an administrator, suspend on some systems)
    :meth:`now` goes on steadily, and differs from ``time.time()`` until the process restarts.
    """

    _offset: float = attrs.field(factory=lambda: time.time() - time.monotonic(), init=False)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset + time.monotonic()

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]) -> TimerHandle:
        """See :meth:`Clock.call_at`. O(log timers of the loop)."""
        delay = when - self.now()
        return loop.call_later(delay + TIMER_MARGIN_SECONDS if delay > 0 else 0, callback)


@attrs.define(eq=False)
class _VirtualTimer:
    when: float
    sequence: int
    callback: Callable[[], None]
    clock: VirtualClock

    def cancel(self) -> None:
        self.clock._withdraw(self)


def _due_order(timer: _VirtualTimer) -> tuple[float, int]:
    return timer.when, timer.sequence


@attrs.define(eq=False)
class VirtualClock:
    """A clock for tests that moves only when told to.

    Timers run in order of their moments, and those of one moment in the order in which they were set.
    """

    _now: float = attrs.field(default=1_000_000.0, alias="start")
    _timers: list[_VirtualTimer] = attrs.field(factory=list, init=False)
    _sequence: count[int] = attrs.field(factory=count, init=False)

    def now(self) -> float:
        """Seconds since the epoch, as set."""
        return self._now

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]) -> TimerHandle:
        """See :meth:`Clock.call_at`; a moment still to come waits for :meth:`advance`."""
        timer = _VirtualTimer(when, next(self._sequence), callback, self)
        insort(self._timers, timer, key=_due_order)
        if when <= self._now:
            loop.call_soon(self._fire, timer)
        return timer

    def next_timer(self) -> float | None:
        """The moment of the earliest timer that is set, or None."""
        return self._timers[0].when if self._timers else None

    async def advance(self, seconds: float) -> None:
        """Move ``seconds`` on, through every timer that falls due, in order.

        At each timer the clock shows its moment, its callback runs, and the loop gets turns to settle; timers set
        meanwhile are taken in. Ends exactly at the target, settled. What a callback raises is raised here, with the
        clock at that timer's moment.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"VirtualClock.advance: got {seconds!r}, expected 0 or more seconds; time never goes back")
        target = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0].when <= target:
            timer = self._timers[0]
            self._now = max(self._now, timer.when)
            self._fire(timer)
            await self.settle()
        self._now = max(self._now, target)
        await self.settle()

    async def settle(self) -> None:
        """Let tasks and callbacks that are ready run, without moving the clock."""
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)

    def set(self, now: float) -> None:
        """Jump to a moment and run no timers; those that are due then run with the next :meth:`advance`.

        Raises:
            ValueError: ``now`` is before the clock's time.
        """
        if not now >= self._now:
            raise ValueError(f"VirtualClock.set: got {now!r}, expected {self._now!r} or later; time never goes back")
        self._now = now

    def _fire(self, timer: _VirtualTimer) -> None:
        if self._withdraw(timer):
            timer.callback()

    def _withdraw(self, timer: _VirtualTimer) -> bool:
        if timer not in self._timers:
            return False
        self._timers.remove(timer)
        return True
