"""The end of a simulated process: nothing of it runs, writes or warns any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import pykka

from mpreg_mq.queue import MessageQueue
from mpreg_mq.testing.disk import SimulatedLog
from mpreg_mq.testing.loop import SimulatedLoop


def running_actors() -> frozenset[str]:
    """The actors there are now, for :func:`crash` to leave alone."""
    return frozenset(ref.actor_urn for ref in pykka.ActorRegistry.get_all())


def crash(
    loop: SimulatedLoop,
    log: SimulatedLog,
    queues: Iterable[MessageQueue],
    before: frozenset[str],
    unstarted: Iterable[Any] = (),
) -> None:
    """End a process between two of its steps.

    Args:
        loop: its loop, which runs nothing after this.
        log: its log, which writes nothing after this: what was only submitted is lost.
        queues: its queues, which nobody will shut down.
        before: the actors that are not its own.
        unstarted: coroutines that may not have begun, and must not.
    """
    log.crash()
    tasks = asyncio.all_tasks(loop)
    loop.close()
    for task in tasks:
        coroutine: Any = task.get_coro()
        # One that gives a lock back has nobody to tell of it.
        with contextlib.suppress(RuntimeError):
            coroutine.close()
    for coroutine in unstarted:
        coroutine.close()
    for queue in queues:
        queue._closed = True
    for ref in pykka.ActorRegistry.get_all():
        if ref.actor_urn not in before:
            pykka.ActorRegistry.unregister(ref)
