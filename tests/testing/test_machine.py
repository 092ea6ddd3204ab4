"""QueueMachine: the real queue against the obvious model, in several configurations, and as users subclass it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from importlib import import_module
from math import nan
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events.types import MessageDelivered
from mpreg_mq.model import Durability, OverflowPolicy, QueuedMessage, QueueType
from mpreg_mq.testing import QueueMachine
from mpreg_mq.testing.crash import running_actors
from mpreg_mq.testing.machine import MOMENT_SECONDS, MOST_STEPS
from mpreg_mq.testing.seams import SEAMS
from tests.support.effort import repetitions

STEPS = 50


def effort(examples: int) -> settings:
    """Settings for a share of the 500 examples (1,000 in CI, 4,000 in the soak)."""
    return settings(
        max_examples=repetitions(test=examples, ci=2 * examples, soak=8 * examples),
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Fetching(QueueMachine):
    """Workers who fetch, against the exact model."""


class Impatient(QueueMachine):
    """One attempt, no backoff, short leases."""

    configuration = QueueConfiguration(
        "q", max_retries=0, retry_backoff_seconds=0.0, retry_jitter=0.0, default_visibility_timeout_seconds=1.0
    )


class Handled(QueueMachine):
    """A handler that raises at times takes a part of the topics; workers compete for the rest."""

    seen: ClassVar[Counter[str]] = Counter()

    def begin(self) -> None:
        self.calls = 0
        self.handle("a.#", self.work)

    def work(self, message: QueuedMessage) -> None:
        self.calls += 1
        assert message.delivery_attempt <= self.configuration.max_retries + 1
        if message.payload % 3 == 0:
            raise ValueError("a multiple of three")


class Slow(QueueMachine):
    """A handler that is a coroutine, in which crashes find it at every place, and that sends on."""

    def begin(self) -> None:
        self.handle("a.#", self.work)

    async def work(self, message: QueuedMessage) -> None:
        await asyncio.sleep(0)
        await self.queue.send_message("b", message.payload)
        await asyncio.sleep(3.0)


class Strict(QueueMachine):
    """Everything that the model does not know, held against the rules alone."""

    exact = False
    configuration = QueueConfiguration(
        "q",
        queue_type=QueueType.PRIORITY,
        max_size=3,
        overflow_policy=OverflowPolicy.DROP_OLDEST,
        enable_deduplication=True,
        deduplication_window_seconds=20.0,
        circuit_breaker_failure_threshold=1,
        max_retries=1,
        enable_dead_letter_queue=False,
    )
    payloads = st.integers(0, 3)


class Expiring(QueueMachine):
    """The queue's own time to live and limit of receives, no dead letters, and workers with names of their own."""

    configuration = QueueConfiguration(
        "q",
        message_ttl_seconds=20.0,
        dead_letter_max_receives=2,
        enable_dead_letter_queue=False,
        retry_backoff_seconds=1.0,
        retry_jitter=0.0,
    )
    workers: ClassVar[tuple[str, ...]] = ("anna", "bob", "carl")


class InMemory(QueueMachine):
    """A queue that writes nothing, and has lost all when its process ends."""

    configuration = QueueConfiguration("q", message_ttl_seconds=20.0, retry_jitter=0.0, durability=Durability.MEMORY)


class Buffered(QueueMachine):
    """A queue that answers before it has written."""

    configuration = QueueConfiguration("q", max_retries=1, retry_jitter=0.0, durability=Durability.BUFFERED)


for machine, examples in (
    (Fetching, 100),
    (Impatient, 60),
    (Handled, 60),
    (Slow, 60),
    (Strict, 60),
    (Expiring, 60),
    (InMemory, 60),
    (Buffered, 40),
):
    machine.TestCase.settings = effort(examples)

TestFetching = Fetching.TestCase
TestImpatient = Impatient.TestCase
TestHandled = Handled.TestCase
TestSlow = Slow.TestCase
TestStrict = Strict.TestCase
TestExpiring = Expiring.TestCase
TestInMemory = InMemory.TestCase
TestBuffered = Buffered.TestCase


class Forgetful(QueueMachine):
    """A user's handler with a fault: it takes for granted that a message comes once."""

    topics = st.just("order.paid")

    def begin(self) -> None:
        self.shipped: Counter[int] = Counter()
        self.fails = False
        self.handle("order.#", self.ship)

    def ship(self, message: QueuedMessage) -> None:
        self.shipped[message.id] += 1  # type: ignore[index]
        if self.fails:
            raise ConnectionError("the label printer is gone, after the parcel went")

    @rule()
    def printer_breaks(self) -> None:
        self.fails = True

    @invariant()
    def nothing_is_shipped_twice(self) -> None:
        assert all(count == 1 for count in self.shipped.values()), self.shipped


def test_a_fault_in_a_handler_shrinks_to_a_short_story() -> None:
    """Given a handler that takes for granted that a message comes once, then the machine finds in few steps that it
    ships twice: it fails after its work, or the process ends before the acknowledgment is stored."""
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(
            Forgetful,
            settings=settings(
                max_examples=200,
                stateful_step_count=20,
                deadline=None,
                database=None,
                derandomize=True,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            ),
        )
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    steps = [line for line in told.splitlines() if "state." in line and "nothing_is_shipped_twice" not in line]
    assert "printer_breaks" in told or "crash" in told
    assert len([line for line in steps if "the_queue_is" not in line]) <= 8


def test_s3_a_payload_may_come_back_as_something_plainer() -> None:
    """Given payloads of which another form comes back, or none that equals them, then the machine takes it for them:
    a tuple, a set, a datetime without a zone, an instance, and what is not a number."""

    class Plainer(QueueMachine):
        payloads = st.sampled_from([(1, "a"), frozenset({3}), datetime(2026, 5, 1), QueueConfiguration("q"), nan])
        workers = ("w",)

    run_state_machine_as_test(
        Plainer,
        settings=settings(
            max_examples=30,
            stateful_step_count=10,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )


class Crowded(QueueMachine):
    """More workers than the queue takes."""

    configuration = QueueConfiguration("q", max_subscribers=1)


class Unconfigured(QueueMachine):
    """No configuration."""

    configuration: ClassVar[Any] = None


class Nameless(QueueMachine):
    """A worker without a name."""

    workers = ("", "w2")


class Unhandled(QueueMachine):
    """A handler of no topics."""

    def begin(self) -> None:
        self.handle("a..b", print)


@pytest.mark.parametrize("machine", [Crowded, Unconfigured, Nameless, Unhandled])
def test_a_machine_that_cannot_begin_leaves_nothing_behind(machine: type[QueueMachine]) -> None:
    """Given a machine that a queue cannot be made for, then its error is raised, and all that it replaced is back."""

    def replaced() -> list[object]:
        return [getattr(import_module(module), name) for module, name in SEAMS]

    before, actors = replaced(), running_actors()
    with pytest.raises(MessageQueueError):
        run_state_machine_as_test(machine, settings=settings(max_examples=2, database=None, deadline=None))
    assert replaced() == before
    assert running_actors() == actors


class Trusting(QueueMachine):
    """The shop of docs/testing.md without its ``if``: nothing fails but the process."""

    topics = st.just("order.paid")

    def begin(self) -> None:
        self.parcels: Counter[object] = Counter()
        self.handle("order.#", self.ship)

    def ship(self, message: QueuedMessage) -> None:
        self.parcels[message.id] += 1

    @invariant()
    def nothing_is_shipped_twice(self) -> None:
        assert all(count == 1 for count in self.parcels.values()), self.parcels


def test_a_crash_falls_between_a_handler_and_its_acknowledgment() -> None:
    """Given a handler that never fails and takes for granted that a message comes once, then a crash shows that not."""
    with pytest.raises(AssertionError, match="Counter"):
        run_state_machine_as_test(
            Trusting,
            settings=settings(
                max_examples=200,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            ),
        )


class Chosen:
    """Instead of what Hypothesis draws, the same each time."""

    def draw(self, strategy: object, label: str) -> object:
        return {"topic": "b", "payload": 7, "options": {"group_id": "g"}}[label]


def test_a_send_that_a_crash_cuts_short_was_accepted_or_not() -> None:
    """Given a crash after any number of steps of a send, then the model has the message just where the log has it."""
    outcomes = Counter[int]()
    for steps in range(MOST_STEPS + 1):
        machine = Fetching()
        try:
            machine.set_up()
            machine.crash(steps=steps, sends=True, data=Chosen())
            pending = [str(message.id) for message in machine.queue.pending_messages]
            assert machine.model.in_state("pending") == pending
            machine.fetch(worker="w1", count=1)
            outcomes[len(pending)] += 1
        finally:
            machine.teardown()
    assert set(outcomes) == {0, 1}


def test_those_who_fetch_are_the_workers_of_the_class() -> None:
    """Given workers with other names, then it is they who fetch and acknowledge, and nobody else."""
    seen: set[str] = set()

    class Watched(Expiring):
        workers = ("anna",)

        def teardown(self) -> None:
            seen.update(
                record.event.subscriber_id
                for record in self.disk.records()
                if isinstance(record.event, MessageDelivered)
            )
            super().teardown()

    run_state_machine_as_test(Watched, settings=settings(effort(100), max_examples=40, database=None, derandomize=True))
    assert seen == {"anna"}


def test_a_machine_without_workers_has_only_its_handlers() -> None:
    """Given no workers, then nobody fetches, and all else goes on."""

    class Alone(Handled):
        workers = ()

    run_state_machine_as_test(Alone, settings=settings(effort(20), database=None))


@pytest.mark.parametrize("durability", [Durability.COMMITTED, Durability.BUFFERED])
def test_a_machine_does_not_look_at_the_very_moment_at_which_something_is_due(durability: Durability) -> None:
    """Given messages whose time to live ends just as a step does, then model and queue agree after each step."""

    class Machine(QueueMachine):
        configuration = QueueConfiguration("q", retry_jitter=0.0, durability=durability)

    for steps_before in range(12):
        machine = Machine()
        machine.set_up()
        for _ in range(steps_before):
            machine._settle()
        now = machine.now
        result = machine.run(machine.queue.send_message("a.y", 1, message_ttl_seconds=3.0))
        machine._accepted(str(result.message_id), "a.y", 1, {"message_ttl_seconds": 3.0}, now)
        for _ in range(310 if durability is Durability.COMMITTED else 60):
            machine._settle()
            machine.the_queue_is_what_the_model_says()
        machine.teardown()


def test_a_machine_compares_the_queue_with_a_log_that_has_all_of_it() -> None:
    """Given a lease that ends at the very moment at which the story does, then the log is looked at when it says so."""

    class Machine(QueueMachine):
        configuration = QueueConfiguration("q", retry_jitter=0.0)

    machine = Machine()
    machine.set_up()
    machine.run(machine.queue.send_message("a.y", 1))
    (message,) = machine.run(machine.queue.receive_messages("w1"))
    assert message.lease_deadline is not None
    machine.loop.advance(message.lease_deadline - machine.now - MOMENT_SECONDS)
    machine.teardown()
