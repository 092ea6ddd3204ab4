"""Simulations of the real actors: whatever happens on the way, the promises hold, and a seed is a run."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ConfigurationError, InvalidTopicError
from mpreg_mq.events.types import MessageEnqueued
from mpreg_mq.invariants import Violation
from mpreg_mq.model import Durability, QueuedMessage
from mpreg_mq.testing.clients import Outcome
from mpreg_mq.testing.disk import Synchronous
from mpreg_mq.testing.scenario import NO_FAULTS, SCENARIOS, Scenario
from mpreg_mq.testing.simulation import Simulation, SimulationFailedError, simulate
from tests.support.effort import repetitions

SEEDS_IN_A_CHUNK = repetitions(test=40, ci=60, soak=1000)
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
    if SEEDS_IN_A_CHUNK >= 40:
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
        (2813, "storage", "a clock behind that of the snapshot's process delivered what was due by that one's (R2)"),
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
    handled: Counter[int] = Counter()

    def handler(message: QueuedMessage) -> None:
        handled[message.payload["order"]] += 1

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


@pytest.mark.parametrize("payload", [[1, [2]], {"key": "mine"}, "text", None, 7, {"body": 1}])
def test_a_handler_gets_the_payload_of_the_scenario(payload: Any) -> None:
    """Given payloads of any shape, with names that the simulation uses itself too, then they arrive as they are."""
    handled: list[Any] = []
    scenario = Scenario(
        "shapes",
        handlers={"order.#": lambda message: handled.append(message.payload)},
        payloads=lambda random, number: ("order.paid", payload),
        pushed=0,
        pulling=0,
        admin=False,
    )
    for seed in range(3):
        simulate(seed, scenario).check()
    assert handled
    assert all(arrived == payload for arrived in handled)


def test_a_configuration_may_have_any_name_and_durability() -> None:
    """Given the configuration of a queue of one's own, then it is simulated under that of the simulation."""
    for durability in Durability:
        scenario = Scenario("orders", configuration=QueueConfiguration("orders", durability=durability))
        for seed in range(3):
            history = simulate(seed, scenario).check().history
            assert any(send.outcome is Outcome.OK for send in history.of("send"))


def test_g5_what_nobody_subscribes_to_may_wait() -> None:
    """Given topics without a subscriber, with groups that wait behind them, then that breaks no rule; a handler that
    matches them and is never called does."""
    scenario = Scenario(
        "unasked",
        handlers={"a.#": lambda message: None},
        payloads=lambda random, number: (random.choice(("a.x", "b")), number),
        pushed=0,
        pulling=0,
        admin=False,
        configuration=QueueConfiguration("q"),
    )
    left = 0
    for seed in range(10):
        simulation = simulate(seed, scenario).check()
        accepted = [record.event for record in simulation.records if isinstance(record.event, MessageEnqueued)]
        left += sum(event.topic == "b" for event in accepted)
    assert left

    async def hang(message: QueuedMessage) -> None:
        await asyncio.sleep(1e9)

    configuration = QueueConfiguration("q", default_acknowledgment_timeout_seconds=1e7)
    stuck = attrs.evolve(scenario, handlers={"a.#": hang}, configuration=configuration, faults=NO_FAULTS)
    assert {violation.rule for violation in simulate(1, stuck).violations if isinstance(violation, Violation)} == {"I6"}


@pytest.mark.parametrize("made", [("a..b", 1), ("a", object()), ("a.#", 1)])
def test_a_scenario_of_which_nothing_is_accepted_fails(made: tuple[str, Any]) -> None:
    """Given topics or payloads that every send is refused for, then the simulation fails, and says why."""
    scenario = Scenario("refused", payloads=lambda random, number: made, admin=False)
    with pytest.raises(SimulationFailedError, match=r"no send was accepted; the last was refused: (topic|payload)"):
        simulate(1, scenario).check()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"senders": 0}, "Scenario.senders: got 0, expected a whole number from 1"),
        ({"guarantees": ()}, "Scenario.guarantees: got .*, expected a tuple of at least one"),
        ({"pushed": -1}, "Scenario.pushed: got -1"),
        ({"plain": 2}, "Scenario.plain: got 2"),
        ({"faults": None}, "Scenario.faults: got None"),
        ({"configuration": "q"}, "Scenario.configuration: got 'q'"),
        ({"handlers": {"a": None}}, r"Scenario.handlers\['a'\]: got None"),
        ({"handlers": [print]}, "Scenario.handlers: got"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(given: dict[str, Any], told: str) -> None:
    """Given a value out of its range, then the scenario is not made, and what was expected is said."""
    with pytest.raises(ConfigurationError, match=told):
        Scenario(**given)


def test_a_handler_of_no_topics_is_refused() -> None:
    """Given a handler with a malformed pattern, then that is no fault of the queue: the scenario is not made."""
    with pytest.raises(InvalidTopicError, match=r"a\.\.b"):
        Scenario(handlers={"a..b": print})


def test_a_scenario_may_be_named() -> None:
    """Given the name of a scenario, then that one is simulated; given another name, it says which there are."""
    assert simulate(3, "calm").log_hash == simulate(3, SCENARIOS["calm"]).log_hash
    with pytest.raises(ConfigurationError, match="got the scenario 'quiet', expected a Scenario or one of 'every"):
        simulate(3, "quiet")


def test_payloads_that_are_no_pairs_are_told() -> None:
    """Given a function that gives something else than a topic and a payload, then the simulation fails, and says so."""
    broken: Any = lambda random, number: None  # noqa: E731
    with pytest.raises(SimulationFailedError, match=r"payloads: got None, expected a topic and a payload"):
        simulate(1, Scenario("nothing", payloads=broken)).check()


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


@pytest.mark.parametrize("seed", [1000, 1009, 1011])
def test_a_queue_that_is_only_fetched_from_keeps_its_promises(seed: int) -> None:
    """Given a scenario without callbacks, then those who fetch get everything in the end, whatever pattern they had."""
    simulate(seed, Scenario("pulled", pushed=0, faults=NO_FAULTS)).check()


@pytest.mark.parametrize("seed", [1011])
def test_a_simulation_learns_what_was_lost_however_the_program_logs(seed: int) -> None:
    """Given a program that has disabled logging, then what a buffered queue may lose is no fault, and logging stays
    disabled."""
    logging.disable(logging.CRITICAL)
    try:
        simulate(seed, Scenario("buffered", durability=Durability.BUFFERED)).check()
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)
