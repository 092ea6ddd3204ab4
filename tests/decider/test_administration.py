"""The queue itself, its subscriptions and its dead letters, as SEMANTICS G3, D1 and C3 have them."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec
import pytest

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context, decide
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import InvalidOptionError, ProjectionError
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, MessageOptions, RejectionReason
from mpreg_mq.projections import QueueState
from tests.support.given import START, Scenario, callback, named

BROADCAST, QUORUM = DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM


# --- open and delete --------------------------------------------------------------------------------------


def test_open_creates_a_queue_once() -> None:
    """Given no queue, then opening creates it and says so; opening it again as it is changes nothing."""
    configuration = QueueConfiguration("q")
    q = Scenario()
    assert q.history == [e.QueueCreated(START, "q", configuration)]
    q.then_reply(True)
    q.when(c.Open(configuration)).then().then_reply(False)


def test_open_follows_another_configuration() -> None:
    """Given a queue, when it is opened with other settings, then later decisions follow those."""
    q = Scenario(max_size=1)
    q.send()
    other = QueueConfiguration("q", max_size=2, deduplication_window_seconds=3)
    q.when(c.Open(other)).then(e.QueueReconfigured(START, other)).then_reply(False)
    assert q.ask(c.Send("t", b"")).success
    assert not q.ask(c.Send("t", b"")).success


def test_nothing_is_decided_without_a_queue() -> None:
    """Given a stream that does not begin with QueueCreated, then commands say so."""
    with pytest.raises(ProjectionError, match="does not begin with QueueCreated"):
        decide(QueueState(), c.Send("t", b""), Context(START))


def test_an_unknown_command_is_an_error() -> None:
    """Given something that is no command, then it is a KeyError and not ignored."""
    with pytest.raises(KeyError):
        decide(QueueState(), "send", Context(START))


def test_delete_purges_and_ends_and_the_name_can_be_used_again() -> None:
    """Given messages, leases, dead letters and keys, when the queue is deleted, then the next one starts empty."""
    q = Scenario(max_retries=0, enable_deduplication=True, circuit_breaker_failure_threshold=1)
    q.subscribe("s", "t")
    dead = q.send()
    q.dispatch()
    q.fail(dead, "s")
    q.send("t", BROADCAST, deduplication_id="k")
    q.send("u", group_id="g", message_ttl_seconds=9, delay_seconds=3)
    q.when(c.Delete()).then(e.MessagesPurged(START, (named(2), named(3))), e.QueueDeleted(START)).then_reply(True)
    assert len(q.state.dead_letters) == 0
    q.when(c.Open(QueueConfiguration("q"))).then_reply(True)
    assert q.send(deduplication_id="k") == named(4)
    q.subscribe("s")
    assert q.dispatch() == [(named(4), "s")]
    assert q.state.report(q.now).messages_sent == 1


def test_an_empty_queue_is_deleted_without_a_purge() -> None:
    """Given nothing in it, then deleting is one event."""
    Scenario().when(c.Delete()).then(e.QueueDeleted(START))


# --- pause and purge --------------------------------------------------------------------------------------


def test_pause_and_resume_say_whether_they_changed_anything() -> None:
    """Given a running queue, then pausing counts once, and so does resuming."""
    q = Scenario()
    q.when(c.Resume()).then().then_reply(False)
    q.when(c.Pause()).then(e.QueuePaused(START)).then_reply(True)
    q.when(c.Pause()).then().then_reply(False)
    q.when(c.Resume()).then(e.QueueResumed(START)).then_reply(True)


def test_purge_removes_everything_unfinished() -> None:
    """Given pending, delayed, leased and half acknowledged messages, then they all go, and a late ack is false."""
    q = Scenario()
    q.subscribe("a", "t")
    q.subscribe("b", "t")
    sent = [q.send("t", BROADCAST), q.send("t"), q.send("lonely"), q.send(delay_seconds=9), q.send(group_id="g")]
    q.dispatch()
    q.acknowledge(sent[0], "a")
    q.when(c.Purge()).then(e.MessagesPurged(START, tuple(sent))).then_reply(5)
    assert not q.acknowledge(sent[0], "b")
    q.when(c.Purge()).then().then_reply(0)
    assert q.state.report(q.now).messages_purged == 5


# --- subscriptions ----------------------------------------------------------------------------------------


def test_subscribe_is_one_event_with_its_metadata() -> None:
    """Given a subscription, then it is logged with all that a replay needs, and its id is the reply."""
    q = Scenario()
    q.when(c.Subscribe("s", "1", "a.#", callback, False, 5, metadata={"k": "v"}))
    q.then(e.SubscriberJoined(START, "s", "1", "a.#", 5, False, False, {"k": "v"})).then_reply("1")


@pytest.mark.parametrize(
    ("configuration", "second", "words"),
    [
        ({}, c.Subscribe("s", "2", "#"), "with a callback, got a subscription without one"),
        ({}, c.Subscribe("t", "1", "#", callback), "expected a new one"),
        ({"max_subscribers": 1}, c.Subscribe("t", "2", "#", callback), "max_subscribers=1"),
    ],
)
def test_subscribe_refuses(configuration: dict[str, Any], second: c.Subscribe, words: str) -> None:
    """Given a subscription, then one of the other way, one of the same id and one too many are errors."""
    q = Scenario(**configuration)
    q.when(c.Subscribe("s", "1", "#", callback))
    before = list(q.history)
    with pytest.raises(InvalidOptionError, match=words):
        q.when(second)
    assert q.history == before


def test_a_puller_cannot_get_a_callback() -> None:
    """Given a puller, then a subscription with a callback is an error."""
    q = Scenario()
    q.subscribe("s", pull=True)
    with pytest.raises(InvalidOptionError, match="without a callback, got a subscription with one"):
        q.subscribe("s")


def test_who_left_may_come_back_the_other_way() -> None:
    """Given a pusher that left while its lease is open, then it may pull from now on."""
    q = Scenario()
    subscription = q.subscribe("s")
    message = q.send()
    q.dispatch()
    q.when(c.Unsubscribe(subscription))
    q.subscribe("s", pull=True)
    assert q.acknowledge(message, "s")


def test_unsubscribe_says_whether_it_existed() -> None:
    """Given a subscription, then ending it counts once."""
    q = Scenario()
    subscription = q.subscribe("s")
    q.when(c.Unsubscribe(subscription)).then(e.SubscriberLeft(START, "s", subscription)).then_reply(True)
    q.when(c.Unsubscribe(subscription)).then().then_reply(False)


def test_work_in_progress_can_be_acknowledged_after_unsubscribing() -> None:
    """Given an at-least-once lease, when its subscriber leaves, then the lease stays open and its ack counts."""
    q = Scenario()
    subscription = q.subscribe("s")
    message = q.send()
    q.dispatch()
    q.when(c.Unsubscribe(subscription))
    assert q.acknowledge(message, "s")
    assert len(list(q.state.subscribers)) == 0


def test_g3_who_unsubscribes_leaves_the_audience_logged() -> None:
    """Given a broadcast that only one has not acknowledged, when that one leaves, then it is complete."""
    q = Scenario()
    q.subscribe("a")
    subscription = q.subscribe("b")
    message = q.send("t", BROADCAST)
    q.dispatch()
    q.acknowledge(message, "a")
    q.when(c.Unsubscribe(subscription)).then(
        e.SubscriberLeft(START, "b", subscription),
        e.AudienceMemberLeft(START, message, "b"),
        e.MessageCompleted(START, message),
    )


def test_g3_who_acknowledged_or_matches_otherwise_stays_in_the_audience() -> None:
    """Given one that acknowledged and one with another matching subscription, then no audience changes."""
    q = Scenario()
    done = q.subscribe("a")
    twice = q.subscribe("b", "t")
    q.subscribe("b", "#")
    q.subscribe("c")
    message = q.send("t", BROADCAST)
    q.dispatch()
    q.acknowledge(message, "a")
    for subscription in (done, twice):
        q.when(c.Unsubscribe(subscription))
        assert q.kinds() == ["SubscriberLeft"]


def test_g3_an_audience_that_all_left_waits_for_another() -> None:
    """Given a broadcast whose only member leaves, then it waits, and whoever comes next gets it."""
    q = Scenario()
    subscription = q.subscribe("a")
    message = q.send("t", BROADCAST)
    q.dispatch()
    q.when(c.Unsubscribe(subscription))
    assert q.kinds() == ["SubscriberLeft", "AudienceMemberLeft"]
    assert q.state.messages.pending_count == 1
    q.subscribe("b")
    assert q.dispatch() == [(message, "b")]


def test_g4_a_quorum_that_all_left_waits_for_another() -> None:
    """Given a quorum message whose only member leaves, then nothing is missed, and it waits for somebody."""
    q = Scenario()
    subscription = q.subscribe("a")
    message = q.send("t", QUORUM)
    q.dispatch()
    q.when(c.Unsubscribe(subscription))
    assert q.kinds() == ["SubscriberLeft", "AudienceMemberLeft"]
    q.subscribe("b")
    assert q.dispatch() == [(message, "b")]


def test_g3_the_one_that_was_out_of_attempts_leaves_and_the_rest_is_complete() -> None:
    """Given a member out of attempts and one at work, when the former leaves, then the latter completes it."""
    q = Scenario(max_retries=0)
    q.subscribe("a")
    subscription = q.subscribe("b")
    message = q.send("t", BROADCAST)
    q.dispatch()
    q.fail(message, "b")
    q.when(c.Unsubscribe(subscription))
    assert q.kinds() == ["SubscriberLeft", "AudienceMemberLeft"]
    q.acknowledge(message, "a")
    assert q.kinds() == ["MessageAcknowledged", "MessageCompleted"]


@pytest.mark.parametrize("guarantee", [BROADCAST, QUORUM])
def test_g3_when_the_last_one_at_work_leaves_the_failed_ones_decide(guarantee: DeliveryGuarantee) -> None:
    """Given a member out of attempts, when the only other one leaves, then the dead letter tells who failed."""
    q = Scenario(max_retries=0)
    q.subscribe("a")
    subscription = q.subscribe("b")
    message = q.send("t", guarantee)
    q.dispatch()
    q.fail(message, "a", error="bad")
    q.when(c.Unsubscribe(subscription))
    (dead,) = q.fresh_of(e.MessageDeadLettered)
    assert (dead.subscriber_id, dead.error) == ("a", "bad")


def test_c3_detach_ends_push_subscriptions_and_keeps_places_in_audiences() -> None:
    """Given pushers and a puller, when the process ends, then the former leave, and their broadcasts wait for them."""
    q = Scenario()
    first, second = q.subscribe("s", "x"), q.subscribe("s", "#")
    q.subscribe("p", "y", pull=True)
    message = q.send("t", BROADCAST)
    q.dispatch()
    q.when(c.EndLease(message, "s", "stopped"))
    q.when(c.Detach()).then(
        e.SubscriberLeft(START, "s", first, False), e.SubscriberLeft(START, "s", second, False)
    ).then_reply(2)
    q.subscribe("other")
    assert q.dispatch() == []
    q.subscribe("s")
    assert q.dispatch() == [(message, "s")]


# --- dead letters -----------------------------------------------------------------------------------------


def with_dead_letters(count: int, **configuration: Any) -> Scenario:
    """A queue with this many dead letters, ids in order."""
    q = Scenario(max_retries=0, **configuration)
    subscription = q.subscribe("s")
    for _ in range(count):
        message = q.send("t", headers={"h": "v"}, priority=3)
        q.dispatch()
        q.fail(message, "s")
    q.when(c.Unsubscribe(subscription))
    return q


def test_d1_a_redrive_is_a_new_acceptance_that_remembers_where_it_came_from() -> None:
    """Given a dead letter, when it is redriven, then a new message has its content and origin."""
    q = with_dead_letters(1, enable_deduplication=True)
    q.when(c.Redrive())
    enqueued, redriven = q.fresh
    assert isinstance(enqueued, e.MessageEnqueued)
    original = q.events_of(e.MessageEnqueued)[0]
    assert enqueued == msgspec.structs.replace(original, message_id=named(2), redriven_from=f"q/{named(1)}", at=q.now)
    assert redriven == e.DeadLetterRedriven(q.now, named(1), named(2), "q")
    q.then_reply([(named(1), named(2))])
    assert len(q.state.dead_letters) == 0
    assert q.state.report(q.now).messages_redriven == 1


def test_d1_a_redrive_claims_no_deduplication_key() -> None:
    """Given a dead letter whose key ran out and was claimed anew, then its redrive leaves the key alone."""
    q = Scenario(max_retries=0, enable_deduplication=True, deduplication_window_seconds=5)
    q.subscribe("s")
    dead = q.send(deduplication_id="k")
    q.dispatch()
    q.fail(dead, "s")
    q.advance(5)
    newer = q.send(deduplication_id="k")
    q.when(c.Redrive())
    assert q.state.deduplication.holder("k", q.now) == newer


def test_d1_one_some_or_all() -> None:
    """Given five dead letters, then named ones, a limited number and all can be redriven; unknown ids are left out."""
    q = with_dead_letters(5)
    assert [dead for dead, _ in q.ask(c.Redrive((named(3), "unknown", named(3))))] == [named(3)]
    assert [dead for dead, _ in q.ask(c.Redrive(limit=2))] == [named(1), named(2)]
    assert [dead for dead, _ in q.ask(c.Redrive())] == [named(4), named(5)]
    q.when(c.Redrive()).then().then_reply([])


def test_d1_a_redrive_takes_as_many_as_there_is_room_for() -> None:
    """Given room for one, then one is redriven and the others stay dead."""
    q = with_dead_letters(3, max_size=2)
    q.send()
    assert [dead for dead, _ in q.ask(c.Redrive())] == [named(1)]
    assert q.state.dead_letters.ids() == [named(2), named(3)]
    assert q.ask(c.Redrive()) == []


def test_d1_to_another_queue() -> None:
    """Given dead letters here, when another queue accepts them, then they leave this one."""
    here, there = with_dead_letters(3), Scenario(max_size=2)
    entries = tuple(entry.enqueued for entry in here.state.dead_letters)
    pairs = there.ask(c.AcceptRedriven(entries, "here"))
    assert pairs == [(named(1), named(1)), (named(2), named(2))]
    assert [event.redriven_from for event in there.events_of(e.MessageEnqueued)] == [
        f"here/{named(1)}",
        f"here/{named(2)}",
    ]
    here.when(c.RecordRedriven(tuple(pairs), "there"))
    here.then(*(e.DeadLetterRedriven(START, dead, new, "there") for dead, new in pairs)).then_reply(2)
    assert here.state.dead_letters.ids() == [named(3)]
    here.when(c.RecordRedriven(tuple(pairs), "there")).then().then_reply(0)


@pytest.mark.parametrize(
    ("limits", "options", "reason"),
    [
        ({"max_payload_bytes": 3}, {}, RejectionReason.PAYLOAD_TOO_LARGE),
        ({"max_headers_bytes": 3}, {"headers": {"key": "value"}}, RejectionReason.INVALID_OPTION),
        ({"max_subscribers": 1}, {"required_acknowledgments": 2}, RejectionReason.INVALID_OPTION),
    ],
)
def test_d1_s2_a_redrive_keeps_the_limits_of_the_queue(
    limits: dict[str, int], options: dict[str, Any], reason: RejectionReason
) -> None:
    """Given a dead letter that another queue refuses as a send, and one that it takes, with room for one, when they are
    redriven there, then the first is refused for the same reason and takes no room."""
    here, there = Scenario(max_retries=0), Scenario(max_size=1, **limits)
    here.subscribe("s")
    beyond = c.Send("t", b"\xa4long", options=MessageOptions(**options))
    large = here.ask(beyond).message_id.id
    small = here.send()
    here.dispatch()
    here.fail(large, "s")
    here.dispatch()
    here.fail(small, "s")
    entries = tuple(entry.enqueued for entry in here.state.dead_letters)
    assert there.ask(beyond).rejection is reason
    pairs = there.ask(c.AcceptRedriven(entries, "here"))
    assert [dead for dead, _ in pairs] == [small]
    _, refused = there.events_of(e.MessageRejected)
    assert refused.reason is reason
    assert refused.detail.startswith(f"redrive of here/{large}: ")


def test_d1_s2_what_is_refused_is_not_in_the_way_of_a_limited_redrive() -> None:
    """Given two dead letters that are beyond what their queue takes by now, and two younger ones that are not, when one
    is to be redriven, then one is refused, the third accepted, and nothing is recorded of the others."""
    q = Scenario(max_retries=0)
    q.subscribe("s")
    ids = [q.ask(c.Send("t", payload)).message_id.id for payload in (b"\xa4long", b"\xa4long", b"\xa1a", b"\xa1b")]
    for message_id in ids:
        q.dispatch()
        q.fail(message_id, "s")
    q.when(c.Open(attrs.evolve(q.state.configuration, max_payload_bytes=3)))
    assert [dead for dead, _ in q.ask(c.Redrive(limit=1))] == [ids[2]]
    assert q.state.dead_letters.ids() == [ids[0], ids[1], ids[3]]
    assert len(q.events_of(e.MessageRejected)) == 1


def test_d1_s2_a_redrive_keeps_limits_that_have_come_since() -> None:
    """Given a dead letter that is beyond what its queue takes by now, then its redrive is refused, and it stays."""
    q = with_dead_letters(1)
    q.when(c.Open(attrs.evolve(q.state.configuration, max_headers_bytes=1)))
    dead = q.state.dead_letters.ids()
    assert q.ask(c.Redrive()) == []
    assert q.state.dead_letters.ids() == dead


def test_d1_dead_letters_can_be_purged() -> None:
    """Given three, then named ones or all are removed, logged and counted."""
    q = with_dead_letters(3)
    q.when(c.PurgeDeadLetters((named(2), "unknown"))).then(e.DeadLettersPurged(START, (named(2),))).then_reply(1)
    q.when(c.PurgeDeadLetters()).then(e.DeadLettersPurged(START, (named(1), named(3)))).then_reply(2)
    q.when(c.PurgeDeadLetters()).then().then_reply(0)
