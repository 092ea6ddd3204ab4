"""What routes count adds up, whatever happens to routes and queues meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import (
    DeliveryGuarantee,
    MessageQueueManager,
    OverflowPolicy,
    QueueConfiguration,
    TopicRouteStatistics,
    VirtualClock,
)
from tests.support.routes import counts_of

PATTERNS = ["t.#", "t.a", "t.*", "#"]
QUEUES = ["x", "y"]


@attrs.frozen
class Publish:
    """Publish so many messages, and let the loop turn so often after each."""

    topic: str
    count: int
    turns: int


@attrs.frozen
class AddRoute:
    """Make or change a route."""

    pattern: str
    queue: str
    policy: OverflowPolicy
    max_buffered: int
    guarantee: DeliveryGuarantee
    backlog: bool


@attrs.frozen
class RemoveRoute:
    """End a route."""

    pattern: str
    queue: str


@attrs.frozen
class DeleteQueue:
    """Delete a queue; a new one may be made with room for so few."""

    queue: str
    max_size: int | None


@attrs.frozen
class Consume:
    """Acknowledge what is in a queue, and let so much time pass."""

    queue: str
    seconds: float


Step = Publish | AddRoute | RemoveRoute | DeleteQueue | Consume

POLICIES = st.sampled_from([OverflowPolicy.REJECT, OverflowPolicy.WAIT, OverflowPolicy.DROP_OLDEST])
STEPS = st.one_of(
    st.builds(Publish, st.sampled_from(["t.a", "t.b", "u"]), st.integers(1, 6), st.integers(0, 3)),
    st.builds(
        AddRoute,
        st.sampled_from(PATTERNS),
        st.sampled_from(QUEUES),
        POLICIES,
        st.integers(1, 3),
        st.sampled_from([DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST]),
        st.booleans(),
    ),
    st.builds(RemoveRoute, st.sampled_from(PATTERNS), st.sampled_from(QUEUES)),
    st.builds(DeleteQueue, st.sampled_from(QUEUES), st.sampled_from([None, 1, 2])),
    st.builds(Consume, st.sampled_from(QUEUES), st.sampled_from([0.0, 2.0])),
)


async def take(manager: MessageQueueManager, step: Step, clock: VirtualClock) -> None:
    """Carry out a step of a story."""
    match step:
        case Publish(topic, count, turns):
            for number in range(count):
                await manager.publish_to_topic_exchange(topic, number)
                for _ in range(turns):
                    await asyncio.sleep(0)
        case AddRoute(pattern, queue, policy, most, guarantee, backlog):
            await manager.route_topic_to_queue(
                pattern,
                queue,
                guarantee,
                overflow_policy=policy,
                max_buffered=most,
                backlog_seconds=60 if backlog else None,
            )
        case RemoveRoute(pattern, queue):
            await manager.unroute_topic_from_queue(pattern, queue)
        case DeleteQueue(queue, max_size):
            await manager.delete_queue(queue)
            if max_size is not None:
                await manager.create_queue(queue, QueueConfiguration(queue, max_size=max_size))
        case Consume(queue, seconds):
            if queue in manager.queues:
                for one in await manager.receive_messages(queue, "s", 10):
                    await manager.acknowledge_message(queue, one.id, "s")
            await clock.advance(seconds)


def assert_balanced(counts: TopicRouteStatistics) -> None:
    """Everything that came is accounted for."""
    assert counts.buffered >= 0
    assert counts.received == (
        counts.routed
        + counts.duplicates
        + counts.refused
        + counts.dropped
        + counts.looped
        + counts.overlapping
        + counts.buffered
    ), counts


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@given(steps=st.lists(STEPS, max_size=25))
def test_what_a_route_received_is_accounted_for_at_every_moment(log: str, steps: list[Step]) -> None:
    """For all stories of publishing, routing, deleting and consuming: what each route received is the sum of what
    became of it, after every step and after the end, when nothing is buffered any more."""

    async def story(path: str) -> None:
        clock = VirtualClock()
        manager = MessageQueueManager(log=path, clock=clock)
        for step in steps:
            await take(manager, step, clock)
            for routing in manager.topic_routings:
                assert_balanced(counts_of(manager, routing.topic_pattern, routing.queue_name))
        await manager.shutdown()
        for routing in manager.topic_routings:
            counts = counts_of(manager, routing.topic_pattern, routing.queue_name)
            assert_balanced(counts)
            assert counts.buffered == 0

    with TemporaryDirectory() as directory:
        asyncio.run(story("memory:" if log == "memory" else str(Path(directory, "log.db"))))
