"""Configurations of queues and managers; every value is checked at construction.

The first fields are MPREG's, with MPREG's defaults. A bad value raises :class:`ConfigurationError`, which
names the field, the value and the range.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import attrs

from mpreg_mq._validation import configured, describe, flag, number, queue_name_problem, seconds, whole
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.model import Durability, OverflowPolicy, QueueType
from mpreg_mq.topics import topic_problem

E = TypeVar("E", bound=Enum)

MAX_QUEUE_SIZE = 1_000_000_000


def _member(enum: type[E], value: Any) -> E:
    """A member from a member, its value, or a member of a like-named enum (MPREG's own)."""
    if isinstance(value, enum):
        return value
    try:
        return enum(getattr(value, "value", value))
    except ValueError:
        allowed = ", ".join(member.value for member in enum)
        raise ConfigurationError(f"{enum.__name__}: got {describe(value)}, expected one of {allowed}") from None


def _queue_type(value: Any) -> QueueType:
    return _member(QueueType, value)


def _durability(value: Any) -> Durability:
    return _member(Durability, value)


def _optional_durability(value: Any) -> Durability | None:
    return None if value is None else _member(Durability, value)


def _overflow_policy(value: Any) -> OverflowPolicy:
    return _member(OverflowPolicy, value)


_positive = configured(seconds(0.0, exclusive=True))
_optional_positive = configured(seconds(0.0, exclusive=True, optional=True))
_not_negative = configured(seconds(0.0))
_flag = configured(flag)
_size = configured(whole(1, MAX_QUEUE_SIZE))


@attrs.frozen
class QueueConfiguration:
    """How one queue behaves.

    ``dead_letter_max_receives`` caps the attempts below ``max_retries + 1`` when it is set (R1); MPREG has it
    at 3 and never reads it. ``circuit_breaker_failure_threshold`` of None leaves breakers off (R3).
    ``durability`` of None is the manager's ``default_durability``, and ``COMMITTED`` for a queue without one.
    ``retry_jitter`` is the share of the backoff that is random, from ``random_seed`` (R2).
    """

    name: str = attrs.field(validator=configured(queue_name_problem))
    queue_type: QueueType = attrs.field(default=QueueType.FIFO, converter=_queue_type)
    max_size: int = attrs.field(default=10_000, validator=_size)
    default_visibility_timeout_seconds: float = attrs.field(default=30.0, validator=_positive)
    default_acknowledgment_timeout_seconds: float = attrs.field(default=300.0, validator=_positive)
    message_ttl_seconds: float | None = attrs.field(default=None, validator=_optional_positive)
    enable_dead_letter_queue: bool = attrs.field(default=True, validator=_flag)
    dead_letter_max_receives: int | None = attrs.field(
        default=None, validator=configured(whole(1, 1_000_000, optional=True))
    )
    enable_deduplication: bool = attrs.field(default=False, validator=_flag)
    deduplication_window_seconds: float = attrs.field(default=300.0, validator=_positive)
    max_retries: int = attrs.field(default=3, validator=configured(whole(0, 1_000_000)))
    overflow_policy: OverflowPolicy = attrs.field(default=OverflowPolicy.REJECT, converter=_overflow_policy)
    overflow_wait_seconds: float = attrs.field(default=30.0, validator=_not_negative)
    retry_backoff_seconds: float = attrs.field(default=0.1, validator=_not_negative)
    retry_backoff_multiplier: float = attrs.field(default=2.0, validator=configured(number(1.0, 100.0)))
    retry_backoff_max_seconds: float = attrs.field(default=30.0, validator=_not_negative)
    retry_jitter: float = attrs.field(default=0.5, validator=configured(number(0.0, 1.0)))
    random_seed: int = attrs.field(default=0, validator=configured(whole(0, 2**63 - 1)))
    circuit_breaker_failure_threshold: int | None = attrs.field(
        default=None, validator=configured(whole(1, 1_000_000, optional=True))
    )
    circuit_breaker_recovery_seconds: float = attrs.field(default=30.0, validator=_positive)
    default_max_in_flight: int = attrs.field(default=1000, validator=configured(whole(1, 1_000_000)))
    max_payload_bytes: int = attrs.field(default=1 << 20, validator=configured(whole(1, 1 << 30)))
    max_headers_bytes: int = attrs.field(default=16_384, validator=configured(whole(0, 1 << 20)))
    max_deduplication_keys: int = attrs.field(default=10_000_000, validator=_size)
    max_subscribers: int = attrs.field(default=1_000_000, validator=configured(whole(1, 10_000_000)))
    durability: Durability | None = attrs.field(default=None, converter=_optional_durability)

    @classmethod
    def coerce(cls, configuration: Any) -> QueueConfiguration:
        """This class from a configuration of the same shape, such as MPREG's own dataclass.

        Fields that the other does not have keep their defaults. A ``dead_letter_max_receives`` of 3 is taken as
        "not set": it is MPREG's default, which MPREG never applies.

        Raises:
            ConfigurationError: a required field is missing, or a value is out of range.
        """
        if isinstance(configuration, cls):
            return configuration
        values = _settings(cls, configuration)
        # A path has a name as well, and is no configuration.
        if "name" not in values or len(values) == 1:
            raise ConfigurationError(
                f"QueueConfiguration: got {describe(configuration)}, expected an object with a name "
                "and queue settings; build an mpreg_mq.QueueConfiguration"
            )
        if values.get("dead_letter_max_receives") == 3:
            values["dead_letter_max_receives"] = None
        return cls(**values)

    @property
    def max_attempts(self) -> int:
        """Most attempts of a message that names no ``max_retries`` of its own (R1)."""
        return self.attempts_for(None)

    def attempts_for(self, max_retries: int | None) -> int:
        """Most attempts of a message sent with this ``max_retries``; None is the queue's (R1)."""
        attempts = (self.max_retries if max_retries is None else max_retries) + 1
        if self.dead_letter_max_receives is not None:
            attempts = min(attempts, self.dead_letter_max_receives)
        return attempts


def _settings(cls: type[Any], configuration: Any) -> dict[str, Any]:
    """What an object of the same shape sets of a configuration's fields."""
    names = [field.name for field in attrs.fields(cls)]
    return {name: getattr(configuration, name) for name in names if hasattr(configuration, name)}


def _directory(value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ConfigurationError(f"RetentionPolicy.archive_directory: got {describe(value)}, expected a path, or None")
    return Path(os.fsdecode(value)).absolute()


@attrs.frozen
class RetentionPolicy:
    """How much of its past a log keeps; events beyond any of the three limits go.

    ``keep_bytes`` is compared with the size of the log file. Into ``archive_directory``, where one is given, go files
    of JSON lines, compressed, that can be opened like a log; else the events are deleted. It is for one log alone.
    ``check_seconds`` is how often is looked, and ``least_events`` how many have to be beyond the limits before anything
    is done.

    Raises:
        ConfigurationError: there is no limit, or one is out of its range.
    """

    keep_seconds: float | None = attrs.field(default=None, validator=configured(seconds(0.0, optional=True)))
    keep_events: int | None = attrs.field(default=None, validator=configured(whole(0, 2**62, optional=True)))
    keep_bytes: int | None = attrs.field(default=None, validator=configured(whole(0, 2**62, optional=True)))
    archive_directory: Path | None = attrs.field(default=None, converter=_directory)
    check_seconds: float = attrs.field(default=60.0, validator=configured(seconds(0.0, exclusive=True)))
    least_events: int = attrs.field(default=10_000, validator=configured(whole(1, 2**62)))
    share_of_time: float = attrs.field(default=0.2, validator=configured(number(0.01, 1.0)))
    """The part of the time that compaction may use; it pauses between its steps."""

    def __attrs_post_init__(self) -> None:
        if self.keep_seconds is None and self.keep_events is None and self.keep_bytes is None:
            raise ConfigurationError("RetentionPolicy: got no limit, expected keep_seconds, keep_events or keep_bytes")


def _retention_problem(value: Any) -> str | None:
    if value is None or isinstance(value, RetentionPolicy):
        return None
    return f"got {describe(value)}, expected a RetentionPolicy, such as RetentionPolicy(keep_seconds=86400), or None"


@attrs.frozen
class QueueManagerConfiguration:
    """How a manager makes queues that are created without a configuration of their own, and its limits.

    ``default_durability`` is what a queue has that names none; ``buffered_milliseconds`` is how much a ``BUFFERED`` one
    risks. A queue's state is saved after ``snapshot_every_events`` of its events, and never where that is None, so that
    the next start reads only the events since. ``retention`` says how much of its past the log keeps; None: all.

    ``shutdown_timeout_seconds`` is what running callbacks get before they are cancelled (C3). With
    ``publish_queue_events`` every event of a queue is published as ``<integration_topic_prefix>.<queue>.<event>``.
    """

    default_queue_type: QueueType = attrs.field(default=QueueType.FIFO, converter=_queue_type)
    default_max_queue_size: int = attrs.field(default=10_000, validator=_size)
    default_visibility_timeout_seconds: float = attrs.field(default=30.0, validator=_positive)
    default_acknowledgment_timeout_seconds: float = attrs.field(default=300.0, validator=_positive)
    enable_auto_queue_creation: bool = attrs.field(default=True, validator=_flag)
    max_queues: int = attrs.field(default=1000, validator=configured(whole(1, 10_000_000)))
    integration_topic_prefix: str = attrs.field(default="mpreg.queue", validator=configured(topic_problem))
    enable_topic_exchange_integration: bool = attrs.field(default=True, validator=_flag)
    publish_queue_events: bool = attrs.field(default=False, validator=_flag)
    default_max_retries: int = attrs.field(default=3, validator=configured(whole(0, 1_000_000)))
    default_enable_deduplication: bool = attrs.field(default=False, validator=_flag)
    default_circuit_breaker_failure_threshold: int | None = attrs.field(
        default=None, validator=configured(whole(1, 1_000_000, optional=True))
    )
    default_max_in_flight: int = attrs.field(default=1000, validator=configured(whole(1, 1_000_000)))
    default_overflow_policy: OverflowPolicy = attrs.field(default=OverflowPolicy.REJECT, converter=_overflow_policy)
    shutdown_timeout_seconds: float = attrs.field(default=5.0, validator=_not_negative)
    random_seed: int = attrs.field(default=0, validator=configured(whole(0, 2**63 - 1)))
    default_durability: Durability = attrs.field(default=Durability.COMMITTED, converter=_durability)
    buffered_milliseconds: int = attrs.field(default=50, validator=configured(whole(1, 60_000)))
    snapshot_every_events: int | None = attrs.field(
        default=100_000, validator=configured(whole(1, 1_000_000_000, optional=True))
    )
    retention: RetentionPolicy | None = attrs.field(default=None, validator=configured(_retention_problem))

    @classmethod
    def coerce(cls, configuration: Any) -> QueueManagerConfiguration:
        """This class from a configuration of the same shape, such as MPREG's own; None gives the defaults.

        Raises:
            ConfigurationError: it has none of the settings (the address of a log has none), or a bad value.
        """
        if configuration is None:
            return cls()
        if isinstance(configuration, cls):
            return configuration
        values = _settings(cls, configuration)
        if not values:
            raise ConfigurationError(
                f"QueueManagerConfiguration: got {describe(configuration)}, expected an object with queue manager "
                "settings, or None; build an mpreg_mq.QueueManagerConfiguration, and give a log as log="
            )
        return cls(**values)

    def new_queue_configuration(self, name: str, config: QueueConfiguration | None) -> QueueConfiguration:
        """The configuration of a queue that is to be created: the one given, or these defaults.

        Raises:
            ConfigurationError: the name or the configuration is bad, or ``config`` names another queue.
        """
        problem = queue_name_problem(name)
        if problem is not None:
            raise ConfigurationError(f"queue name: {problem}")
        configuration = self.queue_configuration(name) if config is None else QueueConfiguration.coerce(config)
        if configuration.name != name:
            raise ConfigurationError(
                f"create_queue: got the name {name!r} and a configuration for {configuration.name!r}, expected the same"
            )
        return configuration

    def queue_configuration(self, name: str) -> QueueConfiguration:
        """The configuration of a queue created without one."""
        return QueueConfiguration(
            name=name,
            queue_type=self.default_queue_type,
            max_size=self.default_max_queue_size,
            default_visibility_timeout_seconds=self.default_visibility_timeout_seconds,
            default_acknowledgment_timeout_seconds=self.default_acknowledgment_timeout_seconds,
            max_retries=self.default_max_retries,
            enable_deduplication=self.default_enable_deduplication,
            circuit_breaker_failure_threshold=self.default_circuit_breaker_failure_threshold,
            default_max_in_flight=self.default_max_in_flight,
            overflow_policy=self.default_overflow_policy,
            random_seed=self.random_seed,
        )
