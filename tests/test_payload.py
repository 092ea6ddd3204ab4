"""Payloads: bytes at send, a copy of its own for each delivery (S3), and a fingerprint of the content (U1)."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import MessageQueue, QueueConfiguration, RejectionReason, UndecodablePayload, VirtualClock
from mpreg_mq.errors import PayloadError
from mpreg_mq.payload import decode_payload, encode_payload, fingerprint

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
)
payloads = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=20
)


@given(payloads)
def test_s3_a_payload_comes_back_equal(payload: Any) -> None:
    """For all plain data: encoding and decoding gives the same."""
    assert decode_payload(encode_payload(payload)) == payload


def test_s3_what_the_sender_mutates_afterwards_changes_nothing() -> None:
    """Given an encoded payload, when the sender changes it, then what is delivered stays."""
    payload = {"items": [1, 2]}
    encoded = encode_payload(payload)
    payload["items"].append(3)
    assert decode_payload(encoded) == {"items": [1, 2]}


def test_s3_each_delivery_gets_its_own_copy() -> None:
    """Given two deliveries, when one receiver changes its payload, then the other's stays."""
    encoded = encode_payload({"items": [1, 2]})
    mine, yours = decode_payload(encoded), decode_payload(encoded)
    mine["items"].clear()
    assert yours == {"items": [1, 2]}


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int


@attrs.frozen
class Pair:
    first: Any
    second: Any


@dataclass(frozen=True)
class Sku:
    """An instance that Python takes as a key."""

    name: str


@attrs.frozen
class Order:
    number: int
    _secret: int = 7


@dataclass
class Receipt:
    number: int
    _secret: int = 7


@pytest.mark.parametrize(
    ("payload", "delivered"),
    [
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (Colour.RED, "red"),
        (Point(1, 2), {"x": 1, "y": 2}),
        (Pair(Point(1, 2), (3,)), {"first": {"x": 1, "y": 2}, "second": [3]}),
        ({1: "a", 2.5: "b"}, {1: "a", 2.5: "b"}),
        ({(1, "a"): 1, None: 2, b"k": 3}, {(1, "a"): 1, None: 2, b"k": 3}),
        (Order(1), {"number": 1}),
        (Receipt(1), {"number": 1, "_secret": 7}),
        (datetime.datetime(2024, 2, 29, 12), "2024-02-29T12:00:00"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (Decimal("1.50"), "1.50"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
    ids=repr,
)
def test_what_json_does_not_know_comes_back_plain(payload: Any, delivered: Any) -> None:
    """Given what the guide names, then it comes back as the guide says: lists, values, dicts without what is private
    to attrs, and strings."""
    assert decode_payload(encode_payload(payload)) == delivered


def test_dates_come_back_as_dates() -> None:
    """Given a moment with a zone, then the same moment comes back."""
    moment = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    assert decode_payload(encode_payload({"at": moment})) == {"at": moment}


def cyclic() -> list[Any]:
    payload: list[Any] = []
    payload.append({"again": payload})
    return payload


def nested(depth: int) -> Any:
    payload: Any = None
    for _ in range(depth):
        payload = [payload]
    return payload


def raising() -> Any:
    class Raising:
        """Its own code runs while it is encoded."""

        __slots__ = ("__dict__",)

        @property
        def __dataclass_fields__(self) -> Any:
            raise RuntimeError("from the payload")

    return Raising()


@pytest.mark.parametrize(
    "payload",
    [object(), lambda: None, {"f": print}, {(1, 2): object()}, raising()],
    ids=["object", "function", "nested function", "object under a tuple", "raising"],
)
def test_s2_what_has_no_encoding_is_an_error_that_says_what_has(payload: Any) -> None:
    """Given objects without an encoding, then the error shows them and lists what can be sent."""
    with pytest.raises(PayloadError, match="expected numbers, strings, bytes, lists, dicts") as caught:
        encode_payload(payload)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("payload", [cyclic(), nested(1_000_000)], ids=["cycle", "deep"])
def test_s2_cycles_and_deep_nesting_are_errors(payload: Any) -> None:
    """Given a payload in itself, or a million levels, then it is refused and nothing crashes."""
    with pytest.raises(PayloadError, match="refers to itself or is nested too deeply"):
        encode_payload(payload)
    with pytest.raises(PayloadError, match="no fingerprint"):
        fingerprint("t", payload, None)


@pytest.mark.parametrize("depth", [500, 9_000, 11_000, 30_000, 60_000, 100_000])
def test_s3_what_is_accepted_comes_back(depth: int) -> None:
    """Given lists in lists, to encode which some interpreters have enough stack and to decode which they have not, then
    they are refused, with a reason, or come back."""

    async def story() -> None:
        queue = MessageQueue(QueueConfiguration("q"))
        result = await queue.send_message("t", nested(depth))
        if not result.success:
            assert result.rejection is RejectionReason.PAYLOAD_NOT_ENCODABLE
            assert "nested too deeply" in str(result.error_message)
            return
        (message,) = await queue.receive_messages("s")
        payload, levels = message.payload, 0
        while payload is not None:
            (payload,) = payload
            levels += 1
        assert levels == depth

    asyncio.run(story())


def test_s3_a_large_payload_of_few_levels_is_accepted() -> None:
    """Given more lists and dicts than there may be levels, but beside each other, then they come back."""
    payload = [{"n": [number]} for number in range(10_000)]
    assert decode_payload(encode_payload(payload)) == payload


UNDECODABLE: dict[str, Any] = {
    "instance as a key": {Sku("a"): 1},
    "instance in a tuple as a key": {(1, Sku("a")): 1},
    "a kind of dict": defaultdict(int, {Sku("a"): 1}),
    "in an instance": Pair({Sku("a"): 1}, None),
    "no opcode": msgspec.Raw(b"\xc1"),
    "no UTF-8": msgspec.Raw(b"\xa1\x80"),
    "no timestamp": msgspec.msgpack.Ext(-1, b"x"),
}


@pytest.mark.parametrize("payload", UNDECODABLE.values(), ids=UNDECODABLE)
def test_s2_what_could_not_be_decoded_again_is_refused(payload: Any) -> None:
    """Given a dict with instances as keys, or bytes that are taken as they are, when it is sent alone or in a batch,
    then it is refused with advice, and what is sent beside it is not."""

    async def story() -> None:
        queue = MessageQueue(QueueConfiguration("q"))
        alone = await queue.send_message("t", payload)
        first, in_batch, last = await queue.send_messages([("t", 1), ("t", payload), ("t", 3)])
        for refused in (alone, in_batch):
            assert refused.rejection is RejectionReason.PAYLOAD_NOT_ENCODABLE
            assert "could not be decoded again" in str(refused.error_message)
            assert "give dicts keys that are strings" in str(refused.error_message)
        assert (first.success, last.success) == (True, True)
        await queue.shutdown()

    asyncio.run(story())
    with pytest.raises(PayloadError, match="could not be decoded again"):
        encode_payload(payload)


@pytest.mark.parametrize("payload", [{"counts": {Sku("a"): 2}}, [msgspec.Raw(b"\xc1")]], ids=["keys", "raw"])
def test_s3_a_payload_that_cannot_be_decoded_fails_alone(payload: Any) -> None:
    """Given a message whose payload cannot be decoded, which is not seen at the send because it is deep inside, then
    each attempt fails with the reason, others are delivered, and listings show it beside them."""

    async def story() -> None:
        clock = VirtualClock()
        queue = MessageQueue(QueueConfiguration("q", max_retries=1), clock=clock)
        bad = await queue.send_message("t", payload)
        assert bad.success
        await queue.send_message("t", "good")
        shown, good = queue.pending_messages
        assert (shown.id, good.payload) == (bad.message_id, "good")
        assert shown.payload == UndecodablePayload(shown.payload.error, msgspec.msgpack.encode(payload))
        assert "cannot be decoded" in shown.payload.error
        (delivered,) = await queue.receive_messages("s", 10)
        assert delivered.payload == "good"
        assert [flight.message.payload for flight in queue.in_flight_messages.values()] == ["good"]
        await queue.acknowledge_message(delivered.id, "s")
        await clock.advance(60)
        assert await queue.receive_messages("s", 10) == []
        (dead,) = queue.list_dead_letters()
        assert list(queue.dead_letter_queue) == [dead]
        assert isinstance(dead.payload, UndecodablePayload)
        assert "cannot be decoded" in str(dead.last_error)
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("payload", [2**64, -(2**63) - 1, {"n": [10**30]}])
def test_s2_integers_beyond_64_bits_are_errors(payload: Any) -> None:
    """Given an integer that does not fit, then it is refused, not rounded."""
    with pytest.raises(PayloadError, match="ints"):
        encode_payload(payload)


def test_s2_a_lone_surrogate_is_an_error() -> None:
    """Given text that is no Unicode, then it is refused."""
    with pytest.raises(PayloadError, match="surrogates not allowed"):
        encode_payload({"text": "\ud800"})


@pytest.mark.parametrize(
    "stored",
    [b"", b"\xc1", b"\xc0\xc0", b"\x91", b"\x91" * 200_000 + b"\xc0", b"\xa1\x80"],
    ids=["empty", "no opcode", "trailing", "cut", "deep", "no UTF-8"],
)
def test_bytes_that_are_no_payload_are_an_error(stored: bytes) -> None:
    """Given cut, foreign or hostile bytes, then decoding says so with their size."""
    with pytest.raises(PayloadError, match=f"stored payload of {len(stored)} bytes cannot be decoded"):
        decode_payload(stored)


@given(st.dictionaries(st.text(), payloads, max_size=6), st.dictionaries(st.text(), st.text(), max_size=4))
def test_u1_the_order_of_keys_does_not_matter(payload: dict[str, Any], headers: dict[str, str]) -> None:
    """For all payloads and headers: the same content in another order has the same 128-bit fingerprint."""
    turned = dict(reversed(payload.items()))
    mark = fingerprint("t", {"outer": [payload]}, headers)
    assert mark == fingerprint("t", {"outer": [turned]}, dict(reversed(headers.items())))
    assert len(mark) == 32


def test_u1_topic_payload_and_headers_all_count() -> None:
    """Given a difference in any of the three, then the fingerprints differ; no headers are empty headers."""
    marks = {
        fingerprint("t", {"a": 1}, None),
        fingerprint("u", {"a": 1}, None),
        fingerprint("t", {"a": 2}, None),
        fingerprint("t", {"a": "1"}, None),
        fingerprint("t", {"a": 1}, {"k": "v"}),
        fingerprint("t", {"a": 1}, {"v": "k"}),
    }
    assert len(marks) == 6
    assert fingerprint("t", {"a": 1}, {}) == fingerprint("t", {"a": 1}, None)


@given(
    st.one_of(
        st.dictionaries(st.integers(-(2**63), 2**64 - 1), payloads, max_size=6),
        st.dictionaries(st.binary(max_size=4), payloads, max_size=6),
        st.dictionaries(st.tuples(st.integers(0, 9), st.text(max_size=2)), payloads, max_size=6),
    )
)
def test_u1_keys_of_any_one_type_have_a_fingerprint(payload: dict[Any, Any]) -> None:
    """For all dicts with keys of one type, strings or not: the same content in another order has the same fingerprint,
    and so has what is delivered of it."""
    turned = dict(reversed(payload.items()))
    mark = fingerprint("t", {"outer": [payload]}, None)
    assert mark == fingerprint("t", {"outer": [turned]}, None)
    assert mark == fingerprint("t", decode_payload(encode_payload({"outer": [payload]})), None)


def test_u1_keys_of_another_type_are_other_keys() -> None:
    """Given a number and its text as keys, and sets in another order, then only the sets have the same fingerprint."""
    assert fingerprint("t", {1: 2}, None) != fingerprint("t", {"1": 2}, None)
    assert fingerprint("t", {1: {"a", "b", "c"}}, None) == fingerprint("t", {1: {"c", "b", "a"}}, None)


def test_u1_keys_without_an_order_have_no_fingerprint() -> None:
    """Given keys of several types, then the error says what to do instead."""
    with pytest.raises(PayloadError, match="give a deduplication_id, or use keys of one type"):
        fingerprint("t", {1: "a", "b": 2}, None)
