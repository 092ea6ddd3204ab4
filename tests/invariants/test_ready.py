"""What is ready, kept in heaps, is what a look at all messages finds."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import InvariantChecker, Rule
from mpreg_mq.invariants.facts import QueueFacts
from mpreg_mq.invariants.messages import MessageFacts, SlotFacts
from mpreg_mq.model import QueueType
from mpreg_mq.testing.scenario import SCENARIOS
from mpreg_mq.testing.simulation import simulate
from mpreg_mq.testing.strategies import histories
from mpreg_mq.topics import matches
from tests.support.effort import repetitions
from tests.support.history import History


class Naive(Rule):
    """Looks at every message at each delivery, and compares with what the heaps say."""

    id = "O1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageDelivered: "_on_delivered"}
    judged: ClassVar[int] = 0
    out_of_turn: ClassVar[int] = 0

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        slot = self.facts.slot
        if slot is None or not slot.token:
            return
        self.facts.ready.advance(event.at)
        first = earliest(self.facts, slot, event.subscriber_id, event.at)
        assert self.facts.ready.overtaken(slot, event.subscriber_id, event.at) is first
        Naive.judged += 1
        Naive.out_of_turn += first is not None


def earliest(facts: QueueFacts, slot: SlotFacts, subscriber_id: str, at: float) -> SlotFacts | None:
    """The first in order of all that this subscriber could have been given before this slot."""
    before = [
        other
        for message in facts.messages.values()
        if (message.rank, message.seq) < (slot.message.rank, slot.message.seq)
        and (message.expires_at is None or at < message.expires_at)
        and is_turn(facts, message)
        for other in message.slots()
        if waits(other, at) and could_have(facts, other, subscriber_id)
    ]
    return min(before, key=lambda other: (other.message.rank, other.message.seq), default=None)


def waits(slot: SlotFacts, at: float) -> bool:
    """Whether it is due and neither leased nor settled."""
    return slot.due_at <= at and slot.lease is None and slot.failure is None and not slot.answered


def is_turn(facts: QueueFacts, message: MessageFacts) -> bool:
    """Whether it is of no group, or the one of its group that was begun, or the first where none was."""
    if message.group_id is None:
        return True
    group = [other for other in facts.messages.values() if other.group_id == message.group_id]
    begun = [other for other in group if other.started is not None]
    return message in begun if begun else message is min(group, key=lambda other: (other.rank, other.seq))


def could_have(facts: QueueFacts, slot: SlotFacts, subscriber_id: str) -> bool:
    """Whether it is this member's, or anybody's whose subscription matches."""
    if slot.subscriber_id is not None:
        return slot.subscriber_id == subscriber_id
    subscriptions = facts.subscribers.by_id[subscriber_id].subscriptions.values()
    topic = slot.message.event.topic
    return any(matches(getattr(joined.event, "topic_pattern", ""), topic) for joined in subscriptions)


@given(histories(min_size=10, max_size=60))
@settings(max_examples=repetitions(test=60, soak=3000), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_of_any_history(records: list[RecordedEvent]) -> None:
    """Given any legal history, then at each delivery the heaps say what a look at all messages says."""
    InvariantChecker([Naive]).observe_all(records)


@pytest.mark.parametrize("scenario", ["calm", "everything", "groups", "audiences"])
def test_of_simulated_queues(scenario: str) -> None:
    """Given queues with crashes, groups, audiences and subscriptions that come and go, then so do they."""
    before = Naive.judged
    for seed in range(repetitions(test=20, soak=500)):
        InvariantChecker([Naive]).observe_all(simulate(seed, SCENARIOS[scenario]).records)
    assert Naive.judged > before


def out_of_turn(random: Random) -> History:
    """Messages on several topics, delivered in any order, failed and given back, while subscriptions change."""
    history = History(queue_type=random.choice(list(QueueType))).joined("b", "#")
    waiting: list[str] = []
    patterns = ("x.#", "*.1", "y.*", "#", "z.0")
    joined = False
    for number in range(1, 150):
        what = random.random()
        if what < 0.45 or not waiting:
            topic = f"{random.choice('xyz')}.{random.randrange(3)}"
            history.at(history.now + 1).sent(f"{number}-r", topic, priority=random.randrange(4))
            waiting.append(f"{number}-r")
        elif what < 0.9:
            message_id = waiting.pop(random.randrange(len(waiting)))
            name = "a" if joined and random.random() < 0.5 else "b"
            history.delivered(message_id, name)
            if random.random() < 0.3:
                history.failed(message_id, name).requeued(message_id, 0.0)
                waiting.append(message_id)
        elif joined:
            history.left("a")
            joined = False
        else:
            history.joined("a", random.choice(patterns))
            joined = True
    return history


def test_of_deliveries_out_of_turn() -> None:
    """Given deliveries in any order while subscriptions change, then the earliest one passed over is named."""
    before = Naive.out_of_turn
    count = repetitions(test=100, soak=3000)
    for seed in range(count):
        InvariantChecker([Naive]).observe_all(out_of_turn(Random(seed)).records)
    assert Naive.out_of_turn > before + 10 * count
