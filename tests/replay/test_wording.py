"""Every event has words, and plain data."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.events import EVENT_TYPES, Event, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.replay.wording import WORDS, in_words, message_ids, payload_as_data, record_fields, subject
from tests.support.effort import repetitions
from tests.support.events import values_of_class


def test_every_type_has_words() -> None:
    """Given the event types there are, then each has words, and nothing else has."""
    assert {kind.__name__ for kind in WORDS} == EVENT_TYPES.keys()


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=EVENT_TYPES)
@given(data=st.data())
@settings(max_examples=repetitions(test=8, soak=1000))
def test_any_event_reads_as_one_line_and_as_json(kind: type[Event], data: st.DataObject) -> None:
    """Given any event, then it reads as one line, and its fields are JSON with the payload decoded."""
    event = data.draw(values_of_class(kind))
    words = in_words(event)
    assert words
    assert words.isprintable()
    fields = json.loads(msgspec.json.encode(record_fields(RecordedEvent(7, "queue:q", 3, event))))
    assert (fields["position"], fields["type"]) == (7, type(event).__name__)
    assert not math.isfinite(event.at) or fields["event"]["at"] == event.at


def test_what_an_event_is_about() -> None:
    """A message, several, a subscriber, or nothing."""
    assert message_ids(e.MessagesPurged(1.0, ("a", "b"))) == ("a", "b")
    assert subject(e.MessagesPurged(1.0, ("a", "b"))) == ""
    assert subject(e.MessageExpired(1.0, "a")) == "a"
    assert subject(e.CircuitClosed(1.0, "worker")) == "worker"
    assert message_ids(e.QueuePaused(1.0)) == ()


def test_a_payload_that_cannot_be_decoded_is_described() -> None:
    """Given bytes that are no payload, then they are described, and nothing is raised."""
    assert "cannot be decoded" in payload_as_data(b"\xc1")


def test_a_circuit_that_a_new_configuration_closes_has_had_no_probe() -> None:
    """Given a circuit that closes, be it after its probe or with the circuit breakers of its queue, then the words are
    true of both."""
    assert in_words(e.CircuitClosed(1.0, "worker")) == "circuit of worker closed: it is given messages as before"
