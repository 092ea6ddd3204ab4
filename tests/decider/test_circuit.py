"""The circuit breaker of each subscriber, as SEMANTICS R3 has it."""

from __future__ import annotations

from typing import Any

import pytest

from mpreg_mq.actors import commands as c
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.invariants import check_history
from mpreg_mq.model import CircuitState, DeliveryGuarantee
from mpreg_mq.replay.rerun import rerun_events
from tests.support.given import START, Scenario


def tripping(threshold: int | None = 2, **arguments: Any) -> Scenario:
    """A queue whose subscriber ``s`` has a circuit breaker that recovers after 10 s, and retries at once."""
    q = Scenario(
        circuit_breaker_failure_threshold=threshold,
        circuit_breaker_recovery_seconds=10,
        retry_backoff_seconds=0,
        max_retries=9,
    )
    q.subscribe("s", **arguments)
    return q


def trip(q: Scenario) -> str:
    """Have ``s`` fail twice; the message that it failed with."""
    message = q.send()
    for _ in range(2):
        assert q.dispatch() == [(message, "s")]
        q.fail(message, "s")
    return message


def circuit(q: Scenario) -> CircuitState:
    subscriber = q.state.subscribers.get("s")
    assert subscriber is not None
    return subscriber.circuit


def test_r3_opens_after_so_many_failures_in_a_row() -> None:
    """Given a threshold of 2, then the second failure in a row opens the circuit, logged with its end."""
    q = tripping()
    message = q.send()
    q.dispatch()
    q.fail(message, "s")
    assert q.events_of(e.CircuitOpened) == []
    q.dispatch()
    q.fail(message, "s")
    assert q.kinds() == ["DeliveryFailed", "CircuitOpened", "MessageRequeued"]
    assert q.events_of(e.CircuitOpened) == [e.CircuitOpened(START, "s", 2, START + 10)]
    assert q.state.report(q.now).circuits_opened == 1


def test_r3_a_success_in_between_starts_the_count_again() -> None:
    """Given a failure, a success and a failure, then the circuit stays closed."""
    q = tripping()
    for _ in range(3):
        message = q.send()
        q.dispatch()
        q.fail(message, "s")
        q.dispatch()
        q.acknowledge(message, "s")
    assert circuit(q) is CircuitState.CLOSED


def test_r3_off_without_a_threshold() -> None:
    """Given no threshold, then no number of failures opens a circuit."""
    q = tripping(None)
    trip(q)
    assert circuit(q) is CircuitState.CLOSED


def test_r3_while_open_messages_wait_and_use_up_no_attempts() -> None:
    """Given an open circuit, then nothing is sent for the recovery time, and the attempts stay as they are."""
    q = tripping()
    message = trip(q)
    assert q.advance(9.999) == []
    unfinished = q.state.messages.get(message)
    assert unfinished is not None
    assert unfinished.slot.attempts == 2
    assert q.advance(0.001) == [(message, "s")]
    assert [type(event) for event in q.fresh] == [e.CircuitHalfOpened, e.MessageDelivered]


def test_r3_while_open_messages_go_to_others() -> None:
    """Given an open circuit and another taker, then the message goes there."""
    q = tripping()
    message = trip(q)
    q.subscribe("t")
    assert q.dispatch() == [(message, "t")]


def test_r3_half_open_probes_with_one_message_and_closes_on_success() -> None:
    """Given three waiting messages after the recovery time, then one probes, and its success releases the others."""
    q = tripping()
    message = trip(q)
    others = [q.send(), q.send()]
    assert q.advance(10) == [(message, "s")]
    q.when(c.Acknowledge(message, "s")).then(
        e.MessageAcknowledged(q.now, message, "s", True), e.CircuitClosed(q.now, "s")
    )
    assert q.dispatch() == [(other, "s") for other in others]


def test_r3_a_failed_probe_opens_it_again() -> None:
    """Given a probe that fails, then the circuit is open for another recovery time, at the first failure."""
    q = tripping()
    message = trip(q)
    q.advance(10)
    q.fail(message, "s")
    assert q.events_of(e.CircuitOpened)[-1] == e.CircuitOpened(START + 10, "s", 3, START + 20)
    assert q.advance(9.999) == []
    assert q.advance(0.001) == [(message, "s")]


def test_r3_failures_while_open_do_not_prolong_it() -> None:
    """Given leases from before that fail while the circuit is open, then it still recovers at its time."""
    q = tripping()
    sent = [q.send() for _ in range(3)]
    q.dispatch()
    q.fail(sent[0], "s")
    q.fail(sent[1], "s")
    q.advance(5)
    q.fail(sent[2], "s")
    assert q.kinds() == ["DeliveryFailed", "MessageRequeued"]
    q.advance(5)
    assert q.kinds()[0] == "CircuitHalfOpened"


def test_r3_leases_that_run_out_are_failures() -> None:
    """Given two leases without an answer, then the circuit opens."""
    q = tripping()
    q.send(acknowledgment_timeout_seconds=1)
    q.dispatch()
    q.advance(2)
    assert circuit(q) is CircuitState.OPEN


def test_r3_the_end_of_a_process_says_nothing_about_its_subscribers() -> None:
    """Given leases that end with their process, then they are no failures, now or in a later count."""
    q = tripping(pull=True)
    sent = [q.send() for _ in range(3)]
    q.receive("s", 3)
    for message in sent:
        q.when(c.EndLease(message, "s", "stopped"))
    assert circuit(q) is CircuitState.CLOSED
    q.receive("s")
    q.fail(sent[0], "s")
    assert circuit(q) is CircuitState.CLOSED


def test_r3_an_extended_lease_that_runs_out_is_a_failure_at_its_new_end() -> None:
    """Given a lease that was shortened, then running out counts, though it would once have lasted longer."""
    q = tripping(1)
    message = q.send()
    q.dispatch()
    q.ask(c.ExtendLease(message, "s", 1.0))
    q.advance(1)
    assert q.kinds()[:2] == ["LeaseExpired", "CircuitOpened"]


def test_r3_a_probe_that_ends_otherwise_makes_place_for_another() -> None:
    """Given a probe that is purged, then the next message probes."""
    q = tripping()
    trip(q)
    q.advance(10)
    q.when(c.Purge())
    assert circuit(q) is CircuitState.HALF_OPEN
    other, waiting = q.send(), q.send()
    assert q.dispatch() == [(other, "s")]
    assert q.state.messages.get(waiting) is not None


@pytest.mark.parametrize("guarantee", [DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST])
def test_r3_a_puller_probes_with_one_message_too(guarantee: DeliveryGuarantee) -> None:
    """Given a puller whose circuit was open, then its next fetch gives one message, however many it asks for."""
    q = tripping(pull=True)
    first, second = q.send("t", guarantee), q.send("t", guarantee)
    for _ in range(2):
        q.receive("s")
        q.fail(first, "s")
    assert q.receive("s", 5) == []
    q.advance(10)
    assert q.receive("s", 5) == [first]
    assert q.receive("s", 5) == []
    q.acknowledge(first, "s")
    assert "CircuitClosed" in q.kinds()
    assert q.receive("s", 5) == [second]


def test_r3_leaving_forgets_the_circuit() -> None:
    """Given an open circuit, when the subscriber leaves and comes back, then it starts closed and no timer fires."""
    q = tripping()
    message = trip(q)
    subscription = next(iter(q.events_of(e.SubscriberJoined))).subscription_id
    q.when(c.Unsubscribe(subscription))
    q.subscribe("s")
    assert q.dispatch() == [(message, "s")]
    q.advance(20)
    assert q.events_of(e.CircuitHalfOpened) == []


def test_r3_another_subscription_keeps_the_circuit() -> None:
    """Given an open circuit, when one of two subscriptions ends, then it stays open until its time."""
    q = tripping()
    q.subscribe("s", "other")
    trip(q)
    q.when(c.Unsubscribe(q.events_of(e.SubscriberJoined)[1].subscription_id))
    assert circuit(q) is CircuitState.OPEN
    q.advance(10)
    assert len(q.events_of(e.CircuitHalfOpened)) == 1


def test_r3_a_lease_left_by_somebody_who_is_gone_opens_nothing() -> None:
    """Given a subscriber that left with a lease, when that runs out, then there is no circuit to open."""
    q = tripping(1)
    q.send()
    q.dispatch()
    q.when(c.Unsubscribe(q.events_of(e.SubscriberJoined)[0].subscription_id))
    q.advance(300)
    assert q.kinds() == ["LeaseExpired", "MessageRequeued"]
    assert len(list(q.state.subscribers)) == 0


@pytest.mark.parametrize("half_open", [False, True])
def test_r3_opening_the_queue_without_breakers_lets_everything_through(half_open: bool) -> None:
    """Given a puller whose circuit is open, or half open, when the queue is opened without circuit breakers, then it
    gets what it asks for at once; one whose circuit is closed has nothing to be told."""
    q = tripping(pull=True)
    q.subscribe("well", pull=True)
    sent = [q.send(), q.send()]
    for _ in range(2):
        assert q.receive("s") == sent[:1]
        q.fail(sent[0], "s")
    if half_open:
        q.advance(10)
    without = QueueConfiguration("q", max_retries=9)
    q.when(c.Open(without)).then(e.QueueReconfigured(q.now, without), e.CircuitClosed(q.now, "s"))
    assert q.receive("s", 5) == sent
    q.fail(sent[0], "s", 0.0)
    assert q.advance(100) == []
    assert circuit(q) is CircuitState.CLOSED
    records = [RecordedEvent(n, "queue:q", n, event) for n, event in enumerate(q.history, 1)]
    assert check_history(records) == []
    assert rerun_events(q.history).differences == []


def test_r3_a_queue_that_is_opened_with_circuit_breakers_keeps_its_circuits() -> None:
    """Given an open circuit, when the queue is opened with another threshold, then it is as open as before."""
    q = tripping()
    trip(q)
    other = QueueConfiguration("q", circuit_breaker_failure_threshold=5, max_retries=9)
    q.when(c.Open(other)).then(e.QueueReconfigured(START, other))
    assert circuit(q) is CircuitState.OPEN
