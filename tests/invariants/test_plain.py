"""Plain events: passing over the rules that have nothing to say gives what asking each of them gives."""

from __future__ import annotations

from random import Random

import attrs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import ALL_RULES, InvariantChecker
from mpreg_mq.invariants.facts import LogFacts, QueueFacts
from mpreg_mq.invariants.plain import COVERED, PLAIN
from mpreg_mq.invariants.rules import Attempts, Broadcast, Fifo, InFlight, Limits
from mpreg_mq.model import DeliveryGuarantee
from mpreg_mq.testing.scenario import SCENARIOS
from mpreg_mq.testing.simulation import simulate
from mpreg_mq.testing.strategies import histories
from tests.support.effort import repetitions
from tests.support.history import History, judged
from tests.support.mutants.mutant import Mutant
from tests.support.mutants.table import MUTANTS

SEEDS = repetitions(test=2, soak=100)
CHANGED = repetitions(test=40, soak=3000)
HISTORIES = 10
"""How many real histories of each scenario are changed, each in many ways."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_faulty_queues_get_the_same_verdict(mutant: Mutant) -> None:
    """Given queues with a fault, then the same violations are found with and without passing over rules."""
    for seed in range(SEEDS):
        with mutant.applied():
            records = simulate(seed, SCENARIOS[mutant.scenario]).records
        judged(records)


@given(histories())
@settings(max_examples=repetitions(test=40, soak=5000), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_legal_histories_get_the_same_verdict(records: list[RecordedEvent]) -> None:
    """Given any legal history, then nothing is broken, with and without passing over rules."""
    assert judged(records) == []


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_changed_histories_get_the_same_verdict(scenario: str) -> None:
    """Given real histories in which some events are lost, repeated, moved or changed, then so do they.

    Most changes break a rule, many of them one that a plain event breaks nowhere else.
    """
    broken = 0
    real = [simulate(seed, SCENARIOS[scenario]).records for seed in range(min(CHANGED, HISTORIES))]
    for seed in range(CHANGED):
        random = Random(f"{scenario}/{seed}")
        records = real[seed % HISTORIES]
        events = [record.event for record in records if record.stream == records[0].stream]
        for _ in range(random.randint(1, 3)):
            change(events, random)
        broken += bool(judged([RecordedEvent(n, records[0].stream, n, event) for n, event in enumerate(events, 1)]))
    assert broken >= CHANGED // 2


def change(events: list[e.Event], random: Random) -> None:
    """Lose, repeat, move or change one event after the first, if there is one."""
    if len(events) < 2:
        return
    index = random.randrange(1, len(events))
    event = events[index]
    how = random.choice(("lose", "repeat", "swap", "borrow", "borrow", "alter", "alter"))
    if how == "lose":
        del events[index]
    elif how == "repeat":
        events.insert(random.randrange(index, len(events)), event)
    elif how == "swap":
        events[index], events[index - 1] = events[index - 1], event
    else:
        name = random.choice([field.name for field in attrs.fields(type(event))])
        if how == "borrow":
            others = [getattr(other, name) for other in events if type(other) is type(event)]
            value = random.choice(others)
        else:
            value = altered(getattr(event, name), random)
        events[index] = msgspec.structs.replace(event, **{name: value})


def altered(value: object, random: Random) -> object:
    """Another value of the same type, often a near one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + random.choice((-1, 1))
    if isinstance(value, DeliveryGuarantee):
        return random.choice(list(DeliveryGuarantee))
    if isinstance(value, tuple):
        return random.choice((value[1:], value + value[:1], (*value, "nobody")))
    if isinstance(value, bytes):
        return value * 2_000_000
    return value


@given(st.sets(st.sampled_from(ALL_RULES)), histories(min_size=5))
@settings(max_examples=repetitions(test=30, soak=1000), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_some_of_the_rules_get_the_same_verdict(rules: set[type], records: list[RecordedEvent]) -> None:
    """Given any of the rules alone and a history with an event lost, then so do they."""
    del records[len(records) // 2]
    judged([msgspec.structs.replace(r, position=n, version=n) for n, r in enumerate(records, 1)], *rules)


def test_an_attempt_too_many_is_told_beside_what_led_to_it() -> None:
    """Given a requeue after the last attempt, then that breaks R1, and so does the attempt that follows it."""
    history = History(max_retries=0).joined("a").sent("1-r").delivered("1-r", "a").failed("1-r", "a")
    history.requeued("1-r", 0.0).delivered("1-r", "a", attempt=2)
    assert [(violation.rule, violation.position) for violation in history.violations(Attempts)] == [
        ("R1", 6),
        ("R1", 7),
    ]


def test_an_audience_of_nobody_is_not_plain() -> None:
    """Given a broadcast message that nobody matches and an audience of nobody, then G3 is broken."""
    history = History().joined("a", "other").sent("1-r", guarantee=DeliveryGuarantee.BROADCAST).audience("1-r")
    assert {violation.rule for violation in history.violations()} == {"G3"}


def test_the_plain_life_of_a_message_is_plain() -> None:
    """Given messages that nothing happens to, then few rules are asked about them, of each guarantee."""
    history = History().joined("a").joined("b", "#", pull=True)
    for number, guarantee in enumerate((DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST), 1):
        history.sent(f"{number}-r", guarantee=guarantee)
    history.delivered("1-r", "a").acknowledged("1-r", "a").audience("2-r", "a", "b")
    for name in ("a", "b"):
        history.delivered("2-r", name)
    for name in ("a", "b"):
        history.acknowledged("2-r", name, completes=False)
    history.add(e.MessageCompleted(history.now, "2-r"))
    checker = InvariantChecker()
    asked = []
    for record in history.records:
        facts = checker.facts("queue:q")
        plain = PLAIN.get(type(record.event))
        if facts is not None and plain is not None and not plain(facts, record.event):
            asked.append(record.event)
        checker.observe(record)
    assert checker.finish() == []
    # The last answer of an audience, because the rule then expects its end.
    assert asked == [e.MessageAcknowledged(history.now, "2-r", "b", completes=False)]


def test_a_rule_that_is_derived_is_asked() -> None:
    """Given a rule that is derived from one that would be passed over, then it sees plain events."""
    seen = []

    class Watching(InFlight):
        def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
            seen.append(event)

    history = History().joined("a").sent("1-r").delivered("1-r", "a")
    assert history.violations(Watching) == []
    assert seen == [history.events[-1]] * 2


def test_what_is_covered_is_there() -> None:
    """Given the rules that are passed over, then each is one that would be asked, and others remain."""
    assert COVERED.keys() == PLAIN.keys()
    for kind, rules in COVERED.items():
        assert rules <= set(ALL_RULES)
        assert all(kind in rule.HANDLED for rule in rules)
    assert {Broadcast, Fifo} <= COVERED[e.MessageDelivered]
    assert Limits in COVERED[e.MessageEnqueued]


def test_facts_of_what_is_not_there_are_none() -> None:
    """Given an event of a message or a subscriber that is not there, then it is not plain, and nothing is named."""
    facts = QueueFacts("queue:q", LogFacts())
    for event in (
        e.AudienceFixed(1.0, "1", ("a",)),
        e.MessageDelivered(1.0, "1", "a", "a/1", 1, 2.0),
        e.MessageAcknowledged(1.0, "1", "a", True),
        e.MessageCompleted(1.0, "1"),
    ):
        assert not PLAIN[type(event)](facts, event)
        assert (facts.message, facts.slot, facts.subscriber) == (None, None, None)
