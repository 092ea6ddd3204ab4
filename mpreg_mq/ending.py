"""Work that comes to its end although whoever waits for it stops waiting (``asyncio.wait_for``, Ctrl-C, a timeout)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from mpreg_mq.errors import MessageQueueError
from mpreg_mq.forking import forget_after_fork

logger = logging.getLogger("mpreg_mq")


class Tasks(set[asyncio.Task[Any]]):
    """Tasks under way that nobody may wait for. A loop does not hold its tasks, so these are held here."""

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task of the running loop."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self.add(task)
        task.add_done_callback(self.discard)
        return task


@attrs.define(eq=False)
class OneAtATime:
    """A lock for the tasks of any event loops; that of asyncio is for those of one."""

    _guard: threading.Lock = attrs.field(factory=threading.Lock)
    _taken: bool = False
    _waiting: list[concurrent.futures.Future[None]] = attrs.field(factory=list)

    async def __aenter__(self) -> None:
        while True:
            with self._guard:
                if not self._taken:
                    self._taken = True
                    return
                waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
                self._waiting.append(waiter)
            await asyncio.wrap_future(waiter)

    async def __aexit__(self, *_: object) -> None:
        with self._guard:
            self._taken = False
            waiting, self._waiting = self._waiting, []
        # All of them: any one may have been cancelled, or its loop have ended.
        for waiter in waiting:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)


_under_way: set[asyncio.Task[None]] = set()
"""Nobody else may hold these any more. What is to be done at their ends takes them out."""


@attrs.frozen(eq=False)
class _Try:
    """One try to come to the end, on one loop."""

    task: asyncio.Task[None]
    ended: concurrent.futures.Future[None] = attrs.field(factory=concurrent.futures.Future)
    """For those who wait on other loops: that it is no more under way, whatever became of it."""

    async def wait(self) -> None:
        """Wait until it has ended, in whatever way; what it raised is raised."""
        if self.task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([self.task])
        else:
            await asyncio.wait([asyncio.wrap_future(self.ended)])
        if self.task.done() and not self.task.cancelled():
            self.task.result()


@attrs.define(eq=False)
class Ending:
    """Something that is done once, to its end, whoever waits for it and however often it is asked for."""

    over: bool = False
    """Whether it has come to its end."""
    _latest: _Try | None = None
    _waiting: int = 0

    @property
    def under_way(self) -> bool:
        """Whether it has begun and goes on: the loop that it is on runs."""
        found = self._latest
        return not self.over and found is not None and not found.task.done() and found.task.get_loop().is_running()

    async def reach(self, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin it, or wait for what somebody has begun, on this loop or another; nothing where it is over.

        It begins anew where it was cancelled or its loop has ended. What it raises is raised for those who wait.
        """
        while not self.over:
            if not self.under_way:
                task = asyncio.get_running_loop().create_task(end())
                self._latest = _Try(task)
                _under_way.add(task)
                task.add_done_callback(self._ended)
            await self.joined()

    async def joined(self) -> None:
        """Wait until what is under way has come to its end, or been cancelled."""
        found = self._latest
        assert found is not None
        self._waiting += 1
        try:
            await found.wait()
        finally:
            self._waiting -= 1

    def reach_now(self, end: Callable[[], None]) -> None:
        """Come to the end on this thread, whether or not it is under way; nothing where it is over."""
        if not self.over:
            try:
                end()
            finally:
                self.over = True

    def _ended(self, task: asyncio.Task[None]) -> None:
        _under_way.discard(task)
        found = self._latest
        if not task.cancelled():
            self.over = True
            error = task.exception()
            if error is not None and not self._waiting:
                logger.error("what nobody waits for any more failed", exc_info=error)
        if found is not None and found.task is task:
            found.ended.set_result(None)

    @property
    def begun(self) -> bool:
        """Whether anybody has begun with it, on whatever loop."""
        return self._latest is not None


@attrs.define(eq=False)
class OneOfAName:
    """What is done with things that have names, to its end; by one task at a time with each, of whichever loop."""

    _guard: threading.Lock = attrs.field(factory=threading.Lock)
    _under_way: dict[str, Ending] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        forget_after_fork(self)

    def forget_in_child(self) -> None:
        """In a forked child: none of the tasks came along."""
        self._guard, self._under_way = threading.Lock(), {}

    def names(self) -> list[str]:
        """Those with which something is done now."""
        return list(self._under_way)

    async def others(self, name: str) -> bool:
        """Wait until nobody does anything with this name; whether a loop has ended before it had done so."""
        left = False
        while (other := self._under_way.get(name)) is not None:
            # Asked first: it may begin in between.
            begun = other.begun
            if other.under_way:
                # Whoever asked for it hears of what went wrong.
                with contextlib.suppress(MessageQueueError):
                    await other.joined()
            elif begun:
                left = self._end(name, other) or left
            else:
                # Another thread begins with it just now.
                await asyncio.sleep(0)
        return left

    async def reach(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Do something with this name; False, and nothing is done, where somebody else does."""
        ending = Ending()
        with self._guard:
            if self._under_way.setdefault(name, ending) is not ending:
                return False

        async def alone() -> None:
            try:
                await work()
            finally:
                self._end(name, ending)

        await ending.reach(alone)
        return True

    def _end(self, name: str, ending: Ending) -> bool:
        with self._guard:
            if self._under_way.get(name) is not ending:
                return False
            del self._under_way[name]
            return True
