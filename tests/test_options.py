"""Options of a send: unknown and out-of-range ones are errors, ``None`` means the default (S2, S4)."""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from mpreg_mq._validation import MAX_SECONDS, whole
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, MessageOptions
from mpreg_mq.options import MAX_HEADERS, MAX_ID_LENGTH, guarantee_of, message_options, require, required_identifier

NAN, INFINITY = float("nan"), float("inf")

GOOD: dict[str, list[Any]] = {
    "priority": [0, -(2**31), 2**31 - 1],
    "delay_seconds": [0, 0.5, MAX_SECONDS],
    "visibility_timeout_seconds": [0.001, MAX_SECONDS],
    "acknowledgment_timeout_seconds": [1, MAX_SECONDS],
    "max_retries": [0, 1_000_000],
    "required_acknowledgments": [1, 10_000_000],
    "headers": [{}, {"k": "v"}, {str(n): "" for n in range(MAX_HEADERS)}],
    "message_ttl_seconds": [0.001, MAX_SECONDS],
    "deduplication_id": ["x", "x" * MAX_ID_LENGTH],
    "group_id": ["größe", "x" * MAX_ID_LENGTH],
}
NO_NUMBERS: list[Any] = ["1", True, NAN, INFINITY, [], {}]
BAD: dict[str, list[Any]] = {
    "priority": [*NO_NUMBERS, 1.0, 2**31, -(2**31) - 1],
    "delay_seconds": [*NO_NUMBERS, -0.001, MAX_SECONDS + 1],
    "visibility_timeout_seconds": [*NO_NUMBERS, 0, -1],
    "acknowledgment_timeout_seconds": [*NO_NUMBERS, 0, -1],
    "max_retries": [*NO_NUMBERS, -1, 1_000_001, 2.5],
    "required_acknowledgments": [*NO_NUMBERS, 0, -1],
    "headers": ["k=v", [("k", "v")], {"k": 1}, {1: "v"}, {str(n): "" for n in range(MAX_HEADERS + 1)}, True],
    "message_ttl_seconds": [*NO_NUMBERS, 0, -1],
    "deduplication_id": ["", "x" * (MAX_ID_LENGTH + 1), 5, b"x", True],
    "group_id": ["", "x" * 10_240, 5, b"x"],
}


def test_the_tables_have_every_option() -> None:
    """Given the options there are, then each has good and bad values in the tables above."""
    assert GOOD.keys() == BAD.keys() == attrs.fields_dict(MessageOptions).keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_s4_a_value_in_range_is_taken_as_it_is(name: str, value: Any) -> None:
    """Given the ends of each range, then they are accepted."""
    assert getattr(message_options({name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_s2_a_value_out_of_range_names_the_option_and_what_was_expected(name: str, value: Any) -> None:
    """Given a wrong type, a number out of range, NaN or infinity, then the error is short and says what fits."""
    with pytest.raises(InvalidOptionError, match=f"^{name}: got .*expected ") as caught:
        message_options({name: value})
    assert len(str(caught.value)) < 300


def test_s2_an_unknown_option_is_an_error() -> None:
    """Given a misspelt option, then the error lists those there are."""
    with pytest.raises(InvalidOptionError, match="unknown option 'prioritty'; expected one of priority, delay_seconds"):
        message_options({"priority": 1, "prioritty": 2})


def test_s2_none_means_the_default() -> None:
    """Given None for every option, or no options at all, then they are the default options."""
    assert message_options(dict.fromkeys(GOOD)) == DEFAULT_OPTIONS
    assert message_options({}) is DEFAULT_OPTIONS


def test_s3_headers_are_copied() -> None:
    """Given a mapping that is changed after the send, then the options are not."""
    headers = {"k": "v"}
    options = message_options({"headers": headers})
    headers["k"] = "changed"
    assert options.headers == {"k": "v"}
    assert message_options({"headers": MappingProxyType({"k": "v"})}).headers == {"k": "v"}


class TheirGuarantee(Enum):
    """A like-named enum of another package."""

    QUORUM = "quorum"
    SOMETHING = "something"


@pytest.mark.parametrize("value", [DeliveryGuarantee.QUORUM, "quorum", TheirGuarantee.QUORUM])
def test_a_guarantee_can_be_given_in_three_ways(value: Any) -> None:
    """Given a member, its text, or a like-named member of another enum, then it is our member."""
    assert guarantee_of(value) is DeliveryGuarantee.QUORUM


@pytest.mark.parametrize("value", ["QUORUM", "at most once", None, 3, [], TheirGuarantee.SOMETHING])
def test_an_unknown_guarantee_is_an_error(value: Any) -> None:
    """Given anything else, then the error lists the guarantees."""
    with pytest.raises(InvalidOptionError, match="expected one of fire_and_forget, at_least_once, broadcast, quorum"):
        guarantee_of(value)


def test_an_argument_is_required_to_pass_its_check() -> None:
    """Given a check, then a fine value comes back, and a bad one is named."""
    assert require("max_messages", whole(1, 10), 10) == 10
    with pytest.raises(InvalidOptionError, match=r"^max_messages: got 11, expected a whole number from 1 to 10$"):
        require("max_messages", whole(1, 10), 11)


@pytest.mark.parametrize("value", [None, "", "x" * (MAX_ID_LENGTH + 1), 5, b"id"])
def test_an_identifier_is_a_string_of_some_length(value: Any) -> None:
    """Given nothing, an empty or a too long string, or no string, then it is no identifier."""
    with pytest.raises(InvalidOptionError, match=r"^subscriber_id: got .*expected a string of 1 to 256 characters$"):
        required_identifier("subscriber_id", value)
    assert required_identifier("subscriber_id", "s") == "s"
