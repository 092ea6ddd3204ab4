"""The queue itself, its subscriptions and its dead letters (SEMANTICS C3, D1)."""

from __future__ import annotations

import pytest

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import decide
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from tests.support.given import Scenario, callback


def with_dead_letters(count: int, **configuration: object) -> tuple[Scenario, list[str]]:
    q = Scenario(max_retries=0, **configuration)
    q.subscribe("s")
    dead = [q.send(deduplication_id=f"k{n}") for n in range(count)]
    q.dispatch()
    for message in dead:
        q.fail(message, "s")
    return q, dead


def test_opening_creates_follows_a_new_configuration_or_changes_nothing() -> None:
    """Given a queue, when it is opened again, then only another configuration is an event."""
    q = Scenario()
    assert q.kinds() == ["QueueCreated"]
    assert not q.when(c.Open(QueueConfiguration("q"))).reply
    assert q.kinds() == []
    assert not q.when(c.Open(QueueConfiguration("q", max_size=5))).reply
    assert q.kinds() == ["QueueReconfigured"]
    assert q.state.configuration.max_size == 5


def test_a_deleted_queue_is_empty_and_can_be_created_anew() -> None:
    """Given a queue with everything in it, when it is deleted and created, then it starts from nothing."""
    q, _ = with_dead_letters(1)
    q.send(group_id="g", message_ttl_seconds=9)
    q.send(delay_seconds=9)
    q.dispatch()
    assert q.when(c.Delete()).reply
    assert q.kinds() == ["MessagesPurged", "QueueDeleted"]
    assert (len(q.state.messages), len(q.state.dead_letters), len(q.state.subscribers)) == (0, 0, 0)
    assert q.when(c.Open(QueueConfiguration("q"))).reply
    assert q.state.report(q.now).messages_sent == 0
    q.subscribe("s")
    message = q.send()
    assert q.dispatch() == [(message, "s")]


def test_subscriptions_are_limited() -> None:
    """Given max_subscribers of one, then the second subscription is an error that says so."""
    q = Scenario(max_subscribers=1)
    q.subscribe("a")
    with pytest.raises(InvalidOptionError, match="max_subscribers=1"):
        decide(q.state, c.Subscribe("b", "id", "#"), q.context)


def test_a_blocking_subscriber_gets_one_message_at_a_time_unless_it_says_more() -> None:
    """Given blocking callbacks, then max_in_flight is one by default."""
    q = Scenario(default_max_in_flight=7)
    q.when(c.Subscribe("a", "1", "#", callback))
    q.when(c.Subscribe("b", "2", "#", callback, blocking=True))
    q.when(c.Subscribe("c", "3", "#", callback, blocking=True, max_in_flight=4))
    assert [event.max_in_flight for event in q.events_of(e.SubscriberJoined)] == [7, 1, 4]


def test_unsubscribing_twice_is_false() -> None:
    """Given no such subscription, then nothing changes."""
    q = Scenario()
    assert not q.when(c.Unsubscribe("nobody")).reply
    assert q.kinds() == []


def test_unsubscribing_leaves_leases_of_at_least_once_messages_open() -> None:
    """Given work in progress, when its subscriber leaves, then it can still be acknowledged."""
    q = Scenario()
    subscription = q.subscribe("s")
    message = q.send()
    q.dispatch()
    assert q.when(c.Unsubscribe(subscription)).reply
    assert q.acknowledge(message, "s")
    assert q.state.subscribers.get("s") is None


def test_c3_detaching_ends_push_subscriptions_and_keeps_places_in_audiences() -> None:
    """Given a broadcast a member has not answered, when its process ends and it comes back, then it gets it."""
    q = Scenario()
    q.subscribe("a")
    q.subscribe("p", pull=True)
    message = q.send(guarantee=DeliveryGuarantee.BROADCAST)
    q.dispatch()
    q.when(c.EndLease(message, "a", "process ended"))
    assert q.when(c.Detach()).reply == 1
    assert q.state.subscribers.get("p") is not None
    assert q.dispatch() == []
    q.subscribe("a")
    assert q.dispatch() == [(message, "a")]


def test_pausing_twice_changes_nothing() -> None:
    """Given a paused queue, then pausing is false, and so is resuming a running one."""
    q = Scenario()
    assert not q.when(c.Resume()).reply
    assert q.when(c.Pause()).reply
    assert not q.when(c.Pause()).reply
    assert q.when(c.Resume()).reply


def test_purging_removes_what_is_unfinished_leased_or_not() -> None:
    """Given a leased, a waiting and a broadcast message, then all go and acknowledgments are false."""
    q = Scenario()
    q.subscribe("s")
    leased = q.send()
    q.send(guarantee=DeliveryGuarantee.BROADCAST)
    q.dispatch()
    q.send(delay_seconds=5)
    assert q.when(c.Purge()).reply == 3
    assert q.when(c.Purge()).reply == 0
    assert not q.acknowledge(leased, "s")
    assert q.state.report(q.now).messages_purged == 3


def test_d1_redriving_accepts_again_and_remembers_where_from() -> None:
    """Given dead letters, then all, some or a few are new messages, oldest first, without their keys."""
    q, dead = with_dead_letters(3, enable_deduplication=True)
    pairs = q.when(c.Redrive((dead[1], "unknown", dead[1]))).reply
    assert [old for old, _ in pairs] == [dead[1]]
    again = q.events_of(e.MessageEnqueued)[-1]
    assert (again.redriven_from, again.deduplication_key) == (f"q/{dead[1]}", None)
    assert [old for old, _ in q.when(c.Redrive(limit=1)).reply] == [dead[0]]
    assert [old for old, _ in q.when(c.Redrive()).reply] == [dead[2]]
    assert q.when(c.Redrive()).reply == []
    assert q.state.report(q.now).messages_redriven == 3
    assert len(q.dispatch()) == 3


def test_d1_a_redrive_takes_no_more_than_there_is_room_for() -> None:
    """Given room for one, then one dead letter is redriven and the other stays."""
    q, dead = with_dead_letters(2, max_size=2)
    q.state.subscribers.check()
    q.when(c.Pause())
    q.send(deduplication_id="new")
    assert [old for old, _ in q.when(c.Redrive()).reply] == [dead[0]]
    assert q.state.dead_letters.ids() == [dead[1]]


def test_d1_a_redrive_to_another_queue_is_recorded_in_both() -> None:
    """Given another queue, then the new message is there and the dead letter leaves here."""
    source, (dead,) = with_dead_letters(1)
    target = Scenario()
    entry = source.state.dead_letters.get(dead)
    assert entry is not None
    pairs = target.when(c.AcceptRedriven((entry.enqueued,), "q")).reply
    assert source.when(c.RecordRedriven((*pairs, ("unknown", "x")), "other")).reply == 1
    assert len(source.state.dead_letters) == 0
    assert len(target.state.messages) == 1


def test_d1_dead_letters_can_be_purged() -> None:
    """Given dead letters, then some or all can be removed, and only once."""
    q, dead = with_dead_letters(3)
    assert q.when(c.PurgeDeadLetters((dead[0], "unknown"))).reply == 1
    assert q.when(c.PurgeDeadLetters()).reply == 2
    assert q.when(c.PurgeDeadLetters()).reply == 0
