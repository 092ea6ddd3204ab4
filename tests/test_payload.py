"""Payloads: bytes at send, a copy of its own for each delivery (S3), and a fingerprint of the content (U1)."""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import dataclass
from enum import Enum
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import MessageQueue, QueueConfiguration, RejectionReason
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


@pytest.mark.parametrize(
    ("payload", "delivered"),
    [
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (Colour.RED, "red"),
        (Point(1, 2), {"x": 1, "y": 2}),
        (Pair(Point(1, 2), (3,)), {"first": {"x": 1, "y": 2}, "second": [3]}),
        ({1: "a", 2.5: "b"}, {1: "a", 2.5: "b"}),
    ],
    ids=repr,
)
def test_what_json_does_not_know_comes_back_plain(payload: Any, delivered: Any) -> None:
    """Given tuples, sets, enums and instances, then lists, values and dicts come back."""
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


def test_u1_keys_without_an_order_have_no_fingerprint() -> None:
    """Given keys of several types, then the error says what to do instead."""
    with pytest.raises(PayloadError, match="give a deduplication_id"):
        fingerprint("t", {1: "a", "b": 2}, None)
