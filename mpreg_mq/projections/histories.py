"""Message histories: every event of a message, in order, for debugging and for tests."""

from __future__ import annotations

from itertools import pairwise

from mpreg_mq.events import types as e
from mpreg_mq.projections.base import Projection


class MessageHistories(Projection):
    """Events by message id. Grows with the log, so it is built on demand and never kept by a live queue."""

    def __init__(self) -> None:
        self._histories: dict[str, list[e.Event]] = {}

    def apply(self, event: e.Event) -> None:
        """Add the event to the history of each message it names."""
        one = getattr(event, "message_id", None)
        many = getattr(event, "message_ids", ())
        for message_id in (one, *many) if one is not None else many:
            self._histories.setdefault(message_id, []).append(event)

    def __len__(self) -> int:
        return len(self._histories)

    def of(self, message_id: str) -> list[e.Event]:
        """The events of this message, oldest first; empty for an unknown id."""
        return list(self._histories.get(message_id, ()))

    def ids(self) -> list[str]:
        """All message ids, in order of first mention."""
        return list(self._histories)

    def check(self) -> None:
        """Assert that every history begins with an acceptance and that time does not run back in it."""
        for message_id, events in self._histories.items():
            assert isinstance(events[0], e.MessageEnqueued | e.FireAndForgetSent), message_id
            assert all(before.at <= after.at for before, after in pairwise(events)), message_id
