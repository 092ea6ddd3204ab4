"""Which ready message goes next, and to whom (SEMANTICS G2, G5, O1-O3, C2).

Ready messages with the same audience share a lane, in queue order; a copy for one audience member stands in
that member's own lane. A lane is looked at only while somebody in it can take a message, so messages without
a taker block nobody (G5) and cost nothing while they wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace, merge
from itertools import count
from typing import TYPE_CHECKING

from sortedcontainers import SortedList

from mpreg_mq.projections.subscribers import Subscriber, Subscribers

if TYPE_CHECKING:
    from mpreg_mq.projections.messages import Slot

Key = tuple[float, int]
"""(rank, sequence number): the order of the queue; smaller goes first."""

_MAX_CACHED_TOPICS = 100_000
_MAX_STALE_HEADS = 1_000


class Lane:
    """Ready slots that the same subscribers may take, in queue order; ``head`` is the first of them."""

    __slots__ = ("head", "members", "number", "queued", "slots", "topics")

    def __init__(self, number: int, members: tuple[str, ...]) -> None:
        self.number = number
        self.members = members
        self.slots: SortedList[tuple[float, int, Slot]] = SortedList()
        self.head: tuple[float, int, Slot] | None = None
        self.topics: dict[str, int] = {}
        self.queued: Key | None = None


class Lanes:
    """The dispatch index. Derived from the other projections: it holds nothing that events do not imply."""

    def __init__(self, subscribers: Subscribers) -> None:
        self._subscribers = subscribers
        self._shared: dict[tuple[str, ...], Lane] = {}
        self._personal: dict[str, Lane] = {}
        self._lane_of_topic: dict[str, Lane] = {}
        self._lanes_of: dict[str, list[Lane]] = {}
        self._heads: list[tuple[float, int, int, Lane]] = []
        self._starved: set[str] = set()
        self._numbers = count()
        self._stale = False

    def __len__(self) -> int:
        """Slots that are ready."""
        return sum(len(lane.slots) for lane in self._all())

    def place(self, slot: Slot) -> None:
        """A slot became ready. O(log n)."""
        if slot.subscriber_id is None:
            lane = self._shared_lane(slot.message.topic)
        else:
            lane = self._personal_lane(slot.subscriber_id)
        self._put(lane, slot)

    def remove(self, slot: Slot) -> None:
        """A ready slot is ready no more. O(log n)."""
        lane = slot.lane
        assert lane is not None
        slot.lane = None
        message = slot.message
        slots = lane.slots
        head = lane.head
        if head is not None and head[2] is slot:
            del slots[0]
            lane.head = slots[0] if slots else None
        else:
            slots.remove((message.rank, message.seq, slot))
        topics = lane.topics
        left = topics[message.topic] - 1
        if left:
            topics[message.topic] = left
        else:
            del topics[message.topic]

    def subscriptions_changed(self, subscriber_id: str) -> None:
        """Audiences have to be worked out again before the next look."""
        self._stale = True
        self._starved.add(subscriber_id)

    def wake(self, subscriber_id: str) -> None:
        """The subscriber may be able to take a message again. O(1) unless a lane had waited for it."""
        if subscriber_id in self._starved:
            self._starved.discard(subscriber_id)
            for lane in self._lanes_of.get(subscriber_id, ()):
                self._offer(lane)

    def next(self) -> tuple[Slot, Subscriber] | None:
        """The first ready slot in queue order that a push subscriber can take now, and that subscriber.

        O(log lanes) plus the size of the audience.
        """
        if self._stale:
            self._settle()
        heads = self._heads
        while heads:
            rank, seq, _, lane = heads[0]
            if lane.queued != (rank, seq):
                heappop(heads)
                continue
            if lane.head is None:
                heappop(heads)
                lane.queued = None
                continue
            first_rank, first_seq, slot = lane.head
            if first_seq != seq or first_rank != rank:
                lane.queued = (first_rank, first_seq)
                heapreplace(heads, (first_rank, first_seq, lane.number, lane))
                continue
            subscriber = self._choose(lane)
            if subscriber is None:
                heappop(heads)
                lane.queued = None
                self._starved.update(lane.members)
                continue
            return slot, subscriber
        return None

    def ready_for(self, subscriber_id: str) -> Iterator[Slot]:
        """The ready slots that this subscriber may take, in queue order; nothing may change while it is read.

        O(lanes of the subscriber) for the first, O(log lanes) for each after it.
        """
        if self._stale:
            self._settle()
        lanes = self._lanes_of.get(subscriber_id, ())
        return (slot for _, _, slot in merge(*(lane.slots for lane in lanes)))

    @property
    def may_deliver(self) -> bool:
        """Whether :meth:`next` could find something; false for certain when nobody can take anything."""
        return self._stale or bool(self._heads)

    def clear(self) -> None:
        """Forget all slots; audiences are worked out again."""
        self._shared.clear()
        self._personal.clear()
        self._lane_of_topic.clear()
        self._lanes_of.clear()
        self._heads.clear()
        self._starved.clear()

    def _choose(self, lane: Lane) -> Subscriber | None:
        best: Subscriber | None = None
        best_key = (0, 0)
        for subscriber_id in lane.members:
            subscriber = self._subscribers.get(subscriber_id)
            if subscriber is None or subscriber.pull or not subscriber.can_take():
                continue
            key = (len(subscriber.held), subscriber.last_used)
            if best is None or key < best_key:
                best, best_key = subscriber, key
        return best

    def _put(self, lane: Lane, slot: Slot) -> None:
        message = slot.message
        slot.lane = lane
        entry = (message.rank, message.seq, slot)
        lane.slots.add(entry)
        if lane.head is None or entry < lane.head:
            lane.head = entry
        topics = lane.topics
        topics[message.topic] = topics.get(message.topic, 0) + 1
        queued = lane.queued
        if queued is None:
            self._offer(lane)
        elif (message.rank, message.seq) < queued:
            lane.queued = (message.rank, message.seq)
            heappush(self._heads, (message.rank, message.seq, lane.number, lane))
            # A head that was overtaken stays in the heap until it comes first, which may be never.
            if len(self._heads) > _MAX_STALE_HEADS + 2 * (len(self._shared) + len(self._personal)):
                self._requeue_heads()

    def _offer(self, lane: Lane) -> None:
        if lane.queued is None and lane.head is not None and lane.members:
            rank, seq, _ = lane.head
            lane.queued = (rank, seq)
            heappush(self._heads, (rank, seq, lane.number, lane))

    def _shared_lane(self, topic: str) -> Lane:
        lane = self._lane_of_topic.get(topic)
        if lane is None:
            members = self._subscribers.audience(topic)
            lane = self._shared.get(members)
            if lane is None:
                lane = self._shared[members] = Lane(next(self._numbers), members)
                for subscriber_id in members:
                    self._lanes_of.setdefault(subscriber_id, []).append(lane)
            if len(self._lane_of_topic) >= _MAX_CACHED_TOPICS:
                self._lane_of_topic.clear()
            self._lane_of_topic[topic] = lane
        return lane

    def _personal_lane(self, subscriber_id: str) -> Lane:
        lane = self._personal.get(subscriber_id)
        if lane is None:
            lane = self._personal[subscriber_id] = Lane(next(self._numbers), (subscriber_id,))
            self._lanes_of.setdefault(subscriber_id, []).append(lane)
        return lane

    def _all(self) -> list[Lane]:
        return [*self._shared.values(), *self._personal.values()]

    def _settle(self) -> None:
        """Work audiences out again: O(distinct ready topics), plus the slots of lanes that split."""
        self._stale = False
        old = list(self._shared.values())
        self._shared = {}
        self._lane_of_topic = {}
        self._lanes_of = {}
        self._personal = {key: lane for key, lane in self._personal.items() if lane.slots}
        for subscriber_id, lane in self._personal.items():
            self._lanes_of[subscriber_id] = [lane]
        split: list[Lane] = []
        for lane in sorted(old, key=lambda lane: -len(lane.slots)):
            if not lane.slots:
                continue
            audiences = {self._subscribers.audience(topic) for topic in lane.topics}
            if len(audiences) == 1 and (members := audiences.pop()) not in self._shared:
                self._adopt(lane, members)
            else:
                split.append(lane)
        for lane in split:
            for _, _, slot in lane.slots:
                self._put(self._shared_lane(slot.message.topic), slot)
        self._requeue_heads()

    def _adopt(self, lane: Lane, members: tuple[str, ...]) -> None:
        """Keep a lane whole under its new audience; its slots need not move."""
        lane.members = members
        self._shared[members] = lane
        for subscriber_id in members:
            self._lanes_of.setdefault(subscriber_id, []).append(lane)
        for topic in lane.topics:
            self._lane_of_topic[topic] = lane

    def _requeue_heads(self) -> None:
        self._heads = []
        for lane in self._all():
            lane.queued = None
            self._offer(lane)

    def check(self) -> None:
        """Assert that slots know their lane, that lanes are sorted, and that no taker is overlooked."""
        if self._stale:
            self._settle()
        offered = {(rank, seq, number) for rank, seq, number, _ in self._heads}
        for lane in self._all():
            assert list(lane.slots) == sorted(lane.slots, key=lambda entry: entry[:2])
            assert sum(lane.topics.values()) == len(lane.slots)
            assert all(slot.lane is lane for _, _, slot in lane.slots)
            assert lane.head is (lane.slots[0] if lane.slots else None)
            assert lane.queued is None or (*lane.queued, lane.number) in offered
            if lane.slots and lane.queued is None:
                assert self._choose(lane) is None
            if lane.slots and lane.queued is not None:
                assert lane.queued <= lane.slots[0][:2]
        for members, lane in self._shared.items():
            assert lane.members == members
            assert all(self._subscribers.audience(topic) == members for topic in lane.topics)
