"""Which ready message goes next, and to whom (SEMANTICS G2, G5, O1-O3, C2).

Ready messages with the same audience share a lane, in queue order; a copy for one audience member stands in
that member's own lane. A lane is looked at only while somebody in it can take a message, so messages without
a taker block nobody (G5) and cost nothing while they wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace, merge
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from mpreg_mq.projections.subscribers import Subscriber, Subscribers

if TYPE_CHECKING:
    from mpreg_mq.projections.message import Slot

Entry = tuple[float, int, int, "Slot"]
"""(rank, sequence number, ticket, slot): the order of the queue; smaller goes first. See :class:`Lane`."""

Head = tuple[float, int, int, "Lane"]
"""(rank, sequence number, lane number, lane): where a lane's first slot stands in the order of the queue."""

Place = tuple[float, int]
"""(rank, sequence number): where something stands in the order of the queue."""

BEHIND_ALL: Place = (inf, 0)
_MAX_CACHED_TOPICS = 100_000
_MAX_STALE_HEADS = 1_000
_MAX_IDLE_LANES = 1_000
"""Beyond as many as have slots in them."""
_MIN_STALE_ENTRIES = 256
_MIN_STALE_TOPICS = 256


class Lane:
    """Ready slots that the same subscribers may take, in queue order; :meth:`Lanes.place` puts them in.

    Slots that come in order, which is most of them, stand in a row; the others in a heap. A slot that leaves from
    the middle is not looked for: its entry is stale from then on, because the slot has another lane or another
    ticket, and goes when it comes first or when stale entries outnumber the others.
    """

    __slots__ = ("heap", "members", "number", "offered", "only", "pushes", "row", "size", "tickets", "topics")

    def __init__(self, number: int, members: tuple[str, ...], pushes: bool) -> None:
        self.number = number
        self.serve(members, pushes)
        self.size = 0
        self.topics: set[str] = set()
        """The topics of the slots in it, and perhaps of some that have left."""
        self.offered: Head | None = None
        self.row: deque[Entry] = deque()
        self.heap: list[Entry] = []
        self.tickets = 0

    def serve(self, members: tuple[str, ...], pushes: bool) -> None:
        """Be for these subscribers."""
        self.members = members
        self.only = members[0] if len(members) == 1 else None
        """The one member, where there is one only."""
        self.pushes = pushes
        """Whether any of them gets its messages without asking; only then it is among those that are offered."""

    def drop(self, slot: Slot) -> None:
        """Let a slot go. O(1), amortised."""
        slot.lane = None
        self.size = size = self.size - 1
        row = self.row
        if row and row[0][3] is slot:
            row.popleft()
        elif len(row) + len(self.heap) > 2 * size + _MIN_STALE_ENTRIES:
            self.row = deque(filter(self._is_current, row))
            self.heap = list(filter(self._is_current, self.heap))
            heapify(self.heap)

    def first(self) -> Entry | None:
        """The first slot's entry, or None. O(1), amortised."""
        row, heap = self.row, self.heap
        while row:
            entry = row[0]
            slot = entry[3]
            if slot.lane is self and slot.ticket == entry[2]:
                break
            row.popleft()
        while heap and not self._is_current(heap[0]):
            heappop(heap)
        if heap and (not row or heap[0] < row[0]):
            return heap[0]
        return row[0] if row else None

    def __iter__(self) -> Iterator[Entry]:
        """The entries in queue order, O(log n) each; nothing may change while they are read."""
        row: Iterator[Entry] = iter(self.row)
        return filter(self._is_current, merge(row, _in_order(self.heap)) if self.heap else row)

    def _is_current(self, entry: Entry) -> bool:
        slot = entry[3]
        return slot.lane is self and slot.ticket == entry[2]

    def check(self) -> None:
        """Assert that row and heap are in order, and that sizes agree."""
        row, heap = list(self.row), self.heap
        assert row == sorted(row)
        assert all(heap[(index - 1) // 2] <= heap[index] for index in range(1, len(heap)))
        entries = list(self)
        assert entries == sorted(entries)
        assert len(entries) == len({id(entry[3]) for entry in entries}) == self.size
        assert self.topics >= {entry[3].message.topic for entry in entries}
        assert self.first() is (entries[0] if entries else None)


def _in_order(heap: list[Entry]) -> Iterator[Entry]:
    """A heap's entries in order, without changing it: O(k log k) for the first k."""
    frontier = [(heap[0], 0)]
    while frontier:
        entry, index = heappop(frontier)
        yield entry
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heappush(frontier, (heap[child], child))


class Lanes:
    """The dispatch index. Derived from the other projections: it holds nothing that events do not imply."""

    def __init__(self, subscribers: Subscribers) -> None:
        self._subscribers = subscribers
        self._shared: dict[tuple[str, ...], Lane] = {}
        self._personal: dict[str, Lane] = {}
        self.lane_of_topic: dict[str, Lane] = {}
        self._lanes_of: dict[str, list[Lane]] = {}
        self._heads: list[Head] = []
        self.starved: set[str] = set()
        """Subscribers for which a lane may wait; whoever can take something again has to be woken."""
        self._numbers = count()
        self._most_lanes = _MAX_IDLE_LANES
        self.stale = False
        """Whether audiences have changed since the last look."""

    def __len__(self) -> int:
        """Slots that are ready."""
        return sum(lane.size for lane in self._all())

    def place(self, slot: Slot) -> None:
        """A slot became ready. O(1) where it is last in order, else O(log n)."""
        message = slot.message
        topic = message.topic
        if slot.subscriber_id is None:
            lane = self.lane_of_topic.get(topic) or self._shared_lane(topic)
        else:
            lane = self._personal_lane(slot.subscriber_id)
        slot.lane = lane
        slot.ticket = lane.tickets = ticket = lane.tickets + 1
        entry = (message.rank, message.seq, ticket, slot)
        row = lane.row
        if not row or row[-1] < entry:
            row.append(entry)
        else:
            heappush(lane.heap, entry)
        lane.size = size = lane.size + 1
        topics = lane.topics
        if topic not in topics:
            topics.add(topic)
            if len(topics) > 2 * size + _MIN_STALE_TOPICS:
                lane.topics = {entry[3].message.topic for entry in lane}
        offered = lane.offered
        if offered is None:
            if lane.pushes:
                self._offer(lane, entry if size == 1 else lane.first())
        elif (
            # Behind others in the row it cannot be the first.
            (size == 1 or lane.heap) and (entry[0] < offered[0] or (entry[0] == offered[0] and entry[1] < offered[1]))
        ):
            self._offer(lane, entry)
            # A head that was overtaken stays in the heap until it comes first, which may be never.
            if len(self._heads) > _MAX_STALE_HEADS + 2 * (len(self._shared) + len(self._personal)):
                self._requeue_heads()

    @staticmethod
    def remove(slot: Slot) -> None:
        """A ready slot is ready no more. O(1), amortised."""
        lane = slot.lane
        assert lane is not None
        lane.drop(slot)

    def subscriptions_changed(self) -> None:
        """Audiences have to be worked out again before the next look."""
        self.stale = True

    def wake(self, subscriber_id: str) -> None:
        """The subscriber may be able to take a message again. O(1) unless a lane had waited for it."""
        if subscriber_id in self.starved:
            self.starved.discard(subscriber_id)
            for lane in self._lanes_of.get(subscriber_id, ()):
                self._offer_again(lane)

    def next(self) -> tuple[Slot, Subscriber] | None:
        """The first ready slot in queue order that a push subscriber can take now, and that subscriber.

        O(log lanes) plus the size of the audience.
        """
        if self.stale:
            self.settle()
        heads = self._heads
        while heads:
            head = heads[0]
            lane = head[3]
            if lane.offered is not head:
                heappop(heads)
                continue
            row = lane.row
            # As Lane.first, in place: most often the first of a row with no heap is it.
            if row and not lane.heap and (slot := (first := row[0])[3]).lane is lane and slot.ticket == first[2]:
                pass
            else:
                found = lane.first() if lane.size else None
                if found is None:
                    heappop(heads)
                    lane.offered = None
                    continue
                first, slot = found, found[3]
            # Where no other lane could go before this one it does not matter that its head has gone.
            if len(heads) > 1 and (first[1] != head[1] or first[0] != head[0]):
                lane.offered = head = (first[0], first[1], lane.number, lane)
                heapreplace(heads, head)
                if heads[0] is not head:
                    continue
            only = lane.only
            if only is None:
                subscriber = self._choose(lane)
            elif (subscriber := self._subscribers.get(only)) is not None and (
                subscriber.pull or not subscriber.can_take()
            ):
                subscriber = None
            if subscriber is None:
                heappop(heads)
                lane.offered = None
                self.starved.update(lane.members)
                continue
            return slot, subscriber
        return None

    def front(self) -> tuple[Lane, Subscriber, Place] | None:
        """The lane whose first slots may go one after another, all to one push subscriber that can take them now.

        And where in the order of the queue another lane may come in between: only what stands before it may go. None
        where there is no such lane, which says nothing of :meth:`next`. O(1).
        """
        if self.stale:
            self.settle()
        heads = self._heads
        while heads:
            # As in next.
            head = heads[0]
            lane = head[3]
            first = lane.first() if lane.offered is head else None
            if first is None:
                heappop(heads)
                if lane.offered is head:
                    lane.offered = None
                continue
            if len(heads) == 1 or (first[1] == head[1] and first[0] == head[0]):
                break
            lane.offered = head = (first[0], first[1], lane.number, lane)
            heapreplace(heads, head)
            if heads[0] is head:
                break
        else:
            return None
        only = lane.only
        if lane.heap or only is None or only in self.starved:
            return None
        subscriber = self._subscribers.get(only)
        if subscriber is None or subscriber.pull or not subscriber.can_take():
            return None
        # In a heap the second smallest is one of two.
        others = heads[1:3]
        return lane, subscriber, min([(other[0], other[1]) for other in others]) if others else BEHIND_ALL

    def taker(self, lane: Lane) -> Subscriber | None:
        """The push subscriber that can take messages of a lane now, which nobody else can, where no slot is offered.

        None says nothing of :meth:`next`. O(1), amortised.
        """
        heads = self._heads
        while heads:
            head = heads[0]
            of_head = head[3]
            if of_head.offered is head:
                if of_head.size:
                    return None
                of_head.offered = None
            heappop(heads)
        only = lane.only
        if self.stale or only is None or lane.size or only in self.starved:
            return None
        subscriber = self._subscribers.get(only)
        return None if subscriber is None or subscriber.pull or not subscriber.can_take() else subscriber

    def ready_for(self, subscriber_id: str) -> Iterator[Slot]:
        """The ready slots that this subscriber may take, in queue order; nothing may change while it is read.

        O(lanes of the subscriber) for the first, O(log lanes) for each after it.
        """
        if self.stale:
            self.settle()
        lanes = self._lanes_of.get(subscriber_id, ())
        return (entry[3] for entry in merge(*lanes))

    @property
    def may_deliver(self) -> bool:
        """Whether :meth:`next` could find something; false for certain when nobody can take anything."""
        return self.stale or bool(self._heads)

    def clear(self) -> None:
        """Forget all slots; audiences are worked out again."""
        self._shared.clear()
        self._personal.clear()
        self.lane_of_topic.clear()
        self._lanes_of.clear()
        self._heads.clear()
        self.starved.clear()

    def _choose(self, lane: Lane) -> Subscriber | None:
        get = self._subscribers.get
        members = lane.members
        if len(members) == 1:
            only = get(members[0])
            return only if only is not None and not only.pull and only.can_take() else None
        best: Subscriber | None = None
        best_key = (0, 0)
        for subscriber_id in members:
            subscriber = get(subscriber_id)
            if subscriber is None or subscriber.pull or not subscriber.can_take():
                continue
            key = (len(subscriber.held), subscriber.last_used)
            if best is None or key < best_key:
                best, best_key = subscriber, key
        return best

    def _offer_again(self, lane: Lane) -> None:
        if lane.offered is None and lane.pushes:
            self._offer(lane, lane.first())

    def _offer(self, lane: Lane, first: Entry | None) -> None:
        if first is not None:
            lane.offered = (first[0], first[1], lane.number, lane)
            heappush(self._heads, lane.offered)

    def _shared_lane(self, topic: str) -> Lane:
        """The lane of a topic that is not known to have one."""
        members = self._subscribers.audience(topic)
        lane = self._shared.get(members)
        if lane is None:
            if len(self._shared) >= self._most_lanes:
                self._forget_idle()
            lane = self._shared[members] = Lane(next(self._numbers), members, self._pushes(members))
            for subscriber_id in members:
                self._lanes_of.setdefault(subscriber_id, []).append(lane)
        if len(self.lane_of_topic) >= _MAX_CACHED_TOPICS:
            self.lane_of_topic.clear()
        self.lane_of_topic[topic] = lane
        return lane

    def _forget_idle(self) -> None:
        """Forget lanes without slots: O(lanes and their members), once a thousand new ones and as many as are kept."""
        affected: set[str] = set()
        idle = {id(lane) for lane in self._shared.values() if not lane.size}
        for lane in self._shared.values():
            if not lane.size:
                lane.offered = None
                affected.update(lane.members)
        for subscriber_id in affected:
            kept = [lane for lane in self._lanes_of[subscriber_id] if id(lane) not in idle]
            if kept:
                self._lanes_of[subscriber_id] = kept
            else:
                del self._lanes_of[subscriber_id]
        self._shared = {members: lane for members, lane in self._shared.items() if lane.size}
        # While nothing is delivered, as in a replay, nobody takes old heads out.
        self._heads = [head for head in self._heads if head[3].offered is head]
        heapify(self._heads)
        self.lane_of_topic = {topic: lane for topic, lane in self.lane_of_topic.items() if lane.size}
        self._most_lanes = 2 * len(self._shared) + _MAX_IDLE_LANES

    def _personal_lane(self, subscriber_id: str) -> Lane:
        lane = self._personal.get(subscriber_id)
        if lane is None:
            members = (subscriber_id,)
            lane = self._personal[subscriber_id] = Lane(next(self._numbers), members, self._pushes(members))
            self._lanes_of.setdefault(subscriber_id, []).append(lane)
        return lane

    def _pushes(self, members: tuple[str, ...]) -> bool:
        for member in members:
            subscriber = self._subscribers.get(member)
            if subscriber is not None and not subscriber.pull:
                return True
        return False

    def _all(self) -> list[Lane]:
        return [*self._shared.values(), *self._personal.values()]

    def settle(self) -> None:
        """Work audiences out again: O(distinct ready topics), plus the slots of lanes that split."""
        self.stale = False
        old = list(self._shared.values())
        self._shared = {}
        self.lane_of_topic = {}
        self._lanes_of = {}
        self._personal = {key: lane for key, lane in self._personal.items() if lane.size}
        for subscriber_id, lane in self._personal.items():
            self._lanes_of[subscriber_id] = [lane]
            lane.pushes = self._pushes(lane.members)
        split: list[Lane] = []
        for lane in sorted(old, key=lambda lane: -lane.size):
            if not lane.size:
                continue
            audiences = {self._subscribers.audience(topic) for topic in lane.topics}
            if len(audiences) == 1 and (members := audiences.pop()) not in self._shared:
                self._adopt(lane, members)
            else:
                split.append(lane)
        for lane in split:
            for entry in list(lane):
                self.place(entry[3])
        self._requeue_heads()

    def _adopt(self, lane: Lane, members: tuple[str, ...]) -> None:
        """Keep a lane whole under its new audience; its slots need not move."""
        lane.serve(members, self._pushes(members))
        self._shared[members] = lane
        for subscriber_id in members:
            self._lanes_of.setdefault(subscriber_id, []).append(lane)
        for topic in lane.topics:
            self.lane_of_topic[topic] = lane

    def _requeue_heads(self) -> None:
        self._heads = []
        for lane in self._all():
            lane.offered = None
            self._offer_again(lane)

    def check(self) -> None:
        """Assert that slots know their lane, that lanes are sorted, and that no taker is overlooked."""
        if self.stale:
            self.settle()
        offered = {id(head) for head in self._heads}
        for lane in self._all():
            lane.check()
            assert lane.offered is None or id(lane.offered) in offered
            first = lane.first()
            if first is not None and lane.offered is None:
                assert self._choose(lane) is None
            if first is not None and lane.offered is not None:
                assert lane.offered[:2] <= first[:2]
        for members, lane in self._shared.items():
            assert lane.members == members
            assert all(self._subscribers.audience(topic) == members for topic in lane.topics)
