"""Snapshots in JetStream's object store, and where the log begins after its first events were taken away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from hashlib import blake2b

import msgspec
import nats
from nats.js import api
from nats.js.errors import NotFoundError
from nats.js.object_store import ObjectStore

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.log import Snapshot, check_bases
from mpreg_mq.events.nats.appending import Appender, label_of
from mpreg_mq.events.nats.engine import Engine, RefusedError
from mpreg_mq.events.nats.frames import EVENTS_PER_FRAME
from mpreg_mq.events.nats.reading import Reader, position_of
from mpreg_mq.events.nats.subjects import event_stream_of, events_subject, token

logger = logging.getLogger("mpreg_mq")

SLOTS = ("newest-0", "newest-1")
"""A stream's newest snapshots take turns: the older one is overwritten."""

BASE_SLOT = "base"
RECORD = "base-of-the-log"
CHECKSUM_BYTES = 16
BASES_SECONDS = 1.0
"""How long it is believed where the log begins: a reader that meets a later truncation raises, and asks again."""

READ_TRIES = 3
READ_SECONDS = 2.0
"""How often, and how long each time, an object is tried to read."""


class Bases(msgspec.Struct, frozen=True):
    """Where the log begins: after this position, and each stream after this version."""

    position: int = 0
    versions: dict[str, int] = {}


class Retention:
    """Coroutines of the engine's loop about snapshots and the beginning of the log."""

    def __init__(self, engine: Engine, reader: Reader, appender: Appender) -> None:
        self._engine = engine
        self._reader = reader
        self._appender = appender
        self._objects: ObjectStore | None = None
        self._to_reclaim: list[str] | None = None
        self._bases: Bases | None = None
        self._bases_at = 0.0

    # --- objects ------------------------------------------------------------------------------------------

    async def _store(self, make: bool) -> ObjectStore | None:
        if self._objects is not None:
            return self._objects
        context = self._engine.client.jetstream(timeout=5)
        bucket = f"mpreg-mq-{self._engine.stream}"
        try:
            self._objects = await context.object_store(bucket)
        except NotFoundError:
            if not make:
                return None
            info = await self._engine.api_patiently(f"STREAM.INFO.{self._engine.stream}", {})
            self._objects = await context.create_object_store(
                bucket,
                config=api.ObjectStoreConfig(
                    storage=api.StorageType(info["config"]["storage"]), replicas=int(info["config"]["num_replicas"])
                ),
            )
        return self._objects

    async def _put(self, name: str, body: bytes, description: str = "") -> None:
        try:
            store = await self._store(make=True)
            assert store is not None
            await store.put(name, body, api.ObjectMeta(name=name, description=description))
        except (nats.errors.Error, TimeoutError, OSError, RefusedError) as error:
            raise EventLogError(f"store {name} of {self._engine.target.location}: {error}") from error

    async def _get(self, name: str) -> bytes | None:
        """An object's bytes, which the store has compared with their digest; None where it is missing."""
        last: Exception | None = None
        for _ in range(READ_TRIES):
            try:
                store = await self._store(make=False)
                if store is None:
                    return None
                # An object that is overwritten just now never comes to its end.
                async with asyncio.timeout(READ_SECONDS):
                    return (await store.get(name)).data
            except NotFoundError:
                return None
            except (nats.errors.Error, TimeoutError, OSError) as error:
                last = error
        raise EventLogError(f"read {name} of {self._engine.target.location}: {last!r}") from last

    async def _described(self, name: str) -> str | None:
        try:
            store = await self._store(make=False)
            return None if store is None else (await store.get_info(name)).description
        except NotFoundError:
            return None
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise EventLogError(f"read {name} of {self._engine.target.location}: {error}") from error

    # --- snapshots ----------------------------------------------------------------------------------------

    async def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of the oldest of the newest two.

        Raises:
            EventLogError: the stream is not at its version yet, begins above it, or is not this log's to write.
        """
        stream = snapshot.stream
        head, bases = await self._appender.head(stream), await self.bases()
        base = bases.versions.get(stream, 0)
        if not base <= snapshot.version <= head.version or not head.version:
            raise EventLogError(
                f"snapshot of {stream!r}: got version {snapshot.version}, expected {base} to {head.version}"
            )
        self._appender.check_owner(stream, head)
        kept = [await self._version_in(stream, slot) for slot in SLOTS]
        if snapshot.version in kept:
            slot = kept.index(snapshot.version)
        else:
            if all(version is not None and version > snapshot.version for version in kept):
                return
            slot = min(range(len(SLOTS)), key=lambda index: -1 if (version := kept[index]) is None else version)
        await self._put_snapshot(f"{token(stream)}/{SLOTS[slot]}", snapshot)

    async def _version_in(self, stream: str, slot: str) -> int | None:
        described = await self._described(f"{token(stream)}/{slot}")
        return None if described is None else int(described)

    async def _put_snapshot(self, name: str, snapshot: Snapshot) -> None:
        body = _checksum(snapshot) + snapshot.version.to_bytes(8, "little") + snapshot.body
        await self._put(name, body, str(snapshot.version))

    async def snapshots(self, stream: str) -> list[Snapshot]:
        """The snapshots of a stream that are what was written, newest first."""
        base = (await self.bases()).versions.get(stream, 0)
        found: dict[int, Snapshot] = {}
        for slot in (*SLOTS, BASE_SLOT):
            name = f"{token(stream)}/{slot}"
            try:
                body = await self._get(name)
            except EventLogError as error:
                logger.warning("log %s: %s; not used", self._engine.target.location, error)
                continue
            if body is None:
                continue
            version = int.from_bytes(body[CHECKSUM_BYTES : CHECKSUM_BYTES + 8], "little")
            snapshot = Snapshot(stream, version, body[CHECKSUM_BYTES + 8 :])
            if body[:CHECKSUM_BYTES] != _checksum(snapshot):
                logger.warning("log %s: the snapshot %s is damaged; not used", self._engine.target.location, name)
            elif version >= base:
                found[version] = snapshot
        return [found[version] for version in sorted(found, reverse=True)]

    # --- the beginning ------------------------------------------------------------------------------------

    async def bases(self, *, fresh: bool = False) -> Bases:
        """Where the log begins, as of a second ago or later, or of now where ``fresh``.

        Raises:
            CorruptLogError: the record of it is damaged.
        """
        now = asyncio.get_running_loop().time()
        if not fresh and self._bases is not None and now - self._bases_at < BASES_SECONDS:
            return self._bases
        body = await self._get(RECORD)
        try:
            self._bases = Bases() if body is None else msgspec.msgpack.decode(body, type=Bases)
        except msgspec.MsgspecError as error:
            raise CorruptLogError(f"log {self._engine.target.location}: where it begins is damaged: {error}") from error
        self._bases_at = now
        return self._bases

    async def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Let the log begin after ``position``; O(messages that go). The record of it makes it so, in one put.

        Raises:
            EventLogError: as :meth:`mpreg_mq.events.log.RetainingLog.truncate`.
        """
        before = await self.bases()
        last = await self._reader.last_position()
        versions = await self._versions_at(before.position, position) if before.position <= position <= last else {}
        check_bases(position, before.position, last, versions, bases)
        await self._begin(position, {**before.versions, **versions}, {one: bases[one] for one in versions})

    async def _begin(self, position: int, versions: dict[str, int], bases: Mapping[str, Snapshot]) -> None:
        for stream, snapshot in bases.items():
            await self._put_snapshot(f"{token(stream)}/{BASE_SLOT}", snapshot)
        self._bases = None
        await self._put(RECORD, msgspec.msgpack.encode(Bases(position, versions)))
        self._to_reclaim = None

    async def _versions_at(self, after: int, position: int) -> dict[str, int]:
        """Versions at ``position`` of the streams that have events between the two."""
        sequence = await self._reader.start(after)
        last = position // EVENTS_PER_FRAME
        versions: dict[str, int] = {}
        while sequence <= last:
            messages = await self._reader.chunk_of_all(sequence, last)
            if not messages:
                break
            sequence = messages[-1].sequence + 1
            for message in messages:
                label = label_of(message)
                count = min(label.count, position - position_of(message.sequence, 0))
                if label.part == label.parts and count > 0:
                    versions[event_stream_of(message.subject)] = label.first_version + count - 1
        return versions

    async def reclaim(self) -> bool:
        """Purge what lies below the base of one stream; whether there are more.

        The last message of a stream stays, whatever it holds: the next append expects its sequence.
        """
        bases = await self.bases()
        if self._to_reclaim is None:
            self._to_reclaim = sorted(bases.versions)
        if not self._to_reclaim:
            return False
        stream = self._to_reclaim.pop()
        head = await self._appender.head(stream)
        if head.sequence:
            first = await self._reader.first_above(stream, bases.versions[stream], head)
            try:
                await self._engine.api_patiently(
                    f"STREAM.PURGE.{self._engine.stream}",
                    {"filter": events_subject(self._engine.stream, stream), "seq": first},
                )
            except RefusedError as error:
                raise EventLogError(f"reclaim {self._engine.target.location}: JetStream says: {error}") from error
        return bool(self._to_reclaim)

    async def adopt(self, bases: Mapping[str, Snapshot]) -> None:
        """Begin an empty log with streams that have had events elsewhere.

        Raises:
            EventLogError: it is not empty, or could not be written.
        """
        if await self._reader.last_sequence():
            raise EventLogError(f"adopt {self._engine.target.location}: found a log with events, expected an empty one")
        await self._begin(0, {stream: base.version for stream, base in bases.items()}, bases)
        await asyncio.gather(*(self._appender.begin_at(stream, base.version) for stream, base in bases.items()))

    async def size_bytes(self) -> int:
        """Bytes of the events, as JetStream counts them on one replica."""
        info = await self._engine.api_patiently(f"STREAM.INFO.{self._engine.stream}", {})
        return int(info["state"]["bytes"])


def _checksum(snapshot: Snapshot) -> bytes:
    content = b"".join((snapshot.version.to_bytes(8, "little"), snapshot.stream.encode(), b"\0", snapshot.body))
    return blake2b(content, digest_size=CHECKSUM_BYTES).digest()
