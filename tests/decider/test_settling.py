"""What becomes of deliveries, as SEMANTICS L1-L4, R1-R3 and D1 have it."""

from __future__ import annotations

import pytest

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider.settling import backoff_seconds
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import CircuitState, DeliveryGuarantee
from tests.support.scenario import START, Scenario

BROADCAST = DeliveryGuarantee.BROADCAST


def delivered(**configuration: object) -> tuple[Scenario, str]:
    q = Scenario(**configuration)
    q.subscribe("s")
    message = q.send()
    q.dispatch()
    return q, message


def test_l2_an_acknowledgment_counts_once_and_from_the_holder_only() -> None:
    """Given a lease, then a stranger's, a repeated or an unknown acknowledgment is false and changes nothing."""
    q, message = delivered()
    assert not q.acknowledge(message, "stranger")
    assert not q.acknowledge("unknown", "s")
    assert q.fresh == []
    assert q.acknowledge(message, "s")
    assert q.kinds() == ["MessageAcknowledged"]
    assert not q.acknowledge(message, "s")
    q.finish()


def test_l2_a_message_that_was_never_delivered_cannot_be_acknowledged() -> None:
    """Given members of an audience of which one is busy, then that one's acknowledgment is false."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("busy", max_in_flight=1)
    q.send(guarantee=BROADCAST)
    second = q.send(guarantee=BROADCAST)
    q.dispatch()
    assert not q.acknowledge(second, "busy")
    q.finish()


def test_l2_a_late_acknowledgment_counts_until_somebody_else_has_the_message() -> None:
    """Given a lease that ran out, then its holder may still acknowledge, unless the message went to another."""
    q = Scenario(default_acknowledgment_timeout_seconds=5, retry_backoff_seconds=10, retry_jitter=0)
    first = q.subscribe("a")
    one, two = q.send(), q.send()
    q.dispatch()
    q.advance(5)
    assert q.acknowledge(one, "a")
    q.when(c.Unsubscribe(first))
    q.subscribe("b")
    assert q.advance(10) == [(two, "b")]
    assert not q.acknowledge(two, "a")
    assert q.acknowledge(two, "b")
    q.finish()


def test_l2_a_callback_that_comes_back_late_settles_only_its_own_attempt() -> None:
    """Given a second attempt at the same subscriber, then the outcome of the first is ignored."""
    q, message = delivered()
    q.fail(message, "s", 0.0)
    q.dispatch()
    assert not q.when(c.Acknowledge(message, "s", 1))
    assert not q.when(c.NegativeAcknowledge(message, "s", "late", None, 1))
    assert q.when(c.Acknowledge(message, "s", 2))
    q.finish()


def test_l3_nack_returns_at_once_or_after_a_delay() -> None:
    """Given a lease, then a negative acknowledgment ends it as a failed attempt; without a lease it is false."""
    q, message = delivered()
    assert q.fail(message, "s", 0.0)
    assert q.kinds() == ["DeliveryFailed", "MessageRequeued"]
    assert not q.fail(message, "s", 0.0)
    assert not q.fail("unknown", "s", 0.0)
    assert q.dispatch() == [(message, "s")]
    q.fail(message, "s", 3.0)
    assert q.advance(2.9) == []
    assert q.advance(0.1) == [(message, "s")]
    q.finish()


def test_l3_extend_moves_the_deadline() -> None:
    """Given a heartbeat, then the lease ends counted from it; without a lease it is false."""
    q, message = delivered(default_acknowledgment_timeout_seconds=5)
    q.advance(4)
    assert q.when(c.ExtendLease(message, "s", 10))
    assert not q.when(c.ExtendLease(message, "stranger", 10))
    q.advance(9.9)
    assert q.events_of(e.LeaseExpired) == []
    q.advance(0.1)
    assert q.events_of(e.LeaseExpired)[0].at == START + 14
    q.finish()


def test_r1_at_most_max_retries_plus_one_attempts() -> None:
    """Given max_retries of two, then there are three attempts, and then a dead letter with its reason (D1)."""
    q, message = delivered(max_retries=2, retry_jitter=0.0)
    for _ in range(2):
        q.fail(message, "s")
        q.advance(60)
    q.fail(message, "s")
    assert q.kinds() == ["DeliveryFailed", "MessageDeadLettered"]
    (entry,) = q.state.dead_letters
    assert (entry.ended.attempts, entry.ended.subscriber_id, entry.ended.error) == (3, "s", "boom")
    assert "max retries exceeded" in entry.ended.reason
    assert "boom" in entry.ended.reason
    assert q.advance(1000) == []
    q.finish()


@pytest.mark.parametrize(("own", "receives", "attempts"), [(0, None, 1), (9, 2, 2), (None, None, 4), (1, 5, 2)])
def test_r1_the_message_or_the_cap_of_receives_may_say_less(
    own: int | None, receives: int | None, attempts: int
) -> None:
    """Given max_retries of the message and dead_letter_max_receives, then the smaller number of attempts holds."""
    q = Scenario(dead_letter_max_receives=receives, retry_backoff_seconds=0)
    q.subscribe("s")
    message = q.send(max_retries=own)
    for _ in range(attempts):
        assert q.dispatch() == [(message, "s")]
        q.fail(message, "s")
    assert q.dispatch() == []
    assert len(q.state.dead_letters) == 1


def test_r1_a_lease_that_runs_out_is_an_attempt() -> None:
    """Given nobody answers, then each lease that runs out counts, and the last makes a dead letter."""
    q, _ = delivered(max_retries=1, default_acknowledgment_timeout_seconds=5, retry_backoff_seconds=0)
    q.advance(5)
    q.advance(5)
    assert [event.attempt for event in q.events_of(e.LeaseExpired)] == [1, 2]
    assert len(q.state.dead_letters) == 1
    q.finish()


def test_r1_members_of_an_audience_count_their_own_attempts() -> None:
    """Given a broadcast of which one member fails for good, then the others' acknowledgments are awaited first."""
    q = Scenario(max_retries=1, retry_backoff_seconds=0)
    for name in "abc":
        q.subscribe(name)
    message = q.send(guarantee=BROADCAST)
    q.dispatch()
    q.fail(message, "a")
    q.dispatch()
    q.fail(message, "a")
    q.acknowledge(message, "b")
    assert len(q.state.messages) == 1
    q.acknowledge(message, "c")
    assert q.kinds() == ["MessageAcknowledged", "MessageDeadLettered"]
    assert "1 of 3 subscribers" in q.events_of(e.MessageDeadLettered)[0].reason
    q.finish()


def test_r1_an_exhausted_member_that_answers_after_all_or_leaves_is_forgiven() -> None:
    """Given a member that used up its attempts, when it acknowledges late or leaves, then the broadcast completes."""
    for ending in ("acknowledges", "leaves"):
        q = Scenario(max_retries=0)
        subscription = q.subscribe("a")
        q.subscribe("b")
        message = q.send(guarantee=BROADCAST)
        q.dispatch()
        q.fail(message, "a")
        if ending == "acknowledges":
            assert q.acknowledge(message, "a")
        else:
            q.when(c.Unsubscribe(subscription))
        q.acknowledge(message, "b")
        assert "MessageCompleted" in q.kinds(), ending
        q.finish()


def test_d1_disabled_dead_letters_are_failures() -> None:
    """Given no dead letter queue, then the message fails, logged and counted."""
    q, message = delivered(max_retries=0, enable_dead_letter_queue=False)
    q.fail(message, "s")
    assert q.kinds() == ["DeliveryFailed", "MessageFailed"]
    report = q.state.report(q.now)
    assert (report.messages_failed, report.messages_dead_lettered, len(q.state.dead_letters)) == (1, 0, 0)
    q.finish()


def test_r2_backoff_grows_to_its_cap_and_is_logged() -> None:
    """Given no jitter, then waits double from the base to the cap, and the due time is in the log."""
    q, message = delivered(
        max_retries=9, retry_backoff_seconds=1, retry_backoff_max_seconds=5, retry_jitter=0, random_seed=3
    )
    for wait in (1, 2, 4, 5, 5):
        q.fail(message, "s")
        assert q.events_of(e.MessageRequeued)[-1].due_at == q.now + wait
        assert q.advance(wait) == [(message, "s")]
    q.finish()


def test_r2_jitter_is_seeded() -> None:
    """Given a seed, then the same message and attempt wait the same; another seed differs; the share is bounded."""
    base = QueueConfiguration("q", retry_backoff_seconds=1, retry_jitter=0.5, random_seed=1)
    other = QueueConfiguration("q", retry_backoff_seconds=1, retry_jitter=0.5, random_seed=2)
    waits = [backoff_seconds(base, f"m{n}", 1) for n in range(100)]
    assert waits == [backoff_seconds(base, f"m{n}", 1) for n in range(100)]
    assert waits != [backoff_seconds(other, f"m{n}", 1) for n in range(100)]
    assert all(0.5 <= wait <= 1.0 for wait in waits)
    assert len(set(waits)) > 90


def test_r2_backoff_survives_numbers_beyond_floats() -> None:
    """Given a large multiplier and many attempts, then the cap holds."""
    steep = QueueConfiguration("q", retry_backoff_multiplier=100, retry_backoff_max_seconds=7, retry_jitter=0)
    assert backoff_seconds(steep, "m", 10**6) == 7


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
    q.finish()


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
    q.finish()


def test_r3_messages_go_to_other_subscribers_meanwhile() -> None:
    """Given an open circuit, then the other subscriber gets what comes."""
    q = Scenario(circuit_breaker_failure_threshold=1, retry_backoff_seconds=0)
    q.subscribe("bad")
    message = q.send()
    q.dispatch()
    q.subscribe("good")
    q.fail(message, "bad")
    assert q.dispatch() == [(message, "good")]
    q.finish()


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
    assert q.state.subscribers.get("s") is not None
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
    q.finish()


def test_r3_a_receiver_with_a_half_open_circuit_gets_one_message() -> None:
    """Given a pull subscriber whose circuit is half open, then it may fetch one message, and none while open."""
    q = Scenario(circuit_breaker_failure_threshold=1, circuit_breaker_recovery_seconds=10)
    q.subscribe("p", pull=True)
    first, _ = q.send(), q.send()
    q.when(c.Receive("p"))
    q.fail(first, "p", 0.0)
    assert q.when(c.Receive("p", 9)) == []
    q.advance(10)
    assert q.when(c.Receive("p", 9)) == [first]
    q.finish()


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
    q.finish()


def test_c3_a_lease_that_ends_with_its_process_is_an_attempt_but_no_failure_in_a_row() -> None:
    """Given a lease and a process that ends, then the message is due at once and the circuit stays closed."""
    q, message = delivered(circuit_breaker_failure_threshold=1)
    assert q.when(c.EndLease(message, "s", "process ended"))
    assert q.kinds() == ["LeaseExpired", "MessageRequeued"]
    assert not q.when(c.EndLease(message, "s", "process ended"))
    assert q.dispatch() == [(message, "s")]
    q.finish()
