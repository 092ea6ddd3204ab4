"""The event log in a NATS JetStream stream: replicated by the servers, shared by several processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.log import Append, RecordedEvent, Snapshot, truncated_below
from mpreg_mq.events.nats.appending import Appender, EncodedAppend
from mpreg_mq.events.nats.engine import Engine
from mpreg_mq.events.nats.frames import Frame, Head, encode_pieces
from mpreg_mq.events.nats.loop import LoopThread
from mpreg_mq.events.nats.monitoring import warn_unless_synced
from mpreg_mq.events.nats.reading import Assembler, Reader, position_of
from mpreg_mq.events.nats.retaining import Bases, Retention
from mpreg_mq.events.nats.target import NatsTarget

logger = logging.getLogger("mpreg_mq")

T = TypeVar("T")


class NatsEventLog:
    """An :class:`~mpreg_mq.events.log.EventLog` in a JetStream stream, which is made where it is missing.

    Every event stream is a subject; what is appended together is one message. Several processes may append to one log;
    each event stream should have one writer, because an append that meets another writer's events is refused.

    **Power loss.** An append returns when a quorum of the servers has the events. Unless they are configured with
    ``jetstream { sync_interval: always }``, that means in their memory: a server writes to its disk at once but asks
    the disk to keep it every two minutes. Events survive the end of any process and the loss of a minority of machines.
    When all replicas lose power at once, or the only one does, what was appended since may be lost. The log warns
    when it is opened on servers that do not sync always, or when it cannot find out (see ``monitor`` in
    :class:`~mpreg_mq.events.nats.target.NatsTarget`).

    Positions rise from event to event and have gaps: a position is the sequence of the event's message times 100,000
    plus its place in the message.

    Args:
        target: where it is.
        read_only: the stream must exist, and appends are refused.

    Raises:
        EventLogError: no server answers, the stream is another program's, or is missing and ``read_only``.
    """

    blocking = True

    def __init__(self, target: NatsTarget, *, read_only: bool = False) -> None:
        self.target = target
        self.read_only = read_only
        self._closed = False
        self._closing = threading.Lock()
        self._thread = LoopThread(f"mpreg-mq {target.location}")
        try:
            self._engine, info = self._thread.call(_open(target, read_only))
        except BaseException:
            self._thread.stop()
            raise
        self._appender = Appender(self._engine)
        self._reader = Reader(self._engine)
        self._retention = Retention(self._engine, self._reader, self._appender)
        replicas = info["config"]["num_replicas"]
        if replicas != target.replicas:
            logger.info("event log %s: the stream has %s replicas, not %d", target.location, replicas, target.replicas)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            self._check_open()
        except EventLogError:
            coroutine.close()
            raise
        return self._thread.call(coroutine)

    def _check_writable(self, what: str) -> None:
        self._check_open()
        if self.read_only:
            raise EventLogError(f"{what} {self.location}: it was opened read-only; open it for writing")

    def _check_open(self) -> None:
        if self._closed:
            raise EventLogError(f"the event log {self.location} is closed; open it again")

    @property
    def location(self) -> str:
        """The address without login and options."""
        return self.target.location

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    # --- writing ------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        """Add all events of the batch in one atomic commit; see :meth:`mpreg_mq.events.log.EventLog.append`.

        While no answer comes it tries again for ``append_timeout_seconds``; a try that was stored after all is
        recognised, so nothing is stored twice.

        Raises:
            VersionConflictError: a stream is at another version than expected.
            OwnershipLostError: another node owns a stream.
            EventLogError: refused, as of more than a thousand messages of a megabyte at once; or not confirmed in time,
                and then it is unknown whether the events are stored.
        """
        self._call(self._appender.append(self._encoded(batch)))

    def append_each(self, batch: Sequence[Append]) -> list[EventLogError | None]:
        """Append to every stream by itself, all under way at once; what went wrong with each append, in order.

        Several appends for one stream succeed or fail together. For writers of many streams, which wait for one
        answer instead of one after another (group commit).
        """
        return self._call(self._appender.append_each(self._encoded(batch)))

    def _encoded(self, batch: Sequence[Append]) -> list[EncodedAppend]:
        self._check_writable("append to")
        return [EncodedAppend(append, encode_pieces(append.events)) for append in batch]

    def sync(self) -> None:
        """Return when the servers answer; what survives a power cut is said at the class.

        Raises:
            EventLogError: they do not.
        """
        self._call(self._reader.last_sequence())

    # --- ownership ----------------------------------------------------------------------------------------

    def claim(self, stream: str, owner: str, above: int = 0) -> Head:
        """Become the owner of a stream; the head after the record of ownership, with its epoch.

        From then on JetStream refuses every append of whoever owned the stream before, however late it comes, and
        every append through this log carries the new epoch, which is above ``above``.

        Raises:
            OwnershipLostError: somebody else claimed it at the same time.
            EventLogError: refused, or not confirmed in time.
        """
        return self._call(self._appender.claim(stream, owner, above))

    def release(self, stream: str) -> None:
        """Forget that this log owns a stream; appends to it are refused from now on."""
        self._thread.loop.call_soon_threadsafe(self._appender.release, stream)

    # --- reading ------------------------------------------------------------------------------------------

    def head(self, stream: str) -> Head:
        """The end of a stream: its version, and the epoch of its owner."""
        return self._call(self._appender.head(stream))

    def stream_version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where it has none. Asks the servers."""
        return self.head(stream).version

    def streams(self) -> list[str]:
        """Names of the streams that have events, sorted; O(streams)."""
        return sorted(stream for stream, head in self._call(self._reader.heads()).items() if head.version)

    def last_position(self) -> int:
        """The position that no event is above; 0 where there are none. One event's, unless an owner changed last."""
        return self._call(self._reader.last_position())

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``; O(log messages) requests to find it.

        Raises:
            UnknownEventError: while iterating, at an event that a newer release wrote.
            CorruptLogError: while iterating, at bytes that are not what was written, or where events are missing.
        """
        head = self.head(stream)
        return self._stream_records(stream, max(0, after_version, self.base_version(stream)), head)

    def _stream_records(self, stream: str, after_version: int, head: Head) -> Iterator[RecordedEvent]:
        self._check_open()
        if after_version >= head.version:
            return
        sequence = self._call(self._reader.find(stream, after_version, head))
        assembler = Assembler(self.location)
        version = after_version
        while sequence <= head.sequence:
            messages = self._call(self._reader.chunk(stream, sequence, head.sequence))
            if not messages:
                break
            sequence = messages[-1].sequence + 1
            try:
                frames = assembler.frames(messages)
            except CorruptLogError:
                self._raise_if_truncated(version, lambda bases: bases.versions.get(stream, 0), stream)
                raise
            for frame in frames:
                for record in _records(frame):
                    if record.version > version:
                        self._check_open()
                        if record.version != version + 1:
                            raise truncated_below(stream, version, record.version - 1)
                        version = record.version
                        yield record
        if version != head.version:
            raise CorruptLogError(
                f"read {self.location}: stream {stream!r} ends with version {version}, expected {head.version}; "
                "restore the log from a copy"
            )

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``, read and refused as in :meth:`read_stream`; O(1) to start."""
        after_position = max(0, after_position, self.base_position())
        return self._all_records(after_position, self._call(self._reader.last_sequence()))

    def _all_records(self, after_position: int, up_to: int) -> Iterator[RecordedEvent]:
        sequence = self._call(self._reader.start(after_position))
        assembler = Assembler(self.location)
        while sequence <= up_to:
            messages = self._call(self._reader.chunk_of_all(sequence, up_to))
            if not messages:
                return
            sequence = messages[-1].sequence + 1
            try:
                frames = assembler.frames(messages)
            except CorruptLogError:
                self._raise_if_truncated(after_position, lambda bases: bases.position, "all")
                raise
            for frame in frames:
                for record in _records(frame):
                    if record.position > after_position:
                        self._check_open()
                        after_position = record.position
                        yield record

    def _raise_if_truncated(self, after: int, base_of: Callable[[Bases], int], what: str) -> None:
        """Where events are missing because they were truncated meanwhile, that is what to say."""
        base = base_of(self._call(self._retention.bases(fresh=True)))
        if base > after:
            raise truncated_below(what, after, base)

    # --- snapshots and retention --------------------------------------------------------------------------

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.save_snapshot`; it goes to JetStream's object store.

        Raises:
            OwnershipLostError: another node owns the stream: what this one has folded may not be in the log.
            EventLogError: its version is out of range, or it could not be stored.
        """
        self._check_writable("save a snapshot in")
        self._call(self._retention.save(snapshot))

    def snapshots(self, stream: str) -> list[Snapshot]:
        """The snapshots of a stream, newest first; damaged ones are left out, with a warning."""
        return self._call(self._retention.snapshots(stream))

    def base_position(self) -> int:
        """Position up to which events were truncated; 0 where all are there."""
        return self._call(self._retention.bases()).position

    def base_version(self, stream: str) -> int:
        """Version up to which a stream's events were truncated; 0 where all are there."""
        return self._call(self._retention.bases()).versions.get(stream, 0)

    def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """See :meth:`mpreg_mq.events.log.RetainingLog.truncate`; O(messages that go)."""
        self._check_writable("truncate")
        self._call(self._retention.truncate(position, bases))

    def record_end(self, position: int) -> int:
        """``position``, within the log: it can be truncated anywhere."""
        return max(self.base_position(), min(position, self.last_position()))

    def reclaim(self) -> bool:
        """Purge the truncated messages of one stream; whether there are more."""
        self._check_writable("reclaim")
        return self._call(self._retention.reclaim())

    def size_bytes(self) -> int:
        """Bytes that the events take on one replica."""
        return self._call(self._retention.size_bytes())

    def adopt(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Begin an empty log with streams that were truncated elsewhere; its positions are its own, from the start."""
        self._check_writable("adopt")
        self._call(self._retention.adopt(bases))

    def has_room(self) -> bool:
        """True, as far as this log knows: the servers say at an append when they are full."""
        return not self._closed

    # --- the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection; calling it again does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._thread.call(self._engine.close())
                self._thread.stop()


async def _open(target: NatsTarget, read_only: bool) -> tuple[Engine, dict[str, Any]]:
    engine = await Engine.connect(target)
    try:
        info = await engine.ensure_stream(make=not read_only)
        if not read_only:
            await warn_unless_synced(target)
    except BaseException:
        await engine.close()
        raise
    return engine, info


def _records(frame: Frame) -> Iterator[RecordedEvent]:
    for place, event in enumerate(frame.events):
        yield RecordedEvent(
            position_of(frame.sequence, place + 1), frame.stream, frame.label.first_version + place, event
        )
