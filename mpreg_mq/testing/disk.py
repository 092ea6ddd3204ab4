"""A disk that can be slow, full, or lose what was not written when its process crashed, and a log on it.

What is on the disk is bytes, so that each restart decodes what the run before encoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import attrs

from mpreg_mq.actors.journal import HOLD_SECONDS, Journal, JournalActor
from mpreg_mq.actors.submissions import Intake
from mpreg_mq.errors import EventLogError
from mpreg_mq.events.codec import EncodedEvent, decode, encode
from mpreg_mq.events.log import Append, RecordedEvent
from mpreg_mq.events.memory import MemoryEventLog

COMMIT_SECONDS = 0.001
"""What a commit takes on a disk that is not slow."""


@attrs.define(eq=False)
class SimulatedDisk:
    """What survives a crash.

    ``latency`` gives the seconds that the next commit takes; ``fault`` is asked before each append and may raise.
    """

    latency: Callable[[], float] = lambda: COMMIT_SECONDS
    fault: Callable[[], None] = lambda: None
    written: list[tuple[str, EncodedEvent]] = attrs.field(factory=list, init=False)
    commits: int = attrs.field(default=0, init=False)
    _log: SimulatedLog | None = attrs.field(default=None, init=False)

    def open(self, loop: asyncio.AbstractEventLoop, *, blocking: bool = True) -> SimulatedLog:
        """The log for a new process; the one before cannot write any more."""
        if self._log is not None:
            self._log.crash()
        self._log = SimulatedLog(self, loop, blocking)
        return self._log

    def records(self) -> list[RecordedEvent]:
        """What a reader would find; O(events)."""
        versions: dict[str, int] = {}
        found = []
        for position, (stream, encoded) in enumerate(self.written, 1):
            versions[stream] = versions.get(stream, 0) + 1
            found.append(RecordedEvent(position, stream, versions[stream], decode(*encoded)))
        return found

    def hash(self) -> str:
        """Digest of everything written, in order: equal for two runs that did the same."""
        digest = blake2b(digest_size=16)
        for stream, encoded in self.written:
            digest.update(f"{stream}:{encoded.type}:{encoded.schema}:".encode())
            digest.update(encoded.body)
        return digest.hexdigest()


class SimulatedLog(MemoryEventLog):
    """The log of one process on a :class:`SimulatedDisk`; written through a simulated journal where ``blocking``."""

    location = "simulated:"

    def __init__(self, disk: SimulatedDisk, loop: asyncio.AbstractEventLoop, blocking: bool) -> None:
        super().__init__()
        self.blocking = blocking
        self.loop = loop
        self.disk = disk
        self.crashed = False
        for record in disk.records():
            super().append((Append(record.stream, record.version - 1, (record.event,)),))

    def append(self, batch: Sequence[Append]) -> None:
        """Write, unless the disk refuses or the process has crashed."""
        if self.crashed:
            raise EventLogError("simulated: the process that had this log open has crashed")
        self.disk.fault()
        encoded = [(append.stream, encode(event)) for append in batch for event in append.events]
        super().append(batch)
        self.disk.written += encoded
        self.disk.commits += 1

    def crash(self) -> None:
        """Write no more: what was not appended yet is lost."""
        self.crashed = True


class _DiskInbox:
    """The inbox of a journal actor without a thread: a message is handled once the disk has taken its time."""

    def __init__(self) -> None:
        self.deliver: Callable[[Any], None] = lambda message: None
        self.call_later: Callable[..., Any] = lambda seconds, function: None
        self._hold: Any = None

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
        self._hold = None
        self.deliver("wake")

    def is_over(self) -> bool:
        """Whether the time of the hold has passed."""
        return self._hold is None

    def release(self) -> None:
        """End the hold."""
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
        actor = SimulatedJournalActor(log, intake, None)

        def deliver(message: Any) -> None:
            log.loop.call_later(log.disk.latency(), _receive, actor, message)

        inbox: Any = actor.actor_inbox
        inbox.deliver, inbox.call_later = deliver, log.loop.call_later
        ref: Any = actor.actor_ref
        return cls(log, ref, intake, None, actor)

    def flush(self, timeout: float | None = None) -> None:
        """Commit everything now, as if the caller had waited for the disk."""
        self.code._commit_all()

    def stop(self) -> None:
        """Commit everything, and take nothing more."""
        self.code.on_stop()


def _receive(actor: SimulatedJournalActor, message: Any) -> None:
    actor.on_receive(message)
