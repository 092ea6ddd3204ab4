"""Rerun for any story: what the decider decided it decides again, and what was not its decision is noticed."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import HealthCheck, given, settings

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context
from mpreg_mq.actors.decider.sending import decide_wait_over
from mpreg_mq.events import Append, MemoryEventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, OverflowPolicy
from mpreg_mq.projections import QueueState
from mpreg_mq.replay import Moment
from mpreg_mq.replay.fork import fork_into
from mpreg_mq.replay.rerun import assert_same_story, rerun, rerun_events
from mpreg_mq.replay.verify import verify
from mpreg_mq.testing.strategies import histories
from tests.decider.test_properties import QueueStory
from tests.support.cuts import cut_logs
from tests.support.effort import repetitions
from tests.support.given import Scenario


class RerunStory(QueueStory):
    """Anything that can be asked of a queue; at the end every decision is made again."""

    def teardown(self) -> None:
        if not hasattr(self, "q"):
            return
        result = rerun_events(self.q.history)
        assert result.differences == [], [str(difference) for difference in result.differences]
        assert result.followed == 0
        assert result.given.keys() <= {"MessageRejected", "AudienceMemberLeft"}
        assert not any(isinstance(event, e.QueueDeleted) for event in self.q.history)
        assert QueueState.replay(self.q.history).version == len(self.q.history)


TestRerunStory = RerunStory.TestCase
TestRerunStory.settings = settings(max_examples=repetitions(test=60, soak=2000), stateful_step_count=40, deadline=None)


@given(histories())
@settings(max_examples=repetitions(test=100, soak=10_000), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_history_is_decided_again_as_it_was(records: list[RecordedEvent]) -> None:
    """Given any legal history, with options of any kind, then every decision comes out as it was."""
    result = rerun_events(record.event for record in records)
    assert result.differences == [], [str(difference) for difference in result.differences]


@given(histories())
@settings(max_examples=repetitions(test=30, soak=2000), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_history_may_be_decided_again_and_forked_up_to_anywhere(records: list[RecordedEvent]) -> None:
    """Given any position of any legal history, then nothing differs up to there, and a fork keeps every promise."""
    log = MemoryEventLog()
    log.append([Append(records[0].stream, 0, [record.event for record in records])])
    for position in range(1, len(records) + 1):
        assert rerun(log, until=Moment(position=position)).differences == []
        copy = MemoryEventLog()
        fork_into(log, copy, at=Moment(position=position))
        assert verify(copy).violations == ()


@pytest.mark.parametrize("own", [None, 2.0])
@pytest.mark.parametrize("timeouts", [(None, 2.0), (2.0, None), (None, None), (2.0, 2.0)], ids=str)
def test_l1_each_receive_has_its_own_timeout(own: float | None, timeouts: tuple[float | None, float | None]) -> None:
    """Given receives at one moment with timeouts of their own, and a message with one of the same value, then they are
    decided as they were; another default changes the leases that had it, and no others."""
    q = Scenario(default_visibility_timeout_seconds=8)
    q.subscribe("r", pull=True)
    options = [None, own, None, own]
    for seconds in options:
        q.send("t", visibility_timeout_seconds=seconds)
    for seconds in timeouts:
        q.when(c.Receive("r", 2, visibility_timeout_seconds=seconds))
    assert rerun_events(q.history).differences == []
    asked = [timeouts[0]] * 2 + [timeouts[1]] * 2
    by_default = sum(not (mine or receiver) for mine, receiver in zip(options, asked, strict=True))
    assert rerun_events(q.history, changes={"default_visibility_timeout_seconds": 5}).count == by_default


@given(histories())
@settings(max_examples=repetitions(test=20, soak=1000), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_left_of_any_history_is_decided_again(records: list[RecordedEvent]) -> None:
    """Given any legal history, when its first events are taken away at any place, within a decision as well, then
    nothing differs in the rest."""
    events = [record.event for record in records]
    for log in cut_logs(events, range(1, len(events) + 1)):
        assert rerun(log).differences == []


def test_c1_a_send_that_waits_is_refused_as_one_that_waited() -> None:
    """Given a send that waits for room, when its queue is told to refuse at once, then its refusal says that it waited,
    and is decided so again."""
    q = Scenario(max_size=1, overflow_policy=OverflowPolicy.WAIT, overflow_wait_seconds=2.0)
    q.send("t")
    late = decide_wait_over(q.state, c.Send("t", b"\xa1p"), Context(q.now)).events
    rejecting = attrs.evolve(q.state.configuration, overflow_policy=OverflowPolicy.REJECT)
    history = [*q.history, e.QueueReconfigured(q.now, rejecting), *late]
    assert rerun_events(history).differences == []


def test_who_left_first_with_the_process_is_no_decision_of_a_story() -> None:
    """Given a subscriber that is remembered for a message it holds, when it comes again and the process ends, then the
    story of another message is told the same way, without the first place that it had in the queue."""
    q = Scenario()
    subscription = q.subscribe("z")
    q.send("t")
    q.dispatch()
    q.when(c.Unsubscribe(subscription))
    q.subscribe("a")
    q.subscribe("z")
    q.send("t")
    q.when(c.Detach())
    own = [event for event in q.history if getattr(event, "message_id", "2-r") == "2-r"]
    assert [event.subscriber_id for event in own if isinstance(event, e.SubscriberLeft)] == ["z", "z", "a"]
    assert_same_story(own)


def test_what_a_newcomer_fetches_at_once_is_one_decision() -> None:
    """Given a broadcast message, when somebody comes and fetches it at the same moment, then its audience was fixed by
    the fetch and not by the coming, and both are decided as they were."""
    q = Scenario()
    q.send("t", guarantee=DeliveryGuarantee.BROADCAST)
    q.subscribe("r", pull=True)
    q.when(c.Receive("r", 1))
    assert [type(event) for event in q.history[-3:]] == [e.SubscriberJoined, e.AudienceFixed, e.MessageDelivered]
    assert rerun_events(q.history).differences == []
    log, copy = MemoryEventLog(), MemoryEventLog()
    log.append([Append("queue:q", 0, q.history)])
    fork_into(log, copy, at=Moment(position=len(q.history) - 1))
    assert rerun(copy).differences == []
    assert verify(copy).ok


def test_a_newcomer_enters_audiences_in_the_order_of_their_messages() -> None:
    """Given two quorum messages, the later of which had its audience fixed first, when somebody comes, then it enters
    them in the order in which they were accepted, whether or not the state comes from a snapshot."""
    q = Scenario()
    q.subscribe("first", "a")
    q.send("b", guarantee=DeliveryGuarantee.QUORUM, required_acknowledgments=2)
    q.send("a", guarantee=DeliveryGuarantee.QUORUM, required_acknowledgments=2)
    q.dispatch()
    q.subscribe("second", "b")
    q.dispatch()
    q.subscribe("third")
    assert [event.message_id for event in q.fresh_of(e.AudienceFixed)] == ["1-r", "2-r"]
    assert rerun_events(q.history).differences == []
