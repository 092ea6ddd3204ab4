"""A node's view of the cluster: who lives, who owns which queue, by what it saw and its own clock alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs

from mpreg_mq.cluster.bucket import Bucket, Entry
from mpreg_mq.cluster.records import DrainRecord, NodeRecord, QueueRecord, decode_record


@attrs.define
class SeenNode:
    """A node's record, and when a change of it was last seen (by this process's monotonic clock)."""

    record: NodeRecord
    revision: int
    seen_at: float


@attrs.define
class SeenQueue:
    """A queue's record and the revision that the next change of it expects."""

    record: QueueRecord
    revision: int


class Directory:
    """The bucket's entries as of the last look.

    A lease is not a moment in time but a duration: a node has lost its lease when its record was not seen to change for
    ``lease_seconds``, while the looks themselves succeeded. So no two clocks are compared, and an outage of the servers
    makes nobody look dead: while they were away, time did not count.
    """

    def __init__(self, bucket: Bucket, clock: Callable[[], float], longest_gap_seconds: float) -> None:
        self.bucket = bucket
        self.nodes: dict[str, SeenNode] = {}
        self.queues: dict[str, SeenQueue] = {}
        self.removed: dict[str, int] = {}
        """Queues that are not there any more: the revision that making them again expects."""
        self.drained: set[str] = set()
        self.revision = 0
        self._clock = clock
        self._longest_gap = longest_gap_seconds
        self._looked_at: float | None = None
        self._changed = asyncio.Event()
        self._seen: tuple[frozenset[str], dict[str, str]] = (frozenset(), {})

    # --- looking ------------------------------------------------------------------------------------------

    async def refresh(self) -> bool:
        """Look what changed; whether anything but leases did.

        Raises:
            UnansweredError: no answer; the view is as it was.
        """
        entries = await self.bucket.changes(self.revision)
        now = self._clock()
        gap = 0.0 if self._looked_at is None else now - self._looked_at
        if gap > self._longest_gap:
            for node in self.nodes.values():
                node.seen_at += gap
        self._looked_at = now
        changed = False
        for entry in entries:
            changed = self._take(entry, now) or changed
            self.revision = max(self.revision, entry.revision)
        before, self._seen = self._seen, (self.members(), self.candidates())
        if changed or before != self._seen:
            self.announce()
            return True
        return False

    def _take(self, entry: Entry, now: float) -> bool:
        kind, _, name = entry.key.partition(".")
        if kind == "node":
            if entry.value is None:
                self.nodes.pop(name, None)
            else:
                record = decode_record(NodeRecord, entry.value, entry.key)
                self.nodes[name] = SeenNode(record, entry.revision, now)
            return False
        if kind == "queue":
            name = name.replace("=2E", ".")
            known = self.queues.get(name)
            if known is not None and known.revision >= entry.revision:
                return False
            if entry.value is None:
                self.queues.pop(name, None)
                self.removed[name] = entry.revision
            else:
                self.removed.pop(name, None)
                self.queues[name] = SeenQueue(decode_record(QueueRecord, entry.value, entry.key), entry.revision)
            return True
        if kind == "drain":
            if entry.value is None:
                self.drained.discard(name)
            else:
                self.drained.add(decode_record(DrainRecord, entry.value, entry.key).node)
            return True
        return False

    def note(self, record: QueueRecord, revision: int) -> None:
        """What this node itself has just written of a queue."""
        known = self.queues.get(record.name)
        if known is None or known.revision < revision:
            self.queues[record.name] = SeenQueue(record, revision)
            self.removed.pop(record.name, None)
            self.announce()

    def forget(self, name: str, revision: int) -> None:
        """This node has just removed a queue."""
        self.queues.pop(name, None)
        self.removed[name] = revision
        self.announce()

    # --- being told ---------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Wake everybody who waits for a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changed(self, seconds: float) -> None:
        """Wait for the next change of queues or members, at most so long."""
        event = self._changed
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await event.wait()
        except TimeoutError:
            return

    # --- asking -------------------------------------------------------------------------------------------

    def members(self) -> frozenset[str]:
        """The members whose leases hold."""
        now = self._clock()
        return frozenset(
            node.record.member for node in self.nodes.values() if now - node.seen_at < node.record.lease_seconds
        )

    def expired(self) -> list[SeenNode]:
        """Nodes that have lost their lease."""
        live = self.members()
        return [node for node in self.nodes.values() if node.record.member not in live]

    def is_draining(self, node: str) -> bool:
        """Whether a node gives its queues away, because it or an operator wants that."""
        seen = self.nodes.get(node)
        return node in self.drained or (seen is not None and seen.record.draining)

    def candidates(self) -> dict[str, str]:
        """Members that may own queues, by node id."""
        live = self.members()
        return {
            name: node.record.member
            for name, node in self.nodes.items()
            if node.record.member in live and node.record.owns_queues and not self.is_draining(name)
        }

    def owner(self, queue: str) -> str | None:
        """The living member that owns a queue, or None."""
        seen = self.queues.get(queue)
        if seen is None or seen.record.owner not in self.members():
            return None
        return seen.record.owner
