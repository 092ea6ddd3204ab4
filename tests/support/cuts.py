"""Logs whose beginning was taken away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpreg_mq.events import Append, Event, MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Snapshot
from mpreg_mq.projections import QueueState


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
