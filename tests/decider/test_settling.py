"""Leases, acknowledgments, retries and dead letters, as SEMANTICS L1-L4, R1, R2, D1, G3 and G4 have them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider.settling import backoff_seconds
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from tests.support.given import START, Scenario

BROADCAST, QUORUM = DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM


def leased(**configuration: Any) -> tuple[Scenario, str]:
    """A queue whose one message is leased to ``s``."""
    q = Scenario(**configuration)
    q.subscribe("s")
    message = q.send()
    q.dispatch()
    return q, message


# --- leases and acknowledgments ---------------------------------------------------------------------------


def test_l2_an_acknowledgment_finishes_an_at_least_once_message() -> None:
    """Given a lease, when its subscriber acknowledges, then the message is finished and the reply is true."""
    q, message = leased()
    q.when(c.Acknowledge(message, "s")).then(e.MessageAcknowledged(START, message, "s", True)).then_reply(True)
    assert len(q.state.messages) == 0


@pytest.mark.parametrize(
    "command",
    [
        c.Acknowledge("no such message", "s"),
        c.Acknowledge("1-r", "stranger"),
        c.Acknowledge("1-r", "s", attempt=2),
        c.NegativeAcknowledge("no such message", "s", "e"),
        c.NegativeAcknowledge("1-r", "stranger", "e"),
        c.NegativeAcknowledge("1-r", "s", "e", attempt=2),
        c.ExtendLease("1-r", "stranger", 5.0),
        c.EndLease("1-r", "stranger", "e"),
    ],
    ids=repr,
)
def test_l2_strangers_and_wrong_attempts_change_nothing(command: Any) -> None:
    """Given a lease of ``s``, when another, or for another attempt, settles it, then the reply is false."""
    q, _ = leased()
    q.when(command).then().then_reply(False)


def test_l2_a_repeated_acknowledgment_is_false() -> None:
    """Given an acknowledged message, then acknowledging, refusing and extending it are false."""
    q, message = leased()
    assert q.acknowledge(message, "s", attempt=1)
    assert not q.acknowledge(message, "s")
    assert not q.fail(message, "s")
    assert not q.ask(c.ExtendLease(message, "s", 5.0))


def test_l2_a_late_acknowledgment_counts_while_nobody_else_has_had_the_message() -> None:
    """Given a lease that ran out, then its subscriber may still acknowledge, until another lease opens."""
    q, message = leased(retry_backoff_seconds=10, retry_jitter=0)
    q.advance(300)
    assert q.kinds() == ["LeaseExpired", "MessageRequeued"]
    assert q.acknowledge(message, "s")
    q.advance(1000)
    assert len(q.state.messages) == 0


def test_l2_not_after_another_subscriber_has_it() -> None:
    """Given a lease that ran out and another's that followed, then the first may not acknowledge any more."""
    q, message = leased(retry_backoff_seconds=0)
    q.subscribe("t")
    assert q.advance(300) == [(message, "t")]
    assert not q.acknowledge(message, "s")
    assert q.acknowledge(message, "t")


def test_l1_a_lease_ends_at_its_deadline() -> None:
    """Given no answer, then the lease expires at its deadline, as a failed attempt, and the message returns."""
    q, message = leased(default_acknowledgment_timeout_seconds=5, retry_backoff_seconds=2, retry_jitter=0)
    q.advance(4.999)
    q.then()
    assert q.advance(3) == [(message, "s")]
    reason = "no acknowledgment before the lease ran out"
    assert q.fresh[:2] == [
        e.LeaseExpired(START + 5, message, "s", 1, reason),
        e.MessageRequeued(START + 5, message, START + 7),
    ]


def test_l3_a_refusal_returns_the_message_at_once_or_after_a_delay() -> None:
    """Given a lease, when it is refused with a delay, then that is when the message is due, whatever the backoff."""
    q, message = leased(retry_backoff_seconds=100)
    q.when(c.NegativeAcknowledge(message, "s", "bad", 3.0)).then(
        e.DeliveryFailed(START, message, "s", 1, "bad"), e.MessageRequeued(START, message, START + 3)
    ).then_reply(True)
    assert not q.fail(message, "s")
    assert q.advance(3) == [(message, "s")]
    assert q.fail(message, "s", 0.0)
    assert q.dispatch() == [(message, "s")]


def test_l3_extending_moves_the_deadline() -> None:
    """Given a lease of 5 s, when it is extended by 20 s after 4, then it ends at 24, not at 5."""
    q, message = leased(default_acknowledgment_timeout_seconds=5)
    q.advance(4)
    q.when(c.ExtendLease(message, "s", 20.0)).then(e.LeaseExtended(START + 4, message, "s", START + 24))
    q.then_reply(True)
    q.advance(19.9)
    q.then()
    q.advance(0.1)
    assert q.kinds() == ["LeaseExpired", "MessageRequeued"]


def test_l3_a_lease_may_be_shortened_too() -> None:
    """Given a lease of 300 s, when it is set to 1 s, then it ends after 1."""
    q, message = leased()
    q.ask(c.ExtendLease(message, "s", 1.0))
    q.advance(1)
    assert q.kinds()[0] == "LeaseExpired"


def test_c3_an_ended_lease_returns_without_waiting() -> None:
    """Given a process that ends, then its lease ends, logged, as an attempt, and the message is due at once."""
    q, message = leased(retry_backoff_seconds=100)
    q.when(c.EndLease(message, "s", "stopped")).then(
        e.LeaseExpired(START, message, "s", 1, "stopped", True), e.MessageRequeued(START, message, START)
    ).then_reply(True)


# --- attempts and backoff ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "option", "attempts"),
    [
        ({}, None, 4),
        ({"max_retries": 1}, None, 2),
        ({"max_retries": 1}, 0, 1),
        ({"dead_letter_max_receives": 2}, None, 2),
        ({"dead_letter_max_receives": 9}, 1, 2),
    ],
)
def test_r1_there_are_at_most_max_retries_and_one_attempts(
    configuration: dict[str, Any], option: int | None, attempts: int
) -> None:
    """Given limits on the queue and on the message, then the smallest decides how often it is delivered."""
    q = Scenario(**configuration)
    q.subscribe("s")
    message = q.send(max_retries=option)
    deliveries = 0
    while q.dispatch():
        deliveries += 1
        q.fail(message, "s", 0.0)
    assert deliveries == attempts
    assert len(q.state.dead_letters) == 1


def test_r1_attempts_are_counted_over_subscribers() -> None:
    """Given two takers that fail in turn, then their attempts are one count."""
    q = Scenario(max_retries=1)
    q.subscribe("a")
    q.subscribe("b")
    message = q.send()
    q.dispatch()
    q.fail(message, "a", 0.0)
    assert q.dispatch() == [(message, "b")]
    q.fail(message, "b", 0.0)
    assert q.kinds() == ["DeliveryFailed", "MessageDeadLettered"]


def test_r1_a_refusal_after_the_lease_ran_out_is_no_second_attempt() -> None:
    """Given an expired lease, then refusing it is false and the attempts stay."""
    q, message = leased(retry_backoff_seconds=100)
    q.advance(300)
    assert not q.fail(message, "s")
    unfinished = q.state.messages.get(message)
    assert unfinished is not None
    assert unfinished.slot.attempts == 1


def test_r2_backoff_doubles_up_to_its_cap_and_the_due_time_is_logged() -> None:
    """Given 1 s, factor 2 and a cap of 5 s, then the waits are 1, 2, 4, 5, 5, and no delivery is earlier."""
    q = Scenario(
        max_retries=5,
        retry_backoff_seconds=1,
        retry_backoff_multiplier=2,
        retry_backoff_max_seconds=5,
        retry_jitter=0,
    )
    q.subscribe("s")
    message = q.send()
    q.dispatch()
    waits = []
    for _ in range(5):
        q.fail(message, "s")
        (requeued,) = q.fresh_of(e.MessageRequeued)
        waits.append(requeued.due_at - q.now)
        assert q.advance(waits[-1] - 0.001) == []
        assert q.advance(0.002) == [(message, "s")]
    assert waits == pytest.approx([1, 2, 4, 5, 5])


@given(
    jitter=st.floats(0, 1),
    attempts=st.integers(1, 10**6),
    message_id=st.text(min_size=1),
    seed=st.integers(0, 2**63 - 1),
    base=st.floats(0, 1e6),
    cap=st.floats(0, 1e6),
)
def test_r2_jitter_takes_away_at_most_its_share_and_is_the_same_for_the_same_seed(
    jitter: float, attempts: int, message_id: str, seed: int, base: float, cap: float
) -> None:
    """For all seeds, messages and attempts: the wait is within its share of the backoff, and repeatable."""
    configuration = QueueConfiguration(
        "q",
        retry_backoff_seconds=base,
        retry_backoff_max_seconds=cap,
        retry_backoff_multiplier=2,
        retry_jitter=jitter,
        random_seed=seed,
    )
    wait = backoff_seconds(configuration, message_id, attempts)
    full = min(base * 2.0 ** min(attempts - 1, 1000), cap)
    assert full * (1 - jitter) <= wait * (1 + 1e-9)
    assert wait <= full
    assert wait == backoff_seconds(configuration, message_id, attempts)


def test_r2_seeds_and_messages_and_attempts_spread() -> None:
    """Given jitter, then another seed, message or attempt waits another while."""
    one = QueueConfiguration("q", retry_backoff_seconds=10, retry_backoff_multiplier=1)
    two = QueueConfiguration("q", retry_backoff_seconds=10, retry_backoff_multiplier=1, random_seed=1)
    assert len({backoff_seconds(c_, m, a) for c_ in (one, two) for m in ("x", "y") for a in (1, 2)}) == 8


@pytest.mark.parametrize(("base", "wait"), [(1.0, 30.0), (0.0, 0.0)])
def test_r2_the_exponent_never_overflows(base: float, wait: float) -> None:
    """Given a factor of 100 and a million attempts, then the wait is the cap, or nothing where there is no backoff."""
    configuration = QueueConfiguration(
        "q", retry_backoff_seconds=base, retry_backoff_multiplier=100, retry_backoff_max_seconds=30, retry_jitter=0
    )
    assert backoff_seconds(configuration, "m", 10**6) == wait


# --- dead letters -----------------------------------------------------------------------------------------


def test_d1_used_up_attempts_make_a_dead_letter_that_tells_all() -> None:
    """Given the last attempt failed, then the entry has the message, reason, last error, attempts and subscriber."""
    q, message = leased(max_retries=1)
    q.fail(message, "s", 0.0, "first")
    q.dispatch()
    q.fail(message, "s", error="second")
    reason = "max retries exceeded: 2 of 2 attempts failed; last error: second"
    q.then(
        e.DeliveryFailed(START, message, "s", 2, "second"),
        e.MessageDeadLettered(START, message, reason, "second", 2, "s"),
    )
    entry = q.state.dead_letters.get(message)
    assert entry is not None
    assert entry.enqueued.payload == b"\xa1p"
    assert len(q.state.messages) == 0
    report = q.state.report(q.now)
    assert (report.messages_failed, report.messages_dead_lettered, report.current_dead_letter_count) == (1, 1, 1)


def test_d1_disabled_it_fails_and_is_counted() -> None:
    """Given no dead letter queue, then MessageFailed says the same and nothing is kept."""
    q, message = leased(max_retries=0, enable_dead_letter_queue=False)
    q.fail(message, "s")
    assert q.kinds() == ["DeliveryFailed", "MessageFailed"]
    report = q.state.report(q.now)
    assert (report.messages_failed, report.messages_dead_lettered, report.current_dead_letter_count) == (1, 0, 0)


def test_d1_a_lease_that_runs_out_for_the_last_time_is_a_dead_letter_too() -> None:
    """Given one attempt and no answer, then the message is dead at its lease's deadline."""
    q, _ = leased(max_retries=0, default_acknowledgment_timeout_seconds=5)
    q.advance(5)
    assert q.kinds() == ["LeaseExpired", "MessageDeadLettered"]
    assert q.fresh[-1].at == START + 5


# --- broadcast --------------------------------------------------------------------------------------------


def broadcast(**configuration: Any) -> tuple[Scenario, str, dict[str, str]]:
    """A broadcast leased to a, b and c, and their subscription ids."""
    q = Scenario(**configuration)
    subscriptions = {name: q.subscribe(name) for name in "abc"}
    message = q.send("t", BROADCAST)
    q.dispatch()
    return q, message, subscriptions


def test_g3_complete_when_each_has_acknowledged() -> None:
    """Given three members, then the third acknowledgment completes the message, not the first two."""
    q, message, _ = broadcast()
    for name in "ab":
        assert q.acknowledge(message, name)
        assert q.kinds() == ["MessageAcknowledged"]
    assert not q.acknowledge(message, "a")
    q.when(c.Acknowledge(message, "c")).then(
        e.MessageAcknowledged(START, message, "c"), e.MessageCompleted(START, message)
    )
    report = q.state.report(q.now)
    assert (report.messages_acknowledged, report.messages_received) == (1, 3)


def test_g3_only_those_who_have_not_acknowledged_are_retried() -> None:
    """Given one acknowledgment, one refusal and one silence, then the message comes again to the latter two only."""
    q, message, _ = broadcast(retry_backoff_seconds=1, retry_jitter=0, default_acknowledgment_timeout_seconds=5)
    q.acknowledge(message, "a")
    q.fail(message, "b")
    assert q.advance(5) == [(message, "b")]
    assert q.advance(0.999) == []
    assert q.advance(0.001) == [(message, "c")]
    assert [(event.subscriber_id, event.attempt) for event in q.events_of(e.MessageDelivered)][3:] == [
        ("b", 2),
        ("c", 2),
    ]


def test_g3_a_stranger_and_a_member_that_was_not_served_do_not_count() -> None:
    """Given a full member and a stranger, then their acknowledgments are false and change nothing."""
    q = Scenario()
    q.subscribe("a", "#")
    q.subscribe("full", "#", max_in_flight=1)
    q.send("t", BROADCAST)
    message = q.send("t", BROADCAST)
    q.dispatch()
    for name in ("full", "stranger"):
        q.when(c.Acknowledge(message, name)).then().then_reply(False)


def test_g3_members_that_use_up_their_attempts_make_it_a_dead_letter_once_all_have_answered() -> None:
    """Given one member out of attempts, then the others finish first, and the dead letter tells who failed."""
    q, message, _ = broadcast(max_retries=0)
    q.fail(message, "b", error="bad")
    assert q.kinds() == ["DeliveryFailed"]
    q.acknowledge(message, "a")
    q.acknowledge(message, "c")
    reason = "max retries exceeded for 1 of 3 subscribers; last error: bad"
    q.then(
        e.MessageAcknowledged(START, message, "c"),
        e.MessageDeadLettered(START, message, reason, "bad", 1, "b"),
    )


def test_g3_the_dead_letter_tells_of_the_last_failure() -> None:
    """Given two members out of attempts, then the later one's error is told."""
    q, message, _ = broadcast(max_retries=0)
    q.acknowledge(message, "a")
    q.fail(message, "c", error="early")
    q.fail(message, "b", error="late")
    assert q.fresh_of(e.MessageDeadLettered)[0].error == "late"
    assert q.fresh_of(e.MessageDeadLettered)[0].subscriber_id == "b"


def test_g3_a_late_acknowledgment_makes_up_for_used_up_attempts() -> None:
    """Given a member whose only lease ran out while another still works, then its late answer counts."""
    q, message, _ = broadcast(max_retries=0, default_acknowledgment_timeout_seconds=5)
    q.ask(c.ExtendLease(message, "c", 100.0))
    q.advance(5)
    assert q.kinds() == ["LeaseExpired", "LeaseExpired"]
    assert q.acknowledge(message, "a")
    assert q.acknowledge(message, "b")
    assert q.acknowledge(message, "c")
    assert q.kinds() == ["MessageAcknowledged", "MessageCompleted"]


# --- quorum -----------------------------------------------------------------------------------------------


def quorum(required: int, members: str = "abc", **configuration: Any) -> tuple[Scenario, str]:
    """A quorum message leased to its members."""
    q = Scenario(**configuration)
    for name in members:
        q.subscribe(name)
    message = q.send("t", QUORUM, required_acknowledgments=required)
    q.dispatch()
    return q, message


def test_g4_complete_at_the_required_number_of_distinct_acknowledgments() -> None:
    """Given 2 required of 3, then one acknowledging twice and a stranger are not enough; the second member is."""
    q, message = quorum(2)
    assert q.acknowledge(message, "a")
    assert not q.acknowledge(message, "a")
    assert not q.acknowledge(message, "stranger")
    assert q.acknowledge(message, "b")
    q.then(e.MessageAcknowledged(START, message, "b"), e.MessageCompleted(START, message))
    assert not q.acknowledge(message, "c")


def test_g4_one_is_required_where_nothing_is_said() -> None:
    """Given no required_acknowledgments, then the first completes it."""
    q = Scenario()
    q.subscribe("a")
    message = q.send("t", QUORUM)
    q.dispatch()
    q.acknowledge(message, "a")
    assert q.kinds()[-1] == "MessageCompleted"


def test_g4_failed_attempts_are_retried_until_the_quorum_is_there() -> None:
    """Given a refusal, then it comes again to that member, and its acknowledgment counts then."""
    q, message = quorum(2, "ab")
    q.fail(message, "a", 0.0)
    assert q.dispatch() == [(message, "a")]
    q.acknowledge(message, "a")
    q.acknowledge(message, "b")
    assert q.kinds()[-1] == "MessageCompleted"


def test_g4_used_up_attempts_before_the_quorum_are_a_dead_letter() -> None:
    """Given all have answered, one of them without success, and the quorum is missed, then it is dead."""
    q, message = quorum(3, max_retries=0)
    q.fail(message, "a", error="bad")
    q.acknowledge(message, "b")
    assert q.kinds() == ["MessageAcknowledged"]
    q.acknowledge(message, "c")
    (dead,) = q.fresh_of(e.MessageDeadLettered)
    assert dead.reason == (
        "quorum not reached: 2 of 3 acknowledgments; 1 of 3 subscribers used up their attempts; last error: bad"
    )
    assert (dead.subscriber_id, dead.error, dead.attempts) == ("a", "bad", 1)


def test_g4_a_missed_quorum_waits_for_newcomers() -> None:
    """Given everybody acknowledged and it is not enough, then it waits, and a newcomer's answer completes it."""
    q, message = quorum(2, "a", default_acknowledgment_timeout_seconds=10)
    q.when(c.Acknowledge(message, "a")).then(
        e.MessageAcknowledged(START, message, "a"), e.QuorumMissed(START, message, 1, 2, START + 10)
    )
    q.advance(5)
    q.subscribe("b")
    assert q.dispatch() == [(message, "b")]
    q.acknowledge(message, "b")
    assert q.kinds() == ["MessageAcknowledged", "MessageCompleted"]


def test_g4_a_quorum_that_nobody_completes_is_a_dead_letter_in_the_end() -> None:
    """Given two attempts and nobody new, then it is missed twice, an acknowledgment timeout apart, and then dead."""
    q = Scenario(max_retries=1, default_acknowledgment_timeout_seconds=99)
    q.subscribe("a")
    message = q.send("t", QUORUM, required_acknowledgments=2, acknowledgment_timeout_seconds=10)
    q.dispatch()
    q.acknowledge(message, "a")
    q.advance(30)
    assert [(type(event).__name__, event.at) for event in q.fresh] == [
        ("QuorumMissed", START + 10),
        ("MessageDeadLettered", START + 20),
    ]
    dead = q.fresh_of(e.MessageDeadLettered)[0]
    assert dead.error is None
    assert "no other subscriber came in 2 acknowledgment timeouts" in dead.reason


def test_g4_a_newcomer_stops_the_wait_of_a_missed_quorum() -> None:
    """Given a missed quorum and a slow newcomer, then nothing is decided before the newcomer has answered."""
    q, message = quorum(3, "a", default_acknowledgment_timeout_seconds=10, max_retries=0)
    q.acknowledge(message, "a")
    q.subscribe("b")
    q.dispatch()
    q.ask(c.ExtendLease(message, "b", 1000.0))
    q.advance(500)
    q.then()
    q.acknowledge(message, "b")
    assert q.kinds() == ["MessageAcknowledged", "MessageDeadLettered"]
