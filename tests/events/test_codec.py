"""Events become bytes and come back the same, now and in later releases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import CorruptLogError, EventLogError, UnknownEventError
from mpreg_mq.events import (
    CODEC,
    EVENT_TYPES,
    SCHEMA_VERSIONS,
    UPCASTERS,
    AudienceFixed,
    Codec,
    Event,
    MessageCompleted,
    MessageEnqueued,
    MessageFailed,
    QueueCreated,
    QueuePaused,
    SubscriberJoined,
    decode,
    encode,
)
from mpreg_mq.events.codec import TYPE_NUMBERS
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, MessageOptions, OverflowPolicy, QueueType
from tests.support.events import values_of_class


def raw(event: Event) -> Any:
    """The body as a reader without our classes sees it."""
    return msgspec.msgpack.decode(encode(event).body)


ENQUEUED = MessageEnqueued(at=1.0, message_id="m", topic="a.b", payload=b"p")


# --- what comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
@settings(deadline=None)
@given(data=st.data())
def test_every_event_comes_back_equal(name: str, data: st.DataObject) -> None:
    """For all events: decoding what was encoded gives an equal event of the same type."""
    event = data.draw(values_of_class(EVENT_TYPES[name]))
    encoded = encode(event)
    assert encoded.type == name
    assert encoded.schema == SCHEMA_VERSIONS[name]
    decoded = decode(*encoded)
    assert type(decoded) is type(event)
    assert decoded == event


def test_every_event_type_is_known() -> None:
    """Whatever is defined as a subclass of Event can be encoded; none can be forgotten."""
    assert set(EVENT_TYPES) == {cls.__name__ for cls in Event.__subclasses__()}
    assert set(SCHEMA_VERSIONS) == set(EVENT_TYPES)


def test_enums_tuples_and_nested_values_are_restored_as_such() -> None:
    """Given fields that MessagePack has no type for, then they come back as what they were, not as look-alikes."""
    event = replace(ENQUEUED, guarantee=DeliveryGuarantee.QUORUM, options=MessageOptions(headers={"k": "v"}))
    decoded = decode(*encode(event))
    assert isinstance(decoded, MessageEnqueued)
    assert decoded.guarantee is DeliveryGuarantee.QUORUM
    assert isinstance(decoded.options, MessageOptions)
    fixed = decode(*encode(AudienceFixed(at=1.0, message_id="m", subscriber_ids=("a", "b"))))
    assert isinstance(fixed, AudienceFixed)
    assert fixed.subscriber_ids == ("a", "b")
    assert hash(fixed) == hash(AudienceFixed(at=1.0, message_id="m", subscriber_ids=("a", "b")))


# --- what is stored -----------------------------------------------------------------------------------------


def test_defaults_are_not_stored() -> None:
    """Given fields that equal their defaults, identical or not, then the body does without them."""
    assert raw(ENQUEUED) == {"at": 1.0, "message_id": "m", "topic": "a.b", "payload": b"p"}
    assert raw(replace(ENQUEUED, options=MessageOptions())) == raw(ENQUEUED)
    joined = SubscriberJoined(
        at=1.0, subscriber_id="s", subscription_id="i", topic_pattern="#", max_in_flight=5, metadata={}
    )
    assert "metadata" not in raw(joined)


def test_defaults_inside_nested_values_are_not_stored() -> None:
    """Given a configuration or options with a few fields set, then only those are in the body; enums by value."""
    options = MessageOptions(priority=0, group_id="g")
    assert raw(replace(ENQUEUED, options=options))["options"] == {"priority": 0, "group_id": "g"}
    configuration = QueueConfiguration(name="q", queue_type=QueueType.DELAY, max_size=5)
    assert raw(QueueCreated(at=1.0, name="q", configuration=configuration)) == {
        "at": 1.0,
        "name": "q",
        "configuration": {"name": "q", "queue_type": "delay", "max_size": 5},
    }


def test_options_that_equal_the_default_are_not_stored_either() -> None:
    """Given options that ask for nothing but are not the default itself, then an event is stored as it is with that."""
    other = replace(ENQUEUED, options=MessageOptions(priority=None))
    assert len(CODEC.encode_many((other, other))) == len(CODEC.encode_many((ENQUEUED, ENQUEUED)))
    (read,) = CODEC.decode_many(CODEC.encode_many((other,)))
    assert isinstance(read, MessageEnqueued)
    assert read.options is DEFAULT_OPTIONS


def test_defaults_are_part_of_the_format() -> None:
    """A log of the first release reads as it was meant: a changed default must come with an upcaster."""
    body = msgspec.msgpack.encode({"at": 1, "name": "q", "configuration": {"name": "q"}})
    assert decode("QueueCreated", 1, body) == QueueCreated(
        at=1.0,
        name="q",
        configuration=QueueConfiguration(
            name="q",
            queue_type=QueueType.FIFO,
            max_size=10_000,
            default_visibility_timeout_seconds=30.0,
            default_acknowledgment_timeout_seconds=300.0,
            message_ttl_seconds=None,
            enable_dead_letter_queue=True,
            dead_letter_max_receives=None,
            enable_deduplication=False,
            deduplication_window_seconds=300.0,
            max_retries=3,
            overflow_policy=OverflowPolicy.REJECT,
            overflow_wait_seconds=30.0,
            retry_backoff_seconds=0.1,
            retry_backoff_multiplier=2.0,
            retry_backoff_max_seconds=30.0,
            retry_jitter=0.5,
            random_seed=0,
            circuit_breaker_failure_threshold=None,
            circuit_breaker_recovery_seconds=30.0,
            default_max_in_flight=1000,
            max_payload_bytes=1_048_576,
            max_headers_bytes=16_384,
            max_deduplication_keys=10_000_000,
            max_subscribers=1_000_000,
        ),
    )
    body = msgspec.msgpack.encode({"at": 1, "message_id": "m", "topic": "a.b", "payload": b"p"})
    assert decode("MessageEnqueued", 1, body) == MessageEnqueued(
        at=1.0,
        message_id="m",
        topic="a.b",
        payload=b"p",
        guarantee=DeliveryGuarantee.AT_LEAST_ONCE,
        options=MessageOptions(*[None] * 10),
        deduplication_key=None,
        redriven_from=None,
    )


def test_what_cannot_be_stored_is_refused() -> None:
    """Given a field that MessagePack cannot hold, or a foreign event class, then encoding says so at once."""

    class Foreign(Event, frozen=True):
        """Not in events/types.py."""

    with pytest.raises(EventLogError, match="Foreign"):
        encode(Foreign(at=1.0))
    with pytest.raises(EventLogError, match="MessageEnqueued has a field that cannot be stored"):
        encode(replace(ENQUEUED, options=MessageOptions(priority=2**70)))
    with pytest.raises(EventLogError, match="surrogates"):
        encode(replace(ENQUEUED, topic="\ud800"))


# --- older and newer releases -------------------------------------------------------------------------------


def test_upcasters_apply_in_a_chain() -> None:
    """Given an event of schema version 1 and upcasters from 1 and 2, then it is read as version 3."""
    codec = Codec()
    codec.register_upcaster("MessageFailed", 2, lambda fields: {**fields, "attempts": fields["tries"] + 1})
    codec.register_upcaster("MessageFailed", 1, lambda fields: {**fields, "tries": fields["count"] * 10})
    rest = {"at": 1.0, "message_id": "m", "reason": "r", "error": None, "subscriber_id": None}
    expected = MessageFailed(at=1.0, message_id="m", reason="r", error=None, attempts=21, subscriber_id=None)
    assert codec.decode("MessageFailed", 1, msgspec.msgpack.encode({**rest, "count": 2})) == expected
    assert codec.decode("MessageFailed", 2, msgspec.msgpack.encode({**rest, "tries": 20})) == expected
    assert codec.encode(expected).schema == 3
    assert codec.decode(*codec.encode(expected)) == expected


def test_an_upcast_event_is_checked_like_any_other() -> None:
    """Given an upcaster that yields no valid event, or raises, then the log is reported, with the cause."""
    codec = Codec({("QueuePaused", 1): lambda fields: {}, ("MessageCompleted", 1): lambda fields: fields["missing"]})
    with pytest.raises(CorruptLogError, match="missing required field `at`"):
        codec.decode("QueuePaused", 1, encode(QueuePaused(at=1.0)).body)
    with pytest.raises(CorruptLogError, match="KeyError: 'missing'"):
        codec.decode("MessageCompleted", 1, encode(MessageCompleted(at=1.0, message_id="m")).body)


def test_a_codec_of_its_own_changes_no_other() -> None:
    """Given an upcaster in one codec, then the default codec still reads and writes version 1."""
    codec = Codec()
    codec.register_upcaster("QueuePaused", 1, lambda fields: fields)
    assert codec.schema_versions["QueuePaused"] == 2
    assert CODEC.schema_versions == SCHEMA_VERSIONS
    assert ("QueuePaused", 1) not in UPCASTERS
    assert Codec().encode(QueuePaused(at=1.0)).schema == 1


def test_upcasters_that_make_no_sense_are_refused() -> None:
    """Given an unknown type, a version below 1 or one that is taken, then registering raises."""
    codec = Codec()
    codec.register_upcaster("QueuePaused", 1, lambda fields: fields)
    with pytest.raises(UnknownEventError, match="QueueStarted"):
        codec.register_upcaster("QueueStarted", 1, lambda fields: fields)
    for version in (0, 1):
        with pytest.raises(EventLogError, match=f"version {version}"):
            codec.register_upcaster("QueuePaused", version, lambda fields: fields)


def test_events_of_newer_releases_are_refused_not_skipped() -> None:
    """Given a newer schema version or an unknown type, then the error says to upgrade."""
    body = encode(QueuePaused(at=1.0)).body
    with pytest.raises(UnknownEventError, match=r"schema version 2, .* up to 1; .*newer release; upgrade mpreg-mq"):
        decode("QueuePaused", 2, body)
    with pytest.raises(UnknownEventError, match=r"'QueueTeleported' .*newer release; upgrade mpreg-mq"):
        decode("QueueTeleported", 1, body)


# --- damaged bytes ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(name=st.sampled_from(sorted(EVENT_TYPES)), schema=st.integers(-1, 1), body=st.binary())
def test_any_bytes_are_an_event_or_corrupt(name: str, schema: int, body: bytes) -> None:
    """For all bytes: they decode to an event of the named type, or raise CorruptLogError; nothing else."""
    try:
        event = decode(name, schema, body)
    except CorruptLogError:
        return
    assert type(event) is EVENT_TYPES[name]


@settings(deadline=None)
@given(data=st.data())
def test_a_cut_body_is_corrupt(data: st.DataObject) -> None:
    """For all events: their bytes with the end missing are refused."""
    encoded = encode(data.draw(values_of_class(MessageEnqueued)))
    length = data.draw(st.integers(0, len(encoded.body) - 1))
    with pytest.raises(CorruptLogError, match=r"MessageEnqueued \(schema version 1\)"):
        decode(encoded.type, encoded.schema, encoded.body[:length])


def test_deep_nesting_is_corrupt_not_a_crash() -> None:
    """Given bytes that nest without end, then they are refused like other damage."""
    with pytest.raises(CorruptLogError):
        decode("QueuePaused", 1, b"\x81\xa1x" + b"\x91" * 100_000)


# --- many events in one body --------------------------------------------------------------------------------


def test_every_type_has_a_number_of_its_own() -> None:
    """Given the types of events, then each has one number, below the step between schema versions."""
    assert set(TYPE_NUMBERS) == set(EVENT_TYPES)
    assert sorted(TYPE_NUMBERS.values()) == list(range(len(TYPE_NUMBERS)))
    assert len(TYPE_NUMBERS) < 128


@given(data=st.data())
@settings(deadline=None)
def test_many_events_come_back_from_one_body(data: st.DataObject) -> None:
    """For all lists of events: what was encoded together is decoded together, in order."""
    types = data.draw(st.lists(st.sampled_from(sorted(EVENT_TYPES)), max_size=4))
    events = [data.draw(values_of_class(EVENT_TYPES[name])) for name in types]
    assert CODEC.decode_many(CODEC.encode_many(events)) == events


def test_many_events_of_an_older_schema_are_brought_up_to_date() -> None:
    """Given a body with events of schema 1 and of schema 2, then both are read, each through what it needs."""
    newer = Codec()
    newer.register_upcaster("MessageEnqueued", 1, lambda fields: {**fields, "topic": "upcast"})
    old, new = CODEC.encode_many([ENQUEUED]), newer.encode_many([ENQUEUED])
    assert old != new
    assert [event.topic for event in newer.decode_many(old)] == ["upcast"]  # type: ignore[attr-defined]
    assert newer.decode_many(new) == [ENQUEUED]
    with pytest.raises(UnknownEventError, match="schema version 2"):
        CODEC.decode_many(new)


@given(data=st.data())
@settings(deadline=None)
def test_a_changed_body_is_refused_or_read_alike_both_ways(data: st.DataObject) -> None:
    """For all bodies with a changed byte: they are decoded at once as they are one by one, or refused."""
    types = data.draw(st.lists(st.sampled_from(sorted(EVENT_TYPES)), min_size=1, max_size=3))
    body = bytearray(CODEC.encode_many([data.draw(values_of_class(EVENT_TYPES[name])) for name in types]))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert _decoded(CODEC.decode_many, bytes(body)) == _decoded(CODEC._decode_each, bytes(body))


def _decoded(decode: Callable[[bytes], list[Event]], body: bytes) -> str | type[Exception]:
    """What the body is decoded to, in words, so that numbers that are none equal each other; or why it is not."""
    try:
        return repr(decode(body))
    except EventLogError as error:
        return type(error)


def test_a_bad_event_among_many_is_named() -> None:
    """Given one event that cannot be stored among others, then the error says which."""
    with pytest.raises(EventLogError, match="MessageCompleted has a field that cannot be stored"):
        CODEC.encode_many([ENQUEUED, MessageCompleted(at=1.0, message_id="\ud800")])
    with pytest.raises(EventLogError, match="expected an event"):
        CODEC.encode_many([ENQUEUED, "text"])  # type: ignore[list-item]


@pytest.mark.parametrize("body", [b"", b"\xc1", *map(msgspec.msgpack.encode, ([[1, 2, 3]], [[10, {}]]))])
def test_a_body_that_is_no_list_of_events_is_corrupt(body: bytes) -> None:
    """Given bytes that are not what encode_many makes, then they are refused."""
    with pytest.raises(CorruptLogError):
        CODEC.decode_many(body)
