"""Rerun for any story: what the decider decided it decides again, and what was not its decision is noticed."""

from __future__ import annotations

from hypothesis import settings

from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.rerun import rerun_events
from tests.decider.test_properties import QueueStory
from tests.support.effort import repetitions


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
