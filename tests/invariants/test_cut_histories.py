"""Histories that begin after a cut: what is left of a sound one breaks no rule, wherever it was cut."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.model import DeliveryGuarantee
from mpreg_mq.replay.verify import verify
from mpreg_mq.testing.scenario import SCENARIOS
from mpreg_mq.testing.simulation import simulate
from mpreg_mq.testing.strategies import histories
from tests.support.cuts import cut_logs
from tests.support.effort import repetitions
from tests.support.history import History

SEEDS = repetitions(test=1, soak=30)
CUTS = repetitions(test=40, soak=400)


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


def test_an_unseen_subscription_keeps_a_subscriber_in_its_audiences() -> None:
    """Given a subscriber with a subscription from before the cut, when another one of it ends, then it may stay in the
    audience of a message."""
    history = History().joined("a")
    cut = len(history.events)
    history.add(e.SubscriberJoined(1000.0, "a", "a/2", "t", 1000)).sent("1", "t", DeliveryGuarantee.BROADCAST)
    history.audience("1", "a").delivered("1", "a").add(e.SubscriberLeft(1000.0, "a", "a/2", True))
    (log,) = cut_logs(history.events, [cut])
    assert verify(log).violations == ()
