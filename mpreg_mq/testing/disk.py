"""A disk that can be slow, full, or lose what was not written when its process crashed, and a log on it.

What is on the disk is bytes, so that each restart decodes what the run before encoded. It is a sequence of changes, as
the transactions of a real log are: events, snapshots and cuts are lost in a power cut only with all that came after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Any

import attrs

from mpreg_mq.actors.journal import HOLD_SECONDS, Journal, JournalActor
from mpreg_mq.actors.loop_writing import LoopWriting
from mpreg_mq.actors.submissions import Intake
from mpreg_mq.errors import EventLogError
from mpreg_mq.events.codec import EncodedEvent, decode, encode
from mpreg_mq.events.log import Append, RecordedEvent, Snapshot
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.testing.loop import SimulatedLoop
from mpreg_mq.testing.quick_disk import Encoded, SimulatedQuickWriter

COMMIT_SECONDS = 0.001
"""What a commit takes on a disk that is not slow."""

EVENT_BYTES = 100
"""What an event is taken to need, for policies that keep so many bytes."""


class Writing(Enum):
    """Who writes to a log that can wait for its disk, and who waits (see ADR 0017 and 0018)."""

    THREAD = "thread"
    """The journal does both."""
    LOOP = "loop"
    """The loop writes, and goes on meanwhile."""
    WAITING = "waiting"
    """The loop writes, and waits."""


class Synchronous(Enum):
    """What a commit has survived when it returns, as ``synchronous`` of :class:`~mpreg_mq.events.SQLiteEventLog`."""

    FULL = "FULL"
    """A power cut."""
    NORMAL = "NORMAL"
    """The end of its process; a power cut takes commits since some moment after the last checkpoint."""
    OFF = "OFF"
    """The end of its process; a power cut takes commits since any moment."""


@attrs.frozen
class Cut:
    """The log's beginning was taken away up to ``position``, and ``bases`` kept in its place."""

    position: int
    bases: Mapping[str, Snapshot]


Change = Encoded | Snapshot | Cut
"""What one commit did: it added events, kept a snapshot, or took the log's beginning away."""


@attrs.define(eq=False)
class SimulatedDisk:
    """What survives a crash.

    ``latency`` gives the seconds that the next commit takes; ``fault`` is asked before each commit and may raise.
    ``survivors`` says, given the least and the most, how many of those commits the disk turns out to have of which that
    is not certain: after a power cut, or after a failure or a crash where the loop writes, when ``busy`` also says
    whether it would have to wait for others. ``checkpoint`` is asked after each commit that a power cut could take, and
    says whether all commits so far are safe from now on; ``safe`` is how many are.
    """

    latency: Callable[[], float] = lambda: COMMIT_SECONDS
    fault: Callable[[], None] = lambda: None
    busy: Callable[[], bool] = lambda: False
    survivors: Callable[[int, int], int] = max
    synchronous: Synchronous = Synchronous.FULL
    checkpoint: Callable[[], bool] = lambda: False
    changes: list[Change] = attrs.field(factory=list, init=False)
    safe: int = attrs.field(default=0, init=False)
    archives: dict[tuple[int, int], list[RecordedEvent]] = attrs.field(factory=dict, init=False)
    """What retention has put aside, by the positions before the first event and of the last."""
    _log: SimulatedLog | None = attrs.field(default=None, init=False)

    @property
    def commits(self) -> int:
        """How many commits it has."""
        return len(self.changes)

    def open(self, loop: SimulatedLoop, *, blocking: bool = True, writing: Writing = Writing.THREAD) -> SimulatedLog:
        """The log for a new process; the one before cannot write any more."""
        if self._log is not None:
            self._log.crash()
        self._log = SimulatedLog(self, loop, blocking, writing)
        return self._log

    def put(self, change: Change) -> None:
        """Have what one commit did."""
        self.changes.append(change)
        if self.synchronous is Synchronous.FULL or (self.synchronous is Synchronous.NORMAL and self.checkpoint()):
            self.safe = len(self.changes)

    def cut_power(self) -> None:
        """Lose the commits that are not safe, from one of them on; what had the log open cannot write any more."""
        if self._log is not None:
            self._log.crash()
        del self.changes[self.survivors(self.safe, len(self.changes)) :]
        self.safe = len(self.changes)

    def _written(self) -> Iterator[tuple[str, EncodedEvent]]:
        for change in self.changes:
            if isinstance(change, list):
                yield from change

    def records(self) -> list[RecordedEvent]:
        """All events that were not lost, also those that a reader does not find any more, because they were cut off;
        O(events)."""
        versions: dict[str, int] = {}
        found = []
        for position, (stream, encoded) in enumerate(self._written(), 1):
            versions[stream] = versions.get(stream, 0) + 1
            found.append(RecordedEvent(position, stream, versions[stream], decode(*encoded)))
        return found

    def hash(self) -> str:
        """Digest of all events that were not lost, in order: equal for two runs that did the same."""
        digest = blake2b(digest_size=16)
        for stream, encoded in self._written():
            digest.update(f"{stream}:{encoded.type}:{encoded.schema}:".encode())
            digest.update(encoded.body)
        return digest.hexdigest()


class SimulatedLog(MemoryEventLog):
    """The log of one process on a :class:`SimulatedDisk`; written through a simulated journal where ``blocking``."""

    location = "simulated:"

    def __init__(self, disk: SimulatedDisk, loop: SimulatedLoop, blocking: bool, writing: Writing) -> None:
        super().__init__()
        self.blocking = blocking
        self.loop = loop
        self.disk = disk
        self.crashed = False
        self._writing = writing
        self._writer: SimulatedQuickWriter | None = None
        self.read_disk()

    def read_disk(self) -> None:
        """Hold what the disk has, and nothing else."""
        super().__init__()
        for change in self.disk.changes:
            if isinstance(change, Snapshot):
                super().save_snapshot(change)
            elif isinstance(change, Cut):
                super().truncate(change.position, change.bases)
            else:
                for stream, encoded in change:
                    super().append((Append(stream, self.stream_version(stream), (decode(*encoded),)),))

    def append(self, batch: Sequence[Append]) -> None:
        """Write, unless the disk refuses or the process has crashed."""
        self.check_alive()
        self.disk.fault()
        self.disk.put(self.take(batch))

    def take(self, batch: Sequence[Append]) -> Encoded:
        """Hold a batch that fits; what of it goes to the disk."""
        encoded = [(append.stream, encode(event)) for append in batch for event in append.events]
        super().append(batch)
        return encoded

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless the disk refuses or the process has crashed."""
        self._begin_commit()
        self.disk.fault()
        super().save_snapshot(snapshot)
        self.disk.put(snapshot)

    def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Take the beginning away; where the disk refuses, that may have been done all the same."""
        self._begin_commit()
        refused: EventLogError | None = None
        try:
            self.disk.fault()
        except EventLogError as error:
            if not self.disk.survivors(0, 1):
                raise
            refused = error
        super().truncate(position, bases)
        self.disk.put(Cut(position, bases))
        if refused is not None:
            raise refused

    def _begin_commit(self) -> None:
        """What was written before comes to the disk with a commit, whoever made either."""
        self.check_alive()
        if self._writer is not None:
            self._writer.come_along()

    def record_end(self, position: int) -> int:
        """``position``, within what is on the disk."""
        written = sum(len(change) for change in self.disk.changes if isinstance(change, list))
        return super().record_end(min(position, written))

    def size_bytes(self) -> int:
        """What its events are taken to need."""
        return EVENT_BYTES * (self.last_position() - self.base_position())

    def check_alive(self) -> None:
        """Raise where the process has crashed."""
        if self.crashed:
            raise EventLogError("simulated: the process that had this log open has crashed")

    def quick_writer(self) -> SimulatedQuickWriter | None:
        """What the loop writes with; None where a journal does."""
        if self._writing is not Writing.THREAD and self.disk.synchronous is Synchronous.FULL:
            self._writer = SimulatedQuickWriter(self, self._writing is Writing.WAITING)
        return self._writer

    def crash(self) -> None:
        """Write no more: what was not appended yet is lost."""
        if not self.crashed and self._writer is not None:
            self._writer.crash()
        self.crashed = True


class _DiskInbox:
    """The inbox of a journal actor without a thread: a message is handled once the disk has taken its time."""

    def __init__(self) -> None:
        self.deliver: Callable[[Any], None] = lambda message: None
        self.call_later: Callable[..., Any] = lambda seconds, function: None
        self._hold: Any = None
        self._is_over = False

    def put(self, envelope: Any, /) -> None:
        """Take a message."""
        self.deliver(envelope.message)

    def get(self) -> Any:
        """There is nobody who waits here."""
        raise NotImplementedError("a simulated journal has no thread that reads its inbox")

    def empty(self) -> bool:
        """Whether no message waits: they are with the loop."""
        return True

    def hold(self, seconds: float) -> None:
        """Wake the actor once so much of the loop's time has passed."""
        self._hold = self.call_later(seconds, self._end_hold)

    def _end_hold(self) -> None:
        self._hold, self._is_over = None, True
        self.deliver("wake")

    @property
    def has_time(self) -> bool:
        """Whether a hold goes on."""
        return self._hold is not None or self._is_over

    def is_over(self) -> bool:
        """Whether the time of the hold has passed."""
        return self._is_over

    def release(self) -> None:
        """End the hold."""
        self._is_over = False
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None


class SimulatedJournalActor(JournalActor):
    """The journal's own code, run by the loop instead of by a thread."""

    @staticmethod
    def _create_actor_inbox() -> Any:
        return _DiskInbox()


@attrs.frozen(eq=False)
class SimulatedJournal(Journal):
    """The journal of a :class:`SimulatedLog`; its commits are steps of the loop, each after the disk's latency."""

    code: SimulatedJournalActor

    @classmethod
    def start(cls, log: Any, *, hold_seconds: float = HOLD_SECONDS) -> Journal:
        """A journal for the log: simulated where the log is, else with a thread."""
        if not isinstance(log, SimulatedLog):
            return Journal.start(log, hold_seconds=hold_seconds)
        intake = Intake(hold_seconds)
        writer = log.quick_writer()
        on_loop = None if writer is None else LoopWriting(writer, intake)
        actor = SimulatedJournalActor(log, intake, on_loop)

        def deliver(message: Any) -> None:
            log.loop.call_later(log.disk.latency(), _receive, actor, message)

        inbox: Any = actor.actor_inbox
        inbox.deliver, inbox.call_later = deliver, log.loop.call_later
        ref: Any = actor.actor_ref
        return cls(log, ref, intake, on_loop, actor)

    def flush(self, timeout: float | None = None) -> None:
        """Commit everything now, as if the caller had waited for the disk."""
        self.code._commit_all()

    def stop(self) -> None:
        """Commit everything, and take nothing more."""
        self.code.on_stop()
        if self._on_loop is not None:
            self._on_loop.close()


def _receive(actor: SimulatedJournalActor, message: Any) -> None:
    actor.on_receive(message)
