"""Sends, as SEMANTICS S1-S5, U1 and C1 have them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import WAIT_FOR_ROOM
from mpreg_mq.actors.decider.sending import decide_fire_and_forget, decide_wait_over, record_fire_and_forget
from mpreg_mq.events import RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.invariants import check_history
from mpreg_mq.model import DeliveryGuarantee, MessageId, MessageOptions, OverflowPolicy, RejectionReason
from mpreg_mq.replay.rerun import rerun_events
from tests.support.given import Scenario


def deduplicated(key: str, topic: str = "t") -> c.Send:
    return c.Send(topic, b"\xa1p", fingerprint=key)


def test_s1_an_accepted_send_is_one_event_and_a_success() -> None:
    """Given room, when a message is sent, then MessageEnqueued says so and the result names it."""
    q = Scenario()
    result = q.ask(c.Send("t", b"x"))
    assert q.kinds() == ["MessageEnqueued"]
    assert result.success
    assert result.message_id.id == "1-r"
    assert q.state.messages.pending_count == 1


@pytest.mark.parametrize(
    ("configuration", "send", "reason", "words"),
    [
        ({"max_payload_bytes": 3}, c.Send("t", b"1234"), RejectionReason.PAYLOAD_TOO_LARGE, "max_payload_bytes=3"),
        (
            {"max_headers_bytes": 3},
            c.Send("t", b"1", options=MessageOptions(headers={"ab": "cd"})),
            RejectionReason.INVALID_OPTION,
            "headers are 4 bytes",
        ),
        (
            {"max_subscribers": 2},
            c.Send("t", b"1", DeliveryGuarantee.QUORUM, MessageOptions(required_acknowledgments=3)),
            RejectionReason.INVALID_OPTION,
            "the quorum would never come",
        ),
    ],
)
def test_s2_a_refused_send_is_logged_with_its_reason_and_changes_nothing_else(
    configuration: dict[str, Any], send: c.Send, reason: RejectionReason, words: str
) -> None:
    """Given a limit, when a send is beyond it, then the reason is in the result and in the log."""
    q = Scenario(**configuration)
    result = q.ask(send)
    assert not result.success
    assert result.rejection is reason
    assert words in result.error_message
    assert q.kinds() == ["MessageRejected"]
    assert len(q.state.messages) == 0


def test_s2_what_is_within_the_limits_is_accepted() -> None:
    """Given headers just within the limit, then the send is accepted."""
    q = Scenario(max_headers_bytes=4)
    assert q.ask(c.Send("t", b"1", options=MessageOptions(headers={"ab": "cd"}))).success


def test_s2_a_refusal_before_the_command_is_logged_too() -> None:
    """Given a malformed topic, then the façade's refusal is an event."""
    q = Scenario()
    result = q.ask(c.RecordRejection("a..b", RejectionReason.INVALID_TOPIC, "empty level"))
    assert (result.success, result.rejection) == (False, RejectionReason.INVALID_TOPIC)
    assert q.kinds() == ["MessageRejected"]


def test_c1_reject_refuses_what_is_beyond_max_size() -> None:
    """Given a full queue that rejects, then the next send names capacity and claims no key (S1)."""
    q = Scenario(max_size=1, enable_deduplication=True)
    q.send()
    result = q.ask(deduplicated("k"))
    assert result.rejection is RejectionReason.CAPACITY
    assert "capacity" in result.error_message
    assert q.state.deduplication.holder("k", q.now) is None


def test_c1_leased_messages_need_no_room() -> None:
    """Given a queue of one whose message is leased, then there is room for another."""
    q = Scenario(max_size=1)
    q.subscribe("s", max_in_flight=1)
    q.send()
    q.dispatch()
    assert q.ask(c.Send("t", b"x")).success


def test_c1_drop_oldest_makes_room_with_the_oldest_pending_message() -> None:
    """Given a full queue that drops, then the oldest goes, logged, and the new one is accepted."""
    q = Scenario(max_size=2, overflow_policy=OverflowPolicy.DROP_OLDEST)
    first, second = q.send(), q.send()
    third = q.send()
    assert q.kinds() == ["MessageDropped", "MessageEnqueued"]
    assert q.events_of(e.MessageDropped)[0].message_id == first
    assert [message.id for message in q.state.messages.pending()] == [second, third]


def test_c1_drop_oldest_makes_room_also_where_more_are_pending_than_may_be() -> None:
    """Given more pending messages than there may be, because leases have given them back or the limit was higher, when
    one is sent, then as many of the oldest are dropped as it takes to keep to the limit."""
    q = Scenario(max_size=2, overflow_policy=OverflowPolicy.DROP_OLDEST)
    q.subscribe("p", pull=True)
    leased = [q.send(), q.send()]
    assert q.receive("p", 2) == leased
    sent = [q.send(), q.send()]
    for message in leased:
        q.fail(message, "p", 0.0)
    assert q.state.messages.pending_count == 4
    newest = q.send()
    assert [event.message_id for event in q.fresh_of(e.MessageDropped)] == [*leased, sent[0]]
    assert [message.id for message in q.state.messages.pending()] == [sent[1], newest]
    q.when(c.Open(attrs.evolve(q.state.configuration, max_size=1)))
    results = q.ask(c.SendBatch(tuple(c.Send("t", b"x") for _ in range(2))))
    dropped = [sent[1], newest, results[0].message_id.id]
    assert [event.message_id for event in q.fresh_of(e.MessageDropped)] == dropped
    assert q.state.messages.pending_count == 1
    records = [RecordedEvent(n, "queue:q", n, event) for n, event in enumerate(q.history, 1)]
    assert check_history(records) == []
    again = rerun_events(q.history)
    assert again.differences == []
    assert "MessageDropped" not in again.given


def test_c1_wait_asks_the_actor_to_wait_and_then_says_that_it_waited() -> None:
    """Given a full queue that waits, then the send is neither accepted nor refused, until its time is over."""
    q = Scenario(max_size=1, overflow_policy=OverflowPolicy.WAIT, overflow_wait_seconds=7)
    q.send()
    send = c.Send("t", b"x")
    assert q.ask(send) is WAIT_FOR_ROOM
    assert q.kinds() == []
    result = q.record(decide_wait_over(q.state, send, q.context))
    assert result.rejection is RejectionReason.CAPACITY
    assert "overflow_wait_seconds=7" in result.error_message


def test_u1_the_same_key_is_refused_within_the_window_and_names_the_first() -> None:
    """Given a key at t, then it is refused in [t, t + window) and accepted at t + window."""
    q = Scenario(enable_deduplication=True, deduplication_window_seconds=10)
    first = q.ask(deduplicated("k")).message_id
    q.advance(9.999)
    again = q.ask(deduplicated("k"))
    assert again.rejection is RejectionReason.DUPLICATE
    assert again.duplicate_of == first
    assert q.kinds() == ["DuplicateRejected"]
    q.advance(0.001)
    assert q.ask(deduplicated("k")).success


def test_u1_a_finished_message_still_holds_its_key() -> None:
    """Given an acknowledged message, then its key is refused as long as the window lasts."""
    q = Scenario(enable_deduplication=True)
    q.subscribe("s")
    first = q.ask(deduplicated("k")).message_id.id
    q.dispatch()
    q.acknowledge(first, "s")
    assert q.ask(deduplicated("k")).rejection is RejectionReason.DUPLICATE


def test_u1_a_full_table_refuses_instead_of_forgetting() -> None:
    """Given max_deduplication_keys keys, then another is refused until one has run out."""
    q = Scenario(enable_deduplication=True, max_deduplication_keys=2, deduplication_window_seconds=10)
    q.ask(deduplicated("a"))
    q.advance(5)
    q.ask(deduplicated("b"))
    assert q.ask(deduplicated("c")).rejection is RejectionReason.DEDUPLICATION_TABLE_FULL
    q.advance(5)
    assert q.ask(deduplicated("c")).success


def test_s5_a_batch_is_one_decision_with_a_result_for_each() -> None:
    """Given a batch with a duplicate inside and too many messages, then each gets its own answer, in order."""
    q = Scenario(max_size=2, enable_deduplication=True)
    results = q.ask(c.SendBatch((deduplicated("a"), deduplicated("a"), deduplicated("b"), deduplicated("c"))))
    assert [result.rejection for result in results] == [
        None,
        RejectionReason.DUPLICATE,
        None,
        RejectionReason.CAPACITY,
    ]
    assert [result.message_id.id for result in results if result.success] == ["1-r", "2-r"]
    assert results[1].duplicate_of == results[0].message_id
    assert len(q.state.messages) == 2


def test_s5_a_batch_without_anything_special_is_accepted_as_it_is() -> None:
    """Given plain messages and room, then each is accepted, in order, as it would be alone."""
    sends = tuple(c.Send("t", body) for body in (b"x", b"y"))
    q, alone = Scenario(), Scenario()
    results = q.ask(c.SendBatch(sends))
    assert results == [alone.ask(send) for send in sends]
    assert q.history == alone.history


@pytest.mark.parametrize(
    ("configuration", "special", "accepted"),
    [
        ({}, c.Send("t", b"x"), 3),
        ({"max_size": 2}, c.Send("t", b"x"), 2),
        ({"max_size": 1}, c.Send("t", b"x"), 1),
        ({"max_payload_bytes": 3}, c.Send("t", b"1234"), 1),
        ({"enable_deduplication": True}, deduplicated("k"), 1),
        ({}, c.Send("t", b"x", options=MessageOptions(priority=1)), 1),
    ],
)
def test_s1_messages_of_several_senders_are_accepted_as_far_as_nothing_is_special(
    configuration: dict[str, Any], special: c.Send, accepted: int
) -> None:
    """Given messages of which the second may be special, then those before it get what they would have got alone."""
    sends = (c.Send("t", b"1"), special, c.Send("t", b"3"))
    q, alone = Scenario(**configuration), Scenario(**configuration)
    results = q.ask(c.SendEach(sends))
    assert results == [alone.ask(send) for send in sends[:accepted]]
    assert q.history == alone.history


def test_c1_of_several_senders_none_is_accepted_where_there_is_no_room() -> None:
    """Given a full queue, then none of the messages is accepted this way, and nothing is logged."""
    q = Scenario(max_size=1)
    q.send()
    assert q.ask(c.SendEach((c.Send("t", b"x"),))) == []
    assert q.kinds() == []


def test_s5_a_batch_never_waits_for_room() -> None:
    """Given a full queue that lets senders wait, then the surplus of a batch is refused at once."""
    q = Scenario(max_size=1, overflow_policy=OverflowPolicy.WAIT)
    results = q.ask(c.SendBatch((c.Send("t", b"x"), c.Send("t", b"y"))))
    assert [result.success for result in results] == [True, False]
    assert results[1].rejection is RejectionReason.CAPACITY


def test_c1_a_batch_drops_what_its_messages_would_have_dropped_one_by_one() -> None:
    """Given a full queue that drops and a batch larger than it, then the old ones go, and the batch's own first."""
    q = Scenario(max_size=2, overflow_policy=OverflowPolicy.DROP_OLDEST)
    old = [q.send(), q.send()]
    results = q.ask(c.SendBatch(tuple(c.Send("t", b"x") for _ in range(3))))
    assert [result.success for result in results] == [True, True, True]
    assert [event.message_id for event in q.events_of(e.MessageDropped)] == [*old, results[0].message_id.id]
    assert [message.id for message in q.state.messages.pending()] == [r.message_id.id for r in results[1:]]


def test_g1_fire_and_forget_is_refused_for_its_own_faults_only() -> None:
    """Given a full queue, then fire-and-forget goes through; a duplicate does not."""
    q = Scenario(max_size=1, enable_deduplication=True)
    q.send()
    send = deduplicated("k")
    assert decide_fire_and_forget(q.state, send, q.context).reply is None
    event, result = record_fire_and_forget(send, q.context, MessageId("f1-r"), ("s",), ("x",))
    q.given(event)
    assert result.success
    assert (result.delivered_to, result.failed_deliveries) == (frozenset({"s"}), frozenset({"x"}))
    refused = q.record(decide_fire_and_forget(q.state, send, q.context))
    assert refused.rejection is RejectionReason.DUPLICATE
    report = q.state.report(q.now)
    assert (report.messages_sent, report.messages_received, report.messages_acknowledged) == (2, 1, 1)
    event, _ = record_fire_and_forget(c.Send("t", b""), q.context, MessageId("f2-r"), (), ())
    q.given(event)
    assert q.state.report(q.now).messages_acknowledged == 1


def test_g1_fire_and_forget_cannot_be_delayed() -> None:
    """Given a delay, then a fire-and-forget send is refused, because nothing of it is kept until later."""
    q = Scenario()
    send = c.Send("t", b"x", DeliveryGuarantee.FIRE_AND_FORGET, MessageOptions(delay_seconds=5.0))
    refused = q.record(decide_fire_and_forget(q.state, send, q.context))
    assert refused.rejection is RejectionReason.INVALID_OPTION
    assert "delay" in refused.error_message
    assert len(q.events_of(e.MessageRejected)) == 1
