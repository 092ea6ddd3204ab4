"""The end of a queue (C3): with time for running callbacks, or at once."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from typing import Any, Self

import pykka

from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.actors.messages import BeginClose, FinishClose
from mpreg_mq.actors.queue_actor import QueueActor
from mpreg_mq.actors.store import Store
from mpreg_mq.dead_letters import finish_redrives
from mpreg_mq.ending import Ending
from mpreg_mq.errors import QueueClosedError

_REASON = "the queue was shut down"


class ClosableQueue:
    """The part of :class:`~mpreg_mq.queue.MessageQueue` that closes it."""

    _actor: QueueActor
    _name: str
    _owns_log: bool
    _own_store: Store | None

    def _begin(self, actor: QueueActor, store: Store | None) -> None:
        self._actor = actor
        self._own_store = store
        self._name = actor.name
        self._closed = False
        self._ending = Ending()

    async def shutdown(self, timeout_seconds: float = 5.0) -> None:
        """Close (C3): no new sends, running callbacks get ``timeout_seconds``, leases end, everything is committed.

        It comes to its end although whoever waits for it is cancelled; calling it again waits for that. In a
        callback, which it gives its time, do not wait for it. The statistics can still be read.
        """
        self._closed = True
        await self._ending.reach(lambda: self._end(self._begin_to_close(), timeout_seconds))

    def _begin_to_close(self) -> Any:
        """Take no more messages, from now on; what is to be waited for, if anything."""
        with contextlib.suppress(QueueClosedError):
            return self._actor.call(BeginClose())

    async def _end(self, drained: Any, timeout_seconds: float) -> None:
        actor = self._actor
        try:
            # Where somebody has closed it at once meanwhile, that is done.
            with contextlib.suppress(QueueClosedError, pykka.ActorDeadError):
                if isinstance(drained, LoopFuture):
                    await actor.wait_at_most(drained, timeout_seconds)
                await finish_redrives(actor)
                finished = actor.call(FinishClose(_REASON))
                if isinstance(finished, LoopFuture):
                    await finished
                actor.stop()
            if self._own_store is not None:
                await asyncio.get_running_loop().run_in_executor(None, self._close_store)
        except asyncio.CancelledError:
            # Nobody but the end of the loop cancels it.
            self._end_now()
            raise

    def shutdown_sync(self) -> None:
        """Close without waiting for running callbacks; for programs without an event loop, and for the last resort.

        Calling it again does nothing.
        """
        self._closed = True
        self._ending.reach_now(self._end_now)

    def _end_now(self) -> None:
        try:
            self._actor.close_now(_REASON)
        finally:
            if self._own_store is not None:
                self._close_store()

    def _close_store(self) -> None:
        assert self._own_store is not None
        if self._owns_log:
            self._own_store.close()
        else:
            self._own_store.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    def __repr__(self) -> str:
        return f"<MessageQueue {self._name!r}{' closed' if self._closed else ''}>"

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or self._own_store is None or self._own_store.journal is None:
            return
        warnings.warn(
            f"{self!r} was not shut down; call shutdown() or use 'async with'",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )
