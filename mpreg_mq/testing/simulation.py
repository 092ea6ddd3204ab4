"""Simulation of the real actors, log and timers: ``simulate(seed, scenario) -> Simulation``.

The same seed is the same run, event for event. ``python -m mpreg_mq.testing.simulate --seed 7`` repeats one.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import attrs

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent, Snapshot
from mpreg_mq.invariants import InvariantChecker, Violation
from mpreg_mq.testing.checks import (
    check_acknowledged_after_work,
    check_drained,
    check_live_state,
    check_nothing_made_up,
    check_snapshots,
    excused,
    waiting_for_nobody,
)
from mpreg_mq.testing.clients import ClientHistory, ClientViolation, check_clients
from mpreg_mq.testing.disk import Cut
from mpreg_mq.testing.scenario import SCENARIOS, Scenario
from mpreg_mq.testing.seams import deterministic
from mpreg_mq.testing.world import World


class SimulationFailedError(AssertionError):
    """A simulation broke a rule; the message says which, and how to repeat it."""


@attrs.frozen
class Simulation:
    """What came of a simulation.

    ``records`` is the log, also what was cut off it, and what queues in memory held at the end; ``history`` is what the
    clients saw, ``log_hash`` equal for equal runs; ``counts`` tells how much happened (crashes, redeliveries, dead
    letters, expiries, open breakers and more).
    """

    seed: int
    scenario: Scenario
    records: list[RecordedEvent]
    history: ClientHistory
    log_hash: str
    violations: list[Violation | ClientViolation]
    counts: Counter[str]
    virtual_seconds: float

    @property
    def command(self) -> str:
        """What repeats it in a shell; a call in Python for a scenario of your own."""
        if SCENARIOS.get(self.scenario.name) != self.scenario:
            return f"simulate({self.seed}, scenario)  # the scenario {self.scenario.name!r}"
        return f"python -m mpreg_mq.testing.simulate --seed {self.seed} --scenario {self.scenario.name}"

    def check(self) -> Simulation:
        """Itself, where no rule was broken.

        Raises:
            SimulationFailedError: a rule was broken.
        """
        if self.violations:
            told = "\n".join(str(violation) for violation in self.violations[:5])
            raise SimulationFailedError(
                f"{len(self.violations)} violations, the first:\n{told}\nrepeat: {self.command}"
            )
        return self


def simulate(seed: int, scenario: Scenario | str | None = None) -> Simulation:
    """Run a scenario, or that of :data:`SCENARIOS` with this name, with a seed, to its quiet end, and check all that it
    did.

    It replaces module-wide sources of randomness while it runs, so one thread simulates at a time.

    Raises:
        ConfigurationError: ``scenario`` is neither.
    """
    scenario = _scenario(scenario)
    world = World(seed, scenario)
    with deterministic(Random(f"{seed}/identifiers")):
        try:
            world.run()
            written = world.disk.records()
            logs = [written, *world.lives]
            violations: list[Violation | ClientViolation] = []
            for log in logs:
                violations += InvariantChecker().observe_all(log).finish()
            # What queues held in memory at the end comes after what is on the disk, with positions of its own.
            in_memory = [] if world.final is None else world.final.memory_logs()
            records = [*written, *(record for log in in_memory for record in log)]
            violations += check_live_state(world, records)
            waiting = waiting_for_nobody(world)
            violations += check_drained(world, records, waiting)
            violations += check_snapshots(world, records)
        finally:
            if world.last_process is not None and world.last_process.alive:
                world.last_process.crash()
    everything = [record for log in logs for record in log]
    violations += world.violations
    violations += world.answers.violations
    violations += check_nothing_made_up(world, everything)
    violations += check_acknowledged_after_work(world, everything)
    violations += check_clients(world.history, excused=excused(everything, waiting), forgotten=world.answers.forgotten)
    violations += [Violation("error", len(records), "queue:q", None, problem) for problem in world.problems]
    return Simulation(
        seed,
        scenario,
        records,
        world.history,
        world.hash(),
        violations,
        _counts(world, records),
        world.seconds,
    )


def _scenario(given: Scenario | str | None) -> Scenario:
    scenario = SCENARIOS.get("everything" if given is None else given) if isinstance(given, str | None) else given
    if isinstance(scenario, Scenario):
        return scenario
    names = ", ".join(map(repr, SCENARIOS))
    raise ConfigurationError(f"simulate: got the scenario {describe(given)}, expected a Scenario or one of {names}")


def _counts(world: World, records: list[RecordedEvent]) -> Counter[str]:
    kinds = Counter(type(record.event).__name__ for record in records)
    redelivered = sum(isinstance(record.event, e.MessageDelivered) and record.event.attempt > 1 for record in records)
    return Counter(
        {
            "events": len(records),
            "steps": world.steps,
            "accepted": kinds["MessageEnqueued"],
            "crashes": world.crashes,
            "power cuts": world.power_cuts,
            "lost answers": world.answers.lost,
            "cuts": sum(isinstance(change, Cut) for change in world.disk.changes),
            "snapshots": sum(isinstance(change, Snapshot) for change in world.disk.changes),
            "shutdowns": world.shutdowns,
            "disk errors": world.disk_errors,
            "redeliveries": redelivered,
            "dead letters": kinds["MessageDeadLettered"],
            "failed": kinds["MessageFailed"],
            "expiries": kinds["MessageExpired"],
            "open breakers": kinds["CircuitOpened"],
            "leases expired": kinds["LeaseExpired"],
            "duplicates refused": kinds["DuplicateRejected"],
            "dropped": kinds["MessageDropped"],
            "missed quorums": kinds["QuorumMissed"],
            "redriven": kinds["DeadLetterRedriven"],
            "purged": kinds["MessagesPurged"],
        }
    )
