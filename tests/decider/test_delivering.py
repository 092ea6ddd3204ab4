"""Who gets which message, as SEMANTICS G2-G5, L1, C2 and "log first" have it."""

from __future__ import annotations

from math import inf, nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import NOTHING, decide_dispatch
from mpreg_mq.events import RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.invariants import check_history
from mpreg_mq.model import DeliveryGuarantee
from tests.support.given import START, Scenario, named

BROADCAST, QUORUM = DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM


def test_g2_one_matching_subscriber_at_a_time() -> None:
    """Given two takers, when a message is dispatched, then one lease opens and the other gets nothing."""
    q = Scenario()
    subscription = q.subscribe("a")
    q.subscribe("b")
    message = q.send()
    q.dispatch()
    q.then(e.MessageDelivered(START, message, "a", subscription, 1, START + 300))
    assert q.dispatch() == []


def test_g2_the_fewest_in_flight_goes_first() -> None:
    """Given one busy and one idle taker, then the idle one gets the next message."""
    q = Scenario()
    q.subscribe("a", "#")
    q.subscribe("b", "y")
    q.send("x")
    q.dispatch()
    first, second, third = q.send("y"), q.send("y"), q.send("y")
    assert q.dispatch() == [(first, "b"), (second, "a"), (third, "b")]


def test_g2_ties_go_to_the_least_recently_used() -> None:
    """Given takers with equally many in flight, then the one whose latest delivery is longest ago is next."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("b")
    order = []
    for _ in range(4):
        message = q.send()
        order += [subscriber for _, subscriber in q.dispatch()]
        q.acknowledge(message, order[-1])
    assert order == ["a", "b", "a", "b"]


def test_g2_a_returned_message_goes_to_another_subscriber() -> None:
    """Given a refusal, then the one that did not have it last is preferred, and the attempts are counted on."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("b")
    message = q.send()
    q.dispatch()
    q.fail(message, "a", 0.0)
    assert q.dispatch() == [(message, "b")]
    assert [event.attempt for event in q.events_of(e.MessageDelivered)] == [1, 2]


def test_g3_the_audience_is_everybody_who_matches_at_first_dispatch() -> None:
    """Given a broadcast, then its audience is logged once, and a newcomer gets only later ones."""
    q = Scenario()
    q.subscribe("b", "news.*")
    q.subscribe("a", "news.#")
    q.subscribe("other", "weather.*")
    message = q.send("news.today", BROADCAST)
    assert q.dispatch() == [(message, "a"), (message, "b")]
    assert q.events_of(e.AudienceFixed) == [e.AudienceFixed(START, message, ("a", "b"))]
    q.subscribe("late", "news.*")
    assert q.dispatch() == []
    assert len(q.events_of(e.AudienceFixed)) == 1


def test_g4_a_newcomer_enters_the_audience_of_an_open_quorum() -> None:
    """Given an open quorum, when a matching subscriber joins, then it gets the message too; others do not."""
    q = Scenario()
    q.subscribe("a", "x")
    message = q.send("x", QUORUM, required_acknowledgments=2)
    q.send("x", BROADCAST)
    q.dispatch()
    q.subscribe("b", "x")
    assert q.kinds() == ["SubscriberJoined", "AudienceFixed"]
    q.subscribe("stranger", "y")
    assert q.kinds() == ["SubscriberJoined"]
    q.subscribe("b", "x.#")
    assert q.kinds() == ["SubscriberJoined"]
    assert q.dispatch() == [(message, "b")]


def test_g5_a_message_without_taker_waits_and_blocks_nobody() -> None:
    """Given a message that nobody matches at the head, then the one behind it is delivered, and it is later."""
    q = Scenario()
    q.subscribe("s", "known")
    lonely, known = q.send("lonely"), q.send("known")
    assert q.dispatch() == [(known, "s")]
    q.subscribe("t", "lonely")
    assert q.dispatch() == [(lonely, "t")]


def test_g5_a_broadcast_without_audience_waits_for_the_first_subscriber() -> None:
    """Given a broadcast and nobody there, then it is neither lost nor dead, and the first to join gets it."""
    q = Scenario()
    message = q.send("t", BROADCAST)
    assert q.dispatch() == []
    q.subscribe("s")
    assert q.dispatch() == [(message, "s")]


def test_g5_a_pull_subscriber_is_not_sent_anything() -> None:
    """Given only a puller, then dispatch does nothing; given a pusher as well, then that one is chosen."""
    q = Scenario()
    q.subscribe("puller", pull=True)
    message = q.send()
    assert q.dispatch() == []
    q.subscribe("pusher")
    assert q.dispatch() == [(message, "pusher")]


def test_c2_a_full_subscriber_is_passed_over_until_it_has_room() -> None:
    """Given max_in_flight of 1, then the second message waits for the acknowledgment of the first."""
    q = Scenario()
    q.subscribe("s", max_in_flight=1)
    first, second = q.send(), q.send()
    assert q.dispatch() == [(first, "s")]
    q.acknowledge(first, "s")
    assert q.dispatch() == [(second, "s")]


def test_c2_a_slow_subscriber_delays_nobody_else() -> None:
    """Given a full member of a broadcast's audience, then the others have their copies at once."""
    q = Scenario()
    q.subscribe("fast")
    q.subscribe("slow", max_in_flight=1)
    first, second = q.send("t", BROADCAST), q.send("t", BROADCAST)
    assert q.dispatch() == [(first, "fast"), (first, "slow"), (second, "fast")]
    q.acknowledge(first, "slow")
    assert q.dispatch() == [(second, "slow")]


def test_c2_a_blocking_subscriber_has_one_at_a_time_by_default() -> None:
    """Given no max_in_flight, then a blocking callback gets 1 and another the queue's default."""
    q = Scenario(default_max_in_flight=7)
    q.subscribe("thread", blocking=True)
    q.subscribe("loop")
    q.subscribe("own", max_in_flight=3, blocking=True)
    assert [event.max_in_flight for event in q.events_of(e.SubscriberJoined)] == [1, 7, 3]


def test_log_first_nothing_is_delivered_before_its_acceptance_is_durable() -> None:
    """Given an acceptance that is not committed yet, then neither push nor pull gets the message, until it is."""
    q = Scenario()
    q.subscribe("s", "push")
    q.subscribe("p", "pull", pull=True)
    committed = q.send("pull")
    q.durable_version = q.state.version
    pushed, pulled = q.send("push"), q.send("pull")
    assert q.dispatch() == []
    assert q.receive("p", 10) == [committed]
    q.durable_version = q.state.version
    assert q.dispatch() == [(pushed, "s")]
    assert q.receive("p", 10) == [pulled]


def test_l1_push_leases_for_the_acknowledgment_timeout() -> None:
    """Given an acknowledgment timeout on the queue and on one message, then leases end accordingly."""
    q = Scenario(default_acknowledgment_timeout_seconds=50)
    q.subscribe("s")
    q.send()
    q.send(acknowledgment_timeout_seconds=7, visibility_timeout_seconds=9)
    q.dispatch()
    assert [event.deadline for event in q.events_of(e.MessageDelivered)] == [START + 50, START + 7]


@pytest.mark.parametrize(
    ("asked", "option", "seconds"),
    [(None, None, 20.0), (None, 8.0, 8.0), (3.0, 8.0, 3.0)],
    ids=["the queue's", "the message's", "the receiver's"],
)
def test_l1_pull_leases_for_the_visibility_timeout(asked: float | None, option: float | None, seconds: float) -> None:
    """Given visibility timeouts, then the receiver's wins over the message's, and that over the queue's."""
    q = Scenario(default_visibility_timeout_seconds=20)
    subscription = q.subscribe("p", pull=True)
    message = q.send(visibility_timeout_seconds=option)
    q.when(c.Receive("p", visibility_timeout_seconds=asked))
    q.then(e.MessageDelivered(START, message, "p", subscription, 1, START + seconds, True)).then_reply([message])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 120))
def test_l1_a_limit_of_bytes_bounds_what_one_receive_leases(sizes: list[int], limit: int) -> None:
    """Given payloads and a limit, then the longest beginning of the queue that keeps it is leased, at least one."""
    q = Scenario()
    q.subscribe("p", pull=True)
    messages = [q.ask(c.Send("t", bytes(size))).message_id.id for size in sizes]
    fit = max((n for n in range(len(sizes) + 1) if sum(sizes[:n]) <= limit), default=0)
    assert q.receive("p", 100, max_bytes=limit) == messages[: max(1, fit)]


def test_l1_what_is_larger_than_the_limit_of_bytes_is_leased_alone() -> None:
    """Given payloads of which the first is larger than the limit, then it is leased alone, and the next ones together
    as far as they fit."""
    q = Scenario()
    q.subscribe("p", pull=True)
    large, small, smaller, last = (q.ask(c.Send("t", bytes(size))).message_id.id for size in (9, 3, 2, 1))
    assert q.receive("p", 10, max_bytes=5) == [large]
    assert q.receive("p", 10, max_bytes=5) == [small, smaller]
    assert q.receive("p", 10, max_bytes=5) == [last]


def test_l1_receive_leases_in_queue_order_up_to_what_was_asked_for() -> None:
    """Given three messages, when two are fetched, then they are the first two, and the third stays."""
    q = Scenario()
    q.subscribe("p", "a.#", pull=True)
    q.subscribe("p", "b", pull=True)
    sent = [q.send("a.x"), q.send("b"), q.send("a")]
    assert q.receive("p", 2) == sent[:2]
    assert q.receive("p", 2) == sent[2:]
    assert q.receive("p", 2) == []


def test_l1_receive_takes_copies_of_broadcasts() -> None:
    """Given a broadcast to two pullers, then each gets its own copy, and the audience is fixed by the first."""
    q = Scenario()
    q.subscribe("p", pull=True)
    q.subscribe("r", pull=True)
    message = q.send("t", BROADCAST)
    assert q.receive("p", 5) == [message]
    assert q.kinds() == ["AudienceFixed", "MessageDelivered"]
    assert q.receive("r", 5) == [message]
    assert q.kinds() == ["MessageDelivered"]


def test_l1_a_lease_is_one_however_short() -> None:
    """Given a visibility timeout that is too short for the clock to tell, then the lease ends after it has begun."""
    q = Scenario(retry_backoff_seconds=0)
    q.subscribe("p", pull=True)
    message = q.send()
    assert q.receive("p", visibility_timeout_seconds=5e-324) == [message]
    (delivered,) = q.fresh_of(e.MessageDelivered)
    assert delivered.deadline == nextafter(START, inf)
    q.advance(1)
    assert q.kinds() == ["LeaseExpired", "MessageRequeued"]
    records = [RecordedEvent(n, "queue:q", n, event) for n, event in enumerate(q.history, 1)]
    assert check_history(records) == []


@pytest.mark.parametrize("pull", [False, True])
def test_c2_the_limit_is_that_of_the_latest_subscription_there_is(pull: bool) -> None:
    """Given a subscriber with another subscription that has a limit of its own, when that ends, then the limit is that
    of the one before again, whether it is more or less."""
    q = Scenario()
    q.subscribe("s", max_in_flight=1, pull=pull)
    wider = q.subscribe("s", "other", max_in_flight=3, pull=pull)
    closed = q.subscribe("s", "other", max_in_flight=2, pull=pull)
    sent = [q.send() for _ in range(5)]

    def taken() -> list[str]:
        return q.receive("s", 5) if pull else [message for message, _ in q.dispatch()]

    assert taken() == sent[:2]
    q.when(c.Unsubscribe(closed))
    assert taken() == sent[2:3]
    q.when(c.Unsubscribe(wider))
    for message in sent[:2]:
        q.acknowledge(message, "s")
        assert taken() == []
    q.acknowledge(sent[2], "s")
    assert taken() == sent[3:4]
    records = [RecordedEvent(n, "queue:q", n, event) for n, event in enumerate(q.history, 1)]
    assert check_history(records) == []


def test_c2_receive_stops_at_max_in_flight() -> None:
    """Given a puller with room for two, then it gets two, and nothing more before it settles one."""
    q = Scenario()
    q.subscribe("p", pull=True, max_in_flight=2)
    first, second, third = q.send(), q.send(), q.send()
    assert q.receive("p", 10) == [first, second]
    assert q.receive("p", 10) == []
    q.acknowledge(first, "p")
    assert q.receive("p", 10) == [third]


def test_receive_by_nobody_gets_nothing() -> None:
    """Given an unknown subscriber, then there is nothing for it and nothing happens."""
    q = Scenario()
    q.send()
    assert q.receive("nobody") == []
    q.then()


def test_receive_gets_nothing_that_a_callback_is_for() -> None:
    """Given a subscriber that has come back with a callback since it asked, then nothing is leased to its receive."""
    q = Scenario()
    q.send()
    q.subscribe("s")
    q.when(c.Receive("s")).then().then_reply([])
    assert len(q.dispatch()) == 1


def test_t1_receive_leaves_a_late_copy_alone_while_another_member_has_the_message() -> None:
    """Given a broadcast leased to one member over its TTL, when another fetches, then it gets only what is fresh."""
    q = Scenario()
    q.subscribe("p", pull=True)
    q.subscribe("r", pull=True)
    late, fresh = q.send("t", BROADCAST, message_ttl_seconds=5), q.send("t", BROADCAST)
    assert q.receive("p") == [late]
    q.now += 5
    assert q.receive("r", 5) == [fresh]
    q.then(
        e.AudienceFixed(START + 5, fresh, ("p", "r")),
        e.MessageDelivered(START + 5, fresh, "r", "r/2", 1, START + 35, True),
    )


def test_several_subscriptions_of_one_subscriber_are_one_taker() -> None:
    """Given overlapping subscriptions, then the message comes once, by the oldest subscription that matches."""
    q = Scenario()
    q.subscribe("s", "x")
    wide = q.subscribe("s", "t.#")
    q.subscribe("s", "t.one")
    message = q.send("t.one", BROADCAST)
    assert q.dispatch() == [(message, "s")]
    assert q.events_of(e.MessageDelivered)[0].subscription_id == wide
    assert len(q.state.subscribers) == 3


def test_a_member_that_came_back_with_other_patterns_still_gets_its_copy() -> None:
    """Given a broadcast for a process that ended, when it returns with patterns that miss the topic, it gets it."""
    q = Scenario()
    q.subscribe("s", "t", max_in_flight=1)
    blocker = q.send()
    assert q.dispatch() == [(blocker, "s")]
    q.subscribe("other", "t")
    message = q.send("t", BROADCAST)
    assert q.dispatch() == [(message, "other")]
    q.when(c.EndLease(blocker, "s", "stop"))
    q.when(c.Detach())
    elsewhere = q.subscribe("s", "y")
    q.subscribe("s", "z")
    assert q.dispatch() == [(message, "s")]
    assert q.events_of(e.MessageDelivered)[-1].subscription_id == elsewhere


def test_a_paused_queue_accepts_but_gives_nothing() -> None:
    """Given a paused queue, then sends succeed, pushes and pulls wait, and resuming delivers in order."""
    q = Scenario()
    q.subscribe("s", "push")
    q.subscribe("p", "pull", pull=True)
    q.when(c.Pause())
    pushed, pulled = q.send("push"), q.send("pull")
    assert q.dispatch() == []
    assert q.receive("p") == []
    q.when(c.Resume())
    assert q.dispatch() == [(pushed, "s")]
    assert q.receive("p") == [pulled]


def test_an_audience_is_worked_out_again_when_subscriptions_change() -> None:
    """Given messages of two topics for the same takers, when one topic gains one, then order and takers are right."""
    q = Scenario()
    q.subscribe("a", "#", max_in_flight=1)
    sent = [q.send(topic) for topic in ("x", "y", "x", "y")]
    assert q.dispatch() == [(sent[0], "a")]
    only_y = q.subscribe("b", "y", max_in_flight=1)
    assert q.dispatch() == [(sent[1], "b")]
    q.when(c.Unsubscribe(only_y))
    q.acknowledge(sent[0], "a")
    assert q.dispatch() == [(sent[2], "a")]
    q.acknowledge(sent[2], "a")
    assert q.dispatch() == [(sent[3], "a")]


def test_lanes_of_the_same_audience_become_one() -> None:
    """Given two topics with different takers, when both have the same, then messages go in send order again."""
    q = Scenario()
    b = q.subscribe("b", "y")
    q.subscribe("a", "#")
    q.when(c.Pause())
    sent = [q.send(topic) for topic in ("y", "x", "y", "x")]
    q.dispatch()
    q.when(c.Unsubscribe(b))
    q.when(c.Resume())
    assert q.dispatch() == [(message, "a") for message in sent]


def test_whether_anything_may_move_is_known_without_looking() -> None:
    """Given nobody who can take a message, then the queue need not look; given somebody, it must."""
    q = Scenario()
    assert not q.state.messages.lanes.may_deliver
    q.subscribe("s", max_in_flight=1)
    first = q.send()
    q.send()
    assert q.state.messages.lanes.may_deliver
    q.dispatch()
    assert not q.state.messages.lanes.may_deliver
    q.acknowledge(first, "s")
    assert q.state.messages.lanes.may_deliver


def test_a_deleted_queue_delivers_nothing() -> None:
    """Given a deleted queue, then there is nothing to dispatch and nothing to fetch."""
    q = Scenario()
    q.subscribe("p", pull=True)
    q.send()
    q.when(c.Delete())
    assert decide_dispatch(q.state, q.context) is NOTHING
    assert q.receive("p") == []
    assert named(1) not in [message.id for message in q.state.messages]


def test_pull_sees_what_a_new_subscription_brings_at_once() -> None:
    """Given a waiting message, when a receiver subscribes and fetches before any dispatch, then it gets it."""
    q = Scenario()
    message = q.send("t")
    q.subscribe("p", "t", pull=True)
    assert q.when(c.Receive("p")).reply == [message]


@pytest.mark.parametrize(("option", "seconds"), [(None, 300.0), (8.0, 8.0)], ids=["the queue's", "the message's"])
def test_l1_what_a_node_fetches_for_callbacks_is_leased_for_the_acknowledgment_timeout(
    option: float | None, seconds: float
) -> None:
    """Given callbacks on a node, then it fetches for the acknowledgment timeout, the message's before the queue's."""
    q = Scenario()
    subscription = q.subscribe("w", pull=True, metadata={c.MEMBER: "a"})
    message = q.send(acknowledgment_timeout_seconds=option)
    q.when(c.Receive("w", member="a"))
    q.then(e.MessageDelivered(START, message, "w", subscription, 1, START + seconds, True)).then_reply([message])


def _delivered(q: Scenario) -> list[tuple[str, str]]:
    """Messages and subscriptions of the latest step's deliveries."""
    return [(event.message_id, event.subscription_id) for event in q.fresh if isinstance(event, e.MessageDelivered)]


def test_g6_what_only_the_callbacks_of_another_node_match_is_left_to_them() -> None:
    """Given a subscriber with callbacks on two nodes, then a node passes over what only the other one's match."""
    q = Scenario()
    on_a = q.subscribe("w", "a.*", pull=True, metadata={c.MEMBER: "a"})
    on_b = q.subscribe("w", "b.*", pull=True, metadata={c.MEMBER: "b"})
    for_a, for_b = q.send("a.x"), q.send("b.x")
    q.when(c.Receive("w", 10, member="b")).then_reply([for_b])
    assert _delivered(q) == [(for_b, on_b)]
    q.when(c.Receive("w", 10, member="a")).then_reply([for_a])
    assert _delivered(q) == [(for_a, on_a)]


@given(st.lists(st.sampled_from(["a.x", "b.x", "a.y", "c.x"]), max_size=8))
def test_g6_a_node_fetches_what_its_own_callbacks_match(topics: list[str]) -> None:
    """Given a subscriber with callbacks on two nodes, then each fetches its own, for its oldest one that matches."""
    q = Scenario()
    first = q.subscribe("w", "a.*", pull=True, metadata={c.MEMBER: "a"})
    other = q.subscribe("w", "b.*", pull=True, metadata={c.MEMBER: "b"})
    second = q.subscribe("w", "*.x", pull=True, metadata={c.MEMBER: "a"})
    messages = {q.send(topic): topic for topic in topics}
    of_others = [message for message, topic in messages.items() if topic == "b.x"]
    q.when(c.Receive("w", 100, member="nobody")).then().then_reply([])
    q.when(c.Receive("w", 100, member="b")).then_reply(of_others)
    assert {subscription for _, subscription in _delivered(q)} <= {other}
    q.when(c.Receive("w", 100, member="a"))
    assert _delivered(q) == [
        (message, first if topic.startswith("a") else second) for message, topic in messages.items() if topic != "b.x"
    ]
