"""Callers that wait at a queue: a send for room (C1), a receiver for a message (L1)."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

import attrs

from mpreg_mq.actors.commands import Receive, Send
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.clock import Clock


class Alarm:
    """Calls ``wake`` when a queue's time is ``when``, once, unless it is cancelled before."""

    __slots__ = ("_timer", "_wake", "when")

    def __init__(self, when: float, wake: Callable[[], None], clock: Clock, loop: AbstractEventLoop) -> None:
        self.when = when
        self._wake = wake
        self._timer = clock.call_at(loop, when, wake)

    def set_anew(self, clock: Clock, loop: AbstractEventLoop) -> None:
        """That moment is another than before, measured by the clock."""
        self._timer.cancel()
        self._timer = clock.call_at(loop, self.when, self._wake)

    def cancel(self) -> None:
        """Do not call."""
        self._timer.cancel()


@attrs.define(eq=False)
class _Waiting:
    future: LoopFuture[Any]
    limit: Alarm | None = attrs.field(default=None, init=False)
    """The end of the time that it waits."""

    def cancel_limit(self) -> None:
        """The time limit is of no interest any more."""
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None

    def answer(self, reply: Any) -> None:
        """Give the reply, or the outcome of a reply that comes later."""
        self.cancel_limit()
        if isinstance(reply, LoopFuture):
            reply.forward_to(self.future)
        else:
            self.future.set(reply)

    def fail(self, error: BaseException) -> None:
        """Give an exception for a reply."""
        self.cancel_limit()
        self.future.set_exception((type(error), error, None))


@attrs.define(eq=False)
class ParkedSend(_Waiting):
    """A send that waits for room."""

    send: Send = attrs.field(kw_only=True)


@attrs.define(eq=False)
class WaitingReceive(_Waiting):
    """A receiver that waits for a message."""

    command: Receive = attrs.field(kw_only=True)
