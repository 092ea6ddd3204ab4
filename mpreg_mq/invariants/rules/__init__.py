"""The rules, one class each."""

from __future__ import annotations

from mpreg_mq.invariants.rule import Rule
from mpreg_mq.invariants.rules.dead_letters import DeadLetters
from mpreg_mq.invariants.rules.delivering import (
    Broadcast,
    CompetingConsumers,
    InFlight,
    NoSubscriber,
    Pause,
    Quorum,
    Topics,
)
from mpreg_mq.invariants.rules.log import Accounts, Fold, Lifecycle
from mpreg_mq.invariants.rules.ordering import Delay, Fifo, Priority, TimeToLive
from mpreg_mq.invariants.rules.sending import Acceptance, Capacity, Deduplication, FireAndForget, Limits
from mpreg_mq.invariants.rules.settling import (
    Acknowledgments,
    Attempts,
    Backoff,
    Circuit,
    Leases,
    Refusals,
    Shutdown,
)

ALL_RULES: tuple[type[Rule], ...] = (
    Acceptance,
    Limits,
    FireAndForget,
    CompetingConsumers,
    Broadcast,
    Quorum,
    NoSubscriber,
    Topics,
    Fifo,
    Priority,
    Delay,
    TimeToLive,
    Leases,
    Acknowledgments,
    Refusals,
    Attempts,
    Backoff,
    Circuit,
    DeadLetters,
    Deduplication,
    Capacity,
    InFlight,
    Shutdown,
    Pause,
    Accounts,
    Lifecycle,
    Fold,
)
"""Every rule that a log can show, in the order of docs/semantics.md; I1 is always on."""

__all__ = [
    "ALL_RULES",
    "Accounts",
    "Acknowledgments",
    "Attempts",
    "Backoff",
    "Broadcast",
    "Capacity",
    "Circuit",
    "CompetingConsumers",
    "DeadLetters",
    "Delay",
    "Fifo",
    "Fold",
    "InFlight",
    "Leases",
    "Lifecycle",
    "Limits",
    "Pause",
    "Priority",
    "Quorum",
    "Rule",
    "TimeToLive",
    "Topics",
]
