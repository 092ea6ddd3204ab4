"""Helpers for the tests of topic routes."""

from __future__ import annotations

from hypothesis import strategies as st

from mpreg_mq import MessageQueueManager, QueuedMessage, TopicRouteStatistics
from tests.support.running import until

TOPICS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=4).map(".".join)


def pending(manager: MessageQueueManager, name: str = "q") -> list[QueuedMessage]:
    """The messages of a queue that nobody fetched."""
    return manager.queue(name).pending_messages


async def settled(manager: MessageQueueManager) -> None:
    """Nothing waits in a feed any more."""
    await until(
        lambda: all(
            not counts.buffered
            for routing in manager.topic_routings
            if (counts := manager.get_route_statistics(routing.topic_pattern, routing.queue_name)) is not None
        )
    )


def counts_of(manager: MessageQueueManager, topic_pattern: str, name: str = "q") -> TopicRouteStatistics:
    """The counts of a route that is there."""
    counts = manager.get_route_statistics(topic_pattern, name)
    assert counts is not None
    return counts
