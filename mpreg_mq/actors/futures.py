"""Futures that can be awaited: the replies of actors.

Tasks await a :class:`LoopFuture` without blocking their loop, other threads may block on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sys
import threading
import time
from asyncio import _get_running_loop
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pykka

from mpreg_mq.errors import MessageQueueError

if TYPE_CHECKING:
    from mpreg_mq.actors.inbox import LoopInbox

    ExceptionInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

logger = logging.getLogger(__name__)

STRANDED_CHECK_SECONDS = 0.25
"""How often who waits for a reply on another thread looks whether the loop that should give it has gone away."""

T = TypeVar("T")


class WouldBlockError(MessageQueueError, RuntimeError):
    """A pending :class:`LoopFuture` was read with ``get()`` on a thread that runs an event loop.

    ``future`` is that future; None once the error is itself the outcome of another future.
    """

    def __init__(self, future: LoopFuture[Any]) -> None:
        super().__init__(
            "LoopFuture.get: got a call for a pending reply on a thread that runs an event loop, which would block "
            "the loop, and for ever if the reply is to come from it; write 'await future', or call get() on "
            "another thread"
        )
        self.future: LoopFuture[Any] | None = future


# One lock for all futures: it is held for a few instructions, and a lock in each would cost more than it saves.
# Re-entrant, because a finaliser that resolves a future may run while its thread holds it.
_futures_lock = threading.RLock()


class LoopFuture(pykka.Future[T]):
    """A reply that a task can await for real and that any thread without a loop can block on.

    It costs one small object; what blocking needs is made when somebody blocks.
    """

    _get_hook: Callable[[float | None], T] | None
    _value: Any
    _failure: tuple[BaseException, TracebackType | None] | None
    # Callables, and the waiters of tasks that are suspended here.
    _callbacks: list[Callable[[LoopFuture[T]], object] | asyncio.Future[None]] | None
    _inbox: LoopInbox | None

    def __init__(self) -> None:
        # The base initialiser sets up a cache for the value of a get hook; here ``_value`` is that cache.
        self._done = False
        self._get_hook = None
        self._value = None
        self._failure = None
        self._callbacks = None
        self._inbox = None

    def __repr__(self) -> str:
        state = "pending" if not self._done else "failed" if self._failure is not None else "resolved"
        return f"<LoopFuture {state}>"

    def done(self) -> bool:
        """Whether it has a value or an exception; for one with a get hook, whether the hook has given a value."""
        return self._done

    def set(self, value: T | None = None) -> None:
        """Resolve it with a value.

        Raises:
            queue.Full: it is resolved already, or has a get hook.
        """
        with _futures_lock:
            self._check_settable()
            self._value = value
            self._done = True
            callbacks = self._callbacks
            self._callbacks = None
        if callbacks is not None:
            self._run(callbacks)

    def set_exception(self, exc_info: ExceptionInfo | None = None) -> None:
        """Resolve it with an exception: the one given, or else the one being handled.

        Raises:
            queue.Full: it is resolved already, or has a get hook.
            ValueError: none was given and none is being handled.
        """
        kind, error, traceback = sys.exc_info() if exc_info is None else exc_info
        if error is None:
            if kind is None:
                raise ValueError(
                    "LoopFuture.set_exception: got no exception, expected one given as (type, value, traceback) or "
                    "one being handled; call it in an except block or pass exc_info"
                )
            error = kind()
        if isinstance(error, WouldBlockError):
            error.future = None
        with _futures_lock:
            self._check_settable()
            self._failure = (error, traceback)
            self._done = True
            callbacks = self._callbacks
            self._callbacks = None
        if callbacks is not None:
            self._run(callbacks)

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Have ``func(timeout)`` give the value when it is first read (``map``, ``join`` and ``stop`` use this).

        Awaiting such a future suspends too: where the hook needs a pending LoopFuture, that one is awaited and the
        hook called again. Threads that read at the same moment may each call it; the first value stays.

        Raises:
            queue.Full: it is resolved already.
        """
        with _futures_lock:
            if self._done:
                raise queue.Full("LoopFuture.set_get_hook: it is resolved already; set the hook on a new future")
            self._get_hook = func

    def get(self, *, timeout: float | None = None) -> T:
        """The value, waiting up to ``timeout`` seconds for it (None: as long as it takes).

        Raises:
            pykka.Timeout: it is still pending after ``timeout`` seconds.
            WouldBlockError: it is pending and this thread runs an event loop; a ``RuntimeError``.
            BaseException: the exception it was resolved with.
        """
        if not self._done:
            if self._get_hook is not None:
                self._take_hook_value(self._get_hook(timeout))
            else:
                self._block(timeout)
        return self._outcome()

    def add_done_callback(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        """Call ``callback(self)`` once it is resolved: at once where it is, else on the thread that resolves it.

        What a callback raises is logged and goes no further.
        """
        with _futures_lock:
            if not self._done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        self._run([callback])

    def remove_done_callback(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        """Forget a callback that has not run; without effect where there is none. O(callbacks)."""
        with _futures_lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def forward_to(self, target: pykka.Future[T]) -> None:
        """Resolve ``target`` with this future's outcome, once there is one."""
        if self._get_hook is not None:
            target.set_get_hook(lambda timeout: self.get(timeout=timeout))
            return

        def copy(_: LoopFuture[T]) -> None:
            if self._failure is None:
                target.set(self._value)
            else:
                error, traceback = self._failure
                target.set_exception((type(error), error, traceback))

        self.add_done_callback(copy)

    def __await__(self) -> Generator[Any, None, T]:
        """Suspend the task until it is resolved; no suspension where it is."""
        while not self._done:
            pending: LoopFuture[Any] = self
            if self._get_hook is not None:
                try:
                    return self.get()
                except WouldBlockError as error:
                    if error.future is None:
                        raise
                    pending = error.future
            yield from pending._suspend()
        return self._outcome()

    __iter__ = __await__

    def _check_settable(self) -> None:
        if self._done or self._get_hook is not None:
            raise queue.Full(
                f"{self!r}: got a second outcome, expected one; "
                f"it {'has a get hook' if self._get_hook is not None else 'is resolved already'}"
            )

    def _take_hook_value(self, value: T) -> None:
        with _futures_lock:
            if self._done:
                return
            self._value = value
            self._done = True
            callbacks = self._callbacks
            self._callbacks = None
        if callbacks is not None:
            self._run(callbacks)

    def _outcome(self) -> T:
        if self._failure is not None:
            error, traceback = self._failure
            # Its own traceback again: each reader would otherwise add to the one that they all share.
            raise error.with_traceback(traceback)
        value: T = self._value
        return value

    def _run(self, callbacks: list[Callable[[LoopFuture[T]], object] | asyncio.Future[None]]) -> None:
        here = _get_running_loop()
        for callback in callbacks:
            if isinstance(callback, asyncio.Future):
                loop = callback.get_loop()
                if loop is here:
                    _release(callback)
                else:
                    # A closed loop has no task left to wake.
                    with contextlib.suppress(RuntimeError):
                        loop.call_soon_threadsafe(_release, callback)
                continue
            try:
                callback(self)
            except Exception:
                logger.exception("LoopFuture: the callback %r failed", callback)

    def _block(self, timeout: float | None) -> None:
        if timeout is not None and timeout <= 0:
            raise pykka.Timeout(f"{timeout} seconds")
        if _get_running_loop() is not None:
            raise WouldBlockError(self)
        resolved = threading.Event()

        def notify(_: LoopFuture[T]) -> None:
            resolved.set()

        deadline = None if timeout is None else time.monotonic() + timeout
        self.add_done_callback(notify)
        try:
            while True:
                remaining = STRANDED_CHECK_SECONDS if deadline is None else deadline - time.monotonic()
                if resolved.wait(min(remaining, STRANDED_CHECK_SECONDS)):
                    return
                if remaining <= 0:
                    raise pykka.Timeout(f"{timeout} seconds")
                if self._inbox is not None:
                    self._inbox.rescue()
        finally:
            self.remove_done_callback(notify)

    def _suspend(self) -> Generator[Any, None, None]:
        here = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = here.create_future()
        with _futures_lock:
            if self._done:
                return
            if self._callbacks is None:
                self._callbacks = [waiter]
            else:
                self._callbacks.append(waiter)
        inbox = self._inbox
        rescue = None if inbox is None or inbox.loop is here else _Rescue(inbox, here)
        try:
            yield from waiter
        except BaseException:
            # Cancelled: what resolves it has nobody to wake.
            with _futures_lock:
                if self._callbacks is not None:
                    self._callbacks.remove(waiter)
            raise
        finally:
            if rescue is not None:
                rescue.cancel()


class _Rescue:
    """Looks after an inbox whose loop may go away while a task of another loop waits for a reply."""

    def __init__(self, inbox: LoopInbox, here: asyncio.AbstractEventLoop) -> None:
        self._inbox = inbox
        self._here = here
        self._plan()

    def _plan(self) -> None:
        self._timer = self._here.call_later(STRANDED_CHECK_SECONDS, self._look)

    def _look(self) -> None:
        self._inbox.rescue()
        if self._inbox.loop is not self._here:
            self._plan()

    def cancel(self) -> None:
        """There is a reply, or nobody waits for it any more."""
        self._timer.cancel()


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@attrs.frozen(eq=False)
class FuturesTogether:
    """Futures of one loop that get their values together."""

    loop: asyncio.AbstractEventLoop
    futures: list[asyncio.Future[Any]]

    def settle(self, values: Sequence[Any], error: BaseException | None) -> None:
        """Resolve each with its own value, or all with the error; not those of waiters who have given up."""
        if _get_running_loop() is not self.loop:
            # On a closed loop there is nobody left who waits.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.settle, values, error)
        elif error is None:
            # As settle_future, in place.
            for future, value in zip(self.futures, values, strict=True):
                if not future.done():
                    future.set_result(value)
        else:
            for future in self.futures:
                settle_future(future, None, error)


def settle_future(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    """Resolve a future of the running loop with a value or an error, unless whoever waited has given up."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


Waiter = LoopFuture[Any] | asyncio.Future[Any] | FuturesTogether
"""What somebody waits with for a commit: any thread, or a task of the queue's own loop."""


def answer(waiters: Iterable[tuple[Waiter, Any]], error: BaseException | None) -> None:
    """Give those who wait their replies, or all of them the error, each on its loop; not to those who have gone."""
    here = _get_running_loop()
    for future, reply in waiters:
        if isinstance(future, FuturesTogether):
            future.settle(reply, error)
            continue
        if isinstance(future, LoopFuture):
            if error is None:
                future.set(reply)
            else:
                future.set_exception((type(error), error, None))
            continue
        loop = future.get_loop()
        if loop is here:
            settle_future(future, reply, error)
        else:
            # On a closed loop there is nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle_future, future, reply, error)
