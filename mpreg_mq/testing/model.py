"""A queue as one would explain it: a list of messages, each with a state. The obvious model of :class:`QueueMachine`.

It knows at-least-once messages that are fetched, on a FIFO queue without jitter, and says exactly what must happen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Any

import attrs

from mpreg_mq.configuration import QueueConfiguration


@attrs.define
class ModelMessage:
    """What became of a message; ``holder`` had it last, until ``deadline`` while ``state`` is "held"."""

    id: str
    topic: str
    payload: Any
    max_attempts: int
    due_at: float
    expires_at: float
    group_id: str | None = None
    state: str = "pending"
    attempts: int = 0
    holder: str | None = None
    deadline: float = inf

    @property
    def held(self) -> bool:
        """Whether somebody has it."""
        return self.state == "held"

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ("done", "dead", "failed", "expired")


class QueueModel:
    """The messages in the order in which they were accepted."""

    def __init__(self, configuration: QueueConfiguration) -> None:
        self.configuration = configuration
        self.messages: list[ModelMessage] = []

    def accept(self, message: ModelMessage) -> None:
        """A send was accepted."""
        self.messages.append(message)

    def get(self, message_id: str) -> ModelMessage | None:
        """The message of this id."""
        return next((message for message in self.messages if message.id == message_id), None)

    def moments(self) -> Iterator[float]:
        """When something is due for a message that is not over."""
        for message in self.messages:
            if not message.finished:
                yield from (message.due_at, message.expires_at, message.deadline)

    def advance(self, now: float) -> None:
        """Time has passed: leases run out, and what was not delivered in time expires."""
        for message in self.messages:
            while message.held and message.deadline <= now:
                self.fail(message, message.deadline, self.backoff(message.attempts))
            if message.state == "pending" and message.expires_at <= now:
                message.state = "expired"

    def backoff(self, attempts: int) -> float:
        """Seconds before the next attempt (R2), without jitter."""
        configuration = self.configuration
        grown = configuration.retry_backoff_seconds * configuration.retry_backoff_multiplier ** (attempts - 1)
        return min(grown, configuration.retry_backoff_max_seconds)

    def fail(self, message: ModelMessage, at: float, delay: float) -> None:
        """An attempt failed: the message waits for the next, or is dead, or failed without a letter (R1, D1)."""
        message.deadline = inf
        given_up = "dead" if self.configuration.enable_dead_letter_queue else "failed"
        message.state = "pending" if message.attempts < message.max_attempts else given_up
        message.due_at = at + delay

    def available(self, now: float) -> list[ModelMessage]:
        """What somebody who fetches now gets, in order (O1): a group's first message holds the others back."""
        blocked: set[str] = set()
        found = []
        for message in self.messages:
            if message.finished or (message.group_id is not None and message.group_id in blocked):
                continue
            if message.group_id is not None:
                blocked.add(message.group_id)
            if message.state == "pending" and message.due_at <= now:
                found.append(message)
        return found

    def take(self, messages: Iterable[ModelMessage], name: str, now: float, seconds: float) -> None:
        """These were given to a receiver (L1)."""
        for message in messages:
            message.state, message.holder = "held", name
            message.attempts += 1
            message.deadline = now + seconds

    def acknowledges(self, message: ModelMessage, name: str) -> bool:
        """Whether an acknowledgment counts (L2): from the latest holder, also after its lease ran out."""
        if message.finished or message.holder != name:
            return False
        message.state = "done"
        return True

    def in_state(self, *states: str) -> list[str]:
        """Ids of the messages in these states, in order of acceptance."""
        return [message.id for message in self.messages if message.state in states]
