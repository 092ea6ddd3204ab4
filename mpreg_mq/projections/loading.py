"""From a log to the state of a queue: by the shortest way, or from where the log begins."""

from __future__ import annotations

import logging

from mpreg_mq._collector import collector_paused
from mpreg_mq.errors import CorruptLogError
from mpreg_mq.events.log import EventLog, Snapshot, each_snapshot, read_events, retaining
from mpreg_mq.projections.queue_state import QueueState

logger = logging.getLogger("mpreg_mq")


def load_state(log: EventLog, stream: str) -> QueueState:
    """The state of a queue: its newest snapshot that can be read, and the events since; else all its events.

    Raises:
        EventLogError: the stream cannot be read.
        CorruptLogError: its first events were truncated, and what stands for them cannot be read.
        ProjectionError: an event cannot be applied.
    """
    kept = retaining(log)
    if kept is not None:
        for snapshot in each_snapshot(kept, stream):
            state = _restored(snapshot)
            if state is not None:
                return _caught_up(state, log, stream)
    return _caught_up(state_at_base(log, stream), log, stream)


def state_at_base(log: EventLog, stream: str) -> QueueState:
    """The state before the first event of a queue that the log still has: empty, unless some were truncated.

    Whoever folds a stream from its first event on begins with this.

    Raises:
        CorruptLogError: events were truncated, and what stands for them cannot be read.
    """
    kept = retaining(log)
    base = 0 if kept is None else kept.base_version(stream)
    if kept is None or not base:
        return QueueState()
    snapshot = next(each_snapshot(kept, stream, base), None)
    state = None if snapshot is None else _restored(snapshot)
    if state is not None:
        return state
    raise CorruptLogError(
        f"log {log.location}: the events of {stream!r} up to version {base} were truncated, and there is no snapshot "
        "that can be read in their place; restore the log from a copy, or from its archives"
    )


def _restored(snapshot: Snapshot) -> QueueState | None:
    try:
        state = QueueState.restore(snapshot.body)
        if state is None:
            logger.info("the snapshot of %s is another release's; not used", snapshot.stream)
        elif state.version == snapshot.version:
            return state
    # The log is there to be folded whatever is wrong with a snapshot.
    except Exception:
        found = (snapshot.stream, snapshot.version)
        logger.warning("the snapshot of %s at version %d cannot be read", *found, exc_info=True)
    return None


def _caught_up(state: QueueState, log: EventLog, stream: str) -> QueueState:
    with collector_paused():
        for events in read_events(log, stream, state.version):
            state.apply_all(events)
    return state
