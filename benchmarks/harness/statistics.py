"""What several rounds say together: the median, and how far they lie apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import attrs


@attrs.frozen
class Summary:
    """Median, least and greatest of some rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Of at least one value.

        Raises:
            ValueError: there is no value.
        """
        if not values:
            raise ValueError("Summary.of: got no values, expected at least one")
        return cls(statistics.median(values), min(values), max(values), len(values))

    @property
    def spread(self) -> float:
        """The distance of least and greatest as a share of the median; 0 where the median is."""
        return (self.high - self.low) / self.median if self.median else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed; O(n log n).

    Raises:
        ValueError: there is no value, or ``share`` is out of range.
    """
    if not values or not 0.0 < share <= 1.0:
        raise ValueError(f"percentile: got {len(values)} values, share {share}; expected some, and 0 < share <= 1")
    return sorted(values)[math.ceil(share * len(values)) - 1]
