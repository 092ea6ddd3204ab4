"""Receives that an owner carries out for others, which may stop waiting at any moment."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from mpreg_mq.actors import commands as c
from mpreg_mq.model import QueuedMessage
from mpreg_mq.queue import MessageQueue

T = TypeVar("T")

REMEMBERED = 200
"""Of how many of the latest receives it is known what they leased, and of how many that they were withdrawn."""


class Receives:
    """The receives of one queue by the id that whoever asks has given them."""

    def __init__(self, queue: MessageQueue) -> None:
        self._queue = queue
        self._waiting: dict[str, asyncio.Task[list[QueuedMessage]]] = {}
        self._leased: dict[str, tuple[str, list[tuple[str, int]]]] = {}
        self._withdrawn: dict[str, None] = {}

    async def fetch(self, request_id: str, command: c.Receive) -> list[QueuedMessage]:
        """Lease messages; none where nobody waits for them any more."""
        if not request_id:
            return await self._queue._fetch(command)
        if request_id in self._withdrawn:
            return []
        waiting = asyncio.get_running_loop().create_task(self._queue._fetch(command))
        self._waiting[request_id] = waiting
        try:
            await asyncio.wait([waiting])
        finally:
            waiting.cancel()
            del self._waiting[request_id]
        if waiting.cancelled():
            return []
        messages = waiting.result()
        if messages:
            leases = [(message.id.id, message.delivery_attempt) for message in messages]
            _remember(self._leased, request_id, (command.subscriber_id, leases))
        if request_id in self._withdrawn:
            self._give_back(request_id)
            return []
        return messages

    def withdraw(self, request_id: str) -> bool:
        """Nobody waits for it, or will when it comes; whether leases ended with that."""
        waiting = self._waiting.get(request_id)
        if waiting is None or not waiting.cancel():
            _remember(self._withdrawn, request_id, None)
        return self._give_back(request_id)

    def _give_back(self, request_id: str) -> bool:
        subscriber_id, leases = self._leased.pop(request_id, ("", []))
        actor = self._queue._actor
        ended = False
        for message_id, attempt in leases:
            message = actor.state.messages.get(message_id)
            slot = None if message is None else message.slot_for(subscriber_id)
            if slot is not None and slot.attempts == attempt:
                ended = actor.call_now(c.EndLease(message_id, subscriber_id, "the receiver was cancelled")) or ended
        return ended


def _remember(known: dict[str, T], request_id: str, what: T) -> None:
    known[request_id] = what
    if len(known) > REMEMBERED:
        del known[next(iter(known))]
