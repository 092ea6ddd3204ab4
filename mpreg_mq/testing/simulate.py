"""Simulation of the real actors, log and timers: ``simulate(seed, scenario) -> Simulation``.

The same seed is the same run, event for event. ``python -m mpreg_mq.testing.simulate --seed 7`` repeats one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from random import Random

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import InvariantChecker, Violation
from mpreg_mq.testing.checks import (
    check_acknowledged_after_work,
    check_drained,
    check_live_state,
    check_nothing_lost_or_made_up,
    excused,
)
from mpreg_mq.testing.clients import ClientHistory, ClientViolation, check_clients
from mpreg_mq.testing.jepsen import jepsen_lines
from mpreg_mq.testing.scenario import SCENARIOS, Scenario
from mpreg_mq.testing.seams import deterministic
from mpreg_mq.testing.world import World


class SimulationFailedError(AssertionError):
    """A simulation broke a rule; the message says which, and how to repeat it."""


@attrs.frozen
class Simulation:
    """What came of a simulation.

    ``records`` is the log, ``history`` what the clients saw, ``log_hash`` equal for equal runs; ``counts`` tells how
    much happened (crashes, redeliveries, dead letters, expiries, open breakers and more).
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
        """What repeats it in a shell."""
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


def simulate(seed: int, scenario: Scenario | None = None) -> Simulation:
    """Run a scenario with a seed, to its quiet end, and check all that it did.

    It replaces module-wide sources of randomness while it runs, so one thread simulates at a time.
    """
    scenario = SCENARIOS["everything"] if scenario is None else scenario
    world = World(seed, scenario)
    with deterministic(Random(f"{seed}/identifiers")):
        try:
            world.run()
            records = world.disk.records()
            violations: list[Violation | ClientViolation] = list(InvariantChecker().observe_all(records).finish())
            violations += check_live_state(world, records)
            violations += check_drained(world, records)
        finally:
            if world.last_process is not None and world.last_process.alive:
                world.last_process.crash()
    violations += check_nothing_lost_or_made_up(world, records)
    violations += check_acknowledged_after_work(world, records)
    violations += check_clients(world.history, excused=excused(records))
    violations += [Violation("error", len(records), "queue:q", None, problem) for problem in world.problems]
    return Simulation(
        seed,
        scenario,
        records,
        world.history,
        world.disk.hash(),
        violations,
        _counts(world, records),
        world.seconds,
    )


def _counts(world: World, records: list[RecordedEvent]) -> Counter[str]:
    kinds = Counter(type(record.event).__name__ for record in records)
    redelivered = sum(isinstance(record.event, e.MessageDelivered) and record.event.attempt > 1 for record in records)
    return Counter(
        {
            "events": len(records),
            "steps": world.steps,
            "accepted": kinds["MessageEnqueued"],
            "crashes": world.crashes,
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


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 1 where a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m mpreg_mq.testing.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after another")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="everything")
    parser.add_argument("--log", action="store_true", help="print the log of the last seed")
    parser.add_argument("--history", type=Path, help="write the clients' history of the last seed in Jepsen's format")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        simulation = simulate(seed, SCENARIOS[options.scenario])
        counts.update(simulation.counts)
        if simulation.violations:
            failed += 1
            print(f"seed {seed}: {len(simulation.violations)} violations")
            for violation in simulation.violations[:5]:
                print(violation)
            print(f"repeat: {simulation.command}")
    if options.log:
        for record in simulation.records:
            print(f"{record.position:5} {record.stream} {record.event}")
    if options.history is not None:
        options.history.write_text("\n".join(jepsen_lines(simulation.history)) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"seeds {options.seed} to {seed}: {failed} broke a rule; log of the last: {simulation.log_hash}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
