"""Time travel: the queues of a log as they were at a moment (I4)."""

from __future__ import annotations

import attrs

from mpreg_mq.errors import EventLogError, ProjectionError
from mpreg_mq.events import EventLog
from mpreg_mq.options import require
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import again_if_overtaken, base_states
from mpreg_mq.replay.moments import Moment, moment_problem
from mpreg_mq.replay.records import Progress, folding, read, silent, stopped
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position, queue_names


@attrs.frozen
class Replay:
    """Queues by name, as they were at ``position``.

    ``now`` is the moment that was asked for where that was a time, else the time of the last event.
    """

    states: dict[str, QueueState]
    position: int
    events: int
    now: float


@again_if_overtaken
def replay(
    log: EventLog, *, until: Moment | None = None, queue: str | None = None, progress: Progress = silent
) -> Replay:
    """Fold the log's events up to a moment, or all; memory is bounded by what is unfinished.

    Where retention has taken the first events away, the fold begins with the snapshots that stand for them.

    Messages whose due time has come by then are ready, as they were in the live queue.

    Raises:
        InvalidOptionError: ``until`` is no moment.
        EventLogError: there is no such queue, or the log begins only after the moment.
        ReadingStoppedError: an event cannot be read or applied; it says how far the log is good.
    """
    require("until", moment_problem, until)
    base = base_position(log)
    states = base_states(log, queue, until)
    position = base
    count = 0
    stream = ""
    state = QueueState()
    with folding():
        for record in read(log, base=base, until=until, queue=queue, progress=progress):
            if record.stream != stream:
                stream = record.stream
                if not stream.startswith(QUEUE_STREAMS):
                    stream = ""
                    continue
                name = stream.removeprefix(QUEUE_STREAMS)
                found = states.get(name)
                if found is None:
                    found = states[name] = QueueState()
                state = found
            try:
                state.apply(record.event)
            except ProjectionError as error:
                raise stopped(log, position, error) from error
            position = record.position
            count += 1
    if queue is not None and not states:
        require_queue(log, queue)
    now = max((state.last_at for state in states.values()), default=0.0)
    if until is not None and until.time is not None:
        now = max(now, until.time)
    for state in states.values():
        state.messages.promote(now)
    return Replay(states, position, count, now)


def require_queue(log: EventLog, queue: str) -> None:
    """Raise where the log has no such queue.

    Raises:
        EventLogError: it names those that there are.
    """
    names = queue_names(log)
    if queue not in names:
        raise EventLogError(f"{log.location}: there is no queue {queue!r}; it has {', '.join(names) or 'no queues'}")
