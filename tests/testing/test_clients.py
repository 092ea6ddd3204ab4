"""The clients' side: what senders and receivers saw, judged without the log."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import encode

from mpreg_mq.model import DeliveryGuarantee
from mpreg_mq.payload import decode_payload, encode_payload
from mpreg_mq.testing.clients import ClientHistory, Outcome, check_clients
from mpreg_mq.testing.jepsen import jepsen_lines

OK, FAIL, UNKNOWN = Outcome.OK, Outcome.FAIL, Outcome.UNKNOWN

PAYLOADS = st.recursive(
    st.none() | st.text(max_size=3) | st.integers(2, 9) | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


class Story(ClientHistory):
    """Operations that begin and end at once."""

    def did(self, process: str, function: str, value: Any, outcome: Outcome = OK, **details: Any) -> Story:
        self.end(self.invoke(process, function, value, **details), outcome)
        return self

    def sent(self, value: Any, outcome: Outcome = OK, **details: Any) -> Story:
        return self.did("sender", "send", value, outcome, **details)

    def delivered(self, value: Any, outcome: Outcome = FAIL, process: str = "r") -> Story:
        return self.did(process, "deliver", value, outcome)

    def acknowledged(self, value: Any, outcome: Outcome = OK, process: str = "r") -> Story:
        return self.did(process, "acknowledge", value, outcome)

    def kinds(self, **arguments: Any) -> list[str]:
        return [violation.kind for violation in check_clients(self, **arguments)]


def test_nothing_is_wrong_with_retries_and_unknown_outcomes() -> None:
    """Given a retry, sends and an acknowledgment whose replies are unknown, then all is well."""
    story = Story().sent("a").delivered("a").delivered("a").acknowledged("a")
    story.sent("b", UNKNOWN).sent("c", UNKNOWN).delivered("c").sent("d").delivered("d").acknowledged("d", UNKNOWN)
    assert story.kinds() == []


@pytest.mark.parametrize(("lost", "where"), [("a", "prefix"), ("b", "middle"), ("c", "tail")])
def test_a_lost_message_is_in_front_between_or_behind(lost: str, where: str) -> None:
    """Given three accepted messages of which one never arrives, then it is lost, and where is said."""
    story = Story().sent("a").sent("b").sent("c")
    for value in "abc":
        if value != lost:
            story.delivered(value, OK)
    (violation,) = check_clients(story)
    assert (violation.kind, violation.value) == ("lost", lost)
    assert f"({where})" in str(violation)


def test_what_is_excused_or_not_drained_or_immediate_is_not_lost() -> None:
    """Given messages that need not arrive, then they are not lost."""
    story = Story().sent("a").sent("now", guarantee=DeliveryGuarantee.FIRE_AND_FORGET)
    assert story.kinds(excused=["a"]) == []
    assert story.kinds(drained=False) == []
    assert story.kinds() == ["lost"]


def test_a_message_that_came_and_was_never_settled_is_lost() -> None:
    """Given a delivery that failed and no other, then the message is lost though it was seen."""
    assert "delivered and never acknowledged" in str(check_clients(Story().sent("a").delivered("a"))[0])


def test_duplicated_is_what_counted_twice() -> None:
    """Given two acknowledgments that both counted, then an at-least-once message is duplicated, a broadcast is not."""
    assert Story().sent("a").acknowledged("a", process="r").acknowledged("a", process="s").kinds() == ["duplicated"]
    everybody = Story().sent("a", guarantee=DeliveryGuarantee.BROADCAST)
    everybody.acknowledged("a", process="r").acknowledged("a", process="s")
    assert everybody.kinds() == []
    assert everybody.acknowledged("a", process="s").kinds() == ["duplicated"]


def test_unexpected_is_what_was_never_sent_or_refused() -> None:
    """Given deliveries of what nobody sent, or of what was refused, then they are unexpected."""
    assert Story().delivered("a", OK).kinds() == ["unexpected"]
    assert Story().sent("a", FAIL).delivered("a", OK).kinds() == ["unexpected"]
    assert Story().sent("a", FAIL).sent("a").delivered("a", OK).kinds() == []


def test_after_acknowledgment_nothing_comes() -> None:
    """Given a delivery after an acknowledgment counted, then that is wrong; for a broadcast only to the same one."""
    assert Story().sent("a").delivered("a").acknowledged("a").delivered("a").kinds() == ["after acknowledgment"]
    story = Story().sent("a", guarantee=DeliveryGuarantee.BROADCAST).acknowledged("a", process="r")
    assert story.delivered("a", process="s").kinds() == []


def test_what_was_asked_for_before_an_acknowledgment_may_come_after_it() -> None:
    """Given an attempt that is acknowledged late, while the message is leased again to a fetch whose reply comes after
    that, then all is well; it is not where the fetch was asked for after the acknowledgment."""
    story = Story().sent("a").delivered("a")
    asked = story.ordinal
    story.acknowledged("a").did("r", "deliver", "a", FAIL, asked=asked)
    assert story.kinds() == []
    story.did("r", "deliver", "a", FAIL, asked=story.ordinal)
    assert story.kinds() == ["after acknowledgment"]


def test_out_of_order_is_told_within_a_group() -> None:
    """Given two sends of a group one after the other, then their first deliveries come in that order."""
    story = Story().sent("a", group="g").sent("b", group="g").sent("c")
    assert story.delivered("c", OK).delivered("b", OK).delivered("a", OK).kinds() == ["out of order"]
    concurrent = Story()
    first = concurrent.invoke("s", "send", "a", group="g")
    concurrent.sent("b", group="g")
    concurrent.end(first, OK)
    assert concurrent.delivered("b", OK).delivered("a", OK).kinds() == []


@given(st.lists(PAYLOADS, min_size=1, max_size=4, unique_by=lambda value: encode(value, order="sorted")), st.data())
def test_messages_may_be_called_by_any_payload(values: list[Any], data: st.DataObject) -> None:
    """For all payloads, as they are sent and as they arrive, what arrives was sent, and what does not is lost."""
    missing = data.draw(st.sampled_from(values))
    story = Story()
    for value in values:
        story.sent(value, group={"of": [1]})
    for value in values:
        if value is not missing:
            arrived = decode_payload(encode_payload(value))
            story.delivered(arrived).acknowledged(arrived)
    assert [(lost.kind, lost.value) for lost in check_clients(story)] == [("lost", missing)]
    assert story.kinds(excused=[decode_payload(encode_payload(missing))]) == []


def test_an_outcome_is_one_of_three_or_refused_at_once() -> None:
    """Given the value of an outcome, then that is what it means; given anything else, then nothing is written down."""
    story = Story()
    sending = story.invoke("s", "send", {"id": 1})
    with pytest.raises(ValueError, match=r"got 'done', expected one of Outcome\.OK \('ok'\)"):
        story.end(sending, "done")  # type: ignore[arg-type]
    assert (sending.outcome, story.ordinal) == (None, 1)
    story.end(sending, "ok")  # type: ignore[arg-type]
    assert sending.outcome is OK
    assert jepsen_lines(story)
    assert story.kinds() == ["lost"]


def test_a_crash_makes_open_operations_unknown() -> None:
    """Given an operation under way, when its process crashes, then its outcome is unknown."""
    story = Story()
    sending = story.invoke("s", "send", "a")
    story.crash()
    assert (sending.outcome, sending.error) == (UNKNOWN, "the process ended")
    assert len(story) == 1


def test_jepsen_history() -> None:
    """Given a history, then each beginning and end is one EDN map, and who does not know goes on under a new number."""
    story = Story()
    first = story.invoke("s", "send", {"a": [1, True, None]}, 10.0)
    story.end(first, UNKNOWN, 10.5, 'the "process" ended')
    story.end(story.invoke("s", "send", 1.5, 9.0), OK, 11.0)
    assert list(jepsen_lines(story)) == [
        '{:index 0, :type :invoke, :process 0, :f :send, :value {"a" [1 true nil]}, :time 0}',
        '{:index 1, :type :info, :process 0, :f :send, :value {"a" [1 true nil]}, :time 500000000, '
        ':error "the \\"process\\" ended"}',
        "{:index 2, :type :invoke, :process 1, :f :send, :value 1.5, :time 500000000}",
        "{:index 3, :type :ok, :process 1, :f :send, :value 1.5, :time 1000000000}",
    ]
    assert list(jepsen_lines(ClientHistory())) == []
