"""What today's code would have decided: each recorded decision is made again from the same state, and compared."""

from mpreg_mq.replay.rerun.engine import Difference, Rerun, rerun, rerun_events
from mpreg_mq.replay.rerun.story import assert_same_story, story_of

__all__ = ["Difference", "Rerun", "assert_same_story", "rerun", "rerun_events", "story_of"]
