"""Clocks: where the time comes from, and how to be woken at a moment.

Everything that needs the time is given a :class:`Clock`. :class:`SystemClock` is real time;
:class:`VirtualClock` stands still until a test advances it, so that no test waits.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import attrs

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError

TIMER_MARGIN_SECONDS = 1e-6
"""Added to every real timer: a float of seconds since the epoch is only good to a quarter of a microsecond, and
without the margin a timer could fire when :meth:`SystemClock.now` is still just before its moment."""

SETTLE_TURNS = 32
"""Loop turns that :meth:`VirtualClock.settle` yields at least, so that what comes from outside is heard of."""

MOST_SETTLE_TURNS = 2000
"""Loop turns after which :meth:`VirtualClock.settle` goes on although something always asks for another one."""

LOOK_SECONDS = 0.001
"""How often is looked, in real time, whether a callback on a thread has ended."""


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


def clock_of(given: Clock | None) -> Clock:
    """The clock that was given, or for None the system's.

    Raises:
        ConfigurationError: it is no clock.
    """
    if given is None:
        return SystemClock()
    # A class has the methods as well, and nothing to call them on.
    if isinstance(given, type) or not all(callable(getattr(given, name, None)) for name in ("now", "call_at")):
        raise ConfigurationError(
            f"clock: got {describe(given)}, expected an object with now and call_at, such as VirtualClock(), or None"
        )
    return given


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
class _Watch:
    """Counts what a loop is given to run: if that is nothing from one turn to the next, nothing is ready (ADR 0083)."""

    call_soon: Callable[..., asyncio.Handle]
    """The loop's own, or what somebody has put in its place; not counted."""
    own: Any
    """What the loop had as an attribute of its own, if anything."""
    calls: int = 0
    watchers: int = 0

    def counted(self, *arguments: Any, **options: Any) -> asyncio.Handle:
        self.calls += 1
        return self.call_soon(*arguments, **options)


_watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
"""One for each loop, whose watchers share it: each of their turns would seem to the others to be something to run."""


@contextmanager
def _watched(loop: asyncio.AbstractEventLoop) -> Iterator[_Watch | None]:
    """Within the block what the loop is given to run is counted; None for a loop that takes no attribute."""
    own = getattr(loop, "__dict__", None)
    if own is None:
        yield None
        return
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = _Watch(loop.call_soon, own.get("call_soon"))
        own["call_soon"] = watch.counted
    watch.watchers += 1
    try:
        yield watch
    finally:
        watch.watchers -= 1
        if not watch.watchers:
            del _watches[loop]
            # Unless somebody else has replaced it since.
            if own.get("call_soon") == watch.counted:
                if watch.own is None:
                    del own["call_soon"]
                else:
                    own["call_soon"] = watch.own


async def _run_all_that_is_ready(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop run until nothing is ready, for at least :data:`SETTLE_TURNS` turns."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)
    with _watched(loop) as watch:
        if watch is None:
            return
        idle: asyncio.Future[None] = loop.create_future()
        turns = calls = 0

        def turn() -> None:
            nonlocal turns, calls
            turns += 1
            quiet = watch.calls == calls
            calls = watch.calls
            if idle.done():
                return
            if quiet or turns >= MOST_SETTLE_TURNS:
                idle.set_result(None)
            else:
                watch.call_soon(turn)

        watch.call_soon(turn)
        await idle


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

    Args:
        start: its time at first.
        blocking_seconds: how long, in real time, it stands still for callbacks that were declared ``blocking``, since
            the last of them began or ended. Those that take longer are then taken to hang.
    """

    _now: float = attrs.field(default=1_000_000.0, alias="start")
    blocking_seconds: float = 1.0
    _timers: list[_VirtualTimer] = attrs.field(factory=list, init=False)
    _sequence: count[int] = attrs.field(factory=count, init=False)
    _calls: set[Hashable] = attrs.field(factory=set, init=False)
    _calls_changed: float = attrs.field(default=0.0, init=False)
    _change_numbers: count[int] = attrs.field(factory=lambda: count(1), init=False)
    _changes: int = attrs.field(default=0, init=False)

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

        At each timer the clock shows its moment, its callback runs, and the loop settles (see :meth:`settle`); timers
        set meanwhile are taken in. Ends exactly at the target, settled. What a callback raises is raised here, with
        the clock at that timer's moment.

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
        """Let tasks and callbacks run, and what they make ready in turn, until nothing is, without moving the clock.

        Callbacks that were declared ``blocking`` get ``blocking_seconds`` of real time. For what else takes real time
        (other threads, sockets) nobody waits, and for a task that asks for one turn after another just
        :data:`MOST_SETTLE_TURNS` of them.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._end_calls()
            changes = self._changes
            await _run_all_that_is_ready(loop)
            # One that has ended since may have handed over what is not seen to yet.
            if not self._calls and self._changes == changes:
                return

    async def _end_calls(self) -> None:
        while self._calls:
            if time.monotonic() - self._calls_changed > self.blocking_seconds:
                self._calls.clear()
            else:
                await asyncio.sleep(LOOK_SECONDS)

    def call_begins(self, call: Hashable) -> None:
        """A callback that takes real time has begun; on any thread, like :meth:`call_ends`."""
        self._calls.add(call)
        self._note_change()

    def call_ends(self, call: Hashable) -> None:
        """It has ended, and what follows from it was handed to its loop."""
        self._calls.discard(call)
        self._note_change()

    def _note_change(self) -> None:
        self._calls_changed = time.monotonic()
        self._changes = next(self._change_numbers)

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
