"""Who leaves which audience when a subscription ends (SEMANTICS G3, G4)."""

from __future__ import annotations

import pytest

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import decide
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from tests.support.given import START, Scenario, callback

BROADCAST = DeliveryGuarantee.BROADCAST


def test_g3_a_member_that_unsubscribes_leaves_the_audience() -> None:
    """Given two members of which one has acknowledged, when the other leaves, then the broadcast is complete."""
    q = Scenario()
    q.subscribe("a")
    leaver = q.subscribe("b")
    message = q.send(guarantee=BROADCAST)
    q.dispatch()
    q.acknowledge(message, "a")
    q.when(c.Unsubscribe(leaver))
    assert q.kinds() == ["SubscriberLeft", "AudienceMemberLeft", "MessageCompleted"]


def test_g3_without_any_member_left_the_message_waits_for_a_new_audience() -> None:
    """Given a broadcast whose only member leaves, then it waits and the next subscriber is its audience."""
    q = Scenario()
    leaver = q.subscribe("a")
    message = q.send(guarantee=BROADCAST)
    q.dispatch()
    q.when(c.Unsubscribe(leaver))
    assert not q.acknowledge(message, "a")
    q.subscribe("b")
    assert q.dispatch() == [(message, "b")]


def test_g3_a_subscription_that_does_not_reach_the_message_keeps_nobody_in() -> None:
    """Given a member with one matching and one other subscription, when the former ends, then it has left."""
    q = Scenario()
    q.subscribe("a", "elsewhere")
    matching = q.subscribe("a", "t")
    overlapping = q.subscribe("a", "#")
    q.subscribe("b", "t")
    message = q.send("t", BROADCAST)
    q.dispatch()
    q.when(c.Unsubscribe(matching))
    assert q.kinds() == ["SubscriberLeft"]
    q.when(c.Unsubscribe(overlapping))
    assert q.kinds() == ["SubscriberLeft", "AudienceMemberLeft"]
    q.acknowledge(message, "b")
    assert "MessageCompleted" in q.kinds()


def test_g3_an_exhausted_member_that_leaves_is_forgiven() -> None:
    """Given a member that used up its attempts, when it leaves, then the broadcast completes without it."""
    q = Scenario(max_retries=0)
    leaver = q.subscribe("a")
    q.subscribe("b")
    message = q.send(guarantee=BROADCAST)
    q.dispatch()
    q.fail(message, "a")
    q.when(c.Unsubscribe(leaver))
    q.acknowledge(message, "b")
    assert "MessageCompleted" in q.kinds()


def test_g4_acknowledgments_stay_when_their_subscriber_leaves() -> None:
    """Given an acknowledgment, when its subscriber leaves, then it still counts towards the quorum."""
    q = Scenario()
    gone = q.subscribe("a")
    q.subscribe("b")
    message = q.send(guarantee=DeliveryGuarantee.QUORUM, required_acknowledgments=2)
    q.dispatch()
    q.acknowledge(message, "a")
    q.when(c.Unsubscribe(gone))
    assert q.kinds() == ["SubscriberLeft"]
    assert q.acknowledge(message, "b")
    assert "MessageCompleted" in q.kinds()


def test_g4_newcomers_who_come_and_go_do_not_end_the_wait_of_a_missed_quorum() -> None:
    """Given a missed quorum, when newcomers leave or acknowledge within its wait, then that goes on to its end."""
    q = Scenario(max_retries=1, default_acknowledgment_timeout_seconds=10)
    q.subscribe("a")
    message = q.send(guarantee=DeliveryGuarantee.QUORUM, required_acknowledgments=4)
    q.dispatch()
    q.acknowledge(message, "a")
    first_end = START + 10
    for number in range(3):
        q.advance(1)
        leaver = q.subscribe(f"leaver{number}")
        q.dispatch()
        q.when(c.Unsubscribe(leaver))
        assert q.fresh_of(e.QuorumMissed) == [e.QuorumMissed(q.now, message, 1, 4, first_end)]
    q.subscribe("b")
    q.dispatch()
    q.when(c.Acknowledge(message, "b")).then(
        e.MessageAcknowledged(q.now, message, "b"), e.QuorumMissed(q.now, message, 2, 4, first_end)
    )
    q.advance(7)
    q.then(e.QuorumMissed(first_end, message, 2, 4, first_end + 10))
    q.advance(9)
    q.subscribe("c")
    q.dispatch()
    q.acknowledge(message, "c")
    q.advance(1)
    (dead,) = q.fresh_of(e.MessageDeadLettered)
    assert dead.at == first_end + 10
    assert "3 of 4 acknowledgments, and no other subscriber came in 2 acknowledgment timeouts" in dead.reason


def test_g4_a_wait_for_newcomers_that_is_over_at_once_is_one_of_those_there_are() -> None:
    """Given an acknowledgment timeout too short for the clock to tell, then the waits are counted and have an end."""
    q = Scenario(max_retries=2, default_acknowledgment_timeout_seconds=1e-14)
    q.subscribe("a", pull=True)
    message = q.send(guarantee=DeliveryGuarantee.QUORUM, required_acknowledgments=2)
    assert q.receive("a") == [message]
    q.acknowledge(message, "a")
    q.dispatch()
    assert q.kinds() == ["QuorumMissed", "QuorumMissed", "MessageDeadLettered"]


def test_a_subscriber_is_either_called_or_fetches() -> None:
    """Given a subscriber with a callback, then it cannot also fetch, and no subscription id is used twice."""
    q = Scenario()
    q.subscribe("a")
    with pytest.raises(InvalidOptionError, match=r"without a callback|without one"):
        decide(q.state, c.Subscribe("a", "new", "#"), q.context)
    taken = q.events_of(e.SubscriberJoined)[0].subscription_id
    with pytest.raises(InvalidOptionError, match="exists"):
        decide(q.state, c.Subscribe("b", taken, "#", callback), q.context)


def test_c2_what_a_subscriber_left_behind_is_released_when_it_ends() -> None:
    """Given a broadcast leased to two, when it is purged, then both can take messages again."""
    q = Scenario(default_max_in_flight=1)
    q.subscribe("a")
    q.subscribe("b")
    q.send(guarantee=BROADCAST)
    q.dispatch()
    assert q.when(c.Purge()).reply == 1
    message = q.send(guarantee=BROADCAST)
    assert q.dispatch() == [(message, "a"), (message, "b")]


def test_c3_subscriptions_that_end_with_their_process_can_be_named() -> None:
    """Given pulling subscribers of several processes, when one process ends, then its subscriptions alone end, and keep
    their places in audiences."""
    q = Scenario()
    gone = q.subscribe("a", pull=True)
    stays = q.subscribe("b", pull=True)
    message = q.send(guarantee=BROADCAST)
    assert q.receive("b") == [message]
    q.when(c.Detach((gone, "unknown"))).then_reply(1)
    (left,) = q.fresh_of(e.SubscriberLeft)
    assert (left.subscription_id, left.unsubscribed) == (gone, False)
    assert q.state.subscribers.subscription(stays) is not None
    assert q.acknowledge(message, "b")
    assert "MessageCompleted" not in q.kinds()


def test_d1_the_attempts_of_who_leaves_are_not_those_of_the_dead_letter() -> None:
    """Given a quorum missed as often as it may be, and a newcomer that has failed, when the newcomer leaves after the
    last wait, then the message is dead after the attempts of those who stay."""
    q = Scenario(max_retries=1, retry_backoff_seconds=0.0, default_acknowledgment_timeout_seconds=5.0)
    q.subscribe("a")
    message = q.send("t", DeliveryGuarantee.QUORUM, required_acknowledgments=2)
    q.dispatch()
    q.acknowledge(message, "a")
    q.advance(6)
    leaver = q.subscribe("b")
    q.dispatch()
    q.fail(message, "b")
    assert q.dispatch() == [(message, "b")]
    q.advance(4.5)
    q.when(c.Unsubscribe(leaver))
    assert q.kinds() == ["SubscriberLeft", "AudienceMemberLeft", "MessageDeadLettered"]
    (dead,) = q.fresh_of(e.MessageDeadLettered)
    assert dead.attempts == 1
