"""The Hypothesis strategies: what they make is what they say."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import check_history
from mpreg_mq.model import MessageId, MessageOptions
from mpreg_mq.payload import decode_payload, encode_payload
from mpreg_mq.projections import QueueState
from mpreg_mq.testing import strategies as q
from mpreg_mq.topics import pattern_problem, topic_problem
from tests.support.effort import repetitions

slow = settings(suppress_health_check=list(HealthCheck), deadline=None)


@given(q.topics(), q.patterns(), q.malformed_topics())
def test_topics_and_patterns_are_well_formed_or_not(topic: str, pattern: str, malformed: Any) -> None:
    """Given any topic, pattern and malformed topic, then the queue thinks the same of them."""
    assert topic_problem(topic) is None
    assert pattern_problem(pattern) is None
    assert topic_problem(malformed) is not None


@given(q.payloads())
def test_payloads_come_back_as_they_were(payload: Any) -> None:
    """Given any payload, then it is the same after its way through the queue."""
    assert decode_payload(encode_payload(payload)) == payload


@given(st.from_type(QueueConfiguration), st.from_type(MessageOptions), st.from_type(MessageId))
def test_our_types_are_known_to_hypothesis(
    configuration: QueueConfiguration, options: MessageOptions, message_id: MessageId
) -> None:
    """Given Hypothesis imported, then ``from_type`` makes our types, through the entry point."""
    assert configuration.name == "q"
    assert isinstance(options, MessageOptions)
    assert message_id.id


@settings(slow, max_examples=repetitions(test=100, soak=2000))
@given(q.histories())
def test_legal_histories_keep_every_rule(records: list[RecordedEvent]) -> None:
    """Given any legal history, then no rule objects and the projections fold it."""
    assert check_history(records) == []
    QueueState.replay(record.event for record in records).check()


@settings(slow, max_examples=repetitions(test=100, soak=2000))
@given(q.illegal_histories())
def test_illegal_histories_break_the_rule_they_name(illegal: q.Illegal) -> None:
    """Given any illegal history, then the rule that it names objects."""
    assert illegal.rule in {violation.rule for violation in check_history(illegal.records)}, illegal.change


def test_histories_get_somewhere() -> None:
    """Given many histories, then everything that can happen in a queue happens in them."""
    happened: Counter[str] = Counter()

    @settings(slow, max_examples=150, derandomize=True, database=None, phases=[Phase.generate])
    @given(q.histories(min_size=10))
    def collect(records: list[RecordedEvent]) -> None:
        happened.update(type(record.event).__name__ for record in records)

    collect()
    expected = (e.MessageDelivered, e.MessageAcknowledged, e.AudienceFixed, e.LeaseExpired, e.MessageExpired)
    assert all(happened[kind.__name__] for kind in expected), happened
