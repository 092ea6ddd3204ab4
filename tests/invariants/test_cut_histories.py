"""Histories that begin after a cut: what is left of a sound one breaks no rule, wherever it was cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings

from mpreg_mq.events import Append, Event, MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent, Snapshot
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.verify import verify
from mpreg_mq.testing.scenario import SCENARIOS
from mpreg_mq.testing.simulation import simulate
from mpreg_mq.testing.strategies import histories
from tests.support.effort import repetitions

SEEDS = repetitions(test=1, soak=30)
CUTS = repetitions(test=40, soak=400)


def cut_logs(events: Sequence[Event], cuts: Iterable[int]) -> Iterable[MemoryEventLog]:
    """What is left of a queue's log after each cut, as retention leaves it; the configuration is said again at once,
    so that no rule has to keep silent for want of it."""
    wanted = set(cuts)
    state = QueueState()
    for number, event in enumerate(events, 1):
        state.apply(event)
        if number not in wanted or state.deleted:
            continue
        log = MemoryEventLog()
        log.adopt(number, {"queue:q": Snapshot("queue:q", number, state.dump())})
        again = e.QueueReconfigured(state.last_at, state.configuration)
        log.append([Append("queue:q", number, (again, *events[number:]))])
        yield log


@given(histories())
@settings(max_examples=repetitions(test=60, soak=5000), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_left_of_any_history_breaks_nothing(records: list[RecordedEvent]) -> None:
    """Given any legal history, when its first events are taken away at any place, then the rest breaks no rule."""
    events = [record.event for record in records]
    for log in cut_logs(events, range(1, len(events) + 1)):
        assert verify(log).violations == ()


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_what_is_left_of_a_real_history_breaks_nothing(scenario: str) -> None:
    """Given the histories of real queues, with all that can happen to them, then neither does what is left of them."""
    for seed in range(SEEDS):
        records = simulate(seed, SCENARIOS[scenario]).records
        events = [record.event for record in records if record.stream == records[0].stream]
        for log in cut_logs(events, range(1, len(events) + 1, max(1, len(events) // CUTS))):
            assert verify(log).violations == ()
