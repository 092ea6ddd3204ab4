"""Callers that wait at a queue: a send for room (C1), a receiver for a message (L1)."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

import attrs

from mpreg_mq.actors.commands import Receive, Send
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.clock import Clock, TimerHandle


@attrs.define(eq=False)
class _Waiting:
    future: LoopFuture[Any]
    timer: TimerHandle | None = attrs.field(default=None, init=False)
    ends_at: float = attrs.field(default=0.0, init=False)
    """When the time limit is reached, in the time of the queue."""
    time_is_up: Callable[[], None] = attrs.field(default=lambda: None, init=False)

    def set_timer(self, clock: Clock, loop: AbstractEventLoop) -> None:
        """Be woken when the time limit is reached."""
        self.cancel_timer()
        self.timer = clock.call_at(loop, self.ends_at, self.time_is_up)

    def cancel_timer(self) -> None:
        """The time limit is of no interest any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def answer(self, reply: Any) -> None:
        """Give the reply, or the outcome of a reply that comes later."""
        self.cancel_timer()
        if isinstance(reply, LoopFuture):
            reply.forward_to(self.future)
        else:
            self.future.set(reply)

    def fail(self, error: BaseException) -> None:
        """Give an exception for a reply."""
        self.cancel_timer()
        self.future.set_exception((type(error), error, None))


@attrs.define(eq=False)
class ParkedSend(_Waiting):
    """A send that waits for room."""

    send: Send = attrs.field(kw_only=True)


@attrs.define(eq=False)
class WaitingReceive(_Waiting):
    """A receiver that waits for a message."""

    command: Receive = attrs.field(kw_only=True)
