"""Work that comes to its end although whoever waits for it stops waiting (``asyncio.wait_for``, Ctrl-C, a timeout)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

logger = logging.getLogger("mpreg_mq")

_under_way: set[asyncio.Task[None]] = set()
"""A loop does not hold its tasks, and nobody else may hold these any more."""


@attrs.define(eq=False)
class Ending:
    """Something that is done once, to its end, whoever waits for it and however often it is asked for."""

    _over: concurrent.futures.Future[None] = attrs.field(factory=concurrent.futures.Future)
    _task: asyncio.Task[None] | None = None
    _waiting: int = 0

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self._over.done()

    @property
    def under_way(self) -> bool:
        """Whether it has begun and goes on: the loop that it is on runs."""
        task = self._task
        return not self.over and task is not None and not task.done() and task.get_loop().is_running()

    async def reach(self, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin it, or wait for what somebody has begun, on this loop or another; nothing where it is over.

        It begins anew where it was cancelled or its loop has ended. What it raises is raised for those who wait.
        """
        if not self.over:
            if not self.under_way:
                self._task = task = asyncio.get_running_loop().create_task(end())
                _under_way.add(task)
                task.add_done_callback(self._ended)
            await self.joined()

    async def joined(self) -> None:
        """Wait for what is under way."""
        task = self._task
        assert task is not None
        self._waiting += 1
        try:
            if task.get_loop() is asyncio.get_running_loop():
                await asyncio.shield(task)
            else:
                await asyncio.shield(asyncio.wrap_future(self._over))
        finally:
            self._waiting -= 1

    def reach_now(self, end: Callable[[], None]) -> None:
        """Come to the end on this thread, whether or not it is under way; nothing where it is over."""
        if self.over:
            return
        try:
            end()
        finally:
            if not self.over:
                self._over.set_result(None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        _under_way.discard(task)
        if self.over or task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._over.set_result(None)
            return
        if not self._waiting:
            logger.error("what nobody waits for any more failed", exc_info=error)
        self._over.set_exception(error)
