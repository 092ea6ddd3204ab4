"""Receives carried out for others, who may stop waiting at any moment: for clients, and for other nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from mpreg_mq._validation import describe
from mpreg_mq.actors import commands as c
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.latest import Latest
from mpreg_mq.queue import MessageQueue

Key = TypeVar("Key", bound=Hashable)
Received = TypeVar("Received")

Lease = tuple[str, int]
"""The id of a message and the number of its attempt. The message itself may be large, and acknowledged long since."""


class Receives(Generic[Key, Received]):
    """Receives by the key that whoever asks has given each: those that wait, and the latest of those that are over.

    Args:
        remembered: how many that are over are known, with what they leased; so are those withdrawn before they came.
        lease_of: the lease of something that was received.
    """

    def __init__(self, remembered: int, lease_of: Callable[[Received], Lease]) -> None:
        self._lease_of = lease_of
        self._waiting: dict[Key, asyncio.Task[list[Received]]] = {}
        self._over: Latest[Key, tuple[str, list[Lease]]] = Latest(remembered)

    async def fetch(
        self, key: Key | None, subscriber_id: str, fetching: Callable[[], Coroutine[Any, Any, list[Received]]]
    ) -> list[Received]:
        """What is fetched for a subscriber; nothing where it is withdrawn, or was answered under that key before.

        What has no key cannot be withdrawn.

        Raises:
            InvalidOptionError: one with that key waits.
            MessageQueueError: as ``fetching`` does.
        """
        if key is None:
            return await fetching()
        if key in self._waiting:
            raise InvalidOptionError(f"receive: got {describe(key)} while it waits, expected an id for each receive")
        if key in self._over:
            return []

        async def receive() -> list[Received]:
            received = await fetching()
            # Here, for whoever waits for this task may be cancelled before it hears of the end.
            self._over.note(key, (subscriber_id, [self._lease_of(one) for one in received]))
            return received

        waiting = self._waiting[key] = asyncio.get_running_loop().create_task(receive())
        try:
            await asyncio.wait([waiting])
        finally:
            waiting.cancel()
            del self._waiting[key]
        return [] if waiting.cancelled() else waiting.result()

    async def withdraw(self, key: Key, queue: MessageQueue) -> bool:
        """End a receive: one that waits fetches nothing, nor does one that is yet to come, and what was leased for one
        that is over is given back at once. Whether there was anything to end.

        Raises:
            QueueClosedError: the queue is closed.
        """
        waiting = self._waiting.get(key)
        if waiting is not None and waiting.cancel():
            await asyncio.wait([waiting])
            return True
        subscriber_id, leases = self._over.pop(key, ("", []))
        self._over.note(key, (subscriber_id, []))
        # All of them, also where nobody waits for the first any more.
        replies = [queue._actor.call(c.EndLease(one, subscriber_id, c.WITHDRAWN, attempt)) for one, attempt in leases]
        ended = [await reply if isinstance(reply, LoopFuture) else reply for reply in replies]
        return any(ended)
