"""Payloads as bytes: encoded once, at send, and decoded anew for each delivery (SEMANTICS S3).

MessagePack by way of msgspec. What comes back is what JSON would give, plus bytes, datetimes and keys that are not
strings: tuples and sets come back as lists, attrs and dataclass instances as dicts, enums as their values, and dates,
decimals, UUIDs and datetimes without a zone as strings. Attributes of an attrs instance whose names begin with an
underscore are left out, as msgspec does it; those of a dataclass are not.

Some of what can be encoded cannot be decoded: a dict whose key is an instance, which would come back as a dict, and
bytes that msgspec takes as they are (``Raw``, ``Ext``). To find that in any payload takes as long as to decode it, so
a send looks only where it costs nothing: see :func:`check_decodable`. What slips through fails as an attempt.
"""

from __future__ import annotations

import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from mpreg_mq._validation import describe
from mpreg_mq.errors import PayloadError

_encoder = msgspec.msgpack.Encoder()
_canonical = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder()

encode = _encoder.encode
"""As :func:`encode_payload`, with the errors of msgspec, for who asks that function to explain one.

Whoever does has to call :func:`check_depth` for more than :data:`SHALLOW_BYTES`, and :func:`check_decodable` where
there is doubt.
"""

decode = _decoder.decode
"""As :func:`decode_payload`, likewise."""


_UNDECODABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
"""What decoding raises. For text that is not UTF-8 it is a plain ValueError, and before msgspec 0.22 a plain TypeError
for a key that can be none."""

SHALLOW_BYTES = 10_000
"""So few bytes cannot be nested so deeply that they cannot be decoded."""

_NO_CONTAINERS = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))
"""The bytes that begin no list and no dict in MessagePack."""

PLAIN_TYPES = frozenset({type(None), bool, int, float, str, bytes, list, tuple})
"""A payload of one of these is not looked at again: nearly always it is plain throughout."""

DOUBTFUL_KEYS = frozenset(range(0x80, 0xA0))
"""The second byte of a dict of fewer than 16 entries is one of these where its first key is a tuple or an instance."""


def encode_payload(payload: Any) -> bytes:
    """The payload as bytes.

    Raises:
        PayloadError: it contains something that has no encoding, refers to itself, is nested too deeply, or has
            an integer beyond 64 bits; or it could not be decoded again, as far as that is looked at.
    """
    try:
        encoded = encode(payload)
    except RecursionError:
        raise PayloadError(
            f"payload cannot be encoded: {type(payload).__name__} refers to itself or is nested too deeply; "
            "send plain data without cycles"
        ) from None
    # An object's own code may run while it is encoded, so anything can be raised.
    except Exception as error:
        raise PayloadError(
            f"payload cannot be encoded: {error}; got {describe(payload)}, expected numbers, strings, bytes, "
            "lists, dicts, dates, or dataclass and attrs instances of them"
        ) from error
    if len(encoded) > SHALLOW_BYTES:
        check_depth(encoded)
    if type(payload) is dict:
        if payload and encoded[1] in DOUBTFUL_KEYS:
            check_decodable(encoded)
    elif type(payload) not in PLAIN_TYPES:
        check_decodable(encoded)
    return encoded


def check_depth(encoded: bytes) -> None:
    """Raise unless an encoded payload can be decoded again; O(size).

    To encode takes less of the stack than to decode, so what was encoded may be nested too deeply to come back.

    Raises:
        PayloadError: it is nested too deeply.
    """
    # There are no more levels than bytes that may begin one.
    if len(encoded.translate(None, _NO_CONTAINERS)) > SHALLOW_BYTES:
        try:
            decode(encoded)
        except RecursionError:
            raise PayloadError(
                f"payload cannot be decoded again: its {len(encoded)} bytes are nested too deeply; "
                "send data of fewer levels"
            ) from None


def check_decodable(encoded: bytes) -> None:
    """Raise unless an encoded payload can be decoded again; O(size), as long as a delivery takes to decode it.

    To be asked for a dict with a doubtful first key (see :data:`DOUBTFUL_KEYS`), and for anything else whose type
    is not in :data:`PLAIN_TYPES`.

    Raises:
        PayloadError: it cannot be.
    """
    try:
        decode(encoded)
    except _UNDECODABLE as error:
        raise PayloadError(
            f"payload could not be decoded again: {error}; give dicts keys that are strings, numbers or tuples of "
            "them, and send data instead of msgspec's Raw and Ext"
        ) from error


class UndecodablePayload(msgspec.Struct, frozen=True):
    """What listings of messages show in the place of a payload that cannot be decoded.

    ``error`` says why, ``encoded`` is what is stored. Nobody is delivered such a message: each attempt fails.
    """

    error: str
    encoded: bytes


def decode_payload(payload: bytes) -> Any:
    """A new copy of the payload.

    Raises:
        PayloadError: the bytes are not an encoded payload.
    """
    try:
        return decode(payload)
    except _UNDECODABLE as error:
        raise PayloadError(f"stored payload of {len(payload)} bytes cannot be decoded: {error}") from error


def fingerprint(topic: str, payload: Any, headers: dict[str, str] | None) -> str:
    """A 128-bit fingerprint of topic, payload and headers, whatever the order of keys (U1).

    Raises:
        PayloadError: the payload has keys that cannot be ordered; give a ``deduplication_id`` then.
    """
    content = (topic, payload, headers or {})
    try:
        encoded = _canonical.encode(content)
    except Exception:
        encoded = _with_any_keys(content)
    return blake2b(encoded, digest_size=16).hexdigest()


def _with_any_keys(content: Any) -> bytes:
    """As ``_canonical``, which orders keys only where all of them are strings."""
    try:
        ordered = msgspec.to_builtins(content, order="deterministic", builtin_types=(bytes, datetime.datetime))
        return encode(ordered)
    except Exception as error:
        raise PayloadError(
            f"payload has no fingerprint: {error}; give a deduplication_id, or use keys of one type in each dict"
        ) from error
