"""An event loop whose time is virtual and whose choices are seeded.

Nothing waits: when nothing is ready, the time jumps to the next timer. What is ready runs in an order that a seeded
random source chooses, so that one seed is one interleaving, and the same one each time.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from asyncio import events
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from mpreg_mq.clock import TimerHandle
from mpreg_mq.errors import MessageQueueError

if TYPE_CHECKING:
    # A type checker would have all of the abstract class implemented, sockets and subprocesses included.
    from asyncio import SelectorEventLoop as _EventLoop
else:
    _EventLoop = asyncio.AbstractEventLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1_700_000_000.0
"""What a :class:`SimulatedClock` shows when its loop is new."""


class SimulationStuckError(MessageQueueError):
    """Something is waited for, and nothing is left that could bring it about."""


class SimulationStepsError(MessageQueueError):
    """A run took more steps than it may; probably something asks for another turn for ever."""


class _Call(asyncio.TimerHandle):
    """A callback that waits for its turn. ``source`` is what it comes from; calls of one source keep their order."""

    __slots__ = ("source",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: contextvars.Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        while isinstance(callback, partial):
            callback = callback.func
        owner = getattr(callback, "__self__", None)
        self.source: Any
        if owner is None:
            self.source = getattr(callback, "__code__", callback)
        else:
            self.source = (id(owner), getattr(callback, "__name__", ""))


class SimulatedLoop(_EventLoop):
    """An asyncio event loop for simulations.

    It has no I/O, no signals and no threads: ``run_in_executor`` runs the function as a step of its own, and a call
    from another thread is refused, because its moment would not repeat.

    Args:
        random: chooses the next of what is ready; None takes the oldest, as asyncio does.

    ``asyncio`` promises that callbacks run in the order in which they were registered. Here that is kept for the calls
    of one function (of one object), which is what order there would be among threads, sockets and timers.
    """

    def __init__(self, random: Random | None = None) -> None:
        self._random = random
        self._now = 0.0
        self._ready: list[_Call] = []
        self._timers: list[tuple[float, int, _Call]] = []
        self._readers: dict[Any, tuple[Callable[..., object], contextvars.Context]] = {}
        self._order = 0
        self._thread_id = threading.get_ident()
        self._running = False
        self._stopping = False
        self._closed = False
        self.steps = 0
        """Callbacks run so far."""
        self.errors: list[dict[str, Any]] = []
        """What callbacks raised, as given to :meth:`call_exception_handler`."""

    # --- running ------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run until the future is done; its result.

        Raises:
            SimulationStuckError: nothing is left to run and it is not done.
        """
        new = not asyncio.isfuture(future)
        awaited: Any = future
        waiting: asyncio.Future[T] = asyncio.ensure_future(awaited, loop=self)
        self.run(until=waiting.done)
        if not waiting.done():
            if new:
                waiting.cancel()
                self.run(until=waiting.done)
            raise SimulationStuckError(
                f"run_until_complete: nothing is left to run at {self._now:g} s and {future!r} is not done; "
                "it waits for something that cannot happen"
            )
        return waiting.result()

    def run(
        self,
        *,
        until: Callable[[], bool] | None = None,
        seconds: float | None = None,
        steps: int | None = None,
    ) -> None:
        """Run until ``until()`` holds, or ``seconds`` of virtual time or ``steps`` callbacks have passed.

        Ends also when nothing is left to run. With ``seconds`` the time then is exactly there, unless one of the others
        ended the run before.
        """
        deadline = None if seconds is None else self._now + seconds
        last = None if steps is None else self.steps + steps
        before = events._get_running_loop()
        events._set_running_loop(self)
        self._running, self._stopping = True, False
        try:
            while not self._stopping and (until is None or not until()) and (last is None or self.steps < last):
                if not self._step(deadline):
                    if deadline is not None:
                        self._now = max(self._now, deadline)
                    return
        finally:
            self._running = False
            events._set_running_loop(before)

    def advance(self, seconds: float) -> None:
        """Run for ``seconds`` of virtual time; see :meth:`run`."""
        self.run(seconds=seconds)

    def stall(self, seconds: float) -> None:
        """Let time pass while nothing runs, as when the process was suspended: timers that fell due are late then."""
        self._now += seconds

    def _step(self, deadline: float | None) -> bool:
        """Run one callback, the time jumping to it if need be; False where none is left (before the deadline)."""
        self._take_due()
        if not self._ready:
            if not self._timers or (deadline is not None and self._timers[0][0] > deadline):
                return False
            self._now = max(self._now, self._timers[0][0])
            self._take_due()
            if not self._ready:
                return True
        call = self._choose()
        self.steps += 1
        if not call.cancelled():
            call._run()
        return True

    def _take_due(self) -> None:
        timers = self._timers
        while timers and (timers[0][0] <= self._now or timers[0][2].cancelled()):
            call = heappop(timers)[2]
            if not call.cancelled():
                self._ready.append(call)

    def _choose(self) -> _Call:
        ready = self._ready
        if self._random is None or len(ready) == 1:
            return ready.pop(0)
        index = int(self._random.random() * len(ready))
        source = ready[index].source
        for earlier in range(index):
            if ready[earlier].source == source:
                return ready.pop(earlier)
        return ready.pop(index)

    # --- asyncio's event loop -----------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Run the callback in a step of its own."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if threading.get_ident() != self._thread_id:
            raise RuntimeError("SimulatedLoop: called from another thread, whose moment would not repeat")
        call = _Call(self._now, callback, args, self, context)
        self._ready.append(call)
        return call

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As :meth:`call_soon`; there are no other threads."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run the callback ``delay`` virtual seconds from now."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run the callback when :meth:`time` is ``when``."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        call = _Call(when, callback, args, self, context)
        self._order += 1
        heappush(self._timers, (when, self._order, call))
        return call

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by asyncio's handles; cancelled timers leave when they come first."""

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """Run the callback in a step of its own after each :meth:`ring`; there are no real descriptors."""
        self._readers[fd] = partial(callback, *args), contextvars.copy_context()

    def remove_reader(self, fd: Any) -> bool:
        """Run it no more."""
        return self._readers.pop(fd, None) is not None

    def ring(self, fd: Any) -> None:
        """Say that there is something to read."""
        if fd in self._readers:
            callback, context = self._readers[fd]
            self.call_soon(callback, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: object = None, context: Any = None, **_: Any) -> asyncio.Task[Any]:
        """A task of this loop."""
        return asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run the function in a step of its own, as if a thread had done it in no time."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:
                # Whoever waited may have been cancelled; that does not end what a thread does.
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_soon(run)
        return future

    def stop(self) -> None:
        """End :meth:`run` after this step."""
        self._stopping = True

    def is_running(self) -> bool:
        """Whether it runs a step now."""
        return self._running

    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Forget everything that waits; nothing of it will run."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        """Never: asyncio's debug mode measures real time."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep the error in :attr:`errors`."""
        if not self._closed:
            self.errors.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep the error in :attr:`errors`."""
        self.call_exception_handler(context)

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Nothing to do: there is none."""


class SimulatedClock:
    """A :class:`~mpreg_mq.clock.Clock` that shows the virtual time of a loop, from ``start`` on."""

    def __init__(self, loop: SimulatedLoop, start: float = START) -> None:
        self._loop = loop
        self._offset = start - loop.time()

    def now(self) -> float:
        """Virtual seconds since the epoch."""
        return self._offset + self._loop.time()

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]) -> TimerHandle:
        """See :meth:`mpreg_mq.clock.Clock.call_at`."""
        moment = when - self._offset
        # The difference is rounded, and a timer must not fire before the clock shows its moment.
        while self._offset + moment < when:
            moment += 1e-7
        return loop.call_at(moment, callback)
