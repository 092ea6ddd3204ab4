"""Checks of what callers give with a send, a subscription or a request (SEMANTICS S2, S4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mpreg_mq._validation import Check, describe, seconds, whole
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, MessageOptions

MAX_ID_LENGTH = 256
MAX_HEADERS = 1000
MAX_BATCH = 10_000

_name_id = "a string of 1 to 256 characters"


def _encodable(text: str) -> bool:
    """Whether a string can be stored: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identifier(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and _encodable(value)):
        return None
    return f"got {describe(value)}, expected {_name_id}"


def _headers(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return f"got {describe(value)}, expected a mapping of strings to strings"
    if len(value) > MAX_HEADERS:
        return f"got {len(value)} headers, expected at most {MAX_HEADERS}"
    return text_entries(value)


def text_entries(value: Mapping[Any, Any]) -> str | None:
    """Check for a mapping of strings to strings that can be stored."""
    for key, entry in value.items():
        if not isinstance(key, str) or not isinstance(entry, str):
            return f"got {describe(key)}: {describe(entry)}, expected strings to strings"
        if not _encodable(key) or not _encodable(entry):
            return f"got {describe(key)}: {describe(entry)}, expected text that UTF-8 can encode"
    return None


_CHECKS: dict[str, Check] = {
    "priority": whole(-(2**31), 2**31 - 1, optional=True),
    "delay_seconds": seconds(0.0, optional=True),
    "visibility_timeout_seconds": seconds(0.0, exclusive=True, optional=True),
    "acknowledgment_timeout_seconds": seconds(0.0, exclusive=True, optional=True),
    "max_retries": whole(0, 1_000_000, optional=True),
    "required_acknowledgments": whole(1, 10_000_000, optional=True),
    "headers": _headers,
    "message_ttl_seconds": seconds(0.0, exclusive=True, optional=True),
    "deduplication_id": _identifier,
    "group_id": _identifier,
}
assert _CHECKS.keys() == attrs.fields_dict(MessageOptions).keys()


def message_options(given: Mapping[str, Any]) -> MessageOptions:
    """The options of one send.

    Raises:
        InvalidOptionError: an option is unknown, of the wrong type or out of range.
    """
    if not given:
        return DEFAULT_OPTIONS
    for name, value in given.items():
        check = _CHECKS.get(name)
        if check is None:
            raise InvalidOptionError(f"unknown option {name!r}; expected one of {', '.join(_CHECKS)}")
        problem = check(value)
        if problem is not None:
            raise InvalidOptionError(f"{name}: {problem}")
    headers = given.get("headers")
    if headers is not None:
        given = {**given, "headers": dict(headers)}
    return MessageOptions(**given)


def delay_problem(guarantee: DeliveryGuarantee, options: MessageOptions) -> str | None:
    """Why a message of this guarantee cannot have these options' delay, or None (G1)."""
    if guarantee is DeliveryGuarantee.FIRE_AND_FORGET and options.delay_seconds:
        return (
            f"delay_seconds: got {describe(options.delay_seconds)}, but a fire-and-forget message is delivered now or "
            "never; leave the delay out, or choose another guarantee"
        )
    return None


def guarantee_of(value: Any) -> DeliveryGuarantee:
    """The guarantee from a member, its value, or a member of a like-named enum (MPREG's own).

    Raises:
        InvalidOptionError: there is no such guarantee.
    """
    if type(value) is DeliveryGuarantee:
        return value
    try:
        return DeliveryGuarantee(getattr(value, "value", value))
    except ValueError:
        allowed = ", ".join(member.value for member in DeliveryGuarantee)
        raise InvalidOptionError(f"delivery_guarantee: got {describe(value)}, expected one of {allowed}") from None


def require(name: str, check: Check, value: Any) -> Any:
    """The value, if the check has nothing against it.

    Raises:
        InvalidOptionError: it has; the message names the argument.
    """
    problem = check(value)
    if problem is not None:
        raise InvalidOptionError(f"{name}: {problem}")
    return value


def required_identifier(name: str, value: Any) -> str:
    """A subscriber or message id.

    Raises:
        InvalidOptionError: it is not a string of 1 to 256 characters.
    """
    if value is None or _identifier(value) is not None:
        raise InvalidOptionError(f"{name}: got {describe(value)}, expected {_name_id}")
    identifier: str = value
    return identifier
