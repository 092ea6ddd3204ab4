"""Payloads as bytes: encoded once, at send, and decoded anew for each delivery (SEMANTICS S3).

MessagePack by way of msgspec. What comes back is what JSON would give, plus bytes, datetimes and keys that are not
strings: tuples and sets come back as lists, attrs and dataclass instances as dicts, enums as their values.
"""

from __future__ import annotations

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

Whoever does has to call :func:`check_depth` for more than :data:`SHALLOW_BYTES`.
"""

decode = _decoder.decode
"""As :func:`decode_payload`, likewise."""


SHALLOW_BYTES = 10_000
"""So few bytes cannot be nested so deeply that they cannot be decoded."""

_NO_CONTAINERS = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))
"""The bytes that begin no list and no dict in MessagePack."""


def encode_payload(payload: Any) -> bytes:
    """The payload as bytes.

    Raises:
        PayloadError: it contains something that has no encoding, refers to itself, is nested too deeply, or has
            an integer beyond 64 bits.
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


def decode_payload(payload: bytes) -> Any:
    """A new copy of the payload.

    Raises:
        PayloadError: the bytes are not an encoded payload.
    """
    try:
        return decode(payload)
    # Text that is not UTF-8 is a plain ValueError.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PayloadError(f"stored payload of {len(payload)} bytes cannot be decoded: {error}") from error


def fingerprint(topic: str, payload: Any, headers: dict[str, str] | None) -> str:
    """A 128-bit fingerprint of topic, payload and headers, whatever the order of keys (U1).

    Raises:
        PayloadError: the payload has keys that cannot be ordered; give a ``deduplication_id`` then.
    """
    try:
        content = _canonical.encode((topic, payload, headers or {}))
    except Exception as error:
        raise PayloadError(
            f"payload has no fingerprint: {error}; give a deduplication_id, or use keys of one type"
        ) from error
    return blake2b(content, digest_size=16).hexdigest()
