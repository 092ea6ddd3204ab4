"""What a simulation does: how much work, which faults, and how the queue is configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import attrs

from mpreg_mq._validation import configured, describe, number, whole
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration, RetentionPolicy
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.model import DeliveryGuarantee, Durability, OverflowPolicy, QueueType
from mpreg_mq.testing.disk import EVENT_BYTES, Synchronous, Writing
from mpreg_mq.topics import check_pattern

QUEUE_NAME = "q"
NEIGHBOUR_NAMES = "neighbour-"
"""How the names of the other queues begin."""
GUARANTEES = (DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM)

Payloads = Callable[[Random, int], tuple[str, Any]]
"""Topic and payload of the n-th message, which arrives just so; a header of it is the simulation's."""

_share = configured(number(0.0, 1.0))
_any_number = configured(whole(0, 1_000_000))
_at_least_one = configured(whole(1, 1_000_000))


def _guarantees_problem(value: Any) -> str | None:
    if isinstance(value, tuple) and value and all(isinstance(each, DeliveryGuarantee) for each in value):
        return None
    return f"got {describe(value)}, expected a tuple of at least one DeliveryGuarantee"


def _configuration_problem(value: Any) -> str | None:
    if value is None or isinstance(value, QueueConfiguration):
        return None
    return f"got {describe(value)}, expected a QueueConfiguration, or None, for one that the seed chooses"


def _faults_problem(value: Any) -> str | None:
    return None if isinstance(value, Faults) else f"got {describe(value)}, expected Faults(...) or NO_FAULTS"


def _check_handlers(scenario: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"Scenario.handlers: got {describe(value)}, expected callbacks by topic pattern")
    for pattern, handler in value.items():
        check_pattern(pattern)
        if not callable(handler):
            raise ConfigurationError(
                f"Scenario.handlers[{pattern!r}]: got {describe(handler)}, expected a function of a message"
            )


def _take(message: Any) -> None:
    """A handler that is content with everything."""


@attrs.frozen
class Faults:
    """How often what goes wrong, as shares between 0 and 1 of the occasions for it."""

    crash: float = attrs.field(default=0.25, validator=_share)
    """A process ends between two of its steps, and what was not written is lost."""
    power_cut: float = attrs.field(default=0.3, validator=_share)
    """It ends because the power fails, and what the disk was not made to keep is lost as well."""
    shutdown: float = attrs.field(default=0.1, validator=_share)
    """A process closes its queue and ends."""
    stall: float = attrs.field(default=0.15, validator=_share)
    """Nothing runs for some seconds."""
    slow_disk: float = attrs.field(default=0.1, validator=_share)
    """A commit takes up to a second."""
    full_disk: float = attrs.field(default=0.02, validator=_share)
    """The disk refuses an append, and those that follow for a while."""
    clock_jump: float = attrs.field(default=0.3, validator=_share)
    """The clock of a new process is off by some seconds."""
    raising: float = attrs.field(default=0.2, validator=_share)
    """A handler raises."""
    slow: float = attrs.field(default=0.3, validator=_share)
    """A handler is a coroutine that takes its time."""
    hanging: float = attrs.field(default=0.05, validator=_share)
    """A handler never returns."""
    duplicate: float = attrs.field(default=0.2, validator=_share)
    """A client repeats a command, at once or later."""
    abandon: float = attrs.field(default=0.1, validator=_share)
    """A client stops waiting for a reply."""


NO_FAULTS = Faults(*(0.0 for _ in attrs.fields(Faults)))


@attrs.frozen
class Scenario:
    """A story for :func:`~mpreg_mq.testing.simulate`; everything that is None is chosen by the seed.

    ``plain`` is the share of messages that ask for nothing, which are what is delivered in a row.

    ``handlers`` are callbacks of yours by topic pattern: each becomes a subscriber whose process crashes with the
    others. With ``admin`` somebody also pauses, purges, redrives and unsubscribes.

    ``configuration`` may have any name; its queue is :data:`QUEUE_NAME`. A durability that it names goes before
    ``durability``, which is that of the queue; ``synchronous`` is what its log asks of the disk. With ``retention``
    states are saved, and the log's beginning is cut, by a policy that the seed chooses. ``neighbours`` are other queues
    in the same log, of any durability, which are also deleted and made again.

    Raises:
        ConfigurationError: a value is out of its range.
        InvalidTopicError: the pattern of a handler is malformed.
    """

    name: str = "everything"
    messages: int = attrs.field(default=24, validator=_any_number)
    senders: int = attrs.field(default=2, validator=_at_least_one)
    pushed: int = attrs.field(default=3, validator=_any_number)
    pulling: int = attrs.field(default=1, validator=_any_number)
    processes: int = attrs.field(default=4, validator=_any_number)
    faults: Faults = attrs.field(default=Faults(), validator=configured(_faults_problem))
    admin: bool = True
    configuration: QueueConfiguration | None = attrs.field(default=None, validator=configured(_configuration_problem))
    blocking_log: bool | None = None
    writing: Writing | None = None
    durability: Durability | None = Durability.COMMITTED
    synchronous: Synchronous | None = Synchronous.FULL
    retention: bool = False
    neighbours: int = attrs.field(default=0, validator=_any_number)
    guarantees: tuple[DeliveryGuarantee, ...] = attrs.field(
        default=GUARANTEES, validator=configured(_guarantees_problem)
    )
    plain: float = attrs.field(default=0.0, validator=_share)
    groups: bool = True
    payloads: Payloads | None = None
    handlers: Mapping[str, Callable[[Any], Any]] = attrs.field(factory=dict, validator=_check_handlers)


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(),
        Scenario("calm", faults=NO_FAULTS, admin=False),
        Scenario("crashes", faults=attrs.evolve(NO_FAULTS, crash=0.5, stall=0.1, duplicate=0.2), admin=False),
        Scenario("handlers", faults=attrs.evolve(NO_FAULTS, raising=0.4, slow=0.4, hanging=0.1), pushed=4, pulling=0),
        Scenario("disk", faults=attrs.evolve(NO_FAULTS, crash=0.2, slow_disk=0.4, full_disk=0.1), blocking_log=True),
        Scenario(
            "loop",
            faults=attrs.evolve(NO_FAULTS, crash=0.3, stall=0.1, slow_disk=0.4, full_disk=0.1, duplicate=0.2),
            blocking_log=True,
            writing=Writing.LOOP,
        ),
        Scenario("audiences", guarantees=GUARANTEES[1:], pushed=4),
        Scenario(
            "rows",
            messages=60,
            senders=6,
            pushed=1,
            pulling=0,
            handlers={"b": _take},
            faults=attrs.evolve(Faults(), slow_disk=0.3, raising=0.05, slow=0.05, hanging=0.01, duplicate=0.1),
            guarantees=(*GUARANTEES[:1] * 9, *GUARANTEES[1:]),
            plain=0.85,
        ),
        Scenario("groups", guarantees=GUARANTEES[:1], pushed=2, pulling=2),
        Scenario(
            "durability",
            faults=attrs.evolve(Faults(), crash=0.4, power_cut=0.5, slow_disk=0.3, full_disk=0.01),
            blocking_log=True,
            durability=None,
            synchronous=None,
            neighbours=2,
        ),
        Scenario(
            "shutdowns",
            faults=attrs.evolve(NO_FAULTS, crash=0.5, shutdown=1.0, slow_disk=0.3, slow=0.3),
            blocking_log=True,
            durability=None,
            processes=8,
            neighbours=1,
        ),
        Scenario("retention", retention=True, neighbours=2),
        Scenario(
            "storage",
            faults=attrs.evolve(Faults(), crash=0.4, power_cut=0.5, slow_disk=0.3),
            blocking_log=True,
            durability=None,
            synchronous=None,
            retention=True,
            neighbours=1,
        ),
    )
}
"""By name, for the command line."""


def seeded_configuration(random: Random) -> QueueConfiguration:
    """A small configuration in which everything that can happen happens soon."""
    return QueueConfiguration(
        QUEUE_NAME,
        queue_type=random.choice(tuple(QueueType)),
        max_size=random.choice((4, 12, 1000, 1000)),
        default_visibility_timeout_seconds=random.choice((5.0, 20.0)),
        default_acknowledgment_timeout_seconds=random.choice((4.0, 15.0)),
        message_ttl_seconds=random.choice((None, None, 40.0)),
        enable_dead_letter_queue=random.random() < 0.8,
        dead_letter_max_receives=random.choice((None, None, None, 2)),
        enable_deduplication=random.random() < 0.5,
        deduplication_window_seconds=random.choice((2.0, 60.0)),
        max_retries=random.choice((0, 1, 3)),
        overflow_policy=random.choice(tuple(OverflowPolicy)),
        overflow_wait_seconds=random.choice((0.5, 5.0)),
        retry_backoff_seconds=random.choice((0.0, 0.1, 1.0)),
        retry_backoff_max_seconds=8.0,
        retry_jitter=random.choice((0.0, 0.5)),
        random_seed=random.getrandbits(16),
        circuit_breaker_failure_threshold=random.choice((None, 1, 3)),
        circuit_breaker_recovery_seconds=random.choice((2.0, 10.0)),
        default_max_in_flight=random.choice((1, 3, 100)),
    )


def seeded_manager(scenario: Scenario, durability: Durability, random: Random) -> QueueManagerConfiguration:
    """A manager whose queues have this durability, and a past that is short where the scenario asks for retention."""
    buffered = random.choice((1, 50, 2000))
    if not scenario.retention:
        return QueueManagerConfiguration(default_durability=durability, buffered_milliseconds=buffered)
    limits: dict[str, Any] = random.choice(
        (
            {"keep_events": random.choice((0, 1, 10, 40))},
            {"keep_seconds": random.choice((0.0, 3.0, 20.0))},
            {"keep_bytes": random.choice((0, 10, 40)) * EVENT_BYTES},
            {"keep_events": 30, "keep_seconds": 5.0},
        )
    )
    policy = RetentionPolicy(
        **limits,
        check_seconds=random.choice((0.1, 1.0, 7.0)),
        least_events=random.choice((1, 1, 12)),
        archive_directory=random.choice((None, "archive")),
    )
    return QueueManagerConfiguration(
        default_durability=durability,
        buffered_milliseconds=buffered,
        retention=policy,
        snapshot_every_events=random.choice((1, 5, 30, None)),
    )
