"""The vocabulary: identifiers, messages, results and statistics as callers see them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mpreg_mq.model import (
    CircuitState,
    DeadLetter,
    DeliveryGuarantee,
    DeliveryResult,
    InFlightMessage,
    MessageId,
    QueuedMessage,
    QueueManagerStatistics,
    QueueMessageStatus,
    QueueStatistics,
    QueueSubscription,
    QueueType,
    TopicRouting,
)

NOW = 1_000_000.0


@pytest.fixture(autouse=True)
def _standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # The module's own name, not the function: pytest measures with it too.
    monkeypatch.setattr("mpreg_mq.model.time", SimpleNamespace(time=lambda: NOW))


def message(**fields: Any) -> QueuedMessage:
    given: dict[str, Any] = {
        "id": MessageId("m"),
        "topic": "t",
        "payload": {"p": 1},
        "delivery_guarantee": DeliveryGuarantee.AT_LEAST_ONCE,
        "created_at": NOW - 10,
        **fields,
    }
    return QueuedMessage(**given)


def test_identifiers_are_equal_by_their_text_alone() -> None:
    """Given the same text at another time from another node, then it is the same identifier."""
    one, two = MessageId("m", 1.0, "a"), MessageId("m", 2.0, "b")
    assert one == two
    assert len({one, two}) == 1
    assert MessageId("n") != one
    assert str(one) == "m"


def test_identifiers_are_never_made_twice() -> None:
    """Given no text, then each identifier is new; each knows its age and node."""
    made = MessageId.generate("node")
    assert made != MessageId.generate("node")
    assert made.source_node == "node"
    assert MessageId("m", NOW - 5).age_seconds() == 5.0
    assert MessageId.from_string("m", "node") == MessageId("m")
    assert MessageId.from_string("m", "node").source_node == "node"


@pytest.mark.parametrize(("fields", "words"), [({"id": ""}, "empty string"), ({"created_at": -1.0}, "got -1.0")])
def test_an_identifier_has_text_and_a_time(fields: dict[str, Any], words: str) -> None:
    """Given no text, or a time before the epoch, then it is a ValueError that says so."""
    with pytest.raises(ValueError, match=words):
        MessageId(**fields)


@pytest.mark.parametrize(("delay", "ready"), [(0.0, True), (10.0, True), (10.001, False)])
def test_o3_ready_from_its_delay_on(delay: float, ready: bool) -> None:
    """Given a message sent 10 s ago, then it is ready from its delay on, to the moment."""
    assert message(delay_seconds=delay).is_ready_for_delivery() is ready


@pytest.mark.parametrize(
    ("own", "asked", "expired"),
    [(None, None, False), (10.0, None, True), (10.001, None, False), (None, 10.0, True), (1.0, 99.0, False)],
)
def test_t1_expired_at_its_ttl(own: float | None, asked: float | None, expired: bool) -> None:
    """Given a message sent 10 s ago, then it is expired at its TTL, or at the one that is asked about."""
    assert message(message_ttl_seconds=own).is_expired(asked) is expired


def test_a_dead_letter_shows_its_message() -> None:
    """Given a dead letter, then id, topic, payload and headers are its message's."""
    dead = message(headers={"h": "v"})
    letter = DeadLetter(dead, "max retries exceeded", "boom", 4, "s", NOW)
    assert (letter.id, letter.topic, letter.payload, letter.headers) == (dead.id, "t", {"p": 1}, {"h": "v"})


@pytest.mark.parametrize(
    ("guarantee", "delivered", "acknowledged", "complete"),
    [
        (DeliveryGuarantee.AT_LEAST_ONCE, "a", "", False),
        (DeliveryGuarantee.AT_LEAST_ONCE, "a", "a", True),
        (DeliveryGuarantee.BROADCAST, "abc", "ab", False),
        (DeliveryGuarantee.BROADCAST, "abc", "abc", True),
        (DeliveryGuarantee.QUORUM, "abc", "a", False),
        (DeliveryGuarantee.QUORUM, "abc", "ab", True),
    ],
)
def test_a_message_in_flight_is_complete_as_its_guarantee_says(
    guarantee: DeliveryGuarantee, delivered: str, acknowledged: str, complete: bool
) -> None:
    """Given acknowledgments, then one, all, or the required number of them make the message complete (G2-G4)."""
    flying = InFlightMessage(
        message(delivery_guarantee=guarantee, required_acknowledgments=2),
        1,
        NOW,
        frozenset(delivered),
        frozenset(acknowledged),
    )
    assert flying.is_fully_acknowledged() is complete


@pytest.mark.parametrize(("deadline", "expired"), [(NOW, True), (NOW + 0.001, False)])
def test_l1_a_lease_has_run_out_at_its_deadline(deadline: float, expired: bool) -> None:
    """Given a deadline, then the lease has run out from that moment on."""
    assert InFlightMessage(message(), 1, NOW, lease_deadline=deadline).is_acknowledgment_expired() is expired


def test_success_rates_are_shares_of_what_is_decided() -> None:
    """Given three acknowledged and one failed, then the rate is 3/4; given nothing, 0."""
    assert QueueStatistics(messages_acknowledged=3, messages_failed=1).success_rate() == 0.75
    assert QueueStatistics(messages_sent=5).success_rate() == 0.0
    totals = QueueManagerStatistics(total_messages_acknowledged=3, total_messages_failed=1)
    assert totals.overall_success_rate() == 0.75
    assert QueueManagerStatistics().overall_success_rate() == 0.0


def test_values_cannot_be_changed() -> None:
    """Given a result, a subscription or a route, then assigning to a field is an error."""
    for value in (DeliveryResult(True, None), QueueSubscription("s", "#"), TopicRouting("#", "q"), MessageId("m")):
        field = type(value).__match_args__[0]
        with pytest.raises(AttributeError):
            setattr(value, field, "other")


def test_names_and_values_are_mpregs() -> None:
    """Given the enums, then their values are the words that MPREG's have."""
    assert [member.value for member in DeliveryGuarantee] == ["fire_and_forget", "at_least_once", "broadcast", "quorum"]
    assert [member.value for member in QueueType] == ["fifo", "priority", "delay"]
    assert [member.value for member in CircuitState] == ["closed", "open", "half_open"]
    assert QueueMessageStatus("in_flight") is QueueMessageStatus.IN_FLIGHT
