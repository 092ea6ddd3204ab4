"""A node of a cluster: its lease, its view of the others, the queues it owns, and the requests it answers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import nats
from nats.aio.msg import Msg

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.store import DEFAULT_SNAPSHOT_EVENTS
from mpreg_mq.clock import Clock, SystemClock
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.bucket import Bucket
from mpreg_mq.cluster.configuration import ClusterConfiguration
from mpreg_mq.cluster.directory import Directory
from mpreg_mq.cluster.fabric import FirstReachable
from mpreg_mq.cluster.metrics import ClusterMetrics
from mpreg_mq.cluster.ownership import TAKEOVERS_AT_ONCE, Ownership
from mpreg_mq.cluster.records import NodeRecord, encode_record, node_key
from mpreg_mq.cluster.transport import NatsTransport, NobodyThereError, Transport
from mpreg_mq.cluster.watched_log import WatchedLog
from mpreg_mq.cluster.wire import Outcome, Reply
from mpreg_mq.ending import Tasks
from mpreg_mq.errors import EventLogError, MessageQueueError
from mpreg_mq.events.nats import NatsTarget
from mpreg_mq.events.nats.engine import Engine, MismatchError, Patience, RefusedError, UnansweredError
from mpreg_mq.events.nats.subjects import PREFIX

logger = logging.getLogger("mpreg_mq")

KNOWN_SECONDS = 1.0
"""How long a node waits to hear of a queue that was made; one that it does not hear of by then is gone again."""
SHORTEST_PAUSE_SECONDS = 0.02
"""Between two looks, however often somebody says that something changed."""

FIRE_SECONDS = 5.0
"""How long a node may take to confirm that it has a fire-and-forget message."""

LAST_WORDS_SECONDS = 2.0
"""How long a node that leaves waits for what it says to others to arrive."""

OnFireAndForget = Callable[[str, wire.Fired], None]


class Node:
    """One process of a cluster, on the event loop that starts it.

    Args:
        target: the log that the cluster shares.
        configuration: this node's part.
        clock: the queues' time; leases go by the monotonic clock.
        fabric: a transport that is preferred to NATS where it reaches a member.
        snapshot_events: how many events of a queue lie between two snapshots of it; None: there are none.
    """

    def __init__(
        self,
        target: NatsTarget,
        configuration: ClusterConfiguration,
        clock: Clock | None = None,
        fabric: Transport | None = None,
        snapshot_events: int | None = DEFAULT_SNAPSHOT_EVENTS,
    ) -> None:
        self.target = target
        self.configuration = configuration
        self.metrics = ClusterMetrics()
        self.member = f"{configuration.node_id}.{secrets.token_hex(4)}"
        self.draining = False
        self.directory: Directory
        self.transport: Transport
        self.ownership: Ownership | None = None
        self.on_fire_and_forget: OnFireAndForget | None = None
        self.clock = clock or SystemClock()
        self._fabric = fabric
        self._snapshot_events = snapshot_events
        self._engine: Engine
        self._log: WatchedLog | None = None
        self._renewed_at = 0.0
        self._renewals = 0
        self._revision: int | None = None
        self._nudged = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None
        self._replaced = False
        self._members: frozenset[str] = frozenset()
        self._leaving = False
        self._background = Tasks()

    # --- beginning ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, take part, and own what this node should.

        Raises:
            EventLogError: the servers do not answer, or the stream is another program's.
        """
        loop = asyncio.get_running_loop()
        self._engine = await Engine.connect(self.target)
        try:
            await self._engine.ensure_stream(make=True)
            bucket = Bucket(self._engine)
            await bucket.ensure()
            self.directory = Directory(bucket, loop.time, 3 * self.configuration.look_seconds)
            # A bucket that was made just now may have no leader yet.
            await self._patiently(self.directory.refresh)
            over_nats = NatsTransport(self._engine.client, self.target.stream)
            self.transport = over_nats if self._fabric is None else FirstReachable(self._fabric, over_nats)
            if self.configuration.owns_queues:
                await self._begin_to_own(loop)
            await self._subscribe()
            await self.transport.serve(self.member, self._serve)
            await self._patiently(self._renew)
            await self._patiently(self.directory.refresh)
            if self.ownership is not None:
                await self._patiently(self.ownership.adopt_streams)
        except (RefusedError, UnansweredError) as error:
            await self._abandon()
            raise EventLogError(f"cluster: cannot join at {self.target.location}: {error}") from error
        except BaseException:
            await self._abandon()
            raise
        self._tending = loop.create_task(self._tend())
        await self._announce()

    async def _patiently(self, attempt: Callable[[], Awaitable[object]]) -> None:
        """Try until it is answered, as long as connecting may take.

        Raises:
            UnansweredError: it was not.
        """
        patience = Patience(self.target.connect_timeout_seconds)
        while True:
            try:
                await attempt()
                return
            except UnansweredError:
                if not await patience.wait():
                    raise

    async def _begin_to_own(self, loop: asyncio.AbstractEventLoop) -> None:
        def on_failure(stream: str, error: EventLogError) -> None:
            loop.call_soon_threadsafe(self._on_append_failed, stream, error)

        threads = ThreadPoolExecutor(TAKEOVERS_AT_ONCE, "mpreg-mq-node")
        try:
            self._log = await loop.run_in_executor(threads, WatchedLog, self.target, self.metrics, on_failure)
        except BaseException:
            threads.shutdown(wait=False)
            raise
        self.ownership = Ownership(
            self.member,
            self.configuration,
            self.directory,
            self._log,
            self.clock,
            self.metrics,
            self._fire,
            self.nudge,
            self._snapshot_events,
            threads,
        )

    def _on_append_failed(self, stream: str, error: EventLogError) -> None:
        if self.ownership is not None:
            self.ownership.on_append_failed(stream, error)

    async def _subscribe(self) -> None:
        async def on_changed(message: Msg) -> None:
            self._nudged.set()

        await self._engine.client.subscribe(self._subject("changed"), cb=on_changed)

    def _subject(self, kind: str) -> str:
        return f"{PREFIX}.{self.target.stream}.{kind}"

    async def _abandon(self) -> None:
        if self.ownership is not None:
            await self.ownership.close()
        await self._engine.close()

    # --- the lease ----------------------------------------------------------------------------------------

    @property
    def lease_age_seconds(self) -> float:
        """Seconds since this node last began to renew its lease successfully."""
        return asyncio.get_running_loop().time() - self._renewed_at

    async def _renew(self) -> None:
        """Write this node's record; another process of the same name makes that fail."""
        began = asyncio.get_running_loop().time()
        self._renewals += 1
        record = NodeRecord(
            self.configuration.node_id,
            self.member.partition(".")[2],
            self.configuration.owns_queues,
            self.configuration.lease_seconds,
            self.draining,
            self._renewals,
        )
        key = node_key(self.configuration.node_id)
        try:
            self._revision = await self.directory.bucket.put(key, encode_record(record), self._revision)
        except MismatchError:
            await self.directory.refresh()
            seen = self.directory.nodes.get(self.configuration.node_id)
            if seen is not None and seen.record.member == self.member:
                # A renewal that was not confirmed in time was stored after all.
                self._revision = seen.revision
                return
            # Removed means that the others waited long enough; another member's means that the name is taken.
            self._replaced = seen is not None
            self._revision = None
            return
        self._renewed_at = began

    async def _tend(self) -> None:
        """Renew, look, act: at least every ``look_seconds``, and whenever somebody says that something changed."""
        pause = self.configuration.look_seconds
        while not self._leaving:
            self._nudged.clear()
            try:
                await self._look()
            except (UnansweredError, RefusedError, MismatchError) as error:
                logger.info("cluster: %s: %s", self.member, error)
            except Exception:
                logger.exception("cluster: %s: looking after its queues failed", self.member)
            self._check_lease()
            if self.ownership is not None and not self._replaced:
                self.ownership.tend()
            await asyncio.sleep(SHORTEST_PAUSE_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._nudged.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        if self.lease_age_seconds >= self.configuration.look_seconds * 0.9 and not self._replaced:
            await self._renew()
        await self.directory.refresh()
        before, self._members = self._members, self.directory.members()
        if self.ownership is not None and not before <= self._members:
            self.ownership.detach_gone_members()
        await self._remove_expired()

    async def _remove_expired(self) -> None:
        """Take records of nodes away that have been gone for long; their queues have found new owners."""
        for seen in self.directory.expired():
            age = asyncio.get_running_loop().time() - seen.seen_at
            if age > 10 * seen.record.lease_seconds and seen.record.member != self.member:
                await self.directory.bucket.remove(node_key(seen.record.node), seen.revision)

    def _check_lease(self) -> None:
        if self.ownership is None or not self.ownership.queues:
            return
        if self._replaced:
            self.ownership.lose_all(f"another process took the node id {self.configuration.node_id!r}")
        elif self.lease_age_seconds >= self.configuration.lease_seconds:
            self.ownership.lose_all(f"its lease was not renewed for {self.lease_age_seconds:.1f} s")

    def nudge(self) -> None:
        """Something changed here: look and act soon, and let the others do so."""
        self._nudged.set()
        self.in_background(self._announce())

    def look_soon(self) -> None:
        """Look now instead of at the next interval."""
        self._nudged.set()

    async def hears_of(self, queue: str) -> bool:
        """Wait until this node knows of a queue that was there just now; False where it is gone again by then."""
        loop = asyncio.get_running_loop()
        end = loop.time() + KNOWN_SECONDS
        while queue not in self.directory.queues and loop.time() < end:
            self.look_soon()
            await self.directory.changed(0.1)
        return queue in self.directory.queues

    def in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Begin something that nobody waits for."""
        self._background.begin(coroutine)

    async def _announce(self) -> None:
        try:
            await self._engine.client.publish(self._subject("changed"), b"")
        except (nats.errors.Error, OSError) as error:
            logger.debug("cluster: a change was not announced, the others will look: %s", error)

    # --- requests -----------------------------------------------------------------------------------------

    async def _serve(self, data: bytes) -> bytes:
        try:
            queue, asked = wire.decode_request(data)
        except msgspec.MsgspecError as error:
            return wire.encode_reply(wire.refused(MessageQueueError(f"cluster: a request is none: {error}")))
        return wire.encode_reply(await self.carry_out(queue, asked))

    async def carry_out(self, queue: str, asked: msgspec.Struct) -> Reply:
        """What comes of a request to this node."""
        self.metrics.requests_served += 1
        if type(asked) is wire.GetStatus:
            return wire.done(0, self.status())
        if type(asked) is wire.Fired:
            if self.on_fire_and_forget is not None:
                self.on_fire_and_forget(queue, asked)
            return wire.done(0, self.on_fire_and_forget is not None)
        if self.ownership is None:
            return Reply(Outcome.MOVED)
        owned = self.ownership.queues.get(queue)
        try:
            if type(asked) is c.Open and owned is None:
                return wire.done(1, await self.ownership.create(asked.configuration))
            if owned is None:
                return Reply(Outcome.MOVED)
            reply = await owned.carry_out(asked)
            if type(asked) is c.Delete and reply.outcome is Outcome.DONE:
                await self.ownership.delete(queue)
            return reply
        except EventLogError as error:
            return Reply(Outcome.UNAVAILABLE, detail=str(error))
        except MessageQueueError as error:
            return wire.refused(error)

    def status(self) -> wire.NodeStatus:
        """This node, as it sees itself."""
        owned = [] if self.ownership is None else list(self.ownership.queues.values())
        return wire.NodeStatus(
            self.member,
            self.draining or self.directory.is_draining(self.configuration.node_id),
            self.lease_age_seconds,
            tuple(queue.status() for queue in owned),
            self.metrics.snapshot(self.lease_age_seconds, len(owned)),
        )

    def _fire(self, queue: str, send: c.Send, chosen: dict[str, list[str]]) -> None:
        """Fire-and-forget: to the callbacks that were chosen, on whichever node they are, now (G1)."""
        for member, subscription_ids in chosen.items():
            self.in_background(self._fire_at(member, queue, wire.Fired(send, subscription_ids)))

    async def _fire_at(self, member: str, queue: str, fired: wire.Fired) -> None:
        if member == self.member:
            await self.carry_out(queue, fired)
            return
        try:
            await self.transport.ask(member, wire.encode_request(queue, fired), FIRE_SECONDS)
        except (NobodyThereError, UnansweredError) as error:
            logger.info("queue %s: a fire-and-forget message was lost: %s", queue, error)

    # --- the end ------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Give all queues away, and take none until this process ends."""
        self.draining = True
        self._renewed_at = 0.0
        self.nudge()

    async def stop(self) -> None:
        """Hand the queues over, leave, and close the connection."""
        if not await self._stop_tending():
            return
        self.draining = True
        if self.ownership is not None:
            try:
                await self._renew()
            except (UnansweredError, RefusedError) as error:
                logger.info("cluster: leaving without saying so: %s", error)
            await self.ownership.stop()
        if self._background:
            await asyncio.wait(self._background, timeout=LAST_WORDS_SECONDS)
        await self.transport.stop()
        try:
            await self.directory.bucket.remove(node_key(self.configuration.node_id), self._revision)
            await self._announce()
            await self._engine.client.flush(timeout=2)
        except (UnansweredError, RefusedError, MismatchError, nats.errors.Error, OSError) as error:
            logger.info("cluster: leaving without saying so: %s", error)
        await self._engine.close()

    async def _stop_tending(self) -> bool:
        if self._tending is None:
            return False
        tending, self._tending = self._tending, None
        # A cancellation gets lost in a wait_for that ends at the same moment (Python 3.11), so there is a flag too.
        self._leaving = True
        self._nudged.set()
        tending.cancel()
        await asyncio.wait([tending])
        return True

    async def kill(self) -> None:
        """End without handing anything over, as a crash would; for tests."""
        await self._stop_tending()
        if self.ownership is not None:
            for owned in list(self.ownership.queues.values()):
                owned.end()
            await self.ownership.close()
        await self._engine.close()
