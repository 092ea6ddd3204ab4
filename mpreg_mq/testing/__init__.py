"""Tools to test queues, and the handlers that use them.

* :func:`simulate` runs the real actors with virtual time, seeded interleavings and faults.
* :class:`InvariantChecker` checks a log, :func:`check_clients` what senders and receivers saw.
* ``mpreg_mq.testing.strategies`` and :class:`QueueMachine` are for Hypothesis (extra ``testing``).
* pytest finds the fixtures ``queue_manager``, ``event_log``, ``virtual_clock`` and ``assert_delivery_invariants``.

Names are imported when they are first used, so that a simulation needs no Hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpreg_mq.invariants import ALL_RULES, InvariantChecker, Rule, Violation, check_history
    from mpreg_mq.testing.clients import ClientHistory, ClientViolation, Operation, Outcome, check_clients
    from mpreg_mq.testing.disk import SimulatedDisk
    from mpreg_mq.testing.jepsen import jepsen_lines
    from mpreg_mq.testing.loop import SimulatedClock, SimulatedLoop
    from mpreg_mq.testing.machine import QueueMachine
    from mpreg_mq.testing.scenario import NO_FAULTS, SCENARIOS, Faults, Scenario
    from mpreg_mq.testing.simulation import Simulation, SimulationFailedError, simulate

_HOMES = {
    "mpreg_mq.invariants": ("ALL_RULES", "InvariantChecker", "Rule", "Violation", "check_history"),
    "mpreg_mq.testing.clients": ("ClientHistory", "ClientViolation", "Operation", "Outcome", "check_clients"),
    "mpreg_mq.testing.disk": ("SimulatedDisk",),
    "mpreg_mq.testing.jepsen": ("jepsen_lines",),
    "mpreg_mq.testing.loop": ("SimulatedClock", "SimulatedLoop"),
    "mpreg_mq.testing.machine": ("QueueMachine",),
    "mpreg_mq.testing.scenario": ("NO_FAULTS", "SCENARIOS", "Faults", "Scenario"),
    "mpreg_mq.testing.simulation": ("Simulation", "SimulationFailedError", "simulate"),
}

__all__ = [
    "ALL_RULES",
    "NO_FAULTS",
    "SCENARIOS",
    "ClientHistory",
    "ClientViolation",
    "Faults",
    "InvariantChecker",
    "Operation",
    "Outcome",
    "QueueMachine",
    "Rule",
    "Scenario",
    "SimulatedClock",
    "SimulatedDisk",
    "SimulatedLoop",
    "Simulation",
    "SimulationFailedError",
    "Violation",
    "check_clients",
    "check_history",
    "jepsen_lines",
    "simulate",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
