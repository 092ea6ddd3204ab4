"""Where a log begins: at nothing, or at the snapshots that retention left in place of its first events.

Another process may compact the log while it is read, so that its beginning moves. :func:`~mpreg_mq.replay.records.read`
notices where it is told from which base its events are folded, and :func:`unless_overtaken` begins again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog
from mpreg_mq.events.log import retaining
from mpreg_mq.events.transfer import base_of
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.formats import format_time
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position

MOST_BEGINNINGS = 10
"""How often reading a log begins before it is given up, because the log was compacted meanwhile each time."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def unless_overtaken(log: EventLog, attempt: Callable[[], T]) -> T:
    """What ``attempt`` gives; it begins again where it fails and the log was compacted meanwhile.

    Raises:
        EventLogError: as ``attempt`` does, on a log that was not compacted meanwhile, or that was each time.
    """
    for beginning in range(1, MOST_BEGINNINGS + 1):
        base = base_position(log)
        try:
            return attempt()
        except EventLogError:
            if beginning == MOST_BEGINNINGS or base_position(log) == base:
                raise
    raise AssertionError("the last beginning returns or raises")


def again_if_overtaken(function: F) -> F:
    """Have a function that reads a log from its base begin again as :func:`unless_overtaken` does."""

    @wraps(function)
    def beginning_again(log: EventLog, *args: Any, **kwargs: Any) -> Any:
        return unless_overtaken(log, lambda: function(log, *args, **kwargs))

    return cast(F, beginning_again)


def base_state(log: EventLog, stream: str, until: Moment | None = None) -> QueueState:
    """A queue as it was before the first event that the log still has; an empty state where it has them all.

    Raises:
        EventLogError: the snapshot that stands for the events before is damaged, or of another release; or the log
            begins only after ``until``.
    """
    kept = retaining(log)
    if kept is None:
        return QueueState()
    check_reaches(log, until)
    if not kept.base_version(stream):
        return QueueState()
    snapshot = base_of(kept, stream)
    state = QueueState.restore(snapshot.body)
    if state is None:
        raise EventLogError(
            f"{log.location}: the events of {stream!r} up to version {snapshot.version} are compacted, and their "
            "snapshot is of a format that this release does not read; use the release that wrote it, or an archive"
        )
    if until is not None and until.time is not None and until.time < state.last_at:
        raise _begins_later(log, until, f"{format_time(state.last_at)}, in {stream!r}")
    return state


def base_states(log: EventLog, queue: str | None = None, until: Moment | None = None) -> dict[str, QueueState]:
    """The queues, or one, that were there before the first event that the log still has, by name.

    Raises:
        EventLogError: as :func:`base_state` does.
    """
    kept = retaining(log)
    if kept is None or not kept.base_position():
        return {}
    streams = log.streams() if queue is None else [QUEUE_STREAMS + queue]
    return {
        stream.removeprefix(QUEUE_STREAMS): base_state(log, stream, until)
        for stream in streams
        if stream.startswith(QUEUE_STREAMS) and kept.base_version(stream)
    }


def check_reaches(log: EventLog, until: Moment | None) -> None:
    """Raise where the position of a moment is below those that the log still has.

    Raises:
        EventLogError: it is; what was there then is not known any more.
    """
    if until is None or until.position is None:
        return
    base = base_position(log)
    if until.position < base:
        raise _begins_later(log, until, f"position {base:,}")


def _begins_later(log: EventLog, until: Moment, begin: str) -> EventLogError:
    return EventLogError(
        f"{log.location}: got {until}, but the events up to {begin} are compacted; name that moment or a later one, "
        "or use an archive of the log"
    )
