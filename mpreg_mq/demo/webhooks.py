"""Your own messages: each line of a file goes through a queue whose subscribers are chosen by topic pattern."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import attrs

from mpreg_mq import topics
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.demo.orders import Advance, drained
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import DeliveryGuarantee, OverflowPolicy, QueuedMessage

MAX_PATTERNS = 50

CHUNK = 64
"""Messages sent at the same time, so that they share commits."""


@attrs.frozen
class Line:
    """One message of the input."""

    topic: str
    payload: Any


class InputError(MessageQueueError, ValueError):
    """The input file cannot be used; the message names the line."""


def read_lines(path: Path) -> list[Line]:
    """The messages of a JSON-lines file of ``{"topic": ..., "payload": ...}``; blank lines are passed over.

    Raises:
        InputError: a line is not of that form, or there is none.
        OSError: the file cannot be read.
    """
    lines: list[Line] = []
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                entry = json.loads(text)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(entry, dict) or "topic" not in entry or "payload" not in entry:
                raise InputError(f'{path}, line {number}: expected an object with "topic" and "payload"')
            problem = topics.topic_problem(entry["topic"])
            if problem is not None:
                raise InputError(f"{path}, line {number}: {problem}")
            lines.append(Line(entry["topic"], entry["payload"]))
    if not lines:
        raise InputError(f"{path}: no messages in it; expected one JSON object a line")
    return lines


def patterns_for(lines: list[Line]) -> list[str]:
    """``#``, and ``a.b.#`` for the most frequent first two levels."""
    levels = Counter(".".join(line.topic.split(".")[:2]) for line in lines)
    return ["#", *(f"{prefix}.#" for prefix, _ in levels.most_common(MAX_PATTERNS))]


async def process_lines(
    manager: MessageQueueManager, lines: list[Line], messages: int, advance: Advance
) -> dict[str, Any]:
    """Broadcast messages to a subscriber for each pattern; counts per pattern, and whether a naive matcher agrees."""
    name = "input"
    await manager.create_queue(
        name,
        QueueConfiguration(
            name, max_payload_bytes=1 << 24, overflow_policy=OverflowPolicy.WAIT, overflow_wait_seconds=60.0
        ),
    )
    received: Counter[str] = Counter()

    def counter(pattern: str) -> Any:
        def count(message: QueuedMessage) -> None:
            received[pattern] += 1

        return count

    patterns = patterns_for(lines)
    for pattern in patterns:
        manager.subscribe_to_queue(name, pattern, pattern, callback=counter(pattern))
    expected: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    refused: list[str] = []
    endless = islice(cycle(lines), messages)
    while chunk := list(islice(endless, CHUNK)):
        sends = (manager.send_message(name, line.topic, line.payload, DeliveryGuarantee.BROADCAST) for line in chunk)
        for line, result in zip(chunk, await asyncio.gather(*sends), strict=True):
            if result.success:
                sent[line.topic] += 1
            else:
                refused.append(str(result.error_message))
        advance(len(chunk))
    await drained(manager, name)
    for topic, count in sent.items():
        for pattern in patterns:
            if topics.matches(pattern, topic):
                expected[pattern] += count
    return {
        "messages": sum(sent.values()),
        "refused": refused,
        "topics": len(sent),
        "deliveries": sum(received.values()),
        "per_pattern": dict(received.most_common()),
        "matches_naive": received == expected,
    }
