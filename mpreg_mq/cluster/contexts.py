"""Callbacks that run in the context (:mod:`contextvars`) in which they were subscribed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Generator
from contextvars import Context, copy_context
from typing import Any

from mpreg_mq.actors.current import current_delivery
from mpreg_mq.model import Callback, QueuedMessage


class InContext:
    """A callback in the context of this moment; each call has a copy, in which its message is the current delivery."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._context = copy_context()

    def __call__(self, message: QueuedMessage) -> Awaitable[Any] | None:
        """Call it. What it returns, where that is to be awaited, goes on in the same copy."""
        context = self._context.copy()
        context.run(current_delivery.set, message)
        returned = context.run(self._callback, message)
        return _Awaiting(returned, context) if inspect.isawaitable(returned) else None


class _Awaiting:
    """What a callback returned, on its way in its own context."""

    def __init__(self, awaitable: Awaitable[Any], context: Context) -> None:
        self._awaitable = awaitable
        self._context = context

    def __await__(self) -> Generator[Any, None, None]:
        going_on = asyncio.get_running_loop().create_task(_ended(self._awaitable), context=self._context)
        error = yield from going_on.__await__()
        if error is not None:
            raise error

    def close(self) -> None:
        """It will not be awaited."""
        close = getattr(self._awaitable, "close", None)
        if close is not None:
            close()


async def _ended(awaitable: Awaitable[Any]) -> BaseException | None:
    """What an awaitable raised: a SystemExit that leaves a task would end its loop."""
    try:
        await awaitable
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return error
    return None
