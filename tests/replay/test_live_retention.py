"""Reading a log that another process compacts meanwhile: what was read begins again, and the answer is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mpreg_mq.actors.retention import Compactor
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.events import Append, EventLog, MemoryEventLog, RecordedEvent
from mpreg_mq.events.log import Snapshot
from mpreg_mq.events.transfer import export_log
from mpreg_mq.replay import Moment, ReadingStoppedError, open_history, replay, why
from mpreg_mq.replay.base import MOST_BEGINNINGS, unless_overtaken
from mpreg_mq.replay.diff import diff_moments
from mpreg_mq.replay.following import Follower
from mpreg_mq.replay.fork import fork, fork_into
from mpreg_mq.replay.report import collect
from mpreg_mq.replay.rerun import rerun
from mpreg_mq.replay.trace import trace
from mpreg_mq.replay.verify import verify
from tests.support.history import History

Described = dict[str, dict[str, Any]]


class LiveLog(MemoryEventLog):
    """A log that is compacted between two steps of who reads it, as if by another process."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self.cuts: list[tuple[int, int]] = []
        self.compacting = False
        fork_into(log, self)

    def compact_after(self, steps: int, keep: int) -> None:
        """Leave ``keep`` events when there were so many more steps."""
        self.cuts.append((steps, keep))

    def compact(self, keep: int) -> None:
        """Leave ``keep`` events."""
        self.compacting = True
        for _ in Compactor(self, RetentionPolicy(keep_events=keep, least_events=1), lambda: 0.0).steps():
            pass
        self.compacting = False

    def _step(self) -> None:
        if self.compacting or not self.cuts:
            return
        steps, keep = self.cuts.pop(0)
        if steps:
            self.cuts.insert(0, (steps - 1, keep))
        else:
            self.compact(keep)

    def base_position(self) -> int:
        self._step()
        return super().base_position()

    def base_version(self, stream: str) -> int:
        self._step()
        return super().base_version(stream)

    def snapshots(self, stream: str) -> list[Snapshot]:
        self._step()
        return super().snapshots(stream)

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        self._step()
        return self._stepping(super().read_all(after_position))

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        self._step()
        return self._stepping(super().read_stream(stream, after_version))

    def _stepping(self, records: Iterator[RecordedEvent]) -> Iterator[RecordedEvent]:
        for record in records:
            yield record
            self._step()


def described(log: EventLog) -> Described:
    return {name: state.describe() for name, state in replay(log).states.items()}


def followed(log: EventLog) -> Described:
    follower = Follower(log)
    follower.catch_up()
    return {name: state.describe() for name, state in follower.states.items()}


READERS: dict[str, Callable[[EventLog], Any]] = {
    "replay": described,
    "follower": followed,
    "why": lambda log: why(log, "14-00a1").standing,
    "diff": lambda log: diff_moments(log, Moment(position=122)),
    "report": lambda log: {name: queue.statistics for name, queue in collect(log).queues.items()},
    "rerun": lambda log: rerun(log).count,
    "trace": lambda log: trace(log, "15-00a1").steps,
    "verify": lambda log: verify(log).violations,
}


@example(steps=[4], keeps=[10])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 150), min_size=1, max_size=3), keeps=st.lists(st.integers(4, 60), min_size=3))
@pytest.mark.parametrize("reader", READERS)
def test_the_answer_is_the_same_whenever_the_log_is_compacted(
    log: EventLog, reader: str, steps: list[int], keeps: list[int]
) -> None:
    """Given a log that is compacted at any steps of reading it, then the answer is as if it had not been."""
    live = LiveLog(log)
    for after, keep in zip(steps, sorted(keeps, reverse=True), strict=False):
        live.compact_after(after, keep)
    assert READERS[reader](live) == READERS[reader](log)


@pytest.mark.parametrize("steps", range(12))
def test_a_fork_begins_anew(log: EventLog, tmp_path: Path, steps: int) -> None:
    """Given a log that is compacted while it is copied, then the copy has the same queues, and keeps every promise."""
    live = LiveLog(log)
    live.compact_after(steps, 10)
    fork(live, tmp_path / "copy.db")
    with closing(open_history(tmp_path / "copy.db")) as copy:
        assert described(copy) == described(log)
        assert verify(copy).ok


@pytest.mark.parametrize("steps", range(16))
def test_an_export_begins_anew(log: EventLog, tmp_path: Path, steps: int) -> None:
    """Given a log that is compacted while it is exported, then the export is whole in the end, with the same queues."""
    live = LiveLog(log)
    live.compact_after(steps, 10)
    unless_overtaken(live, lambda: export_log(live, tmp_path / "export.jsonl"))
    with closing(open_history(tmp_path / "export.jsonl")) as exported:
        assert described(exported) == described(log)
        assert verify(exported).ok


def test_a_follower_goes_on_where_the_base_has_passed_it(log: EventLog) -> None:
    """Given events that came and went while nobody looked, then a follower goes on from the snapshots."""
    live = LiveLog(log)
    follower = Follower(live)
    follower.catch_up()
    version = live.stream_version("queue:q")
    history = History().joined("a")
    for number in range(20):
        history.sent(f"{number}-a").delivered(f"{number}-a", "a").acknowledged(f"{number}-a", "a")
    live.append([Append("queue:q", version, history.events)])
    live.compact(5)
    assert follower.catch_up() == 5
    assert {name: state.describe() for name, state in follower.states.items()} == described(live)
    assert follower.states["q"].report(history.now).messages_acknowledged == 20


def test_a_log_that_is_compacted_again_and_again_is_given_up(log: EventLog) -> None:
    """Given a log that is compacted at each look at it, then that is an error in the end, and says why."""

    class RestlessLog(LiveLog):
        def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
            if not self.compacting:
                self.compact(123 - self.base_position())
            return super().read_all(after_position)

    live = RestlessLog(log)
    with pytest.raises(ReadingStoppedError, match="compacted meanwhile; read the log again"):
        replay(live)
    assert live.base_position() == MOST_BEGINNINGS
