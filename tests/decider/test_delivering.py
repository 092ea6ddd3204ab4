"""Who gets what, as SEMANTICS G2-G5, L1 and C2 have it."""

from __future__ import annotations

from mpreg_mq.actors import commands as c
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from tests.support.scenario import START, Scenario

BROADCAST = DeliveryGuarantee.BROADCAST
QUORUM = DeliveryGuarantee.QUORUM


def test_g2_one_subscriber_at_a_time_the_least_busy_then_the_least_recently_used() -> None:
    """Given two subscribers, then messages alternate, and the one that answered is not preferred for it."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("b")
    sent = [q.send() for _ in range(4)]
    assert q.dispatch() == [(sent[0], "a"), (sent[1], "b"), (sent[2], "a"), (sent[3], "b")]
    q.acknowledge(sent[1], "b")
    q.acknowledge(sent[3], "b")
    fifth, sixth = q.send(), q.send()
    assert q.dispatch() == [(fifth, "b"), (sixth, "b")]
    q.finish()


def test_g5_without_a_match_a_message_waits_and_blocks_nobody() -> None:
    """Given a message nobody wants, then those behind it are delivered, and it is when somebody comes."""
    q = Scenario()
    q.subscribe("a", "x.*")
    lonely, wanted = q.send("y.1"), q.send("x.1")
    assert q.dispatch() == [(wanted, "a")]
    q.subscribe("b", "y.#")
    assert q.dispatch() == [(lonely, "b")]
    q.finish()


def test_g5_messages_keep_their_order_when_audiences_change() -> None:
    """Given topics with different takers, when subscriptions come and go, then each taker still gets send order."""
    q = Scenario()
    q.subscribe("a", "x", max_in_flight=1)
    q.dispatch()
    xs_and_ys = [q.send(topic) for topic in "xyxyxy"]
    assert q.dispatch() == [(xs_and_ys[0], "a")]
    both = q.subscribe("b", "#")
    assert q.dispatch() == [(message, "b") for message in xs_and_ys[1:]]
    q.when(c.Unsubscribe(both))
    more = [q.send("x"), q.send("y")]
    assert q.dispatch() == []
    q.acknowledge(xs_and_ys[0], "a")
    assert q.dispatch() == [(more[0], "a")]
    q.finish()


def test_g5_lanes_with_the_same_audience_merge_in_order() -> None:
    """Given topics that had different takers, when one pattern covers both, then one order holds again."""
    q = Scenario()
    q.when(c.Pause())
    only_x = q.subscribe("a", "x")
    sent = [q.send(topic) for topic in ("x", "y", "x", "y")]
    assert q.dispatch() == []
    q.subscribe("a", "y")
    q.when(c.Unsubscribe(only_x))
    q.subscribe("a", "x")
    q.when(c.Resume())
    assert [message for message, _ in q.dispatch()] == sent
    q.finish()


def test_c2_a_busy_subscriber_delays_nobody_else() -> None:
    """Given one subscriber at its limit, then the other goes on, and the first is served when it has answered."""
    q = Scenario()
    q.subscribe("slow", "s.#", max_in_flight=1)
    q.subscribe("fast", "f.#")
    first, second, third = q.send("s.1"), q.send("s.2"), q.send("f.1")
    assert q.dispatch() == [(first, "slow"), (third, "fast")]
    q.acknowledge(first, "slow")
    assert q.dispatch() == [(second, "slow")]
    q.finish()


def test_g3_the_audience_is_everybody_at_first_dispatch() -> None:
    """Given a broadcast, then those subscribed at its first dispatch get it, and a newcomer does not."""
    q = Scenario()
    q.subscribe("a")
    message = q.send(guarantee=BROADCAST)
    q.subscribe("b")
    assert q.dispatch() == [(message, "a"), (message, "b")]
    assert q.events_of(e.AudienceFixed)[0].subscriber_ids == ("a", "b")
    q.subscribe("late")
    assert q.dispatch() == []
    q.acknowledge(message, "a")
    assert q.kinds() == ["MessageAcknowledged"]
    q.acknowledge(message, "b")
    assert q.kinds() == ["MessageAcknowledged", "MessageCompleted"]
    q.finish()


def test_g3_only_those_who_have_not_acknowledged_are_tried_again() -> None:
    """Given a broadcast that one acknowledged and one failed, then only the latter gets it again."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("b")
    message = q.send(guarantee=BROADCAST)
    q.dispatch()
    q.acknowledge(message, "a")
    q.fail(message, "b", 1.0)
    assert q.advance(1) == [(message, "b")]
    q.finish()


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
    q.finish()


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
    q.finish()


def test_g3_one_of_several_subscriptions_is_not_the_member() -> None:
    """Given a member with two subscriptions, when one ends, then it is still a member and got the message once."""
    q = Scenario()
    one = q.subscribe("a", "t")
    q.subscribe("a", "#")
    message = q.send(guarantee=BROADCAST)
    assert q.dispatch() == [(message, "a")]
    q.when(c.Unsubscribe(one))
    assert q.kinds() == ["SubscriberLeft"]
    assert q.acknowledge(message, "a")
    q.finish()


def test_g3_the_oldest_matching_subscription_gets_the_message() -> None:
    """Given two subscriptions of one subscriber, then the delivery names the one that matches."""
    q = Scenario()
    q.subscribe("a", "other")
    matching = q.subscribe("a", "t")
    q.send("t")
    q.dispatch()
    assert q.events_of(e.MessageDelivered)[0].subscription_id == matching


def test_g4_complete_at_the_required_number_of_distinct_acknowledgments() -> None:
    """Given a quorum of two, then the same subscriber twice or a stranger does not meet it; two do."""
    q = Scenario()
    for name in "abc":
        q.subscribe(name)
    message = q.send(guarantee=QUORUM, required_acknowledgments=2)
    assert len(q.dispatch()) == 3
    assert q.acknowledge(message, "a")
    assert not q.acknowledge(message, "a")
    assert not q.acknowledge(message, "stranger")
    assert len(q.state.messages) == 1
    assert q.acknowledge(message, "b")
    assert q.kinds() == ["MessageAcknowledged", "MessageCompleted"]
    assert not q.acknowledge(message, "c")
    q.finish()


def test_g4_a_newcomer_counts() -> None:
    """Given a quorum of two and one subscriber, when a second joins, then it gets the message and completes it."""
    q = Scenario()
    q.subscribe("a")
    message = q.send(guarantee=QUORUM, required_acknowledgments=2)
    q.dispatch()
    q.acknowledge(message, "a")
    assert "QuorumMissed" in q.kinds()
    q.subscribe("elsewhere", "other")
    assert q.dispatch() == []
    q.subscribe("b")
    assert q.dispatch() == [(message, "b")]
    assert q.acknowledge(message, "b")
    assert "MessageCompleted" in q.kinds()
    q.finish()


def test_g4_a_quorum_that_never_comes_is_dead_lettered_with_the_count() -> None:
    """Given a quorum of three and one subscriber, then it waits one timeout an attempt, and is dead with a reason."""
    q = Scenario(default_acknowledgment_timeout_seconds=10, max_retries=1)
    q.subscribe("a")
    message = q.send(guarantee=QUORUM, required_acknowledgments=3)
    q.dispatch()
    q.acknowledge(message, "a")
    q.advance(19.9)
    assert len(q.state.dead_letters) == 0
    q.advance(0.1)
    (entry,) = q.state.dead_letters
    assert "quorum not reached: 1 of 3" in entry.ended.reason
    q.finish()


def test_g4_a_quorum_is_missed_for_good_when_members_use_up_their_attempts() -> None:
    """Given a quorum of two of which one acknowledges and one fails for good, then it is dead at once."""
    q = Scenario(max_retries=0)
    q.subscribe("a")
    q.subscribe("b")
    message = q.send(guarantee=QUORUM, required_acknowledgments=2)
    q.dispatch()
    q.acknowledge(message, "a")
    q.fail(message, "b")
    (entry,) = q.state.dead_letters
    assert "1 of 2 subscribers used up their attempts" in entry.ended.reason
    q.finish()


def test_g4_acknowledgments_stay_when_their_subscriber_leaves() -> None:
    """Given an acknowledgment, when its subscriber leaves, then it still counts towards the quorum."""
    q = Scenario()
    gone = q.subscribe("a")
    q.subscribe("b")
    message = q.send(guarantee=QUORUM, required_acknowledgments=2)
    q.dispatch()
    q.acknowledge(message, "a")
    q.when(c.Unsubscribe(gone))
    assert q.kinds() == ["SubscriberLeft"]
    assert q.acknowledge(message, "b")
    assert "MessageCompleted" in q.kinds()
    q.finish()


def test_l1_push_leases_last_the_acknowledgment_timeout_and_pull_leases_the_visibility_timeout() -> None:
    """Given defaults and options, then the lease ends when the nearest of them says."""
    q = Scenario(default_acknowledgment_timeout_seconds=7, default_visibility_timeout_seconds=3)
    q.subscribe("push", "push")
    q.subscribe("pull", "pull", pull=True)
    q.send("push")
    q.send("push", acknowledgment_timeout_seconds=9)
    q.dispatch()
    q.send("pull")
    q.send("pull", visibility_timeout_seconds=4)
    q.when(c.Receive("pull", 2))
    q.send("pull", visibility_timeout_seconds=4)
    q.when(c.Receive("pull", visibility_timeout_seconds=1))
    assert [event.deadline - START for event in q.events_of(e.MessageDelivered)] == [7, 9, 3, 4, 1]
    q.finish()


def test_pull_gets_messages_in_order_up_to_its_limits() -> None:
    """Given five messages, then a receiver gets as many as it asks for and may hold, in order, and once each."""
    q = Scenario()
    q.subscribe("p", pull=True, max_in_flight=3)
    sent = [q.send() for _ in range(5)]
    assert q.dispatch() == []
    assert q.when(c.Receive("p", 2)) == sent[:2]
    assert q.when(c.Receive("p", 9)) == sent[2:3]
    assert q.when(c.Receive("p", 9)) == []
    q.acknowledge(sent[0], "p")
    assert q.when(c.Receive("p", 9)) == sent[3:4]
    q.finish()


def test_pull_gets_broadcasts_as_a_member_of_the_audience() -> None:
    """Given a broadcast to a pull and a push subscriber, when the former fetches, then both are its audience."""
    q = Scenario()
    q.subscribe("pull", pull=True)
    q.subscribe("push")
    message = q.send(guarantee=BROADCAST)
    assert q.when(c.Receive("pull")) == [message]
    assert q.dispatch() == [(message, "push")]
    other = q.send(guarantee=BROADCAST)
    q.dispatch()
    assert q.when(c.Receive("pull")) == [other]
    q.finish()


def test_pull_gets_nothing_while_paused_or_unknown() -> None:
    """Given a paused queue or an unknown receiver, then nothing is leased."""
    q = Scenario()
    q.send()
    assert q.when(c.Receive("nobody")) == []
    q.subscribe("p", pull=True)
    q.when(c.Pause())
    assert q.when(c.Receive("p")) == []


def test_nothing_is_delivered_before_it_is_durable() -> None:
    """Given a message that is accepted but not committed, then neither push nor pull gets it until it is."""
    q = Scenario()
    q.subscribe("s", "push")
    q.subscribe("p", "pull", pull=True)
    q.durable = q.state.version
    pushed = q.send("push")
    assert q.dispatch() == []
    pulled = q.send("pull")
    assert q.when(c.Receive("p")) == []
    q.durable = q.state.version
    assert q.dispatch() == [(pushed, "s")]
    assert q.when(c.Receive("p")) == [pulled]
    q.finish()


def test_a_paused_or_deleted_queue_delivers_nothing() -> None:
    """Given a paused queue, then messages wait until it is resumed."""
    q = Scenario()
    q.subscribe("s")
    q.when(c.Pause())
    message = q.send()
    assert q.dispatch() == []
    q.when(c.Resume())
    assert q.dispatch() == [(message, "s")]
    q.when(c.Delete())
    assert q.dispatch() == []
    q.finish()
