"""Configurations: every value is checked when they are made, and MPREG's own are understood."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq._validation import MAX_QUEUE_NAME_LENGTH, MAX_SECONDS, describe, queue_name_problem
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration
from mpreg_mq.errors import ConfigurationError, MessageQueueError
from mpreg_mq.model import OverflowPolicy, QueueType

NAN, INFINITY = float("nan"), float("inf")

NO_NUMBERS: list[Any] = ["5", True, [], object(), NAN, INFINITY, -INFINITY]
POSITIVE = [
    "default_visibility_timeout_seconds",
    "default_acknowledgment_timeout_seconds",
    "message_ttl_seconds",
    "deduplication_window_seconds",
    "circuit_breaker_recovery_seconds",
]
NOT_NEGATIVE = ["overflow_wait_seconds", "retry_backoff_seconds", "retry_backoff_max_seconds"]
WHOLE = {
    "max_size": 1,
    "dead_letter_max_receives": 1,
    "max_retries": 0,
    "random_seed": 0,
    "circuit_breaker_failure_threshold": 1,
    "default_max_in_flight": 1,
    "max_payload_bytes": 1,
    "max_headers_bytes": 0,
    "max_deduplication_keys": 1,
    "max_subscribers": 1,
}
SHARES = {"retry_backoff_multiplier": (1.0, 100.0), "retry_jitter": (0.0, 1.0)}
FLAGS = ["enable_dead_letter_queue", "enable_deduplication"]
OPTIONAL = {"message_ttl_seconds", "dead_letter_max_receives", "circuit_breaker_failure_threshold"}

BAD: list[tuple[str, Any]] = [
    *((name, value) for name in POSITIVE for value in [*NO_NUMBERS, 0, -1, MAX_SECONDS + 1]),
    *((name, value) for name in NOT_NEGATIVE for value in [*NO_NUMBERS, None, -0.001, MAX_SECONDS + 1]),
    *((name, value) for name, least in WHOLE.items() for value in [*NO_NUMBERS, 1.5, least - 1, 2**70]),
    *((name, value) for name, (low, high) in SHARES.items() for value in [*NO_NUMBERS, None, low - 0.1, high + 0.1]),
    *((name, value) for name in FLAGS for value in [1, 0, "yes", None]),
    *((name, None) for name in [*POSITIVE, *WHOLE] if name not in OPTIONAL),
    *((name, value) for name in ("queue_type", "overflow_policy") for value in ["lifo", "FIFO", 3, None, []]),
    *(("durability", value) for value in ["disk", "COMMITTED", 3, []]),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_named_with_its_field_and_what_was_expected(field: str, value: Any) -> None:
    """Given a value of the wrong type or out of range, then the error says which, what was given and what fits."""
    with pytest.raises(ConfigurationError) as caught:
        QueueConfiguration("q", **{field: value})
    enums = {"queue_type": "QueueType", "overflow_policy": "OverflowPolicy", "durability": "Durability"}
    named = enums.get(field, f"QueueConfiguration.{field}")
    text = str(caught.value)
    assert text.startswith(f"{named}: got ")
    assert describe(value) in text or "object at" in text
    assert ", expected " in text


def test_the_table_of_bad_values_has_every_field() -> None:
    """Given the fields of a configuration, then each has bad values in the table above."""
    assert {field for field, _ in BAD} | {"name"} == set(attrs.fields_dict(QueueConfiguration))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        *((name, [0.001, MAX_SECONDS, 1]) for name in POSITIVE),
        *((name, [0, 0.0, MAX_SECONDS]) for name in NOT_NEGATIVE),
        *((name, [least, least + 1]) for name, least in WHOLE.items()),
        *((name, list(ends)) for name, ends in SHARES.items()),
        *((name, [None]) for name in sorted(OPTIONAL)),
    ],
)
def test_the_ends_of_each_range_belong_to_it(field: str, values: list[Any]) -> None:
    """Given the least and the greatest value, then they are accepted as they are."""
    for value in values:
        assert getattr(QueueConfiguration("q", **{field: value}), field) == value


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        "../etc/passwd",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\x00b",
        "größe",
        "x" * (MAX_QUEUE_NAME_LENGTH + 1),
        "x" * 10_240,
        None,
        5,
        b"q",
        ["q"],
    ],
    ids=lambda name: repr(name)[:20],
)
def test_a_bad_name_is_refused_with_a_short_message(name: Any) -> None:
    """Given a name that is no safe file name, or far too long, then the error shows its beginning only."""
    with pytest.raises(ConfigurationError, match="expected 1 to 80 characters") as caught:
        QueueConfiguration(name)
    assert len(str(caught.value)) < 300


@given(st.text(alphabet="abcXYZ019_.-", min_size=1, max_size=MAX_QUEUE_NAME_LENGTH))
def test_good_names_are_those_of_safe_characters_with_more_than_dots(name: str) -> None:
    """For all texts of safe characters: they are names, unless there are only dots in them."""
    assert (queue_name_problem(name) is None) == bool(name.strip("."))


def test_errors_have_one_root_and_are_value_errors() -> None:
    """Given a bad configuration, then it can be caught as ours and as ValueError."""
    assert issubclass(ConfigurationError, MessageQueueError)
    assert issubclass(ConfigurationError, ValueError)
    with pytest.raises(TypeError, match="unknown_field"):
        QueueConfiguration("q", unknown_field=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("given_type", [QueueType.PRIORITY, "priority"])
def test_an_enum_can_be_given_by_its_value(given_type: Any) -> None:
    """Given a member or its text, then the member is what the configuration holds."""
    assert QueueConfiguration("q", queue_type=given_type).queue_type is QueueType.PRIORITY
    assert QueueConfiguration("q", overflow_policy="wait").overflow_policy is OverflowPolicy.WAIT


@pytest.mark.parametrize(
    ("max_retries", "max_receives", "own", "attempts"),
    [(3, None, None, 4), (0, None, None, 1), (3, 2, None, 2), (0, 5, None, 1), (3, 2, 9, 2), (3, None, 9, 10)],
)
def test_r1_attempts_are_retries_and_one_within_the_limit(
    max_retries: int, max_receives: int | None, own: int | None, attempts: int
) -> None:
    """Given retries of the queue and of the message, then attempts are one more, capped by the receives."""
    configuration = QueueConfiguration("q", max_retries=max_retries, dead_letter_max_receives=max_receives)
    assert configuration.attempts_for(own) == attempts
    assert configuration.max_attempts == configuration.attempts_for(None)


# --- configurations of the same shape ---------------------------------------------------------------------


class TheirType(Enum):
    """A like-named enum of another package."""

    FIFO = "fifo"
    DELAY = "delay"


@dataclass
class TheirConfiguration:
    """A dataclass as MPREG has it: fewer fields, and one that is unknown here."""

    name: str = "orders"
    queue_type: TheirType = TheirType.DELAY
    max_size: int = 7
    dead_letter_max_receives: int | None = 3
    something_else: str = "ignored"


def test_a_configuration_of_the_same_shape_is_understood() -> None:
    """Given MPREG's dataclass, then its fields are taken over, and its never applied default of 3 receives is not."""
    assert QueueConfiguration.coerce(TheirConfiguration()) == QueueConfiguration("orders", QueueType.DELAY, 7)
    assert QueueConfiguration.coerce(TheirConfiguration(dead_letter_max_receives=4)).dead_letter_max_receives == 4
    ours = QueueConfiguration("q")
    assert QueueConfiguration.coerce(ours) is ours


def test_a_configuration_of_the_same_shape_is_checked_like_any() -> None:
    """Given MPREG's dataclass with bad values, then the errors are the same; given no name, the error says so."""
    with pytest.raises(ConfigurationError, match="max_size"):
        QueueConfiguration.coerce(TheirConfiguration(max_size=0))
    with pytest.raises(ConfigurationError, match="expected an object with a name"):
        QueueConfiguration.coerce({"name": "q"})
    with pytest.raises(ConfigurationError, match="expected an object with a name"):
        QueueConfiguration.coerce(Path("orders.db"))


def test_a_manager_hands_its_defaults_to_its_queues() -> None:
    """Given defaults, then a queue made without a configuration has them."""
    manager = QueueManagerConfiguration(
        default_queue_type="priority",
        default_max_queue_size=5,
        default_visibility_timeout_seconds=6,
        default_acknowledgment_timeout_seconds=7,
        default_max_retries=8,
        default_enable_deduplication=True,
        default_circuit_breaker_failure_threshold=9,
        default_max_in_flight=10,
        default_overflow_policy=OverflowPolicy.DROP_OLDEST,
        random_seed=11,
    )
    assert manager.queue_configuration("q") == QueueConfiguration(
        "q",
        QueueType.PRIORITY,
        5,
        6,
        7,
        max_retries=8,
        enable_deduplication=True,
        circuit_breaker_failure_threshold=9,
        default_max_in_flight=10,
        overflow_policy=OverflowPolicy.DROP_OLDEST,
        random_seed=11,
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("retention", {"keep_seconds": 5}, "expected a RetentionPolicy"),
        ("retention", 5, "expected a RetentionPolicy"),
        ("integration_topic_prefix", None, "expected a"),
        ("integration_topic_prefix", "", "topic"),
        ("integration_topic_prefix", "a b..#", "topic"),
        ("integration_topic_prefix", "queues.*", "topic"),
    ],
)
def test_a_manager_configuration_is_checked_like_any(field: str, value: Any, expected: str) -> None:
    """Given a policy that is none, or a prefix that begins no topic, then the error names the field."""
    with pytest.raises(ConfigurationError, match=rf"^QueueManagerConfiguration\.{field}: .*{expected}"):
        QueueManagerConfiguration(**{field: value})


def test_a_manager_configuration_is_coerced_too() -> None:
    """Given nothing, our own, or one of the same shape, then it is the defaults, itself, or its fields."""

    @dataclass
    class Theirs:
        max_queues: int = 3
        unknown: int = 1

    assert QueueManagerConfiguration.coerce(None) == QueueManagerConfiguration()
    ours = QueueManagerConfiguration()
    assert QueueManagerConfiguration.coerce(ours) is ours
    assert QueueManagerConfiguration.coerce(Theirs()) == QueueManagerConfiguration(max_queues=3)
    with pytest.raises(ConfigurationError, match=r"QueueManagerConfiguration\.max_queues"):
        QueueManagerConfiguration.coerce(Theirs(max_queues=0))
    with pytest.raises(ConfigurationError, match="expected an object with queue manager settings"):
        QueueManagerConfiguration.coerce({"max_queues": 3})
