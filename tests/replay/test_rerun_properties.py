"""Rerun for any story: what the decider decided it decides again, and what was not its decision is noticed."""

from __future__ import annotations

from hypothesis import settings

from mpreg_mq.actors import commands as c
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.rerun import rerun_events
from tests.decider.test_properties import QueueStory
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


def test_what_a_newcomer_fetches_at_once_is_one_decision() -> None:
    """Given a broadcast message, when somebody comes and fetches it at the same moment, then its audience was fixed by
    the fetch and not by the coming, and both are decided as they were."""
    q = Scenario()
    q.send("t", guarantee=DeliveryGuarantee.BROADCAST)
    q.subscribe("r", pull=True)
    q.when(c.Receive("r", 1))
    assert [type(event) for event in q.history[-3:]] == [e.SubscriberJoined, e.AudienceFixed, e.MessageDelivered]
    assert rerun_events(q.history).differences == []


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
