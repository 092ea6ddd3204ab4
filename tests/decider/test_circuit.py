"""Circuit breakers, as SEMANTICS R3 has them."""

from __future__ import annotations

from mpreg_mq.actors import commands as c
from mpreg_mq.events import types as e
from mpreg_mq.model import CircuitState
from tests.support.given import Scenario


def test_r3_the_circuit_opens_after_failures_in_a_row_and_uses_up_no_attempts() -> None:
    """Given a threshold of two, then it opens at the second failure, messages wait, and one probe closes it."""
    q = Scenario(
        circuit_breaker_failure_threshold=2,
        circuit_breaker_recovery_seconds=30,
        retry_backoff_seconds=0,
        max_retries=9,
    )
    q.subscribe("s")
    first, second, third = q.send(), q.send(), q.send()
    q.dispatch()
    q.fail(first, "s")
    q.fail(second, "s")
    assert "CircuitOpened" in q.kinds()
    q.fail(third, "s")
    assert "CircuitOpened" not in q.kinds()
    assert q.advance(29) == []
    assert q.advance(1) == [(first, "s")]
    assert "CircuitHalfOpened" in q.kinds()
    q.acknowledge(first, "s")
    assert q.kinds() == ["MessageAcknowledged", "CircuitClosed"]
    assert q.dispatch() == [(second, "s"), (third, "s")]
    assert [event.attempt for event in q.events_of(e.MessageDelivered)] == [1, 1, 1, 2, 2, 2]


def test_r3_a_failed_probe_opens_it_again() -> None:
    """Given a half-open circuit, when the probe fails, then it is open for another recovery time."""
    q = Scenario(circuit_breaker_failure_threshold=1, circuit_breaker_recovery_seconds=10, retry_backoff_seconds=0)
    q.subscribe("s")
    message = q.send()
    q.dispatch()
    q.fail(message, "s")
    assert q.advance(10) == [(message, "s")]
    q.fail(message, "s")
    assert "CircuitOpened" in q.kinds()
    assert q.advance(9) == []
    assert q.advance(1) == [(message, "s")]


def test_r3_a_probe_that_is_purged_makes_way_for_another() -> None:
    """Given a half-open circuit whose probe is purged, then another message may probe."""
    q = Scenario(circuit_breaker_failure_threshold=1, circuit_breaker_recovery_seconds=10, retry_backoff_seconds=0)
    q.subscribe("s")
    q.send()
    q.dispatch()
    q.fail("1-r", "s")
    q.advance(10)
    q.when(c.Purge())
    message = q.send()
    assert q.dispatch() == [(message, "s")]


def test_r3_messages_go_to_other_subscribers_meanwhile() -> None:
    """Given an open circuit, then the other subscriber gets what comes."""
    q = Scenario(circuit_breaker_failure_threshold=1, retry_backoff_seconds=0)
    q.subscribe("bad")
    message = q.send()
    q.dispatch()
    q.subscribe("good")
    q.fail(message, "bad")
    assert q.dispatch() == [(message, "good")]


def test_r3_success_starts_the_count_anew_and_leaving_resets_it() -> None:
    """Given a failure, then a success or a new subscription starts from nothing, and no timer is left behind."""
    q = Scenario(circuit_breaker_failure_threshold=2, retry_backoff_seconds=0, max_retries=9)
    subscription = q.subscribe("s")
    first, second = q.send(), q.send()
    q.dispatch()
    q.fail(first, "s")
    q.acknowledge(second, "s")
    q.dispatch()
    q.fail(first, "s")
    assert "CircuitOpened" not in q.kinds()
    q.dispatch()
    q.fail(first, "s")
    assert "CircuitOpened" in q.kinds()
    q.when(c.Unsubscribe(subscription))
    q.subscribe("s")
    subscriber = q.state.subscribers.get("s")
    assert subscriber is not None
    assert subscriber.circuit is CircuitState.CLOSED
    assert q.dispatch() == [(first, "s")]


def test_r3_a_receiver_with_a_half_open_circuit_gets_one_message() -> None:
    """Given a pull subscriber whose circuit is half open, then it may fetch one message, and none while open."""
    q = Scenario(circuit_breaker_failure_threshold=1, circuit_breaker_recovery_seconds=10)
    q.subscribe("p", pull=True)
    first, _ = q.send(), q.send()
    q.when(c.Receive("p"))
    q.fail(first, "p", 0.0)
    assert q.when(c.Receive("p", 9)).reply == []
    q.advance(10)
    assert q.when(c.Receive("p", 9)).reply == [first]


def test_r3_a_failure_of_somebody_who_left_opens_nothing() -> None:
    """Given a subscriber that left while it had a message, when its lease runs out, then no circuit opens."""
    q = Scenario(circuit_breaker_failure_threshold=1, default_acknowledgment_timeout_seconds=5)
    subscription = q.subscribe("s")
    q.send()
    q.dispatch()
    q.when(c.Unsubscribe(subscription))
    q.advance(5)
    assert q.events_of(e.CircuitOpened) == []
    assert q.events_of(e.LeaseExpired) != []
