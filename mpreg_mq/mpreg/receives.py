"""What ``mq.receive`` fetches: no more than an answer carries, and nothing that JSON cannot hold."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from mpreg_mq.actors import commands as c
from mpreg_mq.arguments import check_receive
from mpreg_mq.errors import MessageQueueError, PayloadError
from mpreg_mq.model import QueuedMessage
from mpreg_mq.mpreg.answers import MAX_ANSWER_BYTES, MESSAGE_BYTES, Answer, message_answer
from mpreg_mq.queue import MessageQueue

JSON_GROWTH = 6
"""How much longer a payload is at most in JSON than as it is stored: a control character is ``\\u0000`` there."""


async def fetch(
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
                _give_back(queue, subscriber, message, str(error), None)
                continue
            if fetched and size > room:
                _give_back(queue, subscriber, message, "it did not fit into the answer", 0.0)
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


def _give_back(
    queue: MessageQueue, subscriber: str, message: QueuedMessage, reason: str, delay_seconds: float | None
) -> None:
    """Give a message back as a failed attempt, after the backoff where the delay is None; nobody waits for that."""
    with contextlib.suppress(MessageQueueError):
        queue._actor.call(
            c.NegativeAcknowledge(message.id.id, subscriber, reason, delay_seconds, message.delivery_attempt)
        )
