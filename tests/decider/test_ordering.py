"""Order and time, as SEMANTICS O1-O3 and T1 have them."""

from __future__ import annotations

import attrs
import pytest

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import decide_dispatch
from mpreg_mq.events import RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.invariants import check_history
from mpreg_mq.model import DeliveryGuarantee, QueueType
from mpreg_mq.replay.rerun import rerun_events
from tests.support.given import START, Scenario


def ids(deliveries: list[tuple[str, str]]) -> list[str]:
    return [message_id for message_id, _ in deliveries]


def test_o1_first_deliveries_follow_send_order() -> None:
    """Given a FIFO queue, then messages are delivered as they were sent, priorities notwithstanding."""
    q = Scenario()
    sent = [q.send(priority=p) for p in (1, 9, 5)]
    q.subscribe("s")
    assert ids(q.dispatch()) == sent


def test_o1_a_returned_message_goes_back_to_its_own_place() -> None:
    """Given one slow taker, when the first message is returned at once, then it goes before the others."""
    q = Scenario()
    q.subscribe("s", max_in_flight=1)
    first, second = q.send(), q.send()
    assert ids(q.dispatch()) == [first]
    q.fail(first, "s", 0.0)
    assert ids(q.dispatch()) == [first]
    q.acknowledge(first, "s")
    assert ids(q.dispatch()) == [second]


def test_o2_higher_priority_first_and_ties_in_send_order() -> None:
    """Given a PRIORITY queue, then numbers decide and ties keep their order."""
    q = Scenario(queue_type=QueueType.PRIORITY)
    low, high, tie, negative = q.send(priority=1), q.send(priority=10), q.send(priority=10), q.send(priority=-3)
    default = q.send()
    q.subscribe("s")
    assert ids(q.dispatch()) == [high, tie, low, default, negative]


@pytest.mark.parametrize("queue_type", list(QueueType))
def test_o3_never_before_its_delay_on_any_queue_type(queue_type: QueueType) -> None:
    """Given a delay, then nothing is delivered before sent_at + delay, and then at once."""
    q = Scenario(queue_type=queue_type)
    q.subscribe("s")
    message = q.send(delay_seconds=5.0)
    assert q.advance(4.999) == []
    assert ids(q.advance(0.001)) == [message]
    assert q.events_of(e.MessageDelivered)[0].at == START + 5


def test_o3_a_delay_queue_delivers_in_due_order() -> None:
    """Given a DELAY queue that was paused over several due times, then the earliest due goes first."""
    q = Scenario(queue_type=QueueType.DELAY)
    late, early, now = q.send(delay_seconds=3), q.send(delay_seconds=1), q.send()
    q.now += 10
    q.subscribe("s")
    assert ids(q.dispatch()) == [now, early, late]


def test_o1_a_group_is_strictly_sequential() -> None:
    """Given two messages of one group, then the second waits until the first is finished; others do not."""
    q = Scenario()
    q.subscribe("s")
    first, second, other = q.send(group_id="g"), q.send(group_id="g"), q.send(group_id="h")
    assert ids(q.dispatch()) == [first, other]
    q.fail(first, "s", 10.0)
    assert q.dispatch() == []
    assert ids(q.advance(10)) == [first]
    q.acknowledge(first, "s")
    assert ids(q.dispatch()) == [second]


def test_o1_a_delayed_head_holds_its_group_back() -> None:
    """Given a FIFO group whose first message is delayed, then the second waits for it."""
    q = Scenario()
    q.subscribe("s")
    first, second = q.send(group_id="g", delay_seconds=5), q.send(group_id="g")
    assert q.dispatch() == []
    assert ids(q.advance(5)) == [first]
    q.acknowledge(first, "s")
    assert ids(q.dispatch()) == [second]


def test_o1_a_dead_head_lets_its_group_go_on() -> None:
    """Given a group whose first message uses up its attempts, then the next is delivered."""
    q = Scenario(max_retries=0)
    q.subscribe("s")
    first, second = q.send(group_id="g"), q.send(group_id="g")
    q.dispatch()
    q.fail(first, "s")
    assert ids(q.dispatch()) == [second]


def test_o1_on_a_priority_queue_a_group_goes_by_priority_until_one_has_started() -> None:
    """Given a group on a PRIORITY queue, then a higher newcomer displaces a waiting head, not a started one."""
    q = Scenario(queue_type=QueueType.PRIORITY)
    low = q.send(group_id="g", priority=1)
    high = q.send(group_id="g", priority=5)
    q.subscribe("s")
    assert ids(q.dispatch()) == [high]
    q.send(group_id="g", priority=9)
    assert q.dispatch() == []
    q.fail(high, "s", 0.0)
    assert ids(q.dispatch()) == [high]
    q.acknowledge(high, "s")
    assert ids(q.dispatch()) != [low]


def test_o1_a_group_works_for_broadcast_too() -> None:
    """Given a broadcast and a later message of its group, then the later waits for the last acknowledgment."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("b")
    first = q.send(guarantee=DeliveryGuarantee.BROADCAST, group_id="g")
    second = q.send(group_id="g")
    assert q.dispatch() == [(first, "a"), (first, "b")]
    q.acknowledge(first, "a")
    assert q.dispatch() == []
    q.acknowledge(first, "b")
    assert ids(q.dispatch()) == [second]


def test_o1_members_of_a_group_leave_it_wherever_they_stand() -> None:
    """Given three of a group of which the second expires, then the third follows the first."""
    q = Scenario()
    q.subscribe("s")
    first, second, third = q.send(group_id="g"), q.send(group_id="g", message_ttl_seconds=1), q.send(group_id="g")
    q.dispatch()
    q.advance(1)
    assert [event.message_id for event in q.events_of(e.MessageExpired)] == [second]
    q.acknowledge(first, "s")
    assert ids(q.dispatch()) == [third]


def test_t1_a_message_expires_at_its_moment() -> None:
    """Given a TTL and no taker, then the expiry is at sent_at + ttl exactly, and the message is gone."""
    q = Scenario(message_ttl_seconds=30)
    own, inherited = q.send(message_ttl_seconds=5), q.send()
    q.advance(100)
    assert [(event.at, event.message_id) for event in q.events_of(e.MessageExpired)] == [
        (START + 5, own),
        (START + 30, inherited),
    ]
    assert q.state.report(q.now).messages_expired == 2


def test_t1_never_delivered_at_or_after_its_time_however_late_the_sweeper() -> None:
    """Given a queue that slept over the TTL, when it dispatches before it looks at the clock, then it expires it."""
    q = Scenario()
    q.subscribe("s")
    message = q.send(message_ttl_seconds=5)
    q.now += 5
    decision = decide_dispatch(q.state, q.context)
    assert decision.events == (e.MessageExpired(q.now, message),)


def test_t1_a_leased_message_expires_only_when_it_comes_back() -> None:
    """Given a lease over the end of the TTL, then the message may be acknowledged, or expires on its return."""
    q = Scenario()
    q.subscribe("s")
    good, bad = q.send(message_ttl_seconds=5), q.send(message_ttl_seconds=5)
    q.dispatch()
    q.advance(10)
    assert q.acknowledge(good, "s")
    q.fail(bad, "s", 0.0)
    q.dispatch()
    assert [event.message_id for event in q.events_of(e.MessageExpired)] == [bad]


def test_t1_a_broadcast_is_not_delivered_late_while_another_member_has_it() -> None:
    """Given a member that has the broadcast and one that was busy until its end, then the latter never gets it."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("b", max_in_flight=1)
    blocker = q.send("t", DeliveryGuarantee.BROADCAST)
    message = q.send("t", DeliveryGuarantee.BROADCAST, message_ttl_seconds=5)
    q.dispatch()
    q.advance(6)
    q.acknowledge(blocker, "b")
    assert q.dispatch() == []
    q.fail(message, "a", 0.0)
    q.dispatch()
    assert [event.message_id for event in q.events_of(e.MessageExpired)] == [message]


def test_t1_a_receiver_gets_nothing_that_is_past_its_time() -> None:
    """Given an expired message at the head, when somebody fetches, then it is expired and the next is given."""
    q = Scenario()
    q.subscribe("p", pull=True)
    old, new = q.send(message_ttl_seconds=1), q.send()
    q.now += 2
    assert q.ask(c.Receive("p", 5)) == [new]
    assert [event.message_id for event in q.events_of(e.MessageExpired)] == [old]


# --- another type -----------------------------------------------------------------------------------------


def reopened(q: Scenario, queue_type: QueueType) -> Scenario:
    """The queue after it was opened as one of this type; its history breaks no rule so far."""
    q.ask(c.Open(attrs.evolve(q.state.configuration, queue_type=queue_type)))
    return q


def assert_no_rule_is_broken(q: Scenario) -> None:
    records = [RecordedEvent(n, "queue:q", n, event) for n, event in enumerate(q.history, 1)]
    assert check_history(records) == []
    assert rerun_events(q.history).differences == []


@pytest.mark.parametrize("before", list(QueueType))
@pytest.mark.parametrize("after", list(QueueType))
def test_what_was_sent_before_follows_the_order_of_another_type(before: QueueType, after: QueueType) -> None:
    """Given messages that are ready, delayed, leased, and copies of a broadcast, when the queue is opened as one of
    another type, then all of them are delivered in its order, among those that are sent afterwards."""
    q = Scenario(queue_type=before, retry_backoff_seconds=0)
    q.subscribe("p", "leased", pull=True)
    leased = q.send("leased")
    assert q.receive("p") == [leased]
    shared = q.send("t", DeliveryGuarantee.BROADCAST, priority=2)
    q.subscribe("first")
    q.dispatch()
    q.acknowledge(shared, "first")
    q.subscribe("s", max_in_flight=1)
    low, late, high = q.send(priority=-7), q.send(priority=9, delay_seconds=20), q.send(priority=5)
    q.when(c.Unsubscribe(q.events_of(e.SubscriberJoined)[1].subscription_id))
    q.now += 10
    reopened(q, after)
    new = [q.send(priority=1), q.send(priority=8), q.send(priority=-9)]
    q.now += 10
    seen: list[str] = []
    while delivered := q.dispatch():
        ((message, subscriber),) = delivered
        seen.append(message)
        q.acknowledge(message, subscriber)
    sent = [low, late, high, *new]
    assert (
        seen
        == {
            QueueType.FIFO: sent,
            QueueType.PRIORITY: [late, new[1], high, new[0], low, new[2]],
            QueueType.DELAY: [low, high, *new, late],
        }[after]
    )
    assert_no_rule_is_broken(q)


def test_o1_a_group_follows_the_order_of_another_type_unless_it_has_begun() -> None:
    """Given two groups, one of which has begun, when the queue becomes a PRIORITY one, then the other begins with its
    highest priority, and nothing overtakes the message that was delivered."""
    q = Scenario()
    q.subscribe("s")
    begun = q.send(group_id="begun")
    assert ids(q.dispatch()) == [begun]
    hurried = q.send(group_id="begun", priority=9)
    q.when(c.Pause())
    waiting, delayed = q.send(group_id="waiting"), q.send(group_id="waiting", priority=9, delay_seconds=5)
    single = q.send(group_id="single")
    reopened(q, QueueType.PRIORITY)
    q.when(c.Resume())
    assert ids(q.dispatch()) == [single]
    assert ids(q.advance(5)) == [delayed]
    q.acknowledge(delayed, "s")
    q.acknowledge(begun, "s")
    assert ids(q.dispatch()) == [hurried, waiting]
    assert_no_rule_is_broken(q)
