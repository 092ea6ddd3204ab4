"""Appends to JetStream: optimistic concurrency, ownership, and what to believe when no answer comes.

The sequence of a subject's last message is what an append expects. Whoever has appended since makes it fail, and the
server decides that, not a clock here. A new owner appends a record of ownership first: from then on an append of the
old owner expects a sequence that is not the last any more.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Sequence

import attrs

from mpreg_mq.errors import EventLogError, LogFullError, OwnershipLostError
from mpreg_mq.events.log import Append, version_conflict
from mpreg_mq.events.nats.engine import Engine, MismatchError, Outgoing, Patience, RefusedError, Stored, UnansweredError
from mpreg_mq.events.nats.frames import EVENTS_PER_FRAME, HEADER, NO_HEAD, Head, Label, Piece, encode_frame
from mpreg_mq.events.nats.subjects import events_subject

MESSAGE_ID = "Nats-Msg-Id"


@attrs.frozen
class EncodedAppend:
    """An append whose events are bytes."""

    append: Append
    pieces: Sequence[Piece]


@attrs.define
class _Run:
    """Events that go into one frame."""

    stream: str
    pieces: list[Piece]
    count: int = 0


@attrs.define
class _Plan:
    """One atomic commit: its messages, and the heads of its streams before and after."""

    messages: list[Outgoing] = attrs.field(factory=list)
    before: dict[str, Head] = attrs.field(factory=dict)
    after: dict[str, tuple[int, Label]] = attrs.field(factory=dict)
    """By stream: the place among the messages of its last one, and that one's label."""

    def heads(self, last: int) -> dict[str, Head]:
        """The heads after the commit, whose last message has this sequence."""
        return {
            stream: label.head(last - len(self.messages) + 1 + place) for stream, (place, label) in self.after.items()
        }


class _ChangedError(Exception):
    """Somebody else has appended to a stream of the plan."""


class Appender:
    """Knows the ends of the streams it has appended to. Coroutines of the engine's loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._heads: dict[str, Head] = {}
        self._epochs: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._run = uuid.uuid4().hex[:16]
        self._numbers = itertools.count(1)
        self._seconds = engine.target.append_timeout_seconds

    # --- heads --------------------------------------------------------------------------------------------

    async def head(self, stream: str) -> Head:
        """The end of a stream as the leader has it; O(1) requests."""
        stored = await self._engine.last(events_subject(self._engine.stream, stream))
        return head_of(stored)

    async def _known_head(self, stream: str) -> Head:
        known = self._heads.get(stream)
        return await self._refreshed(stream) if known is None else known

    async def _refreshed(self, stream: str) -> Head:
        head = await self.head(stream)
        self._heads[stream] = head
        return head

    # --- appending ----------------------------------------------------------------------------------------

    async def append(self, appends: Sequence[EncodedAppend]) -> None:
        """Add all events in one atomic commit, or none.

        Raises:
            VersionConflictError: a stream is at another version than expected.
            OwnershipLostError: a stream belongs to another owner.
            EventLogError: refused, or the outcome is unknown.
        """
        streams = sorted({one.append.stream for one in appends})
        locks = [self._locks.setdefault(stream, asyncio.Lock()) for stream in streams]
        async with _All(locks):
            patience = Patience(self._seconds)
            while True:
                runs = await self._fit(appends)
                if not runs:
                    return
                try:
                    await self._commit(runs)
                    return
                except _ChangedError:
                    for stream in streams:
                        self._heads.pop(stream, None)
                    # Where it still fits, a record of ownership came between, of an epoch that is not above ours.
                    if not await patience.wait():
                        raise EventLogError(
                            f"append to {self._engine.target.location}: other writers kept coming first; try again"
                        ) from None

    async def append_each(self, appends: Sequence[EncodedAppend]) -> list[EventLogError | None]:
        """Append to every stream by itself, all at once; what went wrong with each append, in order.

        The appends of one stream go into one frame, so they succeed or fail together.
        """
        by_stream: dict[str, list[int]] = {}
        for index, one in enumerate(appends):
            by_stream.setdefault(one.append.stream, []).append(index)

        async def one_stream(indexes: list[int]) -> EventLogError | None:
            try:
                await self.append([appends[index] for index in indexes])
            except EventLogError as error:
                return error
            return None

        groups = list(by_stream.values())
        outcomes: list[EventLogError | None] = [None] * len(appends)
        for indexes, error in zip(groups, await asyncio.gather(*map(one_stream, groups)), strict=True):
            for index in indexes:
                outcomes[index] = error
        return outcomes

    async def _fit(self, appends: Sequence[EncodedAppend]) -> list[_Run]:
        """The runs of events of one stream, if every append fits."""
        versions: dict[str, int] = {}
        runs: list[_Run] = []
        for one in appends:
            append = one.append
            version = versions.get(append.stream)
            if version is None:
                head = await self._known_head(append.stream)
                if head.version != append.expected_version or not append.events:
                    head = await self._refreshed(append.stream)
                self.check_owner(append.stream, head)
                version = head.version
            if append.expected_version != version:
                raise version_conflict(append, version)
            versions[append.stream] = version + len(append.events)
            for piece in one.pieces:
                if not runs or runs[-1].stream != append.stream or runs[-1].count + piece.count >= EVENTS_PER_FRAME:
                    runs.append(_Run(append.stream, []))
                runs[-1].pieces.append(piece)
                runs[-1].count += piece.count
        return runs

    def check_owner(self, stream: str, head: Head) -> None:
        """Raise unless this log may append to a stream that ends so."""
        epoch = self._epochs.get(stream, 0)
        if head.epoch > epoch:
            raise OwnershipLostError(
                f"append: stream {stream!r} has an owner of epoch {head.epoch}, this log "
                + (f"was its owner of epoch {epoch}" if epoch else "is not its owner")
                + "; send to the owner instead"
            )

    async def _commit(self, runs: Sequence[_Run], owner: str = "") -> None:
        plan = _Plan()
        for run in runs:
            before = plan.before.get(run.stream)
            if before is None:
                before = plan.before[run.stream] = await self._known_head(run.stream)
                expected: int | None = before.sequence
            else:
                # JetStream checks against what was there before the commit, so only a stream's first message can.
                expected = None
            head = before if expected is not None else plan.after[run.stream][1].head(0)
            subject = events_subject(self._engine.stream, run.stream)
            for label, part in encode_frame(
                head, run.pieces, self._epochs.get(run.stream, 0), owner, self._engine.part_bytes
            ):
                identifier = f"{self._run}-{next(self._numbers)}"
                plan.messages.append(Outgoing(subject, part, identifier, {HEADER: str(label)}, expected))
                plan.after[run.stream] = (len(plan.messages) - 1, label)
                expected = None
        self._heads.update(plan.heads(await self._store(plan)))

    async def _store(self, plan: _Plan) -> int:
        """Store the messages of a plan, trying again as long as it is unknown; the sequence of the last.

        Raises:
            _ChangedError: somebody else was there first.
            EventLogError: refused, or still unknown at the end of the time.
        """
        patience = Patience(self._seconds)
        while True:
            try:
                return await self._engine.store(plan.messages)
            except MismatchError as mismatch:
                first = await self._first_after(plan)
                if first is not None:
                    return first + len(plan.messages) - 1
                # Nothing is there yet, so an earlier try of ours is on its way.
                last: Exception = mismatch
            except UnansweredError as unanswered:
                last = unanswered
            except RefusedError as refused:
                kind = LogFullError if "maximum" in str(refused) else EventLogError
                raise kind(f"append to {self._engine.target.location}: JetStream says: {refused}") from refused
            if not await patience.wait():
                self._forget(plan)
                raise EventLogError(
                    f"append to {self._engine.target.location}: no confirmation within {patience.seconds:g} s "
                    f"({last}); the events may be stored or not: read the stream again before deciding anew"
                ) from last

    def _forget(self, plan: _Plan) -> None:
        for stream in plan.before:
            self._heads.pop(stream, None)

    async def _first_after(self, plan: _Plan) -> int | None:
        """Sequence of the plan's first message if it is there; None if its stream is as it was.

        Raises:
            _ChangedError: another message came first.
        """
        first = plan.messages[0]
        found = await self._engine.next(first.subject, (first.expected or 0) + 1)
        if found is not None:
            if found.headers.get(MESSAGE_ID) == first.identifier:
                return found.sequence
            raise _ChangedError
        for stream, before in plan.before.items():
            if (await self.head(stream)).sequence != before.sequence:
                raise _ChangedError
        return None

    # --- ownership ----------------------------------------------------------------------------------------

    async def claim(self, stream: str, owner: str, above: int = 0) -> Head:
        """Become the owner of a stream: append a record of ownership of a new epoch; the head after it.

        From then on every append of whoever owned it before is refused by JetStream.

        Args:
            stream: whose events.
            owner: name of the node, kept in the record.
            above: the new epoch is above this and above every one before.

        Raises:
            OwnershipLostError: somebody else claimed it at the same time.
            EventLogError: refused, or the outcome is unknown.
        """
        async with self._locks.setdefault(stream, asyncio.Lock()):
            head = await self._refreshed(stream)
            earlier = self._epochs.get(stream, 0)
            patience = Patience(self._seconds)
            while True:
                self._epochs[stream] = max(above, head.epoch) + 1
                try:
                    await self._commit([_Run(stream, [])], owner)
                    return self._heads[stream]
                except _ChangedError:
                    epoch = head.epoch
                    head = await self._refreshed(stream)
                    # The owner before may append until this succeeds; another claim is another matter.
                    if head.epoch == epoch and await patience.wait():
                        continue
                    self._epochs[stream] = earlier
                    raise OwnershipLostError(
                        f"claim: stream {stream!r} was claimed by somebody else (epoch {head.epoch}); ask who owns it"
                    ) from None
                except EventLogError:
                    self._epochs[stream] = earlier
                    raise

    async def begin_at(self, stream: str, version: int) -> None:
        """Let an empty stream begin after a version: a frame without events says so.

        Raises:
            EventLogError: refused, or the outcome is unknown.
        """
        async with self._locks.setdefault(stream, asyncio.Lock()):
            self._heads[stream] = Head(0, version)
            try:
                await self._commit([_Run(stream, [])])
            except _ChangedError:
                self._heads.pop(stream, None)
                raise EventLogError(f"adopt: stream {stream!r} has events, expected an empty log") from None

    def release(self, stream: str) -> None:
        """Forget that this log owns a stream; its next append is refused."""
        self._epochs.pop(stream, None)
        self._heads.pop(stream, None)


class _All:
    """Several locks at once, in one order, so that nobody waits in a circle."""

    def __init__(self, locks: Sequence[asyncio.Lock]) -> None:
        self._locks = locks
        self._held: list[asyncio.Lock] = []

    async def __aenter__(self) -> None:
        for lock in self._locks:
            await lock.acquire()
            self._held.append(lock)

    async def __aexit__(self, *_: object) -> None:
        for lock in self._held:
            lock.release()


def head_of(stored: Stored | None) -> Head:
    """The end of a stream from its last message."""
    if stored is None:
        return NO_HEAD
    return label_of(stored).head(stored.sequence)


def label_of(stored: Stored) -> Label:
    """The label of a message of a log.

    Raises:
        CorruptLogError: it has none.
    """
    return Label.parse(stored.headers.get(HEADER, ""), f"message {stored.sequence} of {stored.subject}")
