"""Deliveries in a row are those that would be decided one by one; where something else comes first, a row ends.

``deliver_row`` compares each with what a dispatch decides, and the state after all of them with the fold one by one.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.actors import commands as c
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, QueueType
from tests.support.given import START, Scenario, named

BROADCAST = DeliveryGuarantee.BROADCAST


def with_messages(count: int, **configuration: object) -> Scenario:
    """A subscriber of everything, and so many messages."""
    q = Scenario(**configuration)
    # What is placed and what is not goes in rows of its own.
    q.left_alone = True
    q.subscribe("s")
    for _ in range(count):
        q.send()
    return q


def test_all_that_is_pending_goes_in_a_row() -> None:
    """Given messages for one subscriber, then all of them go in their order, each at the time when the one before was
    acknowledged."""
    q = with_messages(3, default_acknowledgment_timeout_seconds=10)
    subscription = q.state.subscribers.get("s").only_subscription  # type: ignore[union-attr]
    assert subscription is not None
    assert q.deliver_row(seconds_each=2.0) == [(named(number), "s") for number in (1, 2, 3)]
    q.then(
        e.MessageDelivered(START, named(1), "s", subscription, 1, START + 10),
        e.MessageAcknowledged(START + 2, named(1), "s", True),
        e.MessageDelivered(START + 2, named(2), "s", subscription, 1, START + 12),
        e.MessageAcknowledged(START + 4, named(2), "s", True),
        e.MessageDelivered(START + 4, named(3), "s", subscription, 1, START + 14),
        e.MessageAcknowledged(START + 6, named(3), "s", True),
    )
    assert q.dispatch() == []


def test_log_first_a_row_ends_before_what_is_not_stored() -> None:
    """Given a message whose event is not in the log yet, then the row ends before it."""
    q = with_messages(2)
    q.durable_version = q.state.version
    q.send()
    assert q.deliver_row() == [(named(1), "s"), (named(2), "s")]


def test_a_row_ends_where_something_is_due() -> None:
    """Given a delayed message that comes due while a callback runs, then the row ends after that callback."""
    q = Scenario(queue_type=QueueType.FIFO)
    q.subscribe("s")
    q.send(delay_seconds=3.0)
    for _ in range(3):
        q.send()
    assert q.deliver_row(seconds_each=2.0) == [(named(2), "s"), (named(3), "s")]


def test_o1_a_row_ends_where_another_lane_comes_in_between() -> None:
    """Given messages of two topics in turn, each for a subscriber of its own, then a row goes only as far as the first
    message of the other one."""
    q = Scenario()
    q.subscribe("a", "a")
    q.subscribe("b", "b")
    for topic in ("a", "a", "b", "a"):
        q.send(topic)
    assert q.deliver_row() == [(named(1), "a"), (named(2), "a")]
    assert q.deliver_row() == [(named(3), "b")]
    assert q.deliver_row() == [(named(4), "a")]


@pytest.mark.parametrize(
    "special", [{"priority": 1}, {"message_ttl_seconds": 9.0}, {"group_id": "g"}, {"max_retries": 0}]
)
def test_a_row_ends_before_a_message_with_options(special: dict[str, Any]) -> None:
    """Given a message that asks for something, then the row ends before it."""
    q = with_messages(1)
    q.send(**special)
    assert q.deliver_row() == [(named(1), "s")]
    assert q.deliver_row() == []


def test_g3_a_row_ends_before_a_message_with_an_audience() -> None:
    """Given a broadcast, then the row ends before it."""
    q = with_messages(1)
    q.send("t", BROADCAST)
    assert q.deliver_row() == [(named(1), "s")]
    assert q.deliver_row() == []


def test_r1_a_row_ends_before_a_second_attempt() -> None:
    """Given a message that comes back, then it is no part of a row."""
    q = with_messages(2)
    q.dispatch()
    q.fail(named(1), "s", 0.0)
    q.acknowledge(named(2), "s")
    q.send()
    assert q.deliver_row() == []


def test_t1_no_row_where_all_messages_have_a_ttl() -> None:
    """Given a queue whose messages expire, then nothing goes in a row."""
    assert with_messages(2, message_ttl_seconds=5.0).deliver_row() == []


def test_g2_no_row_for_several_takers() -> None:
    """Given two subscribers that take turns, then nothing goes in a row."""
    q = with_messages(2)
    q.subscribe("other")
    assert q.deliver_row() == []


def test_no_row_for_who_fetches() -> None:
    """Given a pull subscriber, then nothing is delivered to it without its asking."""
    q = Scenario()
    q.subscribe("s", pull=True)
    q.send()
    assert q.deliver_row() == []


def test_g6_no_row_for_a_subscriber_with_two_subscriptions() -> None:
    """Given a subscriber with two subscriptions, which of them gets a message is decided for each message."""
    q = with_messages(2)
    q.subscribe("s", "t")
    assert q.deliver_row() == []


def test_c2_no_row_for_who_has_as_many_as_it_may() -> None:
    """Given a subscriber with as many in flight as it may have, then nothing is delivered to it."""
    q = Scenario()
    q.subscribe("s", max_in_flight=1)
    q.send()
    q.dispatch()
    q.send()
    assert q.deliver_row() == []
    q.acknowledge(named(1), "s")
    assert q.deliver_row() == [(named(2), "s")]


def test_r3_no_row_through_a_circuit_that_is_not_closed() -> None:
    """Given a circuit that is half open, then one message tests it, and nothing goes in a row."""
    q = with_messages(1, circuit_breaker_failure_threshold=1, circuit_breaker_recovery_seconds=5)
    q.dispatch()
    q.fail(named(1), "s")
    q.send()
    q.advance(5.0)
    q.fail(named(2), "s", 0.0)
    assert q.deliver_row() == []


def test_no_row_while_the_queue_is_paused() -> None:
    """Given a paused queue, then nothing is delivered."""
    q = with_messages(2)
    q.when(c.Pause())
    assert q.deliver_row() == []


SENDS = st.sampled_from(["a", "a", "a", "b", "c", "broadcast", "delayed", "urgent"])


@given(
    queue_type=st.sampled_from(QueueType),
    patterns=st.lists(st.sampled_from(["#", "a", "b", "*"]), min_size=1, max_size=3),
    steps=st.lists(st.one_of(SENDS, st.sampled_from(["row", "dispatch", "acknowledge", "fail", "wait"])), max_size=20),
    seconds_each=st.sampled_from([0.0, 1.5]),
)
def test_whatever_else_happens_rows_are_what_would_be_decided_one_by_one(
    queue_type: QueueType, patterns: list[str], steps: list[str], seconds_each: float
) -> None:
    """For all queues and stories: deliveries in a row are those that dispatches would decide, in their order, and they
    come to the same state."""
    q = Scenario(queue_type=queue_type, circuit_breaker_failure_threshold=2, circuit_breaker_recovery_seconds=2)
    for number, pattern in enumerate(patterns):
        q.subscribe(f"s{number}", pattern, max_in_flight=2)
    for step in [*steps, "row", "row"]:
        match step:
            case "row":
                q.deliver_row(seconds_each=seconds_each)
            case "dispatch":
                q.dispatch()
            case "acknowledge" | "fail":
                for message, name in q.leases()[:1]:
                    if step == "fail":
                        q.fail(message, name, 1.0)
                    else:
                        q.acknowledge(message, name)
            case "wait":
                q.advance(1.0)
            case "broadcast":
                q.send("a", BROADCAST)
            case "delayed":
                q.send("a", delay_seconds=2.0)
            case "urgent":
                q.send("a", priority=9)
            case topic:
                q.send(topic)
