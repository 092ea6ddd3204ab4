"""The nearest pattern, and why it does not match."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.replay.patterns import distance, mismatch, nearest
from mpreg_mq.topics import matches

LEVELS = st.sampled_from(["a", "b", "order", "*", "#"])
PATTERNS = st.lists(LEVELS, min_size=1, max_size=4).map(".".join)
TOPICS = st.lists(st.sampled_from(["a", "b", "order"]), min_size=1, max_size=4).map(".".join)


@given(PATTERNS, TOPICS)
def test_the_distance_is_zero_where_the_pattern_matches_and_only_there(pattern: str, topic: str) -> None:
    """For any pattern and topic, G6 decides whether the distance is zero."""
    assert (distance(pattern, topic) == 0.0) is matches(pattern, topic)


@pytest.mark.parametrize(
    ("patterns", "topic", "found"),
    [
        (["order.*", "invoice.#"], "order.eu.new", "order.*"),
        (["ordre.new", "payment.new"], "order.new", "ordre.new"),
        (["a.b.c", "a.b.*.*"], "a.b.d", "a.b.*.*"),
        ([], "a", None),
    ],
)
def test_the_nearest_would_have_to_change_least(patterns: list[str], topic: str, found: str | None) -> None:
    """Given patterns, then the one that a person would have meant is the nearest."""
    assert nearest(patterns, topic) == found


@pytest.mark.parametrize(
    ("pattern", "topic", "words"),
    [
        ("order.*", "order.eu.new", "it has 2 levels, the topic has 3; '*' is exactly one, order.# would match"),
        ("order.new.*", "order.eu.new.x", "it has 3 levels, the topic has 4"),
        ("a", "a.b", "it has 1 level, the topic has 2"),
        ("order.us.*", "order.eu.new", "it wants 'us' as level 2, the topic has 'eu'"),
        ("order.#.paid", "order.eu.new", "no way to read '#' makes it order.eu.new"),
        ("#", "a", "it matches"),
    ],
)
def test_a_mismatch_is_told_in_words(pattern: str, topic: str, words: str) -> None:
    """Given a pattern that does not match, then it is said where they part."""
    assert mismatch(pattern, topic) == words
