"""The deduplication window: which key belongs to which message, and until when (SEMANTICS U1)."""

from __future__ import annotations

from math import inf, nextafter
from typing import ClassVar

from sortedcontainers import SortedList

from mpreg_mq.events import types as e
from mpreg_mq.projections.base import Handled, Projection
from mpreg_mq.projections.dumps import DeduplicationDump


class DeduplicationWindow(Projection):
    """Keys held for the window after an accepted send.

    Lookup is one hash access; a send adds its key in O(log n) and drops the keys that ran out since, so the
    cost of a send does not grow with the number of keys.
    """

    HANDLED: ClassVar[Handled] = {
        e.QueueCreated: "_on_configured",
        e.QueueReconfigured: "_on_configured",
        e.MessageEnqueued: "_on_accepted",
        e.FireAndForgetSent: "_on_accepted",
        e.QueueDeleted: "_on_deleted",
    }

    __slots__ = (
        "_expiries",
        "_held",
        "_window_seconds",
    )

    def __init__(self) -> None:
        self._window_seconds = 0.0
        self._held: dict[str, tuple[float, str]] = {}
        self._expiries: SortedList[tuple[float, str]] = SortedList()

    def __len__(self) -> int:
        """Keys held, including those that ran out since the last accepted send with a key."""
        return len(self._held)

    def holder(self, key: str, now: float) -> str | None:
        """Id of the message that holds the key at ``now``, or None. O(1)."""
        held = self._held.get(key)
        return held[1] if held is not None and now < held[0] else None

    def live_count(self, now: float) -> int:
        """Keys that a send at ``now`` would still meet. O(log n)."""
        return len(self._expiries) - self._expiries.bisect_left((nextafter(now, inf), ""))

    def keys(self) -> dict[str, tuple[float, str]]:
        """A copy of what is held: key -> (end of its window, message id)."""
        return dict(self._held)

    def _on_configured(self, event: e.QueueCreated | e.QueueReconfigured) -> None:
        self._window_seconds = event.configuration.deduplication_window_seconds
        self._prune(event.at)

    def _on_accepted(self, event: e.MessageEnqueued | e.FireAndForgetSent) -> None:
        key = event.deduplication_key
        if key is None:
            return
        self._prune(event.at)
        held = self._held.get(key)
        if held is not None:
            self._expiries.remove((held[0], key))
        until = event.at + self._window_seconds
        self._held[key] = (until, event.message_id)
        self._expiries.add((until, key))

    def _on_deleted(self, event: e.QueueDeleted) -> None:
        self._held.clear()
        self._expiries.clear()

    def _prune(self, now: float) -> None:
        expiries = self._expiries
        while expiries and expiries[0][0] <= now:
            _, key = expiries.pop(0)
            del self._held[key]

    def dump(self) -> DeduplicationDump:
        """The keys as plain data; O(n)."""
        return DeduplicationDump(self._window_seconds, dict(self._held))

    def restore(self, dump: DeduplicationDump) -> None:
        """Hold the keys that were dumped."""
        self._window_seconds = dump.window_seconds
        self._held = dump.held
        self._expiries = SortedList((until, key) for key, (until, _) in dump.held.items())

    def check(self) -> None:
        """Assert that each held key has exactly one expiry."""
        assert len(self._expiries) == len(self._held)
        assert all(self._held[key][0] == until for until, key in self._expiries)
