"""Messages as commands answer them: in JSON, which cannot hold every payload, and in no more than MPREG transports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mpreg_mq.errors import PayloadError
from mpreg_mq.model import DeadLetter, QueuedMessage

Answer = dict[str, Any]

MAX_ANSWER_BYTES = 15 * 1024 * 1024
"""Most that the messages of one answer take: MPREG breaks a connection that is to carry more than 20 MiB at once."""

MESSAGE_BYTES = 2048
"""What surrounds a payload and its headers, at most."""

MAX_LEVELS = 200
"""Deepest payload of an answer: MPREG's JSON is refused from 255 levels on, and the answer has some of its own."""


def message_answer(message: QueuedMessage) -> tuple[Answer, int]:
    """A message for a client, and about how many bytes it takes.

    Raises:
        PayloadError: JSON cannot hold the payload, or no answer can carry it.
    """
    payload, size = _payload(message.payload)
    return _described(message, payload), size + _size(message.headers)


def dead_letter_answers(letters: Iterable[DeadLetter]) -> list[Answer]:
    """The first dead letters, as many as one answer carries.

    Where JSON cannot hold a payload, ``payload_error`` says why, and the payload is None.
    """
    answers: list[Answer] = []
    taken = 0
    for letter in letters:
        error = None
        try:
            payload, size = _payload(letter.message.payload)
        except PayloadError as unfit:
            payload, size, error = None, 0, str(unfit)
        taken += size + _size(letter.message.headers)
        if answers and taken > MAX_ANSWER_BYTES:
            break
        answers.append(
            {
                **_described(letter.message, payload),
                **({} if error is None else {"payload_error": error}),
                "failure_reason": letter.failure_reason,
                "last_error": letter.last_error,
                "attempts": letter.attempts,
                "subscriber_id": letter.subscriber_id,
                "dead_lettered_at": letter.dead_lettered_at,
            }
        )
    return answers


def _described(message: QueuedMessage, payload: Any) -> Answer:
    return {
        "id": str(message.id),
        "topic": message.topic,
        "payload": payload,
        "headers": message.headers,
        "guarantee": message.delivery_guarantee.value,
        "priority": message.priority,
        "created_at": message.created_at,
        "delivery_attempt": message.delivery_attempt,
        "lease_deadline": message.lease_deadline,
        "group_id": message.group_id,
        "deduplication_id": message.deduplication_id,
        "redriven_from": message.redriven_from,
    }


def _size(headers: dict[str, str]) -> int:
    """The bytes of what surrounds a payload."""
    return MESSAGE_BYTES + sum(len(name) + len(value) for name, value in headers.items())


def _payload(payload: Any) -> tuple[Any, int]:
    """A payload in what JSON has, and its size there."""
    try:
        plain = msgspec.to_builtins(payload, str_keys=True)
        encoded = msgspec.json.encode(plain)
    # It was sent by a program, which may send what msgspec makes of anything.
    except Exception as error:
        raise PayloadError(
            f"JSON cannot hold the payload: {error}; for clients of MPREG send dicts whose keys are strings or numbers"
        ) from error
    if len(encoded) > MAX_ANSWER_BYTES:
        raise PayloadError(
            f"the payload takes {len(encoded)} bytes in JSON, and an answer carries at most {MAX_ANSWER_BYTES}"
        )
    if encoded.count(b"[") + encoded.count(b"{") > MAX_LEVELS and _levels(plain) > MAX_LEVELS:
        raise PayloadError(
            f"the payload is nested more than {MAX_LEVELS} levels deep, and MPREG's JSON cannot hold that"
        )
    return plain, len(encoded)


def _levels(value: Any) -> int:
    """How deep lists and dicts are nested, looked at no deeper than is needed to know that it is too much."""
    levels, row = 0, [value]
    while row and levels <= MAX_LEVELS:
        nested = [one for one in row if isinstance(one, list | tuple | dict)]
        levels += bool(nested)
        row = [inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)]
    return levels
