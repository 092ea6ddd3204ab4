"""Time series and distributions in bounded memory, whatever the length of the log."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs

MAX_BUCKETS = 120
"""Most points of a time series; where there are more, two at a time become one."""

FIRST_WIDTH_SECONDS = 0.001
PER_DECADE = 4
"""Coarser buckets that are drawn for a factor of ten."""

GROWTH = 1.02
"""Ratio of the bounds of a latency bucket: percentiles are within one per cent."""


@attrs.define
class Bucket:
    """What happened in one span of time; ``pending`` and ``leased`` are as they were at its end, and their maxima."""

    sent: int = 0
    finished: int = 0
    failed_attempts: int = 0
    refused: int = 0
    pending: int = 0
    leased: int = 0
    most_pending: int = 0
    seen: bool = False


@attrs.define
class TimeSeries:
    """Buckets of equal width from the first event on; the width doubles whenever there would be too many."""

    start: float | None = None
    width: float = FIRST_WIDTH_SECONDS
    buckets: list[Bucket] = attrs.field(factory=list)

    def at(self, moment: float) -> Bucket:
        """The bucket of a moment, which is never before the first one; amortised O(1)."""
        if self.start is None:
            self.start = moment
        index = int((moment - self.start) / self.width)
        while index >= MAX_BUCKETS:
            self._halve()
            index = int((moment - self.start) / self.width)
        while len(self.buckets) <= index:
            last = self.buckets[-1] if self.buckets else Bucket()
            # Until something happens the queue stays as it is.
            self.buckets.append(Bucket(pending=last.pending, leased=last.leased, most_pending=last.pending))
        return self.buckets[max(0, index)]

    def extend(self, moment: float) -> None:
        """Carry the last state on to a moment, so that series of several queues end together."""
        if self.start is not None and moment >= self.start:
            self.at(moment)

    def _halve(self) -> None:
        self.width *= 2
        pairs = range(0, len(self.buckets), 2)
        self.buckets = [_merged(self.buckets[number : number + 2]) for number in pairs]

    def times(self) -> Iterator[float]:
        """The moment at which each bucket begins."""
        start = self.start or 0.0
        return (start + number * self.width for number in range(len(self.buckets)))


def _merged(pair: list[Bucket]) -> Bucket:
    last = pair[-1]
    return Bucket(
        sum(bucket.sent for bucket in pair),
        sum(bucket.finished for bucket in pair),
        sum(bucket.failed_attempts for bucket in pair),
        sum(bucket.refused for bucket in pair),
        last.pending,
        last.leased,
        max(bucket.most_pending for bucket in pair),
        any(bucket.seen for bucket in pair),
    )


@attrs.define
class Distribution:
    """How long things took: counts by bucket of a geometric scale, so that memory does not grow with the counts."""

    counts: dict[int, int] = attrs.field(factory=dict)
    total: int = 0
    least: float = math.inf
    most: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one; O(1)."""
        seconds = max(seconds, 1e-6)
        bucket = math.floor(math.log(seconds) / math.log(GROWTH))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += 1
        self.least = min(self.least, seconds)
        self.most = max(self.most, seconds)

    def percentile(self, share: float) -> float:
        """The value below which this share lies, within one per cent; 0.0 where nothing was counted."""
        if not self.total:
            return 0.0
        wanted = share * self.total
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                middle = GROWTH ** (bucket + 0.5)
                return float(min(max(middle, self.least), self.most))
        return self.most

    def merge(self, other: Distribution) -> None:
        """Count what another one counted as well."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)

    def coarse(self, per_decade: int = PER_DECADE) -> list[tuple[float, float, int]]:
        """(from, to, count) of coarser buckets, without gaps, for drawing."""
        if not self.total:
            return []
        found: dict[int, int] = {}
        for bucket, count in self.counts.items():
            coarse = math.floor(math.log10(GROWTH ** (bucket + 0.5)) * per_decade)
            found[coarse] = found.get(coarse, 0) + count
        bounds = range(min(found), max(found) + 1)
        return [(10 ** (k / per_decade), 10 ** ((k + 1) / per_decade), found.get(k, 0)) for k in bounds]
