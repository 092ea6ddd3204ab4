"""Which queues this node owns: takes over, hands over, and lets go of what it has lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import msgspec

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.messages import Recover
from mpreg_mq.actors.queue_actor import make_actor
from mpreg_mq.actors.store import STREAM_PREFIX, Store, stream_of
from mpreg_mq.clock import Clock
from mpreg_mq.cluster.configuration import ClusterConfiguration
from mpreg_mq.cluster.directory import Directory, SeenQueue
from mpreg_mq.cluster.metrics import ClusterMetrics
from mpreg_mq.cluster.owned import OnFired, OwnedQueue
from mpreg_mq.cluster.placement import wanted_owner
from mpreg_mq.cluster.records import QueueRecord, encode_record, node_of, queue_key
from mpreg_mq.cluster.watched_log import WatchedLog
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import EventLogError, MessageQueueError, OwnershipLostError
from mpreg_mq.events.log import read_events
from mpreg_mq.events.nats.engine import MismatchError, RefusedError, UnansweredError
from mpreg_mq.events.types import Event
from mpreg_mq.projections import QueueState
from mpreg_mq.queue import MessageQueue

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("mpreg_mq")

TAKEOVERS_AT_ONCE = 8

RECENT_EVENTS = 5000
"""How far back a new owner looks for acknowledgments whose answers may have been lost."""


class Ownership:
    """The queues of one member. Coroutines of the node's loop."""

    def __init__(
        self,
        member: str,
        configuration: ClusterConfiguration,
        directory: Directory,
        log: WatchedLog,
        clock: Clock,
        metrics: ClusterMetrics,
        on_fired: OnFired,
        on_changed: Callable[[], None],
        snapshot_events: int | None,
        threads: Executor,
    ) -> None:
        self.member = member
        self.node = node_of(member)
        self.queues: dict[str, OwnedQueue] = {}
        self.store = Store.open(log, snapshot_events=snapshot_events)
        self._configuration = configuration
        self._directory = directory
        self._log = log
        self._clock = clock
        self._metrics = metrics
        self._on_fired = on_fired
        self._on_changed = on_changed
        self._changing: dict[str, asyncio.Task[Any]] = {}
        self._takeovers = asyncio.Semaphore(TAKEOVERS_AT_ONCE)
        self._threads = threads

    async def _in_thread(self, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """Call what waits for the servers, on a thread that nothing else in the process can keep busy."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments, **named))

    # --- who should own what ------------------------------------------------------------------------------

    def wanted(self, record: QueueRecord) -> str | None:
        """The member that should own a queue: where an operator moved it, if that lives, else by rendezvous hashing."""
        candidates = self._directory.candidates()
        node = record.pinned if record.pinned in candidates else wanted_owner(record.name, candidates)
        return None if node is None else candidates[node]

    def tend(self) -> None:
        """Begin what has to change: a task for each queue that this node should take, give away or open again."""
        live = self._directory.members()
        for name, seen in list(self._directory.queues.items()):
            if name in self._changing:
                continue
            record = seen.record
            owned = self.queues.get(name)
            wanted = self.wanted(record)
            if owned is not None and record.owner != self.member:
                self.lose(name, f"the bucket says that {record.owner or 'nobody'} owns it")
            elif record.owner == self.member:
                if wanted not in (self.member, None):
                    self._begin(name, self._release(seen))
                elif owned is None and wanted is not None:
                    self._begin(name, self._acquire(seen))
            elif record.owner not in live and wanted == self.member:
                self._begin(name, self._acquire(seen))
        for name in [name for name in self.queues if name not in self._directory.queues and name not in self._changing]:
            self.lose(name, "it is not in the bucket any more")

    def _begin(self, name: str, change: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                async with self._takeovers:
                    await change
            except (MismatchError, UnansweredError, RefusedError, MessageQueueError) as error:
                logger.info("queue %s: its ownership did not change: %s", name, error)
            except Exception:
                logger.exception("queue %s: its ownership could not change", name)
            finally:
                self._changing.pop(name, None)
                self._on_changed()

        self._changing[name] = asyncio.get_running_loop().create_task(run())

    # --- taking over --------------------------------------------------------------------------------------

    async def _acquire(self, seen: SeenQueue) -> None:
        started = asyncio.get_running_loop().time()
        before = seen.record
        record = msgspec.structs.replace(before, owner=self.member, epoch=before.epoch + 1)
        await self._write(record, seen.revision)
        await self._open(record, started)
        if before.owner and before.owner != self.member:
            self._metrics.failovers += 1

    async def _write(self, record: QueueRecord, expected: int) -> int:
        revision = await self._directory.bucket.put(queue_key(record.name), encode_record(record), expected)
        self._directory.note(record, revision)
        return revision

    async def _open(self, record: QueueRecord, started: float) -> None:
        """Claim the stream, so that the owner before cannot append any more, then fold it and serve it."""
        name, stream = record.name, stream_of(record.name)
        head = await self._in_thread(self._log.claim, stream, self.member, record.epoch - 1)
        self._metrics.replay_lag_events += head.version
        try:
            state = await self._in_thread(self.store.load, stream)
        finally:
            self._metrics.replay_lag_events -= head.version
        self._metrics.events_replayed += state.version
        if state.deleted:
            await self._forget(name)
            return
        if not state.created:
            # Whoever entered it ended before it was in the log, and others have been told that there is a queue.
            await self._make(record, state, head.epoch)
            return
        recent = await self._in_thread(self._recent, stream, state.version)
        self._serve(name, state, head.epoch).remember(recent)
        self._metrics.last_takeover_seconds = asyncio.get_running_loop().time() - started
        logger.info("queue %s: owned by %s, epoch %d, %d events", name, self.member, head.epoch, state.version)

    def _recent(self, stream: str, version: int) -> list[Event]:
        """The last events before this ownership."""
        return list(chain.from_iterable(read_events(self._log, stream, max(0, version - RECENT_EVENTS))))

    def _serve(self, name: str, state: QueueState, epoch: int, *, new: bool = False) -> OwnedQueue:
        actor = make_actor(name, self.store, self._clock, state)
        owned = OwnedQueue(name, MessageQueue.of_actor(actor), self.store, epoch, self._on_fired)
        if not new:
            actor.call_now(Recover())
            owned.detach_members(self._is_gone)
        self.queues[name] = owned
        self._metrics.queues_acquired += 1
        self._directory.announce()
        return owned

    async def create(self, configuration: QueueConfiguration) -> bool:
        """Make a queue that this node owns; False if there is one of the name.

        Raises:
            EventLogError: the log or the bucket does not answer.
        """
        name = configuration.name
        while name not in self._directory.queues:
            under_way = self._changing.get(name)
            if under_way is None:
                making = asyncio.get_running_loop().create_task(self._create(configuration))
                self._hold(name, making)
                try:
                    return await making
                except (UnansweredError, RefusedError) as error:
                    raise EventLogError(f"create queue {name!r}: {error}") from error
            # Whether there will be one is not known before.
            await asyncio.wait([under_way])
        return False

    def _hold(self, name: str, change: asyncio.Task[Any]) -> None:
        """Begin no other change of a queue before this one has come to its end."""

        def ended(_: asyncio.Task[Any]) -> None:
            self._changing.pop(name, None)
            self._on_changed()

        self._changing[name] = change
        change.add_done_callback(ended)

    async def _create(self, configuration: QueueConfiguration) -> bool:
        name = configuration.name
        record = QueueRecord(name, configuration, self.member, 1)
        for _ in range(2):
            try:
                revision = await self._write(record, self._directory.removed.get(name, 0))
                break
            except MismatchError:
                await self._directory.refresh()
                if name in self._directory.queues:
                    return False
                # It was there and is gone again, and this node had heard of neither.
        else:
            raise EventLogError(f"create queue {name!r}: others make and delete it at the same time; try again")
        stream = stream_of(name)
        head = await self._in_thread(self._log.claim, stream, self.member)
        state = await self._in_thread(self.store.load, stream)
        if state.created and not state.deleted:
            # In the log though not in the bucket, as in a log that was copied meanwhile.
            self._serve(name, state, head.epoch)
            await self._write(msgspec.structs.replace(record, configuration=state.configuration), revision)
            return False
        await self._make(record, state, head.epoch)
        return True

    async def _make(self, record: QueueRecord, state: QueueState, epoch: int) -> None:
        """Begin the stream of a new queue, or the next life of a deleted one."""
        owned = self._serve(record.name, state, epoch, new=True)
        await owned.queue._ask(c.Open(record.configuration))

    async def adopt_streams(self) -> None:
        """Enter the queues of the log that the bucket does not know: those of a copied log."""
        for stream in await self._in_thread(self._log.streams):
            name = stream.removeprefix(STREAM_PREFIX)
            if not stream.startswith(STREAM_PREFIX) or name in self._directory.queues:
                continue
            state = await self._in_thread(self.store.load, stream)
            if state.created and not state.deleted:
                try:
                    record = QueueRecord(name, state.configuration)
                    revision = await self._directory.bucket.put(queue_key(name), encode_record(record), 0)
                except MismatchError:
                    continue
                self._directory.note(record, revision)

    # --- letting go ---------------------------------------------------------------------------------------

    async def _release(self, seen: SeenQueue) -> None:
        """Hand a queue over to who should have it."""
        name = seen.record.name
        owned = self.queues.pop(name, None)
        epoch = seen.record.epoch
        if owned is not None:
            epoch = max(epoch, owned.epoch)
            await owned.hand_over()
        self._log.release(stream_of(name))
        await self._write(msgspec.structs.replace(seen.record, owner="", epoch=epoch), seen.revision)
        self._metrics.queues_released += 1

    async def _forget(self, name: str) -> None:
        """A queue that was deleted."""
        owned = self.queues.pop(name, None)
        if owned is not None:
            owned.end()
        self._log.release(stream_of(name))
        seen = self._directory.queues.get(name)
        if seen is not None:
            self._directory.forget(name, await self._directory.bucket.remove(queue_key(name), seen.revision))

    async def delete(self, name: str) -> None:
        """The queue was deleted in its log; take it out of the bucket.

        Raises:
            EventLogError: the bucket does not answer; the next owner will find the queue deleted.
        """
        forgetting = asyncio.get_running_loop().create_task(self._forget(name))
        if name not in self._changing:
            # Until the bucket has heard of it, it says that this node should have the queue.
            self._hold(name, forgetting)
        try:
            await forgetting
        except (MismatchError, UnansweredError, RefusedError) as error:
            raise EventLogError(f"delete queue {name!r}: {error}") from error

    def lose(self, name: str, why: str) -> None:
        """End a queue's actor at once: its events are somebody else's."""
        owned = self.queues.pop(name, None)
        if owned is not None:
            self._metrics.ownerships_lost += 1
            logger.warning("queue %s: %s does not own it any more: %s; its actor ends", name, self.member, why)
            owned.end()

    def lose_all(self, why: str) -> None:
        """End every queue: this node has lost its lease."""
        for name in list(self.queues):
            self.lose(name, why)

    def on_append_failed(self, stream: str, error: EventLogError) -> None:
        """An append for a queue failed, so its state is ahead of its log. On the node's loop."""
        name = stream.removeprefix(STREAM_PREFIX)
        if isinstance(error, OwnershipLostError):
            self.lose(name, str(error))
            return
        owned = self.queues.pop(name, None)
        if owned is not None:
            self._metrics.reopened_after_errors += 1
            logger.warning("queue %s: %s; its actor ends and is opened again from the log", name, error)
            owned.end()
        self._on_changed()

    def detach_gone_members(self) -> None:
        """End the subscriptions of nodes that are gone, on every owned queue."""
        for owned in list(self.queues.values()):
            owned.detach_members(self._is_gone)

    def _is_gone(self, member: str) -> bool:
        return member not in self._directory.members()

    async def stop(self) -> None:
        """Hand everything over, and end."""
        for task in list(self._changing.values()):
            task.cancel()
        if self._changing:
            await asyncio.wait(list(self._changing.values()))
        for name in list(self.queues):
            seen = self._directory.queues.get(name)
            try:
                if seen is not None and seen.record.owner == self.member:
                    await asyncio.wait_for(self._release(seen), self._configuration.lease_seconds)
            except (TimeoutError, MismatchError, UnansweredError, RefusedError, MessageQueueError) as error:
                logger.info("queue %s: not handed over, its lease will run out: %s", name, error)
            owned = self.queues.pop(name, None)
            if owned is not None:
                owned.end()
        await self.close()

    async def close(self) -> None:
        """Close the log."""
        try:
            await self._in_thread(self.store.close)
        finally:
            self._threads.shutdown(wait=False)
