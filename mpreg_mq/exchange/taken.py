"""Which published messages went into which queues, so that no backlog brings one in again."""

from __future__ import annotations

from mpreg_mq.latest import Latest

MOST_REMEMBERED = 10_000
"""The latest messages that are remembered: those that a backlog may still hold."""

NEVER = (False, 0)


class Taken:
    """The queues that took each of the latest messages; one that forgets in good time, and with its process."""

    def __init__(self) -> None:
        self._queues: Latest[str, dict[str, tuple[bool, int]]] = Latest(MOST_REMEMBERED)
        """By message and queue: whether it came from a backlog the last time, and how often it came."""

    def note(self, message_id: str, queue_name: str, *, of_backlog: bool) -> None:
        """A queue takes a message, as it was published or from a backlog; O(1)."""
        queues = self._queues.get(message_id)
        if queues is None:
            queues = {}
            self._queues.note(message_id, queues)
        queues[queue_name] = (of_backlog, queues.get(queue_name, NEVER)[1] + 1)

    def has(self, message_id: str, queue_name: str) -> bool:
        """Whether the queue has taken the message in any way."""
        return queue_name in self._queues.get(message_id, ())

    def has_of_backlog(self, message_id: str, queue_name: str) -> bool:
        """Whether the queue has taken the message from a backlog."""
        queues = self._queues.get(message_id)
        return queues is not None and queues.get(queue_name, NEVER)[0]

    def lost(self, message_id: str, queue_name: str) -> None:
        """The message was to go into the queue, and did not: another route may still bring it there; O(1)."""
        queues = self._queues.get(message_id, {})
        of_backlog, times = queues.pop(queue_name, NEVER)
        if times > 1:
            # Somebody published it twice, and the other one is there.
            queues[queue_name] = (of_backlog, times - 1)

    def forget(self, queue_name: str) -> None:
        """The queue is gone, and another one of its name has taken nothing; O(messages remembered)."""
        for queues in self._queues.values():
            queues.pop(queue_name, None)
