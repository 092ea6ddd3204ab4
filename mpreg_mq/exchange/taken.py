"""Which published messages went into which queues, so that no backlog brings one in again."""

from __future__ import annotations

from typing import Any, NamedTuple

from mpreg_mq.exchange.routes import RouteKey
from mpreg_mq.latest import Latest

MOST_REMEMBERED = 10_000
"""The latest messages that are remembered: those that a backlog may still hold."""


class _Taking(NamedTuple):
    """How a queue has taken a message, the last time."""

    times: int = 0
    """How often it has."""
    of_backlog: bool = False
    route: RouteKey = ("", "")
    topic: str = ""
    timestamp: Any = None
    """With the topic, for publishers that give several messages the same id."""


_NEVER = _Taking()


class Taken:
    """The queues that took each of the latest messages; one that forgets in good time, and with its process."""

    def __init__(self) -> None:
        self._queues: Latest[str, dict[str, _Taking]] = Latest(MOST_REMEMBERED)

    def note(self, message: Any, route: RouteKey, *, of_backlog: bool) -> None:
        """The queue of a route takes a message by it, as it was published or from a backlog; O(1)."""
        message_id, (_, queue_name) = str(message.message_id), route
        queues = self._queues.get(message_id)
        if queues is None:
            queues = {}
            self._queues.note(message_id, queues)
        times = queues.get(queue_name, _NEVER).times + 1
        queues[queue_name] = _Taking(times, of_backlog, route, message.topic, message.timestamp)

    def has(self, message_id: str, queue_name: str) -> bool:
        """Whether the queue has taken the message in any way."""
        return queue_name in self._queues.get(message_id, ())

    def has_otherwise(self, message: Any, route: RouteKey) -> bool:
        """Whether the queue of a route has taken the message from a backlog, or as published by another route."""
        queues = self._queues.get(str(message.message_id))
        taking = None if queues is None else queues.get(route[1])
        if taking is None:
            return False
        same = taking.topic == message.topic and taking.timestamp == message.timestamp
        return taking.of_backlog or (same and taking.route != route)

    def lost(self, message_id: str, queue_name: str) -> None:
        """The message was to go into the queue, and did not: another route may still bring it there; O(1)."""
        queues = self._queues.get(message_id, {})
        taking = queues.pop(queue_name, _NEVER)
        if taking.times > 1:
            # Somebody published it twice, and the other one is there.
            queues[queue_name] = taking._replace(times=taking.times - 1)

    def forget(self, queue_name: str) -> None:
        """The queue is gone, and another one of its name has taken nothing; O(messages remembered)."""
        for queues in self._queues.values():
            queues.pop(queue_name, None)
