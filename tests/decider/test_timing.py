"""What time asks for, one deadline at a time and never before it has come (O3, T1, L1, R3, G4)."""

from __future__ import annotations

from mpreg_mq.actors.decider import NOTHING, decide_tick
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from tests.support.given import START, Scenario


def test_an_idle_queue_has_no_deadline() -> None:
    """Given nothing that waits for time, then there is no deadline, so nothing wakes up."""
    q = Scenario()
    q.subscribe("s")
    q.send()
    q.send("lonely")
    assert q.state.messages.deadlines.first() is None
    assert decide_tick(q.state, q.context) is NOTHING


def test_a_deadline_that_has_not_come_asks_for_nothing() -> None:
    """Given a TTL of 5 s, then ticks before do nothing, and the one at 5 s expires the message."""
    q = Scenario()
    message = q.send(message_ttl_seconds=5)
    q.now += 4.999
    assert decide_tick(q.state, q.context) is NOTHING
    q.now = START + 5
    assert decide_tick(q.state, q.context).events == (e.MessageExpired(START + 5, message),)


def test_a_late_tick_takes_the_deadlines_in_their_order() -> None:
    """Given a TTL, a lease and a delay that have all passed, then they are acted on in time order, one by one."""
    q = Scenario()
    q.subscribe("s", "leased")
    leased = q.send("leased", acknowledgment_timeout_seconds=2)
    q.dispatch()
    expired, delayed = q.send(message_ttl_seconds=1), q.send(delay_seconds=3)
    q.now += 100
    q.dispatch()
    assert q.kinds()[:3] == ["MessageExpired", "LeaseExpired", "MessageRequeued"]
    assert [event.message_id for event in q.events_of(e.MessageExpired)] == [expired]
    q.subscribe("t", "t")
    assert (delayed, "t") in q.dispatch()
    assert leased != delayed


def test_becoming_due_is_no_event() -> None:
    """Given a delayed message, when its time comes, then it is ready and nothing is logged."""
    q = Scenario()
    q.send(delay_seconds=3)
    q.now += 3
    assert decide_tick(q.state, q.context) is NOTHING
    assert q.state.messages.deadlines.first() is None
    assert len(q.state.messages.lanes) == 1


def test_settled_messages_leave_no_deadline_behind() -> None:
    """Given leases, delays and TTLs whose messages are finished, then no deadline is left."""
    q = Scenario()
    q.subscribe("s")
    for options in ({}, {"message_ttl_seconds": 9.0}, {"group_id": "g"}):
        message = q.send("t", DeliveryGuarantee.BROADCAST, **options)
        q.dispatch()
        q.acknowledge(message, "s")
    assert q.state.messages.deadlines.first() is None
    assert len(q.state.messages.deadlines) == 0
