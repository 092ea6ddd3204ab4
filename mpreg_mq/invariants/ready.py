"""What is ready to be delivered, so that the order of deliveries can be judged (O1-O3).

Heaps whose outdated entries are dropped when they come first. A ready slot costs a push, and judging a delivery one
look where it is the first of all. Where it is not, what is ready is kept apart for each topic and member from then
on, which costs a second push, and judging costs one look for each set of subscribers that the topics of what is ready
are matched by, as far as this subscriber is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain

from mpreg_mq.invariants.messages import MessageFacts, SlotFacts
from mpreg_mq.invariants.subscribers import SubscriberTable

Entry = tuple[float, int, int, SlotFacts]
First = tuple[float, int, str]
"""Rank and number of what was the first of a topic when this was noted, and the topic."""

_MIN_COMPACTED = 1024


def _key(slot: SlotFacts) -> tuple[float, int]:
    return slot.message.rank, slot.message.seq


class Group:
    """The unfinished messages of one ``group_id``; ``started`` is the one that was delivered already."""

    __slots__ = ("started", "waiting")

    def __init__(self) -> None:
        self.started: MessageFacts | None = None
        self.waiting: list[tuple[float, int, MessageFacts]] = []

    def head(self) -> MessageFacts | None:
        """The only message of the group that may be delivered: the started one, else the first in order."""
        if self.started is not None:
            return self.started
        while self.waiting and self.waiting[0][2].finished:
            heappop(self.waiting)
        return self.waiting[0][2] if self.waiting else None


class Ready:
    """The slots of one queue that could be delivered now if somebody took them."""

    def __init__(self, subscribers: SubscriberTable) -> None:
        self._subscribers = subscribers
        self._tokens = 0
        self._due: list[tuple[float, int, SlotFacts]] = []
        self._due_limit = _MIN_COMPACTED
        self._all: list[Entry] = []
        self._placed = 0
        self._placed_limit = _MIN_COMPACTED
        self._divided = False
        self._by_topic: dict[str, list[Entry]] = {}
        self._by_member: dict[str, list[Entry]] = {}
        self._audiences: dict[frozenset[str], list[First]] = {}
        self._changes = 0
        self.groups: dict[str, Group] = {}

    # --- what changes it ----------------------------------------------------------------------------------

    def enter(self, message: MessageFacts, at: float) -> None:
        """A message was accepted."""
        group_id = message.group_id
        if group_id is None:
            self.wait(message.slot, at)
            return
        group = self.groups.get(group_id)
        if group is None:
            group = self.groups[group_id] = Group()
        heappush(group.waiting, (message.rank, message.seq, message))
        self.wait(message.slot, at)

    def wait(self, slot: SlotFacts, at: float) -> None:
        """A slot waits to be delivered, from its due time on."""
        message = slot.message
        self._tokens = token = self._tokens + 1
        if slot.due_at > at:
            slot.token = token
            heappush(self._due, (slot.due_at, token, slot))
            if len(self._due) > self._due_limit:
                self._due = [entry for entry in self._due if entry[2].token == entry[1]]
                heapify(self._due)
                self._due_limit = max(_MIN_COMPACTED, 2 * len(self._due))
        elif message.group_id is None or self._is_head(message):
            slot.token = token
            entry = (message.rank, message.seq, token, slot)
            heappush(self._all, entry)
            if self._divided:
                self._divide_entry(entry)
            # Not the length of one heap: judging empties the one of all, and the others keep what is outdated.
            self._placed = placed = self._placed + 1
            if placed > self._placed_limit:
                self._compact()
        else:
            # Its turn comes when it is the first of its group.
            slot.token = 0

    def withdraw(self, slot: SlotFacts) -> None:
        """A slot does not wait any more."""
        slot.token = 0

    def start(self, message: MessageFacts) -> None:
        """A message of a group was delivered or got its audience."""
        if message.group_id is not None:
            group = self.groups[message.group_id]
            if group.started is None:
                group.started = message

    def leave(self, message: MessageFacts, at: float) -> None:
        """A message of a group is finished; the next one of it may go."""
        assert message.group_id is not None
        group = self.groups.get(message.group_id)
        if group is None:
            return
        if group.started is message:
            group.started = None
        head = group.head()
        if head is None:
            del self.groups[message.group_id]
        elif head.started is None and not head.slot.token:
            self.wait(head.slot, at)

    def advance(self, at: float) -> None:
        """Time is ``at``: what was waiting for its due time is ready."""
        due = self._due
        while due and due[0][0] <= at:
            _, token, slot = heappop(due)
            if slot.token == token:
                self.wait(slot, at)

    def reorder(self, at: float) -> None:
        """The ranks of messages have changed."""
        self._all = [(slot.message.rank, slot.message.seq, token, slot) for _, _, token, slot in self._all]
        self._compact()
        for group in self.groups.values():
            before = group.head()
            group.waiting = [(message.rank, message.seq, message) for _, _, message in group.waiting]
            heapify(group.waiting)
            head = group.head()
            if before is not None and head is not None and head is not before:
                self.withdraw(before.slot)
                self.wait(head.slot, at)

    def _divide_entry(self, entry: Entry) -> None:
        """Keep it with those of its member, or of its topic where it is for anybody who matches."""
        rank, seq, _, slot = entry
        if slot.subscriber_id is not None:
            heappush(self._by_member.setdefault(slot.subscriber_id, []), entry)
            return
        topic = slot.message.event.topic
        heap = self._by_topic.setdefault(topic, [])
        heappush(heap, entry)
        if heap[0] is entry and self._changes == self._subscribers.changes:
            heappush(self._audiences.setdefault(self._subscribers.audience(topic), []), (rank, seq, topic))

    def _compact(self) -> None:
        """Forget outdated entries, and with them the messages they keep alive; amortised O(1) for each push."""
        self._all = sorted(entry for entry in self._all if entry[3].token == entry[2])
        self._divided = False
        self._by_topic.clear()
        self._by_member.clear()
        self._audiences.clear()
        self._placed = len(self._all)
        self._placed_limit = max(_MIN_COMPACTED, 2 * self._placed)

    def _divide(self) -> None:
        """Keep entries for each topic and member, too; amortised O(log n) for each push since it was compacted."""
        self._divided = True
        self._changes = self._subscribers.changes
        for entry in sorted(entry for entry in self._all if entry[3].token == entry[2]):
            self._divide_entry(entry)

    def _gather(self) -> None:
        """Put the topics together anew by who matches them, after subscriptions changed; O(topics)."""
        self._changes = self._subscribers.changes
        self._audiences.clear()
        for topic, heap in self._by_topic.items():
            if heap:
                self._audiences.setdefault(self._subscribers.audience(topic), []).append((*heap[0][:2], topic))
        for firsts in self._audiences.values():
            heapify(firsts)

    def _is_head(self, message: MessageFacts) -> bool:
        return message.group_id is None or self.groups[message.group_id].head() is message

    @property
    def size(self) -> int:
        """Entries kept, outdated ones included."""
        parts = chain(self._by_topic.values(), self._by_member.values())
        firsts = sum(len(firsts) for firsts in self._audiences.values())
        return len(self._all) + len(self._due) + firsts + sum(len(part) for part in parts)

    # --- judging a delivery -------------------------------------------------------------------------------

    def overtaken(self, slot: SlotFacts, subscriber_id: str, at: float) -> SlotFacts | None:
        """A ready slot that this subscriber could have been given and that comes before this one, or None."""
        first = self._first(self._all, at)
        if first is None or first is slot:
            return None
        key = _key(slot)
        if _key(first) >= key:
            return None
        before = [other for other in self._firsts_for(subscriber_id, at) if _key(other) < key]
        return min(before, key=_key, default=None)

    def _firsts_for(self, subscriber_id: str, at: float) -> Iterator[SlotFacts]:
        if not self._divided:
            self._divide()
        elif self._changes != self._subscribers.changes:
            self._gather()
        own = self._first(self._by_member.get(subscriber_id, []), at)
        if own is not None:
            yield own
        for audience, firsts in self._audiences.items():
            if subscriber_id in audience:
                shared = self._first_of(firsts, at)
                if shared is not None:
                    yield shared

    def _first_of(self, firsts: list[First], at: float) -> SlotFacts | None:
        """The first of some topics; what was noted of each is brought up to date when it comes first."""
        while firsts:
            rank, seq, topic = firsts[0]
            first = self._first(self._by_topic[topic], at)
            if first is None:
                heappop(firsts)
            elif _key(first) != (rank, seq):
                heapreplace(firsts, (*_key(first), topic))
            else:
                return first
        return None

    def _first(self, heap: list[Entry], at: float) -> SlotFacts | None:
        while heap:
            _, _, token, slot = heap[0]
            if slot.token == token:
                expires_at = slot.message.expires_at
                if (expires_at is None or at < expires_at) and self._is_head(slot.message):
                    return slot
                slot.token = 0
            heappop(heap)
        return None
