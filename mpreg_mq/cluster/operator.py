"""What an operator does to a cluster from outside: look, move a queue, drain a node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import msgspec
import nats

from mpreg_mq._validation import describe
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.bucket import Bucket
from mpreg_mq.cluster.directory import Directory
from mpreg_mq.cluster.records import DrainRecord, QueueRecord, drain_key, encode_record, node_of, queue_key
from mpreg_mq.cluster.transport import NatsTransport, NobodyThereError
from mpreg_mq.errors import EventLogError, InvalidOptionError, QueueNotFoundError
from mpreg_mq.events.nats import NatsTarget
from mpreg_mq.events.nats.engine import Engine, MismatchError, RefusedError, UnansweredError
from mpreg_mq.events.nats.subjects import PREFIX

ANSWER_SECONDS = 2.0
LOOK_SECONDS = 0.1


@attrs.frozen
class MemberStatus:
    """A node of the bucket; ``status`` is None where it does not answer."""

    node: str
    member: str
    owns_queues: bool
    draining: bool
    status: wire.NodeStatus | None


@attrs.frozen
class QueueStatus:
    """A queue of the bucket, and what its owner says of it; ``owned`` is None where nobody says anything."""

    name: str
    owner: str
    epoch: int
    pinned: str
    owned: wire.OwnedStatus | None


@attrs.frozen
class ClusterStatus:
    """All nodes and queues, by name."""

    nodes: tuple[MemberStatus, ...]
    queues: tuple[QueueStatus, ...]


class ClusterOperator:
    """A visitor of a cluster. Use :meth:`connected`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bucket = Bucket(engine)
        self._transport = NatsTransport(engine.client, engine.stream)

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, log: str) -> AsyncIterator[ClusterOperator]:
        """Connect to the cluster on a log.

        Raises:
            ConfigurationError: the address is none.
            EventLogError: no server answers, or there is no such log or no cluster on it.
        """
        engine = await Engine.connect(NatsTarget.parse(log))
        try:
            await engine.ensure_stream(make=False)
            yield cls(engine)
        finally:
            await engine.close()

    async def _directory(self) -> Directory:
        directory = Directory(self._bucket, asyncio.get_running_loop().time, 1.0)
        try:
            await directory.refresh()
        except (UnansweredError, RefusedError) as error:
            raise EventLogError(f"cluster: there is none on {self._engine.target.location} ({error})") from error
        return directory

    # --- looking ------------------------------------------------------------------------------------------

    async def status(self) -> ClusterStatus:
        """Every node and queue, asking every node; a node that does not answer in two seconds has no status.

        Raises:
            EventLogError: the bucket does not answer, or there is none.
        """
        directory = await self._directory()
        seen = sorted(directory.nodes.values(), key=lambda one: one.record.node)
        answers = await asyncio.gather(*(self._ask(one.record.member) for one in seen))
        nodes = tuple(
            MemberStatus(
                one.record.node,
                one.record.member,
                one.record.owns_queues,
                directory.is_draining(one.record.node),
                answer,
            )
            for one, answer in zip(seen, answers, strict=True)
        )
        owned = {
            (answer.member, queue.name): queue for answer in answers if answer is not None for queue in answer.queues
        }
        queues = tuple(
            QueueStatus(
                name,
                node_of(queue.record.owner),
                queue.record.epoch,
                queue.record.pinned,
                owned.get((queue.record.owner, name)),
            )
            for name, queue in sorted(directory.queues.items())
        )
        return ClusterStatus(nodes, queues)

    async def _ask(self, member: str) -> wire.NodeStatus | None:
        asked = wire.GetStatus()
        try:
            answer = await self._transport.ask(member, wire.encode_request("", asked), ANSWER_SECONDS)
            status: wire.NodeStatus = wire.answer_of(asked, wire.decode_reply(answer))
        except (NobodyThereError, UnansweredError, msgspec.MsgspecError):
            return None
        return status

    # --- changing -----------------------------------------------------------------------------------------

    async def move(self, queue: str, node: str | None, seconds: float = 30.0) -> str:
        """Give a queue to a node, for as long as that lives, and wait until it has it; the owner then.

        Args:
            queue: its name.
            node: its id; None lets the cluster choose again.
            seconds: how long to wait.

        Raises:
            QueueNotFoundError: there is no such queue.
            InvalidOptionError: there is no such node, or it takes no queues.
            EventLogError: it did not happen in time.
        """
        directory = await self._directory()
        if queue not in directory.queues:
            known = ", ".join(sorted(directory.queues)) or "none"
            raise QueueNotFoundError(f"move: queue {describe(queue)} does not exist; there are: {known}")
        if node is not None and node not in directory.candidates():
            able = ", ".join(sorted(directory.candidates())) or "none"
            raise InvalidOptionError(f"move: node {describe(node)} takes no queues; those that do: {able}")
        await self._change_queue(directory, queue, pinned=node or "")

        def there(now: Directory) -> bool:
            seen = now.queues.get(queue)
            return seen is not None and bool(seen.record.owner) and node in (None, node_of(seen.record.owner))

        await self._until(there, seconds, f"queue {queue!r} did not move")
        while True:
            status = await self.status()
            for one in status.queues:
                if one.name == queue and one.owned is not None:
                    return one.owner
            await asyncio.sleep(LOOK_SECONDS)

    async def _change_queue(self, directory: Directory, queue: str, **changes: Any) -> None:
        for _ in range(10):
            seen = directory.queues[queue]
            record: QueueRecord = msgspec.structs.replace(seen.record, **changes)
            try:
                await self._bucket.put(queue_key(queue), encode_record(record), seen.revision)
            except MismatchError:
                await directory.refresh()
                continue
            except (UnansweredError, RefusedError) as error:
                raise EventLogError(f"cluster: queue {queue!r}: {error}") from error
            await self._announce()
            return
        raise EventLogError(f"cluster: queue {queue!r} keeps changing; try again")

    async def drain(self, node: str, seconds: float = 30.0) -> int:
        """Have a node give all its queues away and take none, and wait until it owns none; how many it had.

        Raises:
            InvalidOptionError: there is no such node.
            EventLogError: it did not happen in time; it stays asked for.
        """
        directory = await self._directory()
        if node not in directory.nodes:
            known = ", ".join(sorted(directory.nodes)) or "none"
            raise InvalidOptionError(f"drain: node {describe(node)} does not exist; there are: {known}")
        had = _owned(directory, node)
        await self._write(drain_key(node), encode_record(DrainRecord(node)))
        await self._until(lambda now: not _owned(now, node), seconds, f"node {node!r} still owns queues")
        return had

    async def undrain(self, node: str) -> None:
        """Let a node take queues again.

        Raises:
            EventLogError: the bucket does not answer.
        """
        await self._write(drain_key(node), None)

    async def _write(self, key: str, value: bytes | None) -> None:
        try:
            if value is None:
                await self._bucket.remove(key)
            else:
                await self._bucket.put(key, value)
        except (UnansweredError, RefusedError) as error:
            raise EventLogError(f"cluster: {key}: {error}") from error
        await self._announce()

    async def _announce(self) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._engine.client.publish(f"{PREFIX}.{self._engine.stream}.changed", b"")

    async def _until(self, holds: Callable[[Directory], bool], seconds: float, otherwise: str) -> None:
        directory = await self._directory()
        try:
            async with asyncio.timeout(seconds):
                while not holds(directory):
                    await asyncio.sleep(LOOK_SECONDS)
                    await directory.refresh()
        except (TimeoutError, UnansweredError) as error:
            raise EventLogError(
                f"cluster: {otherwise} within {seconds:g} s; see 'mpreg-mq cluster status' for who answers"
            ) from error


def _owned(directory: Directory, node: str) -> int:
    return sum(node_of(seen.record.owner) == node for seen in directory.queues.values())
