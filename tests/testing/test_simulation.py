"""Simulations of the real actors: whatever happens on the way, the promises hold, and a seed is a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import attrs
import pytest

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.invariants import Violation
from mpreg_mq.model import Durability, QueuedMessage
from mpreg_mq.testing.disk import Synchronous
from mpreg_mq.testing.scenario import NO_FAULTS, SCENARIOS, Scenario
from mpreg_mq.testing.simulation import Simulation, SimulationFailedError, simulate
from tests.support.effort import repetitions

SEEDS_IN_A_CHUNK = repetitions(test=60, soak=1000)
TWICE_IN_A_CHUNK = repetitions(test=5, soak=5)
LEVEL_SEEDS = repetitions(test=10, soak=200)
CHUNKS = ["everything"] * 14 + [name for name in SCENARIOS if name != "everything"]
HAPPENS: dict[str, tuple[str, ...]] = {
    "everything": (
        "crashes",
        "redeliveries",
        "dead letters",
        "expiries",
        "open breakers",
        "disk errors",
        "leases expired",
    ),
    "durability": ("crashes", "power cuts", "lost answers"),
    "shutdowns": ("shutdowns",),
    "retention": ("crashes", "cuts", "snapshots", "dead letters", "duplicates refused"),
    "storage": ("power cuts", "lost answers", "cuts", "snapshots"),
}


@pytest.mark.parametrize(("chunk", "scenario"), list(enumerate(CHUNKS)))
def test_every_seed_keeps_the_promises(chunk: int, scenario: str) -> None:
    """Given seeds of a scenario, when each is simulated to its quiet end, then no rule is broken.

    The first of them run twice, and their logs are equal to the last byte.
    """
    counts: Counter[str] = Counter()
    for number in range(SEEDS_IN_A_CHUNK):
        seed = chunk * 100_000 + number
        simulation = simulate(seed, SCENARIOS[scenario]).check()
        counts.update(simulation.counts)
        if number < TWICE_IN_A_CHUNK:
            assert simulate(seed, SCENARIOS[scenario]).log_hash == simulation.log_hash, simulation.command
    if number >= 50:
        assert all(counts[name] for name in HAPPENS.get(scenario, ())), counts


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("synchronous", list(Synchronous))
@pytest.mark.parametrize("retention", [False, True])
def test_every_level_of_durability_keeps_its_promise(
    durability: Durability, synchronous: Synchronous, retention: bool
) -> None:
    """Given a queue of a durability on a log of a synchronous mode, cut or not, when its processes crash and its power
    fails, then no more is lost than may be, which is nothing where it is committed and synced, and without neighbours
    that are not."""
    scenario = attrs.evolve(
        SCENARIOS["storage"],
        faults=attrs.evolve(SCENARIOS["storage"].faults, crash=0.6, power_cut=0.8),
        durability=durability,
        synchronous=synchronous,
        retention=retention,
        neighbours=0,
    )
    counts: Counter[str] = Counter()
    for seed in range(LEVEL_SEEDS):
        counts.update(simulate(seed, scenario).check().counts)
    if durability is Durability.MEMORY or (durability is Durability.COMMITTED and synchronous is Synchronous.FULL):
        assert counts["lost answers"] == 0
    elif seed >= 9:
        assert counts["lost answers"] > 0


@pytest.mark.parametrize(
    ("seed", "scenario", "found"),
    [
        (15, "everything", "a subscription recorded again after a failed append was not admitted to open quorums (G4)"),
        (118, "everything", "the same, in a retry"),
        (7, "everything", "a receiver was given what was ready before, not what had become due first (O2)"),
        (141, "everything", "the same, on a FIFO queue (O1)"),
        (63, "everything", "the same, on a DELAY queue (O3)"),
        (86, "disk", "a newcomer between two failed appends (G4)"),
        (23, "storage", "the id of a message that was lost on its way was given to another (I7)"),
        (67, "durability", "a buffered queue was made again before its deletion was in the log (I3)"),
        (3077, "retention", "a state was saved as that of other events than it was made of (I4)"),
        (5784, "storage", "what was not on disk yet was folded into the base of a cut, and came differently (I4)"),
    ],
)
def test_seeds_that_found_something(seed: int, scenario: str, found: str) -> None:
    """Given a seed that once broke a rule, then it breaks none."""
    simulate(seed, SCENARIOS[scenario]).check()


def test_a_seed_is_the_same_run_in_another_process() -> None:
    """Given one seed and two processes that hash strings differently, then their logs are equal."""
    seed = 3
    command = [sys.executable, "-m", "mpreg_mq.testing.simulate", "--seed", str(seed)]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert simulate(seed).log_hash in output


def test_different_seeds_are_different_runs() -> None:
    """Given several seeds, then their logs differ."""
    assert len({simulate(seed).log_hash for seed in range(5)}) == 5


def test_hours_pass_in_no_time() -> None:
    """Given a quiet scenario, then hours of queue time take a moment, because nothing waits."""
    configuration = QueueConfiguration("q", default_acknowledgment_timeout_seconds=3600.0)
    scenario = Scenario("hours", faults=attrs.evolve(NO_FAULTS, hanging=0.3), configuration=configuration, messages=40)
    simulation = simulate(1, attrs.evolve(scenario, admin=False)).check()
    assert simulation.counts["accepted"] == 40
    assert simulation.virtual_seconds > 60


def test_a_handler_of_ones_own_crashes_with_the_others() -> None:
    """Given a handler that keeps what it did in memory, when its process crashes, then messages come again."""
    handled: Counter[str] = Counter()

    def handler(message: QueuedMessage) -> None:
        handled[message.payload["key"]] += 1

    scenario = Scenario(
        "mine",
        handlers={"order.#": handler},
        payloads=lambda random, number: ("order.paid", {"order": number}),
        pushed=0,
        pulling=0,
        configuration=QueueConfiguration("q"),
    )
    for seed in range(5):
        simulate(seed, scenario).check()
    assert handled


def test_a_failing_seed_tells_how_to_repeat_it() -> None:
    """Given a simulation with a violation, then checking it raises, and one command repeats it."""
    simulation = simulate(4, SCENARIOS["calm"])
    broken: Simulation = attrs.evolve(simulation, violations=[Violation("G2", 1, "queue:q", None, "two at once")])
    with pytest.raises(SimulationFailedError, match="--seed 4 --scenario calm") as caught:
        broken.check()
    assert "G2 at position 1" in str(caught.value)
    assert simulation.check() is simulation


def test_the_command_line_repeats_a_seed(tmp_path: Path) -> None:
    """Given a seed, then the command prints its log's hash, its log and its counts, and writes the clients' history."""
    history = tmp_path / "history.edn"
    command = [sys.executable, "-m", "mpreg_mq.testing.simulate", "--seed", "2", "--scenario", "calm", "--count", "2"]
    done = subprocess.run([*command, "--log", "--history", str(history)], capture_output=True, text=True, check=True)
    assert simulate(3, SCENARIOS["calm"]).log_hash in done.stdout
    assert "seeds 2 to 3: 0 broke a rule" in done.stdout
    assert "QueueCreated" in done.stdout
    assert ":type :invoke" in history.read_text()


def test_a_scenario_of_ones_own_is_repeated_in_python() -> None:
    """Given a scenario that the command line does not know, then what repeats it is a call."""
    simulation = simulate(4, Scenario("mine", messages=2, processes=1))
    assert simulation.command.startswith("simulate(4, scenario)")
