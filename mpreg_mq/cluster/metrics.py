"""What a node counts about itself."""

from __future__ import annotations

from bisect import bisect_left

import attrs

BOUNDS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@attrs.define
class Histogram:
    """Durations, counted in buckets up to each of :data:`BOUNDS_SECONDS` and one above."""

    buckets: list[int] = attrs.field(factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    count: int = 0
    total_seconds: float = 0.0
    longest_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; O(log buckets)."""
        self.buckets[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.count += 1
        self.total_seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)

    def quantile(self, share: float) -> float:
        """A duration that at least this share of all did not exceed, as exact as the buckets; 0.0 without any."""
        wanted, seen = share * self.count, 0
        for bound, count in zip((*BOUNDS_SECONDS, self.longest_seconds), self.buckets, strict=True):
            seen += count
            if count and seen >= wanted:
                return min(bound, self.longest_seconds)
        return 0.0


@attrs.define
class ClusterMetrics:
    """Counters since the node started, and gauges of this moment.

    ``replay_lag_events`` are those that queues being taken over still have to replay. ``failovers`` are queues taken
    over from a node that had lost its lease, ``ownerships_lost`` those that the servers refused further appends for.
    """

    queues_acquired: int = 0
    failovers: int = 0
    queues_released: int = 0
    ownerships_lost: int = 0
    reopened_after_errors: int = 0
    requests_served: int = 0
    requests_forwarded: int = 0
    requests_tried_again: int = 0
    replay_lag_events: int = 0
    events_replayed: int = 0
    last_takeover_seconds: float = 0.0
    appends: Histogram = attrs.field(factory=Histogram)

    def snapshot(self, lease_age_seconds: float, owned_queues: int) -> dict[str, float]:
        """All numbers by name, for monitoring."""
        numbers: dict[str, float] = {
            name: value for name, value in attrs.asdict(self, recurse=False).items() if isinstance(value, int | float)
        }
        return {
            "lease_age_seconds": lease_age_seconds,
            "owned_queues": owned_queues,
            **numbers,
            "appends": self.appends.count,
            "append_seconds_total": self.appends.total_seconds,
            "append_seconds_p50": self.appends.quantile(0.5),
            "append_seconds_p99": self.appends.quantile(0.99),
            "append_seconds_longest": self.appends.longest_seconds,
        }
