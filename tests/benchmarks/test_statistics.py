"""Medians, spreads and percentiles of rounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.statistics import Summary, percentile

VALUES = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=40)


def test_a_summary_is_median_least_and_greatest() -> None:
    """Given rounds with an outlier, then the median ignores it and the spread shows it."""
    summary = Summary.of([10.0, 11.0, 12.0, 100.0, 9.0])
    assert summary == Summary(11.0, 9.0, 100.0, 5)
    assert summary.spread == pytest.approx(91 / 11)


def test_the_spread_of_nothing_but_zeros_is_zero() -> None:
    """Given a median of zero, then the spread is zero instead of an error."""
    assert Summary.of([0.0, 0.0]).spread == 0.0


def test_a_summary_needs_a_value() -> None:
    """Given no rounds, when they are summed up, then it is refused."""
    with pytest.raises(ValueError, match="expected at least one"):
        Summary.of([])


@given(VALUES, st.floats(0.01, 1.0))
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    """Given any values and share, then so many are at or below the percentile, and fewer are below it."""
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_a_percentile_of_nothing_or_beyond_is_refused(values: list[float], share: float) -> None:
    """Given no values or an impossible share, then it is refused."""
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)
