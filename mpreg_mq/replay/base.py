"""Where a log begins: at nothing, or at the snapshots that retention left in place of its first events."""

from __future__ import annotations

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog
from mpreg_mq.events.log import retaining
from mpreg_mq.events.transfer import base_of
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.source import QUEUE_STREAMS


def base_state(log: EventLog, stream: str) -> QueueState:
    """A queue as it was before the first event that the log still has; an empty state where it has them all.

    Raises:
        EventLogError: the snapshot that stands for the events before is damaged, or of another release.
    """
    kept = retaining(log)
    if kept is None or not kept.base_version(stream):
        return QueueState()
    snapshot = base_of(kept, stream)
    state = QueueState.restore(snapshot.body)
    if state is None:
        raise EventLogError(
            f"{log.location}: the events of {stream!r} up to version {snapshot.version} are compacted, and their "
            "snapshot is of a format that this release does not read; use the release that wrote it, or an archive"
        )
    return state


def base_states(log: EventLog, queue: str | None = None) -> dict[str, QueueState]:
    """The queues, or one, that were there before the first event that the log still has, by name.

    Raises:
        EventLogError: as :func:`base_state` does.
    """
    kept = retaining(log)
    if kept is None or not kept.base_position():
        return {}
    streams = log.streams() if queue is None else [QUEUE_STREAMS + queue]
    return {
        stream.removeprefix(QUEUE_STREAMS): base_state(log, stream)
        for stream in streams
        if stream.startswith(QUEUE_STREAMS) and kept.base_version(stream)
    }
