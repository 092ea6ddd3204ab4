"""Finding out from an event log what happened: it reads logs, and needs neither actors nor MPREG."""

from mpreg_mq.replay.blockers import Blocker, BlockerKind, Way
from mpreg_mq.replay.moments import Moment, parse_moment
from mpreg_mq.replay.records import EventFilter, ReadingStoppedError, read
from mpreg_mq.replay.source import LogInfo, StreamInfo, log_info, open_history
from mpreg_mq.replay.travel import Replay, replay
from mpreg_mq.replay.why import Explanation, Standing, explain, why

__all__ = [
    "Blocker",
    "BlockerKind",
    "EventFilter",
    "Explanation",
    "LogInfo",
    "Moment",
    "ReadingStoppedError",
    "Replay",
    "Standing",
    "StreamInfo",
    "Way",
    "explain",
    "log_info",
    "open_history",
    "parse_moment",
    "read",
    "replay",
    "why",
]
