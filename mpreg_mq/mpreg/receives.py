"""What ``mq.receive`` fetches: no more than an answer carries, nothing that JSON cannot hold, and nothing for a client
that waits no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from mpreg_mq._validation import describe
from mpreg_mq.actors import commands as c
from mpreg_mq.arguments import check_receive
from mpreg_mq.errors import InvalidOptionError, MessageQueueError, PayloadError
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import QueuedMessage
from mpreg_mq.mpreg.answers import MAX_ANSWER_BYTES, MESSAGE_BYTES, Answer, message_answer
from mpreg_mq.queue import MessageQueue

MAX_REMEMBERED = 1_000
"""Most receives that are over and can still be cancelled."""

JSON_GROWTH = 6
"""How much longer a payload is at most in JSON than as it is stored: a control character is ``\\u0000`` there."""

Key = tuple[str, str, str]
Lease = tuple[str, int]
"""The id of a message and the number of its attempt. The message itself may be large, and acknowledged long since."""


class Receives:
    """The receives of clients, those that wait and those that were answered lately."""

    def __init__(self, manager: MessageQueueManager) -> None:
        self._manager = manager
        self._waiting: dict[Key, asyncio.Task[list[Answer]]] = {}
        self._over: OrderedDict[Key, tuple[Lease, ...]] = OrderedDict()

    async def fetch(
        self, queue_name: str, subscriber: str, receive_id: str | None, max_messages: Any, wait: float, **options: Any
    ) -> list[Answer]:
        """Fetch messages and lease them, as many as one answer carries; none where it was cancelled.

        Raises:
            QueueNotFoundError: there is no such queue.
            InvalidOptionError: ``receive_id`` is not one, or that of a receive that waits.
            MessageQueueError: as :meth:`MessageQueue.receive_messages`.
        """
        queue = self._manager.queue(queue_name)
        if receive_id is None:
            return [answer for _, answer in await _fetch(queue, subscriber, max_messages, wait, **options)]
        key = (queue_name, subscriber, _checked(receive_id))
        if key in self._waiting:
            raise InvalidOptionError(f"receive_id: got {describe(receive_id)} again, expected one for each receive")
        if key in self._over:
            return []

        async def receive() -> list[Answer]:
            fetched = await _fetch(queue, subscriber, max_messages, wait, **options)
            self._note(key, (_lease(message) for message, _ in fetched))
            return [answer for _, answer in fetched]

        receiving = self._waiting[key] = asyncio.get_running_loop().create_task(receive())
        try:
            return await receiving
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # The server gives the command up, and what it waits for has been cancelled with it.
                raise
            return []
        finally:
            del self._waiting[key]

    async def cancel(self, queue_name: str, subscriber: str, receive_id: str) -> bool:
        """End a receive: one that waits fetches nothing, nor does one that is yet to come, and what was leased for one
        that nobody has seen the answer of is given back at once. Whether there was anything to end."""
        key = (queue_name, subscriber, _checked(receive_id))
        receiving = self._waiting.get(key)
        if receiving is not None and not receiving.done():
            receiving.cancel()
            await asyncio.wait([receiving])
            return True
        leases = self._over.pop(key, ())
        self._note(key, ())
        queue = self._manager.queue(queue_name)
        for lease in leases:
            _give_back(queue, subscriber, lease, "the receive was cancelled", 0.0)
        return bool(leases)

    def _note(self, key: Key, leases: Iterable[Lease]) -> None:
        self._over[key] = tuple(leases)
        if len(self._over) > MAX_REMEMBERED:
            self._over.popitem(last=False)


def _checked(receive_id: Any) -> str:
    if not isinstance(receive_id, str) or not 0 < len(receive_id) <= 100:
        raise InvalidOptionError(f"receive_id: got {describe(receive_id)}, expected 1 to 100 characters")
    return receive_id


async def _fetch(
    queue: MessageQueue, subscriber: str, max_messages: Any, wait: float, **options: Any
) -> list[tuple[QueuedMessage, Answer]]:
    """Messages and what is answered of them; waits only for the first.

    No more are leased at a time than fit whatever is in them, because what is leased has had an attempt. Only where a
    queue has messages from before its limits were lowered, one may have to be given back.
    """
    check_receive(subscriber, max_messages, wait, options.get("visibility_timeout_seconds"))
    loop = asyncio.get_running_loop()
    ends = loop.time() + wait
    largest = MESSAGE_BYTES + JSON_GROWTH * (queue.config.max_payload_bytes + queue.config.max_headers_bytes)
    fetched: list[tuple[QueuedMessage, Answer]] = []
    room, tried = MAX_ANSWER_BYTES, 0
    while True:
        some = min(max_messages - len(fetched), max(1, room // largest))
        messages = await queue.receive_messages(subscriber, some, wait, **options)
        for message in messages:
            try:
                answer, size = message_answer(message)
            except PayloadError as error:
                _give_back(queue, subscriber, _lease(message), str(error), None)
                continue
            if fetched and size > room:
                _give_back(queue, subscriber, _lease(message), "it did not fit into the answer", 0.0)
                continue
            room -= size
            fetched.append((message, answer))
        if fetched:
            wait = 0.0
            if len(messages) < some or len(fetched) == max_messages or room < largest:
                return fetched
        else:
            # None was fit, and there may be others in the time that is left.
            await asyncio.sleep(0)
            tried += len(messages)
            wait = max(0.0, ends - loop.time())
            if not messages or (not wait and tried >= max_messages):
                return fetched


def _lease(message: QueuedMessage) -> Lease:
    return message.id.id, message.delivery_attempt


def _give_back(queue: MessageQueue, subscriber: str, lease: Lease, reason: str, delay_seconds: float | None) -> None:
    """Give a message back as a failed attempt, after the backoff where the delay is None; nobody waits for that."""
    message_id, attempt = lease
    with contextlib.suppress(MessageQueueError):
        queue._actor.call(c.NegativeAcknowledge(message_id, subscriber, reason, delay_seconds, attempt))
