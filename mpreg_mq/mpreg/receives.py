"""What ``mq.receive`` fetches: no more than an answer carries, nothing that JSON cannot hold, and nothing for a client
that waits no more."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

from mpreg_mq._validation import describe
from mpreg_mq.actors import commands as c
from mpreg_mq.arguments import check_receive
from mpreg_mq.errors import InvalidOptionError, MessageQueueError, PayloadError
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import QueuedMessage
from mpreg_mq.mpreg.answers import MAX_ANSWER_BYTES, MESSAGE_BYTES, Answer, message_answer
from mpreg_mq.queue import MessageQueue
from mpreg_mq.receives import Lease, Receives

MAX_REMEMBERED = 1_000
"""Most receives that are over and can still be cancelled."""

JSON_GROWTH = 6
"""How much longer a payload is at most in JSON than as it is stored: a control character is ``\\u0000`` there."""


class ClientReceives:
    """The receives of clients, which they can cancel by the ids that they chose for them."""

    def __init__(self, manager: MessageQueueManager) -> None:
        self._manager = manager
        self._receives: Receives[tuple[str, str, str], Answer] = Receives(MAX_REMEMBERED, _lease_of)

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
        key = None if receive_id is None else (queue_name, subscriber, _checked(receive_id))
        return await self._receives.fetch(
            key, subscriber, partial(_fetch, queue, subscriber, max_messages, wait, **options)
        )

    async def cancel(self, queue_name: str, subscriber: str, receive_id: str) -> bool:
        """End a receive, as :meth:`Receives.withdraw`; whether there was anything to end.

        Raises:
            QueueNotFoundError: there is no such queue.
            InvalidOptionError: ``receive_id`` is not one.
        """
        queue = self._manager.queue(queue_name)
        return await self._receives.withdraw((queue_name, subscriber, _checked(receive_id)), queue)


def _checked(receive_id: Any) -> str:
    if not isinstance(receive_id, str) or not 0 < len(receive_id) <= 100:
        raise InvalidOptionError(f"receive_id: got {describe(receive_id)}, expected 1 to 100 characters")
    return receive_id


async def _fetch(queue: MessageQueue, subscriber: str, max_messages: Any, wait: float, **options: Any) -> list[Answer]:
    """What is answered of messages; waits only for the first.

    No more are leased at a time than fit whatever is in them, because what is leased has had an attempt. Only where a
    queue has messages from before its limits were lowered, one may have to be given back.
    """
    check_receive(subscriber, max_messages, wait, options.get("visibility_timeout_seconds"))
    loop = asyncio.get_running_loop()
    ends = loop.time() + wait
    largest = MESSAGE_BYTES + JSON_GROWTH * (queue.config.max_payload_bytes + queue.config.max_headers_bytes)
    fetched: list[Answer] = []
    room, tried = MAX_ANSWER_BYTES, 0
    while True:
        some = min(max_messages - len(fetched), max(1, room // largest))
        messages = await queue.receive_messages(subscriber, some, wait, **options)
        for message in messages:
            try:
                answer, size = message_answer(message)
            except PayloadError as error:
                _give_back(queue, subscriber, message, str(error), None)
                continue
            if fetched and size > room:
                _give_back(queue, subscriber, message, "it did not fit into the answer", 0.0)
                continue
            room -= size
            fetched.append(answer)
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


def _lease_of(answer: Answer) -> Lease:
    return answer["id"], answer["delivery_attempt"]


def _give_back(
    queue: MessageQueue, subscriber: str, message: QueuedMessage, reason: str, delay_seconds: float | None
) -> None:
    """Give a message back as a failed attempt, after the backoff where the delay is None; nobody waits for that."""
    command = c.NegativeAcknowledge(message.id.id, subscriber, reason, delay_seconds, message.delivery_attempt)
    with contextlib.suppress(MessageQueueError):
        queue._actor.call(command)
